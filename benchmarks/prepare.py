"""Benchmark 2: rows per second and peak memory of `validate` and `prepare` on 0.1, 1 and 10 million simulated legs.

Each size is simulated, validated and prepared by the same functions that the stages call, with the feature builder and the split of
`params.yaml`. Each measurement is a fresh process, whose peak resident memory the operating system reports. The largest size needs about
5 GB on the disk of the temporary folder. The line `growth` is the time for a row at this size divided by that at the size before; 1 is linear.
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from machine import machine, markdown

ROOT = Path(__file__).parents[1]
STEPS = ("simulate", "validate", "prepare")
LIMIT_GB = 4.0


def simulate(folder: Path, rows: int) -> None:
    """Write raw tables of about `rows` legs over twelve months."""
    from labline.rides.dispatch import write_raw
    from labline.rides.scenario import Scenario

    write_raw(Scenario(legs=rows), folder / "data")


def validate(folder: Path, memory_limit: str) -> None:
    """What the stage `validate` calls."""
    from labline.data.contract import Contract
    from labline.data.quality import validate as run

    run(Contract.load(ROOT / "contract.yaml"), folder / "data", folder / "validate", memory_limit=memory_limit)


def prepare(folder: Path, memory_limit: str) -> None:
    """What the stage `prepare` calls."""
    from labline.data.contract import Contract
    from labline.data.preparation import prepare as run
    from labline.data.splits import SplitSettings
    from labline.settings import load_parameters

    given = load_parameters(ROOT / "params.yaml")["prepare"]
    split = SplitSettings(given["validation_days"], given["test_days"], given["gap_days"])
    contract = Contract.load(ROOT / "contract.yaml")
    run(contract, folder / "validate" / "tables", folder / "prepare", given["builder"], {}, split, memory_limit)


def measure(step: str, folder: Path, rows: int, memory_limit: str) -> dict[str, float]:
    """Run one step in a fresh process; seconds of the step without imports, and the peak resident memory in GB."""
    command = [sys.executable, __file__, "--step", step, "--folder", str(folder), "--sizes", str(rows), "--memory-limit", memory_limit]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{step} of {rows:,} rows ended with {done.returncode}\n{done.stderr[-3000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def run_step(step: str, folder: Path, rows: int, memory_limit: str) -> None:
    """One step in this process; prints its measurement as JSON."""
    start = time.perf_counter()
    if step == "simulate":
        simulate(folder, rows)
    else:
        {"validate": validate, "prepare": prepare}[step](folder, memory_limit)
    seconds = time.perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    print(json.dumps({"seconds": seconds, "gigabytes": peak / 1e9}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sizes", type=int, nargs="+", default=[100_000, 1_000_000, 10_000_000], help="numbers of legs")
    parser.add_argument("--memory-limit", default="2GB", help="of DuckDB, as in the stages' parameter `memory_limit`")
    parser.add_argument("--step", choices=STEPS, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.step:
        run_step(given.step, given.folder, given.sizes[0], given.memory_limit)
        return
    lines, before = [], dict.fromkeys(STEPS, 0.0)
    for rows in given.sizes:
        with tempfile.TemporaryDirectory(prefix="labline-benchmark-") as folder:
            for step in STEPS:
                found = measure(step, Path(folder), rows, given.memory_limit)
                each = found["seconds"] / rows
                growth = f"{each / before[step]:.2f}" if before[step] else ""
                before[step] = each
                lines.append([step, f"{rows:,}", f"{found['seconds']:.1f}", f"{1 / each:,.0f}", growth, f"{found['gigabytes']:.2f}"])
                if step != "simulate" and found["gigabytes"] > LIMIT_GB:
                    print(f"{step} of {rows:,} rows took more than {LIMIT_GB:g} GB", file=sys.stderr)
    print(f"DuckDB may hold {given.memory_limit}; {machine('duckdb', 'ibis-framework')}\n")
    print(markdown(["step", "legs", "seconds", "legs/s", "growth", "peak GB"], lines))


if __name__ == "__main__":
    main()
