"""A workspace with a line that takes a second, for tests of releases: its stages copy what a test has prepared."""

import contextlib
import json
import os
import queue
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from workspaces import run

from labline.models.example import CONTRACT, example_bundle, example_rows
from labline.operations.git import git
from labline.operations.replay.place import end_process

STAGES = {"select": "made/select", "evaluate": "build/select", "package": "build/evaluate", "report": "build/evaluate"}
REMOTE = "[core]\n    analytics = false\n    remote = embedded\n['remote \"embedded\"']\n    url = remote\n"
QUIET = {"ITERATIVE_DO_NOT_TRACK": "1", "TF_CPP_MIN_LOG_LEVEL": "3"}


def make(workspace: Path, minutes_per_km: float) -> None:
    """Prepare what the stages leave for a model that needs so many minutes for a kilometre; really it is 2.2."""
    made = workspace / "made"
    shutil.rmtree(made, ignore_errors=True)
    example_bundle(made / "package", minutes_per_km)
    rows = example_rows(200).assign(trip_id=[f"t{number}" for number in range(200)])
    ideal = rows["distance_km"].fillna(5) * 30 / rows["speed_kmh"].fillna(30)
    rows["prediction"] = 3 + minutes_per_km * ideal
    rows["actual"] = 3 + 2.2 * ideal + np.random.default_rng(1).normal(0, 0.1, len(rows))
    for name in ("evaluate", "select", "report"):
        (made / name).mkdir()
    rows.assign(low=0.0, high=99.0, baseline=15.0).to_parquet(made / "evaluate" / "predictions.parquet")
    error = float((rows["prediction"] - rows["actual"]).abs().mean())
    metrics = {"rows": 200, "model": {"mae": {"value": error, "low": 0.9 * error, "high": 1.1 * error}}, "gain": {"baseline": {"value": -6.0}}}
    (made / "evaluate" / "metrics.json").write_text(json.dumps(metrics))
    (made / "select" / "champion.json").write_text('{"champion": "mlp"}')
    (made / "report" / "report.html").write_text(f"<p>{minutes_per_km} minutes for a kilometre</p>")


def repro(workspace: Path, message: str | None = "A run") -> None:
    """Run the line, and commit its record."""
    run("dvc", "repro", "--quiet", cwd=workspace)
    if message is not None:
        commit(workspace, message)


def commit(workspace: Path, message: str) -> None:
    """Commit everything."""
    git(workspace, "add", "--all")
    git(workspace, "commit", "--quiet", "--message", message)


def named(clone: Path, who: str) -> Path:
    """Give a clone somebody who commits."""
    git(clone, "config", "user.name", who)
    git(clone, "config", "user.email", "person@example.org")
    git(clone, "config", "commit.gpgsign", "false")
    return clone


def releasable(workspace: Path, minutes_per_km: float = 2.0) -> Path:
    """A workspace whose line has run and whose record is committed."""
    workspace.mkdir(parents=True)
    git(workspace, "init", "--quiet", "--initial-branch=main")
    run("dvc", "init", "--quiet", cwd=named(workspace, "A Person"))
    stages = "".join(
        f"  {name}:\n    cmd: mkdir -p build && cp -r made/{name} build/\n    deps: [made/{name}, {need}]\n    outs: [build/{name}]\n"
        for name, need in STAGES.items()
    )
    texts = {".dvc/config": REMOTE, "contract.yaml": CONTRACT, "params.yaml": "package: {samples: 20}\n", ".gitignore": "/runs/\n/made/\n/build/\n"}
    for name, text in (texts | {"dvc.yaml": f"stages:\n{stages}metrics: [build/evaluate/metrics.json]\n"}).items():
        (workspace / name).write_text(text)
    make(workspace, minutes_per_km)
    repro(workspace)
    return workspace


def labline(workspace: Path, *words: str, check: bool = True) -> subprocess.CompletedProcess[str]:
    """Type a command of the program."""
    return run("labline", *words, cwd=workspace, check=check, **QUIET)


@contextlib.contextmanager
def serving(workspace: Path, *options: str) -> Iterator[str]:
    """`labline serve` on a port of its own, and its address; it ends with the block."""
    command = [str(Path(sys.executable).with_name("labline")), "serve", "--port", "0", *options]
    process = subprocess.Popen(command, cwd=workspace, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=os.environ | QUIET)
    said: queue.Queue[str] = queue.Queue()
    errors: list[str] = []
    readers = [
        threading.Thread(target=lambda: [said.put(line) for line in process.stdout or []]),
        threading.Thread(target=lambda: errors.extend(process.stderr or [])),
    ]
    for reader in readers:
        reader.start()
    try:
        try:
            first = said.get(timeout=120)
        except queue.Empty:
            raise AssertionError(f"the service did not start: {''.join(errors)}") from None
        assert "is served on" in first, first
        yield first.partition(" is served on ")[2].split()[0]
    finally:
        end_process(process)
        for reader in readers:
            reader.join(10)
        for stream in (process.stdout, process.stderr):
            if stream is not None:
                stream.close()
