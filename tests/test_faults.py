"""What goes wrong around notebooks, parameters and DVC, and what a person then sees: one message with a remedy, and nothing half-written."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from small import papermill, saved, two_stages, write_notebook
from warmkernels import servers
from workspaces import ROOT, run

FAILS = ("import math", "def root(number):\n    return math.sqrt(number)\n\n\nroot(-rows)", "print('late')")


def told(done: subprocess.CompletedProcess[str]) -> str:
    """The one message of a command that failed; it must not be a Python traceback of the command itself."""
    assert done.returncode not in (0, None) and "Traceback (most recent call last)" not in done.stderr.partition("Error: ")[0], done.stderr
    return done.stderr.partition("Error: ")[2]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("-p", "row", "5"), "unknown parameter `row`. Did you mean `rows`?"),
        (("-p", "rows", "many"), "`rows` must be of type `int` (found 'many')"),
        (("-p", "rows", "2.5"), "`rows` must be of type `int` (found 2.5)"),
    ],
)
def test_a_parameter_that_the_notebook_does_not_take(tmp_path: Path, options: tuple[str, ...], message: str) -> None:
    write_notebook(tmp_path / "pipelines" / "small.ipynb", "rows")
    assert message in told(papermill(tmp_path, "small", *options, check=False))
    assert not (tmp_path / "build").exists()


def test_a_notebook_without_a_parameters_cell(tmp_path: Path) -> None:
    write_notebook(tmp_path / "pipelines" / "small.ipynb", "1", parameters=None)
    message = told(papermill(tmp_path, "small", check=False))
    assert "no cell is tagged `parameters`" in message and not (tmp_path / "build").exists()


def test_a_kernel_that_is_not_installed(tmp_path: Path) -> None:
    write_notebook(tmp_path / "small.ipynb", "1")
    done = run("papermill", "-k", "nowhere", "--engine", "labline", "small.ipynb", "out.ipynb", cwd=tmp_path, check=False)
    assert "no Jupyter kernel `nowhere`" in told(done) and "make setup" in done.stderr


def test_a_cell_that_raises(tmp_path: Path) -> None:
    write_notebook(tmp_path / "pipelines" / "fails.ipynb", *FAILS)
    message = told(papermill(tmp_path, "fails", check=False))
    assert "cell 4 raised `ValueError` in line 5:\n\n    root(-rows)" in message and "build/fails/fails.html" in message
    notebook, html = saved(tmp_path, "fails"), (tmp_path / "build" / "fails" / "fails.html").read_text()
    assert "This run failed" in notebook.cells[0].source and "(#Failed-here)" in notebook.cells[0].source
    assert [cell.metadata.get("state") for cell in notebook.cells][-2:] == ["failed", "skipped"] and notebook.cells[-1].outputs == []
    assert 'href="#Failed-here"' in html and 'id="Failed-here"' in html and 'class="code failed"' in html

    write_notebook(tmp_path / "pipelines" / "fails.ipynb", *FAILS[:1], FAILS[2])
    shutil.copy(tmp_path / "build" / "fails" / "fails.ipynb", tmp_path / "pipelines" / "again.ipynb")
    papermill(tmp_path, "fails")
    assert "failed" not in (tmp_path / "build" / "fails" / "fails.html").read_text().partition("<main>")[2]
    assert "cell 4 raised" in told(papermill(tmp_path, "again", check=False))


def test_an_error_with_a_remedy_is_told_without_its_traceback(tmp_path: Path) -> None:
    write_notebook(tmp_path / "pipelines" / "fails.ipynb", "from labline.errors import DataError\nraise DataError('no rows', remedy='Pull the data')")
    message = told(papermill(tmp_path, "fails", check=False))
    assert "no rows. Pull the data." in message and "---->" not in message


def test_a_kernel_that_is_killed(tmp_path: Path) -> None:
    write_notebook(tmp_path / "pipelines" / "killed.ipynb", "import os, signal", "os.kill(os.getpid(), signal.SIGKILL)", "print('late')")
    message = told(papermill(tmp_path, "killed", check=False))
    assert "cell 4 did not end: its kernel was killed by SIGKILL" in message and "os.kill" in message
    notebook = saved(tmp_path, "killed")
    assert "its kernel was killed" in notebook.cells[0].source
    assert [cell.metadata.get("state") for cell in notebook.cells][-2:] == ["failed", "skipped"] and notebook.cells[-1].execution_count is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"first": {"rows": 4, "name": "b", "row": 5}}, "unknown key `first.row`"),
        ({"frist": {"rows": 4}}, "unknown section `frist`"),
        ({"first": {"rows": "many", "name": "b"}}, "params.yaml: first.rows: `rows` must be of type `int` (found 'many')"),
        ({"second": {"factor": "x"}}, "`factor` must be of type `float`"),
    ],
)
def test_a_mistake_in_the_parameters_file(tmp_path: Path, change: dict[str, dict[str, object]], message: str) -> None:
    workspace = two_stages(tmp_path / "a workspace")
    sections = {"first": {"rows": 4, "name": "b"}, "second": {"factor": 2.5}} | change
    (workspace / "params.yaml").write_text(json.dumps(sections))
    assert message in told(run("labline", "check", cwd=workspace, check=False))


def test_an_unknown_candidate(tmp_path: Path) -> None:
    shutil.copytree(ROOT / "pipelines", tmp_path / "pipelines")
    shutil.copy(ROOT / "contract.yaml", tmp_path)
    message = told(papermill(tmp_path, "train", "-r", "candidate", "bosting", "-r", "output_folder", "build/train/bosting", check=False))
    assert "unknown candidate `bosting`" in message and "`boosting`" in message
    assert not (tmp_path / "build" / "train" / "bosting").exists()


def family(process: subprocess.Popen[bytes], workspace: Path) -> list[psutil.Process]:
    """What a process has started, and the kernels in a workspace, whose parent is a fork server."""
    children = psutil.Process(process.pid).children(recursive=True)
    forks = [kernel["process"] for server in servers() for kernel in server["kernels"] if kernel["folder"] == str(workspace)]
    assert forks or not sys.platform.startswith("linux"), "the kernel is no fork"
    return [*children, *map(psutil.Process, forks)]


def kill_during(workspace: Path, stage: str) -> None:
    """Start `dvc repro`, kill it with SIGKILL while a stage is held in its waiting cell, and wait until what it started has ended."""
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    hold, path = workspace / f"hold-{stage}", workspace / "build" / stage / f"{stage}.ipynb"
    hold.touch()
    process = subprocess.Popen(["dvc", "repro"], cwd=workspace, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    for _ in range(1200):
        if path.exists() and '"execution_count": 3' in path.read_text():
            break
        time.sleep(0.05)
    else:
        raise AssertionError(f"{stage} did not begin")
    started = family(process, workspace)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert started and psutil.wait_procs(started, timeout=20)[1] == [], "the notebook went on after DVC was killed"
    hold.unlink()


@pytest.fixture(scope="module")
def clean(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The record of a run of two stages that nothing disturbed."""
    workspace = two_stages(tmp_path_factory.mktemp("clean") / "a workspace")
    run("dvc", "repro", cwd=workspace)
    return (workspace / "dvc.lock").read_bytes()


@pytest.mark.parametrize("shell", ["/bin/sh", "/bin/bash"])
def test_a_killed_repro_is_finished_by_the_next_one_with_the_same_result(clean: bytes, tmp_path: Path, shell: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed in the first stage, and once more in the second, which the next run gets to."""
    monkeypatch.setenv("SHELL", shell)
    workspace = two_stages(tmp_path / "killed")
    executed = {stage: workspace / "build" / stage / f"{stage}.ipynb" for stage in ("first", "second")}
    for stage, path in executed.items():
        kill_during(workspace, stage)
        assert "has not finished" in path.read_text()
    run("dvc", "repro", cwd=workspace)
    assert (workspace / "dvc.lock").read_bytes() == clean
    assert not any("has not finished" in path.read_text() for path in executed.values())


def test_a_stage_that_fails_is_run_again_and_the_good_ones_are_not(tmp_path: Path) -> None:
    workspace = two_stages(tmp_path / "a workspace")
    good = (workspace / "pipelines" / "second.ipynb").read_bytes()
    write_notebook(workspace / "pipelines" / "second.ipynb", "1 / 0", parameters="factor: float = 1.0")
    done = run("dvc", "repro", cwd=workspace, check=False)
    executed = workspace / "build" / "second" / "second.ipynb"
    assert done.returncode != 0 and "cell 4 raised `ZeroDivisionError`" in done.stderr and "This run failed" in executed.read_text()
    (workspace / "pipelines" / "second.ipynb").write_bytes(good)
    done = run("dvc", "repro", cwd=workspace)
    assert "Stage 'first' didn't change" in done.stdout + done.stderr and "This run failed" not in executed.read_text()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A folder on a file system of 3 MB; skips where none can be mounted."""
    folder = tmp_path / "small disk"
    folder.mkdir()
    mounted = os.geteuid() == 0 and subprocess.run(["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", str(folder)], capture_output=True).returncode == 0
    if not mounted:
        pytest.skip("a small file system can only be mounted by root")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


def test_a_full_disk_leaves_nothing_that_counts_and_the_next_run_finishes(clean: bytes, small_disk: Path) -> None:
    workspace = two_stages(small_disk / "workspace")
    (workspace / "ballast").write_bytes(b"x" * (shutil.disk_usage(workspace).free - 20_000))
    done = run("dvc", "repro", cwd=workspace, check=False)
    assert done.returncode != 0 and "No space left on device" in done.stderr
    assert not (workspace / "build" / "second").exists()
    assert list((workspace / "build").rglob("*.part")) == []
    (workspace / "ballast").unlink()
    run("dvc", "repro", cwd=workspace)
    assert (workspace / "dvc.lock").read_bytes() == clean


def test_a_notebook_that_cannot_be_saved_leaves_the_old_one_whole(tmp_path: Path) -> None:
    (tmp_path / "dvc.yaml").touch()
    write_notebook(tmp_path / "pipelines" / "large.ipynb", "print('x' * rows)")
    papermill(tmp_path, "large", "-p", "rows", "10")
    folder = tmp_path / "build" / "large"
    before = (folder / "large.ipynb").read_bytes()
    limited = f"ulimit -f 200; exec '{Path(sys.executable).parent}/papermill' -k labline --engine labline"
    done = run("bash", "-c", f"{limited} pipelines/large.ipynb build/large/large.ipynb -p rows 300000", cwd=tmp_path, check=False)
    assert "could not be saved: File too large" in told(done) and "Free space" in done.stderr
    after = json.loads((folder / "large.ipynb").read_text())
    assert before and "has not finished" in "".join(after["cells"][0]["source"]), "the last file that was written as a whole stays"
    assert sorted(path.name for path in folder.iterdir()) == ["large.ipynb"]
