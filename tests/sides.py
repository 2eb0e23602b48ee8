"""Small DVC repositories in which `dvc repro` and `labline repro` run the same stages, each command in a fresh process."""

import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing.connection import wait
from pathlib import Path
from typing import TYPE_CHECKING

import yaml
from processes import PROCESSES, preload
from workspaces import empty_repository

if TYPE_CHECKING:
    from multiprocessing.context import ForkServerProcess

THEIRS = ("dvc", "repro")
OURS = ("labline", "repro", "--jobs=3")
INPUTS = {"data": "1\n", "params.yaml": "rate: 1\nnames: [a, b, c]\n"}

Step = Callable[[Path], None]

preload("dvc.cli", "dvc.commands.repro", "dvc.stage.cache", "labline.notebooks.runner.repro", "labline.cli")

# Python looks at all processes when it starts one, and two threads must not both ask how one has ended.
STARTING = threading.Lock()


def command_line(words: Sequence[str], folder: Path, output: Path, environment: dict[str, str]) -> None:
    """What a process does that runs `dvc` or `labline` in a folder, with all that it writes going to a file."""
    with output.open("w") as file:
        for number in (1, 2):
            os.dup2(file.fileno(), number)
    os.chdir(folder)
    os.environ.update(environment)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell lets what it starts in the background ignore it
    sys.argv = list(words)
    if words[0] == "dvc":
        from dvc.cli import main

        sys.exit(main(list(words[1:])))
    from labline.cli import main as labline

    labline()


def settings(folder: Path) -> dict[str, str]:
    """Variables that keep what DVC remembers of a workspace beside it, and that make it talk to nobody."""
    return {"DVC_NO_ANALYTICS": "1", "DVC_SITE_CACHE_DIR": str(beside(folder, "site")), "COLUMNS": "200"}


def beside(folder: Path, name: str) -> Path:
    """A place that belongs to a workspace and lies beside it."""
    return folder.parent / f"{folder.name} {name}"


def started(words: Sequence[str], folder: Path, **environment: str) -> "ForkServerProcess":
    """A process that runs `dvc` or `labline` in a folder; what it writes goes to the file `output` beside it."""
    arguments = (words, folder, beside(folder, "output"), settings(folder) | environment)
    with STARTING:
        process = PROCESSES.Process(target=command_line, args=arguments)
        process.start()
    return process


def exit_code(process: "ForkServerProcess", seconds: float = 120) -> int | None:
    """Wait for the end of a process and return its exit code; fail when that takes too long."""
    assert wait([process.sentinel], seconds), "still running"
    with STARTING:
        process.join()
        return process.exitcode


def run(words: Sequence[str], folder: Path, code: int | None = 0) -> str:
    """Run a command and return what it wrote; `code` is the exit code that it must have, or `None` for any other than 0."""
    if words[0] in ("dvc", "labline"):
        returned = exit_code(started(words, folder))
        said = beside(folder, "output").read_text()
    else:
        done = subprocess.run(words, cwd=folder, env={**os.environ, **settings(folder)}, capture_output=True, text=True, timeout=120)
        said, returned = done.stdout + done.stderr, done.returncode
    assert (returned != 0) if code is None else (returned == code), f"{' '.join(words)} ended with {returned}\n{said}"
    return said


def write(**files: str) -> Step:
    """A step that writes files; `__` in a name stands for a dot."""

    def step(folder: Path) -> None:
        for name, text in files.items():
            path = folder / name.replace("__", ".")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)

    return step


def remove(*names: str) -> Step:
    """A step that removes files and folders."""

    def step(folder: Path) -> None:
        for name in names:
            for path in folder.glob(name):
                shutil.rmtree(path) if path.is_dir() else path.unlink()

    return step


def call(*words: str) -> Step:
    """A step that runs a command."""

    def step(folder: Path) -> None:
        run(words, folder)

    return step


@dataclass
class Repro:
    """A step that runs `dvc repro` on one side and `labline repro` on the other.

    Parameters
    ----------
    words : further arguments.
    code : the exit code must be 0 if this is 0, and another if it is `None`.
    """

    words: Sequence[str] = ()
    code: int | None = 0

    def __call__(self, folder: Path) -> None:
        program = THEIRS if folder.name == "theirs" else OURS
        run([*program, *self.words], folder, self.code)


def repro(*words: str, code: int | None = 0) -> Repro:
    return Repro(words, code)


def make_repository(folder: Path, stages: str, inputs: dict[str, str]) -> Path:
    """A repository of git and DVC with the given stages and files."""
    empty_repository(folder)
    for name, text in {"dvc.yaml": stages, **inputs}.items():
        (folder / name).write_text(text)
    return folder


def snapshot(folder: Path) -> dict[str, bytes]:
    """All that a run leaves: files of the workspace, the records, the cache with the run cache, and what git would commit."""
    found = {"git's view": run(["git", "status", "--porcelain"], folder).encode()}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_file() and not name.startswith((".git/", ".dvc/tmp/")):
            found[name] = path.read_bytes()
    return found


def entries(folder: Path) -> list[str]:
    """The names of the stages in the record, in order."""
    path = folder / "dvc.lock"
    return list(yaml.safe_load(path.read_text())["stages"]) if path.exists() else []


def wait_until(condition: Callable[[], bool], seconds: float = 100) -> None:
    """Wait until something is so; fail after a while."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.02)
