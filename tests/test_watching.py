"""One process that keeps the loop: it looks, lets a retraining begin beside it, goes on looking, tells what fails, and ends when it is asked to."""

import json
import os
import queue
import shlex
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest
from typer.testing import CliRunner

from labline.cli import app
from labline.operations.git import git
from labline.operations.registry import Registry
from labline.operations.retrain.state import FOLDER, alone, history, is_free, read_state

NOW = "2025-03-29T03:00"  # when the last actual value had come
HEARS = """
import json, os, pathlib, sys
told, mended = json.load(sys.stdin), pathlib.Path(sys.argv[2])
with open(sys.argv[1], "a") as file:
    file.write(json.dumps(told) + "\\n")
if "retraining" in told["begun"]:
    (mended / "remote").unlink()
    (mended / "elsewhere").rename(mended / "remote")
"""


@pytest.fixture
def workspace(slower_roads: Path, tmp_path: Path) -> Path:
    """A copy of the workspace for one test."""
    return shutil.copytree(slower_roads, tmp_path / "work", symlinks=True)


class Watch:
    """`labline monitor --watch --retrain` as a person starts it, and what it prints.

    Parameters
    ----------
    workspace : where.
    environment : what it gets beside this process's own variables.
    options : more of them.
    """

    def __init__(self, workspace: Path, environment: dict[str, str], *options: str) -> None:
        command = [str(Path(sys.executable).with_name("labline")), "monitor", "--watch", "--retrain", "--every", "0.1", "--now", NOW, *options]
        self.process = subprocess.Popen(
            command, cwd=workspace, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=os.environ | {"TF_CPP_MIN_LOG_LEVEL": "3"} | environment
        )
        self.said: queue.Queue[str] = queue.Queue()
        self.lines: list[str] = []
        self.reader = threading.Thread(target=lambda: [self.said.put(line.rstrip("\n")) for line in self.process.stdout or []])
        self.reader.start()

    def hears(self, text: str, seconds: float = 600) -> list[str]:
        """The next lines, up to the first with a text."""
        until, heard = time.monotonic() + seconds, []
        while not heard or text not in heard[-1]:
            try:
                heard.append(self.said.get(timeout=max(0.0, until - time.monotonic())))
            except queue.Empty:
                raise AssertionError(f"`{text}` was not said after:\n{chr(10).join(self.lines + heard)}") from None
        self.lines += heard
        return heard

    def end(self, sign: int) -> int:
        """Ask it to end; returns the exit code."""
        self.process.send_signal(sign)
        code = self.process.wait(90)
        self.reader.join(10)
        return code


@contextmanager
def watching(workspace: Path, environment: dict[str, str], *options: str) -> Iterator[Watch]:
    """A watch that is over when the block ends."""
    watch = Watch(workspace, environment, *options)
    try:
        yield watch
    finally:
        if watch.process.poll() is None:
            watch.process.kill()
            watch.process.wait(30)
        watch.reader.join(10)
        if watch.process.stdout is not None:
            watch.process.stdout.close()


def at_work(folder: Path) -> list[str]:
    """The commands that run in a folder."""
    found = []
    for process in psutil.process_iter():
        try:
            if Path(process.cwd()).is_relative_to(folder):
                found.append(" ".join(process.cmdline()))
        except (psutil.Error, OSError):
            continue
    return found


def live(workspace: Path) -> str:
    found = Registry.read(workspace).live("eta", "prod")
    return found.label if found else ""


def looks(lines: list[str]) -> int:
    return sum("286 predictions" in line for line in lines)


def test_one_process_looks_retrains_and_goes_on_looking(workspace: Path, tmp_path: Path) -> None:
    with watching(workspace, {}) as watch:
        watch.hears("an alarm of the monitor on error")
        watch.hears("Running the line")
        place = workspace / FOLDER / read_state(workspace / FOLDER).run / "workspace"
        assert watch.end(signal.SIGTERM) == 130
        watch.hears("is ended; what it has begun goes on at the next start")
    state = read_state(workspace / FOLDER)
    assert (state.step, state.attempts, state.problem) == ("reproduce", 0, "interrupted"), "an interruption is no failed attempt"
    assert at_work(place) == [] and is_free(workspace / FOLDER) and live(workspace) == "eta@v1"

    (place / ".dvc" / "remote").rename(place / ".dvc" / "elsewhere")
    (place / ".dvc" / "remote").write_text("no folder")
    (tmp_path / "hears.py").write_text(HEARS)
    hears = shlex.join([sys.executable, str(tmp_path / "hears.py"), str(tmp_path / "told.jsonl"), str(place / ".dvc")])
    with watching(workspace, {"LABLINE_ALERT_COMMAND": hears}) as watch:
        failed = watch.hears("retrain  failed: ")
        assert any(f"Retraining {state.run}" in line for line in failed) and "the DVC remote `embedded` cannot be reached" in failed[-1]
        assert looks(failed) > 1 and any("is at work since" in line for line in failed), "it goes on looking"
        promoted = watch.hears("eta@v2 is live in place of eta@v1")
        assert f"retrain  Retraining {state.run}: an alarm of the monitor on error" in promoted and looks(promoted) >= 1
        assert "but the last retraining ended" in watch.hears("Not now: ")[-1]
        watch.hears("286 predictions")
        assert watch.end(signal.SIGINT) == 130
    told = [json.loads(line) for line in (tmp_path / "told.jsonl").read_text().splitlines()]
    assert [(one["begun"], one["over"]) for one in told] == [(["error"], []), (["retraining"], []), ([], ["retraining"])]
    assert "cannot be reached" in told[1]["text"] and "the next look tries it again" in told[1]["text"]
    assert live(workspace) == "eta@v2" and [line["ending"] for line in history(workspace / FOLDER)] == ["stopped", "stopped", "promoted"]
    assert git(workspace, "status", "--porcelain") == "" and at_work(workspace) == []


def test_it_waits_for_the_end_and_begins_none_beside_another(workspace: Path) -> None:
    """A retraining that a person began is under way in another process."""
    with alone(workspace / FOLDER), watching(workspace, {}, "--times", "1", "--exit-code") as watch:
        watch.hears("retrain  Not now: a retraining is under way.")
        assert watch.process.wait(60) == 3, "there is an alarm"
    assert not (workspace / FOLDER / "state.json").exists()


def test_a_retraining_that_gets_sigterm_stops_as_at_ctrl_c(workspace: Path) -> None:
    process = subprocess.Popen(
        [str(Path(sys.executable).with_name("labline")), "retrain"], cwd=workspace, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    with process:
        said = ""
        while "Running the line" not in said:
            said = str(process.stdout.readline())
            assert said, "it ended before"
        process.terminate()
        assert process.wait(60) == 130
    state = read_state(workspace / FOLDER)
    assert (state.step, state.attempts, state.problem) == ("reproduce", 0, "interrupted")


@pytest.mark.parametrize(
    ("options", "problem"), [((), "`--retrain` is for `--watch`"), (("--watch", "-p", "output_folder=runs/vans"), "follows the looks of the whole log")]
)
def test_what_cannot_be_done_is_said_before_the_first_look(workspace: Path, monkeypatch: pytest.MonkeyPatch, options: tuple[str, ...], problem: str) -> None:
    monkeypatch.chdir(workspace)
    answer = CliRunner().invoke(app, ["monitor", "--retrain", *options])
    assert answer.exit_code == 1 and problem in answer.stderr and not Path("runs/monitor").exists() and not Path("runs/vans").exists()
