"""The same inputs leave the same record: two runs from scratch, in two folders, write the same `dvc.lock`. All stages of a run share one fork server."""

import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import yaml
from warmkernels import servers
from workspaces import run, small_workspace


def outputs(lock: bytes) -> dict[str, str]:
    """Output path → digest, over all stages of a `dvc.lock`."""
    stages = yaml.safe_load(lock)["stages"]
    return {entry["path"]: entry["md5"] for stage in stages.values() for entry in stage.get("outs", [])}


def lock_of(workspace: Path) -> bytes:
    """Run the line from scratch; the record that it leaves."""
    run("dvc", "repro", cwd=workspace)
    assert "up to date" in run("dvc", "status", cwd=workspace).stdout
    assert sys.platform != "linux" or len([server for server in servers() if server["workspace"] == str(workspace)]) == 1
    return (workspace / "dvc.lock").read_bytes()


def test_two_runs_from_scratch_leave_the_same_lock(tmp_path: Path) -> None:
    """Side by side, which saves time and is one circumstance more that must not matter."""
    with ThreadPoolExecutor() as pool:
        locks = list(pool.map(lock_of, [small_workspace(tmp_path / name) for name in ("first run", "second run in another folder")]))
    first, second = map(outputs, locks)
    assert [path for path in first if first[path] != second.get(path)] == [], "outputs that differ"
    assert locks[0] == locks[1]
