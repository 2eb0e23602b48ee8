"""Stages that run side by side: in which order, what a failure or a signal leaves, and that nothing goes on running."""

import os
import pty
import signal
import subprocess
import sys
from collections.abc import Callable
from multiprocessing.connection import wait
from pathlib import Path
from typing import TYPE_CHECKING

import psutil
import pytest
from sides import INPUTS, OURS, THEIRS, beside, entries, exit_code, make_repository, run, settings, started, wait_until, write
from small import two_stages, write_notebook
from test_runner import DIAMOND

if TYPE_CHECKING:
    from multiprocessing.context import ForkServerProcess


@pytest.fixture
def workspace(tmp_path: Path) -> Callable[..., Path]:
    """A function that makes a repository with the given stages."""

    def make(stages: str, name: str = "ours") -> Path:
        return make_repository(tmp_path / name, stages, INPUTS)

    return make


def said(folder: Path) -> str:
    """What the last command in a workspace wrote."""
    return beside(folder, "output").read_text()


def ended(processes: list[psutil.Process]) -> bool:
    return not psutil.wait_procs(processes, timeout=30)[1]


def test_order_after_a_failure(workspace: Callable[..., Path]) -> None:
    """What ran ahead of a failed stage stands behind it in the record once that is mended, as if all had run one by one."""
    failing = DIAMOND.replace("sleep 0.8; ", "while test -e wait -a ! -e quick.txt; do sleep 0.1; done; test -e mended && ")
    for name, program in [("theirs", THEIRS), ("ours", OURS)]:
        folder = workspace(failing, name)
        if name == "ours":
            write(wait="")(folder)
        run(program, folder, code=None)
        assert entries(folder)[0] == "top" and ("quick" in entries(folder)) == (name == "ours")
        write(mended="")(folder)
        run(program, folder)
        assert entries(folder) == ["top", "slow", "medium", "quick", "bottom"]


def test_what_comes_earlier_is_still_done(workspace: Callable[..., Path]) -> None:
    """After a failure, whatever `dvc repro` would have done before it is done, and nothing that comes later is started."""
    stages = """stages:
  one: {cmd: until test -e tried; do sleep 0.1; done; sleep 1; cat data > one, deps: [data], outs: [one]}
  two: {cmd: cat one > two, deps: [one], outs: [two]}
  bad: {cmd: touch tried; test ! -e data, deps: [data], outs: [bad]}
  late: {cmd: cat data > late, deps: [data], outs: [late]}
"""
    folder = workspace(stages)
    output = run(("labline", "repro", "--jobs=2"), folder, code=None)
    assert entries(folder) == ["one", "two"] and "`bad` failed: its command ended with exit code 1" in output and not (folder / "late").exists()


def test_side_by_side_and_in_turn(workspace: Callable[..., Path]) -> None:
    """Independent stages run at once, dependent ones do not, and no more run than allowed."""
    # `a` and `b` wait for each other, and end before anything else has begun; the second of them may find that `c` has taken the place of the first
    meet = "touch {0}-began; until test -e {1}-began; do sleep 0.1; done; test ! -e c-began -o -e {1}-ended && touch {0}-ended {0}"
    stages = f"""stages:
  a: {{cmd: "{meet.format("a", "b")}", deps: [data], outs: [a]}}
  b: {{cmd: "{meet.format("b", "a")}", deps: [data], outs: [b]}}
  c: {{cmd: "touch c-began; test -e a-ended -o -e b-ended && touch c", deps: [data], outs: [c]}}
  d: {{cmd: test -e a-ended && touch d, deps: [a], outs: [d]}}
"""
    folder = workspace(stages)
    run(("labline", "repro", "--jobs=2"), folder)
    assert sorted(entries(folder)) == ["a", "b", "c", "d"]


def test_environment_is_that_of_dvc(workspace: Callable[..., Path]) -> None:
    """Nothing tells a command what runs beside it: the numbers of threads and all else are the same for any number of jobs."""
    stages = "stages:\n" + "".join(f"  {name}: {{cmd: env | grep -v -e ^_= -e ^PWD= -e ^OLDPWD= | sort > {name}, outs: [{name}]}}\n" for name in "ab")
    folder = workspace(stages)
    found = []
    for words in [THEIRS, ("labline", "repro", "--jobs=1"), ("labline", "repro", "--jobs=8")]:
        run([*words, "--force"], folder)
        found.append((folder / "a").read_text())
    assert found[0] == found[1] == found[2] and "DVC_STAGE=a" in found[0]


def test_alone(workspace: Callable[..., Path]) -> None:
    """A stage that says so in `dvc.yaml` runs with nothing beside it."""
    stages = "stages:\n" + "".join(
        f"  {name}: {{cmd: 'test ! -e busy-b && touch busy-{name} && sleep 0.5 && {check} && rm busy-{name} && touch {name}', outs: [{name}], {meta}}}\n"
        for name, check, meta in [("a", "true", "desc: a"), ("b", "test ! -e busy-a && test ! -e busy-c", "meta: {alone: true}"), ("c", "true", "desc: c")]
    )
    run(OURS, workspace(stages))


SLEEPERS = """stages:
  quick: {cmd: cat data > quick, deps: [data], outs: [quick]}
  long:
    cmd: "date >> began; sh -c 'until test -e go; do sleep 0.1; done; date > late' & echo $! > child; cat data > long; wait; cat data >> long"
    deps: [data]
    outs: [long]
  after: {cmd: cat long > after, deps: [long], outs: [after]}
"""


def start_long(folder: Path, *words: str, **environment: str) -> "tuple[ForkServerProcess, psutil.Process]":
    """Start `labline repro` and wait until one stage is saved and the other is held; returns the runner and the child of the stage."""
    process = started([*OURS, *words], folder, **environment)
    wait_until(lambda: entries(folder) == ["quick"] and (folder / "long").exists())
    return process, psutil.Process(int((folder / "child").read_text()))


def mended(folder: Path) -> None:
    """Let the long stage go, run again, and see that only what was not finished has run."""
    assert not (folder / "late").exists()
    (folder / "go").touch()
    output = run(OURS, folder)
    assert entries(folder) == ["quick", "long", "after"] and "quick: unchanged" in output and (folder / "after").read_text() == "1\n1\n"
    assert "up to date" in run(("dvc", "status"), folder)


@pytest.mark.parametrize(("number", "shell"), [(signal.SIGINT, "/bin/bash"), (signal.SIGINT, ""), (signal.SIGTERM, "")], ids=str)
def test_interrupt(workspace: Callable[..., Path], number: signal.Signals, shell: str) -> None:
    """Ctrl-C ends the children and keeps what was finished; without `SHELL` the commands run under /bin/sh."""
    folder = workspace(SLEEPERS)
    process, child = start_long(folder, SHELL=shell)
    assert process.pid is not None
    os.kill(process.pid, number)
    assert exit_code(process) == 130 and ended([child])
    assert "1 stopped" in said(folder) and "1 not run" in said(folder) and entries(folder) == ["quick"]
    mended(folder)


def test_killed_runner(workspace: Callable[..., Path]) -> None:
    """When the runner is killed, its children end, what was finished is kept, and stale locks do not stand in the way."""
    folder = workspace(SLEEPERS)
    process, child = start_long(folder)
    family = psutil.Process(process.pid).children(recursive=True)
    process.kill()
    exit_code(process)
    assert child in family and len(family) >= 3 and ended(family)
    assert entries(folder) == ["quick"]
    mended(folder)


def test_killed_stage(workspace: Callable[..., Path]) -> None:
    """When a stage is killed with SIGKILL, what it started ends, the others go on, and the message says what happened."""
    folder = workspace(SLEEPERS)
    process, child = start_long(folder, "--keep-going")
    parent = child.parent()
    assert parent is not None
    parent.kill()
    assert exit_code(process) == 1 and "`long` failed: its command was killed by SIGKILL" in said(folder) and "after: skipped (long failed)" in said(folder)
    assert ended([child]) and entries(folder) == ["quick"]
    mended(folder)


def test_beside_another_dvc(workspace: Callable[..., Path]) -> None:
    """DVC can be used while stages run, and what would touch files that are being read or written is refused, as with DVC."""
    folder = workspace(SLEEPERS + "  reader: {cmd: cat long > read, deps: [long], outs: [read]}\n")
    process, _ = start_long(folder)
    assert "long" in run(("dvc", "stage", "list"), folder)
    for words in (["-f", "long"], ["-s", "-f", "reader"]):
        assert "is busy" in run(("dvc", "repro", *words), folder, code=None)
    (folder / "go").touch()
    assert exit_code(process) == 0 and (folder / "began").read_text().count("\n") == 1


Held = tuple[Path, "ForkServerProcess", list[psutil.Process]]


@pytest.fixture
def held(tmp_path: Path) -> Held:
    """A workspace whose first notebook is held in its waiting cell, the runner, and the papermill and the kernel that run it."""
    folder = hold_first(two_stages(tmp_path / "a workspace"))
    process = started(["labline", "repro"], folder)
    wait_until(lambda: (folder / "kernel").exists())
    papermills = [other for other in psutil.Process(process.pid).children(recursive=True) if "bin/papermill" in " ".join(other.cmdline())]
    return folder, process, [papermills[-1], psutil.Process(int((folder / "kernel").read_text()))]


def hold_first(folder: Path) -> Path:
    """Make the first notebook of two leave the number of its kernel's process, and hold it there."""
    path = folder / "pipelines" / "first.ipynb"
    tell = "Path('part').write_text(str(__import__('os').getpid())); Path('part').rename('kernel')\\n"
    path.write_text(path.read_text().replace("until = time.monotonic() + 60", tell + "until = time.monotonic() + 60"))
    (folder / "hold-first").touch()
    return folder


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The record of a `dvc repro` of the same notebooks that nothing disturbed."""
    folder = hold_first(two_stages(tmp_path_factory.mktemp("undisturbed") / "a workspace"))
    (folder / "hold-first").unlink()
    run(("dvc", "repro"), folder)
    return (folder / "dvc.lock").read_bytes()


@pytest.mark.parametrize("victim", ["runner", "papermill", "kernel"])
def test_a_killed_notebook(held: Held, victim: str, undisturbed: bytes) -> None:
    """Whoever is killed, nothing goes on running, and the next run leaves what an undisturbed `dvc repro` leaves."""
    folder, process, (papermill, kernel) = held
    {"runner": psutil.Process(process.pid), "papermill": papermill, "kernel": kernel}[victim].kill()
    assert exit_code(process) == (-signal.SIGKILL if victim == "runner" else 1) and ended([papermill, kernel])
    assert victim == "runner" or "`first` failed" in said(folder)
    (folder / "hold-first").unlink()
    run(("labline", "repro"), folder)
    assert (folder / "dvc.lock").read_bytes() == undisturbed


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL], ids=str)
def test_many_reports_end_with_their_runner(tmp_path: Path, number: signal.Signals) -> None:
    """`labline run` that is interrupted or killed leaves what was finished, and no worker and no kernel."""
    tell = "Path('part').write_text(str(os.getpid())); Path('part').rename('kernel')"
    wait = f"if number:\n    {tell}\nwhile number:\n    time.sleep(0.05)"
    write_notebook(tmp_path / "report.ipynb", f"import os, time\nfrom pathlib import Path\n\n{wait}", parameters="number: int = 0")
    (tmp_path / "numbers.csv").write_text("number\n0\n1\n2\n")
    process = started(["labline", "run", "report.ipynb", "out/{number}.ipynb", "--grid", "numbers.csv", "--jobs=1"], tmp_path)
    wait_until(lambda: (tmp_path / "kernel").exists())
    family = [psutil.Process(int((tmp_path / "kernel").read_text())), *psutil.Process(process.pid).children(recursive=True)]
    assert process.pid is not None
    os.kill(process.pid, number)
    assert exit_code(process) == (-signal.SIGKILL if number == signal.SIGKILL else 130) and ended(family)
    assert (tmp_path / "out" / "0.html").exists() and not (tmp_path / "out" / "2.ipynb").exists()


def test_terminal(workspace: Callable[..., Path]) -> None:
    """In a terminal there is a table that is redrawn, and at its end a summary."""
    folder = workspace(DIAMOND)
    ours, theirs = pty.openpty()
    program = str(Path(sys.executable).parent / "labline")
    environment = {**os.environ, **settings(folder), "TERM": "xterm"}
    process = subprocess.Popen([program, "repro", "-j3"], cwd=folder, env=environment, stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True)
    os.close(theirs)
    text = b""
    while wait([ours], 100):
        try:
            text += os.read(ours, 65536)
        except OSError:  # the other end is closed
            break
    os.close(ours)
    assert process.wait() == 0, text.decode()
    shown = text.decode()
    assert "\x1b[" in shown and "waiting" in shown and "running" in shown and "5 stages: 5 done" in shown and entries(folder)[-1] == "bottom"
    assert "Checking cache" not in shown and "|?" not in shown
