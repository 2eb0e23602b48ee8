"""Small workspaces for tests: a copy of this one with little data and short training, and empty repositories."""

import atexit
import functools
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[1]
QUICK = {
    "explore": {"sample_rows": 2000},
    "train": {"epochs": 2, "boosting_iterations": 20, "max_rows": 2000},
    "select": {"resamples": 100},
    "evaluate": {"sample_rows": 500, "resamples": 100},
    "package": {"samples": 20, "verify_rows": 50},
}


def run(*command: str, cwd: Path, check: bool = True, timeout: int = 900, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a command of this environment in a folder; fail with all that it said."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(command, cwd=cwd, env={**os.environ, "PATH": path, **environment}, capture_output=True, text=True, timeout=timeout)
    if check and done.returncode:
        raise AssertionError(f"{' '.join(command)} ended with {done.returncode}\n{done.stdout[-6000:]}\n{done.stderr[-6000:]}")
    return done


@functools.cache
def repository_to_copy() -> Path:
    """An empty repository of git and DVC; one for the whole test run."""
    folder = Path(tempfile.mkdtemp(prefix="labline-repository-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    run("git", "init", "--quiet", cwd=folder)
    run("dvc", "init", "--quiet", cwd=folder)
    run("dvc", "config", "core.analytics", "false", cwd=folder)
    return folder


def empty_repository(folder: Path) -> Path:
    """Make a folder, which may be there already, an empty repository of git and DVC."""
    return Path(shutil.copytree(repository_to_copy(), folder, dirs_exist_ok=True))


def copy_sources(folder: Path) -> Path:
    """Copy what git tracks, or would track, without the embedded remote and the record of the last run."""
    folder.mkdir(parents=True)
    listed = run("git", "ls-files", "-z", "--cached", "--others", "--exclude-standard", cwd=ROOT).stdout
    for name in filter(None, listed.split("\0")):
        source = ROOT / name
        if source.is_file() and not name.startswith(".dvc/remote/") and name not in ("dvc.lock", "data.dvc"):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(source, folder / name)
    return folder


def change_parameters(workspace: Path, changes: dict[str, dict[str, Any]]) -> None:
    """Change values in `params.yaml`; a section or key that is not there is a mistake of the test."""
    path = workspace / "params.yaml"
    sections = yaml.safe_load(path.read_text())
    for section, values in changes.items():
        missing = set(values) - set(sections[section])
        assert not missing, f"params.yaml has no {section}: {sorted(missing)}"
        sections[section].update(values)
    path.write_text(yaml.safe_dump(sections, sort_keys=False))


def pin_data(workspace: Path) -> None:
    """Make the workspace a repository of its own whose first commit, the same every time, pins the data that lie in it."""
    run("git", "init", "--quiet", cwd=workspace)
    run("dvc", "add", "--quiet", "data", cwd=workspace)
    run("git", "add", "--all", cwd=workspace)
    moment = {"GIT_AUTHOR_DATE": "2026-01-01T00:00:00Z", "GIT_COMMITTER_DATE": "2026-01-01T00:00:00Z"}
    who = ("-c", "user.name=Test", "-c", "user.email=test@example.org")
    run("git", *who, "commit", "--quiet", "--message", "A workspace", cwd=workspace, **moment)


def small_workspace(folder: Path, legs: int = 6000, months: int = 4, changes: dict[str, dict[str, Any]] = QUICK) -> Path:
    """A workspace of the rides case with few legs and short training, ready for `dvc repro`."""
    copy_sources(folder)
    change_parameters(folder, changes)
    run("labline", "simulate", "data", "--legs", str(legs), "--months", str(months), cwd=folder)
    pin_data(folder)
    return folder
