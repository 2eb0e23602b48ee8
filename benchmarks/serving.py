"""Benchmark of the service: single rows at 64 connections and at one, against MLflow, BentoML and FastAPI in an environment of their own.

All serve the same champion and get the same row, complete. Labline is measured with its durable log, without log, and with a constant in place of
the model, which is the floor of its own shell; uvicorn with an application that does nothing is the floor of the machine. One server runs at a time, the
load generator beside it; sides take turns.
"""

import argparse
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from environments import environment
from load import Load, running, wrk
from machine import machine, markdown

PEERS = Path(__file__).parent / "peers"
PACKAGES = ["mlflow", "bentoml", "fastapi", "uvicorn[standard]", "tensorflow-cpu==2.21.*", "numpy<2.5"]
GOALS = {"MLflow": "120", "BentoML": "30", "FastAPI": "18"}


@dataclass(frozen=True)
class Side:
    """One way to serve the champion.

    Parameters
    ----------
    name : in the table.
    command : with `{port}` in it.
    path : of the request.
    body : of the request.
    variables : of the process.
    """

    name: str
    command: Sequence[str]
    path: str
    body: bytes
    variables: dict[str, str] = field(default_factory=dict)


def sample(bundle: Path) -> dict[str, object]:
    """The first sample request of a bundle; what is missing is `None`."""
    row = json.loads((bundle / "assets.extra" / "samples.json").read_text())["instances"][0]
    return {name: None if value != value else value for name, value in row.items()}


def own_sides(bundle: Path, folder: Path) -> list[Side]:
    """Labline with its durable log, without log, and with a constant in place of the model; uvicorn with an application that does nothing."""
    row = json.dumps(sample(bundle)).encode()
    log = f"sqlite:///{folder}/predictions.db"

    def side(name: str, program: Sequence[str], log: str) -> Side:
        command = [*program, "--release", str(bundle), "--port", "{port}", "--set", f"log={log}", "--set", f"state={folder}/{name}.json"]
        return Side(name, command, "/predict", row)

    labline = [str(Path(sys.executable).with_name("labline")), "serve"]
    floor = [sys.executable, str(PEERS / "constant.py")]
    empty = [sys.executable, "-m", "uvicorn", "--app-dir", str(PEERS), "empty:application", "--port", "{port}", "--log-level", "warning", "--no-access-log"]
    sides = [side("Labline, durable log", labline, log), side("Labline, no log", labline, "off"), side("Labline, constant", floor, "off")]
    return [*sides, Side("uvicorn, empty", [*empty, "--loop", "uvloop"], "/", row)]


def other_sides(bundle: Path, folder: Path, python: Path) -> list[Side]:
    """FastAPI with one signature call for each request, BentoML with adaptive batching, and MLflow."""
    row, programs = sample(bundle), python.parent
    variables = {"PEER_MODEL": str(bundle), "PYTHONPATH": str(PEERS), "PATH": f"{programs}{os.pathsep}{os.environ['PATH']}", "TF_CPP_MIN_LOG_LEVEL": "3"}
    variables |= {"BENTOML_DO_NOT_TRACK": "true", "MLFLOW_TRACKING_URI": f"file:{folder}/mlruns", "BENTOML_HOME": f"{folder}/bentoml"}
    save = "import mlflow, sys; mlflow.pyfunc.save_model(sys.argv[1], python_model=sys.argv[2])"
    model = folder / "mlflow"
    subprocess.run([str(python), "-c", save, str(model), str(PEERS / "mlflow_model.py")], check=True, env={**os.environ, **variables}, capture_output=True)
    fastapi = [str(programs / "uvicorn"), "fastapi_app:app", "--port", "{port}", "--log-level", "warning", "--no-access-log", "--loop", "uvloop"]
    bentoml = [str(programs / "bentoml"), "serve", "bentoml_service:Champion", "--port", "{port}", "--host", "127.0.0.1", "--working-dir", str(PEERS)]
    mlflow = [str(programs / "mlflow"), "models", "serve", "-m", str(model), "--env-manager", "local", "-p", "{port}", "-h", "127.0.0.1"]
    return [
        Side("FastAPI", fastapi, "/predict", json.dumps(row).encode(), variables),
        Side("BentoML", bentoml, "/predict", json.dumps({"rows": [row]}).encode(), variables),
        Side("MLflow", mlflow, "/invocations", json.dumps({"dataframe_records": [row]}).encode(), variables),
    ]


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


def measure(side: Side, folder: Path, connections: Sequence[int], seconds: float) -> tuple[float, list[Load]]:
    """Start a side, warm it up, and put load on it; the seconds to its first good answer, and one load for each number of connections."""
    port = free_port()
    url = f"http://127.0.0.1:{port}{side.path}"
    with running([word.format(port=port) for word in side.command], url, side.body, folder, side.variables) as (server, start):
        wrk(server, url, side.body, 8, 1)
        return start, [wrk(server, url, side.body, number, seconds) for number in connections]


def lines(side: str, connections: Sequence[int], found: list[tuple[float, list[Load]]], base: dict[int, float]) -> list[tuple[str, ...]]:
    """Rows of the table for one side: medians over the runs."""
    rows = []
    for place, number in enumerate(connections):
        loads = [loads[place] for _, loads in found]
        middle = {name: statistics.median(getattr(load, name) for load in loads) for name in ("rate", "p50", "p99", "cores", "own", "megabytes")}
        rates = f"{middle['rate']:,.0f} ({min(load.rate for load in loads):,.0f} to {max(load.rate for load in loads):,.0f})"
        times = f"{base[number] / middle['rate']:.2f}", f"{middle['p50']:.2f}", f"{middle['p99']:.2f}"
        failed, work = sum(load.failed for load in loads), [f"{middle[name] / middle['rate'] * 1e6:,.0f}" for name in ("cores", "own")]
        rows.append((side, str(number), rates, *times, f"{middle['cores']:.2f}", *work, f"{middle['megabytes']:,.0f}", str(failed), GOALS.get(side, "")))
    return rows


def main() -> None:
    """Measure all sides in turn and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--bundle", type=Path, default=Path("build/package/eta/1"), help="the champion's bundle")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=6)
    parser.add_argument("--connections", type=int, nargs="+", default=[64, 1])
    parser.add_argument("--only", nargs="*", help="names of sides, or their beginnings")
    options = parser.parse_args()
    bundle, python = options.bundle.resolve(), environment("serving", PACKAGES)
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        sides = own_sides(bundle, folder) + (other_sides(bundle, folder, python) if python else [])
        sides = [side for side in sides if not options.only or side.name.startswith(tuple(options.only))]
        found: dict[str, list[tuple[float, list[Load]]]] = {side.name: [] for side in sides}
        for run in range(options.runs):
            for side in sides:
                found[side.name].append(measure(side, folder, options.connections, options.seconds))
                rates = ", ".join(f"{load.rate:,.0f}" for load in found[side.name][-1][1])
                print(f"run {run + 1} of {options.runs}: {side.name} {rates} requests/s", file=sys.stderr, flush=True)
    first = found[sides[0].name]
    base = {number: statistics.median(loads[place].rate for _, loads in first) for place, number in enumerate(options.connections)}
    print(f"{machine('uvicorn', 'msgspec', 'sqlalchemy', 'tensorflow-cpu')}; {options.runs} runs of {options.seconds:g} s, in turn\n")
    header = ["side", "connections", "requests/s", f"{sides[0].name} is × this", "p50 ms", "p99 ms", "cores", "µs each", "wrk µs", "MB", "failed", "goal ×"]
    print(markdown(header, [row for side in sides for row in lines(side.name, options.connections, found[side.name], base)]))
    starts = {side.name: statistics.median(start for start, _ in found[side.name]) for side in sides}
    print("\nSeconds from the start to the first good answer: " + ", ".join(f"{name} {seconds:.1f}" for name, seconds in starts.items()))


if __name__ == "__main__":
    main()
