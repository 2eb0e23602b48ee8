"""Benchmark of the service, second part: many rows in a request, a swap under load, two processes, whole files, and the start.

Each is held against what it cannot beat: the raw signature on arrays in memory, the same load without a swap, one process, `import tensorflow` alone.
"""

import argparse
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import psutil
from load import Load, running, wrk
from machine import machine, markdown
from serving import free_port, sample

LABLINE = str(Path(sys.executable).with_name("labline"))
RAW = """
import json, sys, time
import tensorflow as tf
tf.config.threading.set_intra_op_parallelism_threads(1)
tf.config.threading.set_inter_op_parallelism_threads(1)
signature = tf.saved_model.load(sys.argv[1]).signatures["serving_default"]
rows = json.load(sys.stdin)
size, seconds = len(rows), float(sys.argv[2])
types = {name: spec.dtype for name, spec in signature.structured_input_signature[1].items()}
tensors = {name: tf.constant([row[name] for row in rows], kind) for name, kind in types.items()}
for _ in range(5):
    signature(**tensors)
calls, begin = 0, time.perf_counter()
while time.perf_counter() - begin < seconds:
    [values.numpy() for values in signature(**tensors).values()]
    calls += 1
print(calls * size / (time.perf_counter() - begin))
"""
GRPC = """
import json, sys, time
from concurrent.futures import ThreadPoolExecutor
import grpc, numpy as np, tensorflow as tf
from tensorflow_serving.apis import predict_pb2
rows = json.load(sys.stdin)
port, seconds = sys.argv[2], float(sys.argv[3])
request = predict_pb2.PredictRequest()
request.model_spec.name = sys.argv[4]
for name, value in rows[0].items():
    values = [row[name] for row in rows]
    request.inputs[name].CopyFrom(tf.make_tensor_proto(np.array(values, np.float32) if isinstance(value, float) else values))
call = grpc.insecure_channel("127.0.0.1:" + port).unary_unary("/tensorflow.serving.PredictionService/Predict")
body = request.SerializeToString()
call(body)
def work(_):
    calls = 0
    while time.perf_counter() < end:
        call(body)
        calls += 1
    return calls
begin = time.perf_counter()
end = begin + seconds
with ThreadPoolExecutor(2) as pool:
    calls = sum(pool.map(work, range(2)))
print(calls * 1000 / (time.perf_counter() - begin))
"""


def printed(program: str, rows: list[dict[str, object]], *arguments: object) -> float:
    """The number that a program prints last, when it is given some rows."""
    command = [sys.executable, "-c", program, *map(str, arguments)]
    return float(subprocess.run(command, input=json.dumps(rows), capture_output=True, text=True, check=True).stdout.split()[-1])


def labline(bundle: Path, folder: Path, *options: str) -> list[str]:
    """The command that serves a bundle with its durable log."""
    settings = [f"log=sqlite:///{folder}/predictions.db", f"state={folder}/state.json", f"keys={folder}/keys.json", f"folders={bundle.parents[1]}"]
    return [LABLINE, "serve", "--release", str(bundle), *(word for setting in settings for word in ("--set", setting)), *options]


def complete_rows(bundle: Path, count: int) -> list[dict[str, object]]:
    """Rows without a gap, in which the samples of a bundle repeat."""
    samples = json.loads((bundle / "assets.extra" / "samples.json").read_text())["instances"][:-2]  # the last two are odd on purpose
    whole = [row for row in samples if all(value == value for value in row.values())]
    return [whole[place % len(whole)] for place in range(count)]


def many_rows(bundle: Path, folder: Path, seconds: float) -> dict[str, float]:
    """Rows a second in requests of 1,000 rows, by JSON and by gRPC, without and with the durable log, and through the raw signature."""
    rows, name = complete_rows(bundle, 1000), bundle.parent.name
    columns = {column: [row[column] for row in rows] for column in rows[0]}
    bodies = {"JSON, named fields": ("/predict", {"rows": rows}), "JSON, columns": (f"/v1/models/{name}:predict", {"inputs": columns})}
    found = {"raw signature, arrays in memory": printed(RAW, rows, bundle, seconds)}
    for log, options in (("no log", ["--set", "log=off"]), ("durable log", [])):
        port, grpc_port = free_port(), free_port()
        url, ports = f"http://127.0.0.1:{port}", ["--port", str(port), "--grpc-port", str(grpc_port)]
        with running(labline(bundle, folder, *ports, *options), f"{url}/predict", json.dumps(rows[0]).encode(), folder, {}) as (server, _):
            for form, (path, body) in bodies.items():
                found[f"{form}, {log}"] = 1000 * wrk(server, url + path, json.dumps(body).encode(), 2, seconds).rate
            found[f"gRPC, {log}"] = printed(GRPC, rows, bundle, grpc_port, seconds, name)
    return found


def swaps(bundle: Path, folder: Path, times: int) -> dict[str, float]:
    """The p99 in seconds without and with a swap to another version and back, milliseconds."""
    releases = folder / "releases" / bundle.parent.name
    for version in ("1", "2"):
        shutil.copytree(bundle, releases / version)
    row, port = json.dumps(sample(bundle)).encode(), free_port()
    url, found, failed = f"http://127.0.0.1:{port}", {"quiet": [], "swap": []}, 0  # type: ignore[var-annotated]
    with running(labline(releases / "1", folder, "--port", str(port)), f"{url}/predict", row, folder, {}) as (server, _):
        wrk(server, f"{url}/predict", row, 64, 2)
        for turn in range(times):
            found["quiet"].append(wrk(server, f"{url}/predict", row, 64, 1))
            body = json.dumps({"folder": str(releases / str(2 - turn % 2))}).encode()
            thread = threading.Thread(target=lambda body=body: post(f"{url}/releases", body))
            thread.start()
            loads = []
            while thread.is_alive():
                loads.append(wrk(server, f"{url}/predict", row, 64, 1))
            thread.join()
            found["swap"].append(max(loads, key=lambda load: load.p99))
            failed += sum(load.failed for load in loads)
    return {name: statistics.median(load.p99 for load in loads) for name, loads in found.items()} | {"failed": float(failed)}


def post(url: str, body: bytes) -> bytes:
    """The answer to a request that must succeed."""
    request = urllib.request.Request(url, body, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=300) as reply:
        return reply.read()


def processes(bundle: Path, folder: Path, seconds: float) -> dict[str, Load]:
    """The same load on one and on two processes."""
    row, found = json.dumps(sample(bundle)).encode(), {}
    for workers in ("1", "2"):
        port = free_port()
        url = f"http://127.0.0.1:{port}/predict"
        with running(labline(bundle, folder, "--port", str(port), "--workers", workers), url, row, folder, {}) as (server, _):
            wrk(server, url, row, 64, 2)
            found[workers] = wrk(server, url, row, 64, seconds)
    return found


def files(bundle: Path, folder: Path, rows: int, seconds: float) -> dict[str, float]:
    """Rows a second from parquet to parquet, through the raw signature, and the peak memory in MB."""
    repeated = complete_rows(bundle, 100_000)
    part = pa.table({name: [row[name] for row in repeated] for name in repeated[0]})
    with pq.ParquetWriter(folder / "rows.parquet", part.schema) as writer:
        for _ in range(rows // 100_000):
            writer.write_table(part)
    begin, peak = time.perf_counter(), 0
    command = [LABLINE, "score", str(folder / "rows.parquet"), str(folder / "answers.parquet"), "--release", str(bundle)]
    process = psutil.Popen(command, cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while process.poll() is None:
        with np.errstate(all="ignore"):
            peak = max(peak, process.memory_info().rss if process.is_running() and process.status() != psutil.STATUS_ZOMBIE else 0)
        time.sleep(0.1)
    rate = rows / (time.perf_counter() - begin)
    assert process.returncode == 0 and pq.read_metadata(folder / "answers.parquet").num_rows == rows
    return {"labline score": rate, "raw": printed(RAW, complete_rows(bundle, 4096), bundle, seconds), "megabytes": peak / 1e6}


def starts(bundle: Path, folder: Path, runs: int) -> dict[str, float]:
    """Seconds from the command to the first good answer, and of `import tensorflow` alone."""
    row, own, bare = json.dumps(sample(bundle)).encode(), [], []
    for _ in range(runs):
        port = free_port()
        with running(labline(bundle, folder, "--port", str(port)), f"http://127.0.0.1:{port}/predict", row, folder, {}) as (_, seconds):
            own.append(seconds)
        begin = time.perf_counter()
        subprocess.run([sys.executable, "-c", "import tensorflow"], check=True, capture_output=True)
        bare.append(time.perf_counter() - begin)
    return {"service": statistics.median(own), "import tensorflow": statistics.median(bare)}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--bundle", type=Path, default=Path("build/package/eta/1"), help="the champion's bundle")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=5)
    parser.add_argument("--rows", type=int, default=10_000_000, help="rows of the file that is scored")
    parser.add_argument("--only", nargs="*", default=["rows", "swaps", "processes", "files", "starts"])
    options = parser.parse_args()
    bundle, table = options.bundle.resolve(), list[Sequence[object]]()

    def medians(measure: Callable[[Path], dict[str, float]]) -> dict[str, float]:
        found = []
        for _ in range(options.runs):
            with tempfile.TemporaryDirectory() as folder:
                found.append(measure(Path(folder)))
        return {name: statistics.median(one[name] for one in found) for name in found[0]}

    if "rows" in options.only:
        found = medians(lambda folder: many_rows(bundle, folder, options.seconds))
        raw = found.pop("raw signature, arrays in memory")
        table += [(f"1,000-row requests, {name}", f"{rate:,.0f} rows/s", f"raw {raw:,.0f}", f"{rate / raw:.0%}", "≥ 70 %") for name, rate in found.items()]
    if "swaps" in options.only:
        with tempfile.TemporaryDirectory() as folder:
            found = swaps(bundle, Path(folder), 2 * options.runs)
        kept = f"{found['swap']:.1f} ms, {found['failed']:.0f} failed", f"quiet {found['quiet']:.1f} ms", f"{found['swap'] / found['quiet']:.2f}", "≤ 1.5"
        table.append(("p99 in the second around a swap", *kept))
    if "processes" in options.only:
        rates = medians(lambda folder: {name: load.rate for name, load in processes(bundle, folder, options.seconds).items()})
        table.append(("two processes", f"{rates['2']:,.0f} requests/s", f"one {rates['1']:,.0f}", f"{rates['2'] / rates['1']:.2f}", "≥ 1.3"))
    if "files" in options.only:
        with tempfile.TemporaryDirectory() as folder:
            found = files(bundle, Path(folder), options.rows, options.seconds)
        kept = f"{found['labline score']:,.0f} rows/s", f"raw {found['raw']:,.0f}", f"{found['labline score'] / found['raw']:.0%}", "≥ 70 %"
        table += [(f"`labline score`, {options.rows:,} rows", *kept), ("its peak memory", f"{found['megabytes']:,.0f} MB", "", "", "< 1,500 MB")]
    if "starts" in options.only:
        with tempfile.TemporaryDirectory() as folder:
            found = starts(bundle, Path(folder), options.runs)
        own, bare = found["service"], found["import tensorflow"]
        table.append(("start to first good answer", f"{own:.1f} s", f"`import tensorflow` {bare:.1f} s", f"{own / bare:.2f}", "≤ 1.3"))
    print(f"{machine('uvicorn', 'msgspec', 'sqlalchemy', 'tensorflow-cpu')}; medians of {options.runs} runs\n")
    print(markdown(["what", "measured", "beside it", "ratio", "goal"], table))


if __name__ == "__main__":
    main()
