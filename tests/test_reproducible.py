"""The same inputs leave the same record: two runs from scratch, in two folders, write the same `dvc.lock`."""

from pathlib import Path

import yaml
from workspaces import run, small_workspace


def outputs(lock: bytes) -> dict[str, str]:
    """Output path → digest, over all stages of a `dvc.lock`."""
    stages = yaml.safe_load(lock)["stages"]
    return {entry["path"]: entry["md5"] for stage in stages.values() for entry in stage.get("outs", [])}


def test_two_runs_from_scratch_leave_the_same_lock(tmp_path: Path) -> None:
    locks = []
    for name in ("first run", "second run in another folder"):
        workspace = small_workspace(tmp_path / name)
        run("dvc", "repro", cwd=workspace)
        locks.append((workspace / "dvc.lock").read_bytes())
        assert "up to date" in run("dvc", "status", cwd=workspace).stdout
    first, second = map(outputs, locks)
    assert [path for path in first if first[path] != second.get(path)] == [], "outputs that differ"
    assert locks[0] == locks[1]
