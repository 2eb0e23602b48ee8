"""The long form of the fault tests: minutes of mixed load with many changes of the release.

No request may fail, and memory must be flat after the first minute.

Connections ask in turn for one complete row, one row with its look-ups left out, and fifty rows in TensorFlow Serving's format, while two versions of the
release take turns. The short form is a test (`tests/test_serving_faults.py`).
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import tempfile
import time
from pathlib import Path

from load import running, tree
from machine import machine, markdown
from serving import free_port, sample
from serving_more import labline, post

from labline.data.contract import Contract

SCRIPT = """
local requests, place = {}, 0
local headers = {["Content-Type"] = "application/json"}
function init(arguments)
  for number = 1, 3 do
    local file = io.open(os.getenv("WRK_FOLDER") .. "/body" .. number, "rb")
    local body = file:read("*a")
    file:close()
    requests[number] = wrk.format("POST", number == 3 and os.getenv("WRK_PATH") or "/predict", headers, body)
  end
end
function request()
  place = place % 3 + 1
  return requests[place]
end
function done(summary, latency, requests)
  local errors = summary.errors
  io.write(string.format('\\nRESULT [%d, %d, %d]\\n', summary.requests, errors.status + errors.connect + errors.read + errors.write + errors.timeout,
    latency:percentile(99)))
end
"""


def main() -> None:
    """Serve, put load on, change the release again and again, and print what came of it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--bundle", type=Path, default=Path("build/package/eta/1"), help="the champion's bundle")
    parser.add_argument("--seconds", type=float, default=600)
    parser.add_argument("--swaps", type=int, default=50)
    options = parser.parse_args()
    bundle = options.bundle.resolve()
    row, name = sample(bundle), bundle.parent.name
    lookups = Contract.load(bundle / "assets.extra" / "contract.yaml").lookups
    known = {column: value for column, value in row.items() if column not in lookups}
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        for version in ("1", "2"):
            shutil.copytree(bundle, folder / "releases" / name / version)
        for number, body in enumerate((row, known, {"instances": [row] * 50}), start=1):
            (folder / f"body{number}").write_text(json.dumps(body))
        (folder / "mixed.lua").write_text(SCRIPT)
        port = free_port()
        url = f"http://127.0.0.1:{port}"
        command = labline(folder / "releases" / name / "1", folder, "--port", str(port))
        with running(command, f"{url}/predict", json.dumps(row).encode(), folder, {}) as (server, _):
            variables = {**os.environ, "WRK_FOLDER": place, "WRK_PATH": f"/v1/models/{name}:predict"}
            words = ["wrk", "-t1", "-c16", f"-d{options.seconds:g}s", "--timeout", "30s", "-s", f"{folder}/mixed.lua", url]
            load = subprocess.Popen(words, env=variables, stdout=subprocess.PIPE, text=True)
            begin, changed, memory = time.monotonic(), 0, list[tuple[float, float]]()
            while load.poll() is None:
                passed = time.monotonic() - begin
                memory.append((passed, sum(one.memory_info().rss for one in tree(server)) / 1e6))
                if changed < options.swaps and passed > (changed + 0.5) * options.seconds / options.swaps:
                    changed += 1
                    post(f"{url}/releases", json.dumps({"folder": str(folder / "releases" / name / str(1 + changed % 2))}).encode())
                time.sleep(0.5)
            said = load.stdout.read() if load.stdout is not None else ""
    requests, failed, slow = json.loads(next(line for line in said.splitlines() if line.startswith("RESULT ")).removeprefix("RESULT "))
    later = [size for passed, size in memory if passed > min(60, options.seconds / 2)]
    third = len(later) // 3
    print(f"{machine('uvicorn', 'tensorflow-cpu')}; {options.seconds:g} s at 16 connections\n")
    rows = [
        ("requests", f"{requests:,}"), ("failed", str(failed)), ("changes of the release", str(changed)), ("p99, ms", f"{slow / 1e3:.1f}"),
        ("memory after the first minute, MB: first third, last third", f"{statistics.median(later[:third]):.0f}, {statistics.median(later[-third:]):.0f}"),
    ]
    print(markdown(["what", "measured"], rows))


if __name__ == "__main__":
    main()
