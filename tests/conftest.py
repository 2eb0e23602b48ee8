"""Fixtures that several test modules share: the real data where it is there, and workspaces made of it."""

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

pytest_plugins = ["warmkernels"]
ROOT = Path(__file__).parents[1]
LIBRARIES = "import duckdb, ibis, keras, matplotlib.pyplot, pandas, pandera, seaborn, sklearn.ensemble, tensorflow"
OF_OTHERS = (
    "ignore:fetch_arrow_table:DeprecationWarning",  # ibis 12 calls it, duckdb 2.0 deprecated it
    "ignore:_NoneStep.value:DeprecationWarning",  # dvc-data 3 calls it, pygtrie 2.5 deprecated it
)


def pytest_configure(config: pytest.Config) -> None:
    """Warnings are errors; these come from between two libraries, and are not ours to mend.

    A shell in the background or `nohup` have signals ignored, by all that is started from here too: the tests begin with ordinary ones.
    """
    for number, usual in ((signal.SIGHUP, signal.SIG_DFL), (signal.SIGINT, signal.default_int_handler)):
        if signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, usual)
    for line in OF_OTHERS:
        config.addinivalue_line("filterwarnings", line)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real data: `LABLINE_SHARED_DATA`, or `../shared/data` beside the repository; skips when it is absent."""
    folder = Path(os.environ.get("LABLINE_SHARED_DATA") or ROOT.parent / "shared" / "data")
    if not folder.is_dir():
        pytest.skip(f"no real data: {folder} does not exist (set LABLINE_SHARED_DATA)")
    return folder


@pytest.fixture(scope="session")
def bike_sharing(shared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A workspace with the bicycle rentals and their contract; stages that ran leave their outputs for later tests."""
    source = shared_data / "tabular" / "bike_sharing_hour.csv"
    if not source.is_file():
        pytest.skip(f"no real data: {source} does not exist")
    workspace = tmp_path_factory.mktemp("bike sharing")
    (workspace / "data").mkdir()
    shutil.copy(source, workspace / "data")
    shutil.copy(ROOT / "tests" / "bike_sharing" / "contract.yaml", workspace)
    (workspace / "params.yaml").write_text("train: {candidates: [linear, tree]}\n")
    return workspace


@pytest.fixture(scope="session")
def run_stage() -> Callable[..., Path]:
    """A function that executes a notebook of `pipelines/` by papermill in a workspace and returns the executed notebook.

    The kernel is a warm one, in which what `LIBRARIES` imports is there already; `kernel="python3"` is an ordinary one.
    """
    from warmkernels import write_notebook  # a plugin, which pytest imports itself

    def run(workspace: Path, stage: str, output: str = "", kernel: str = "labline", **parameters: object) -> Path:
        write_notebook(workspace / "libraries.ipynb", LIBRARIES)
        executed = workspace / "build" / (output or stage) / f"{stage}.ipynb"
        executed.parent.mkdir(parents=True, exist_ok=True)
        given = [word for name, value in parameters.items() for word in ("-p", name, str(value))]
        command = [sys.executable, "-m", "papermill", "--no-progress-bar", "-k", kernel, str(ROOT / "pipelines" / f"{stage}.ipynb"), str(executed), *given]
        done = subprocess.run(command, cwd=workspace, capture_output=True, text=True, timeout=600)
        assert done.returncode == 0, f"{stage} ended with {done.returncode}\n{done.stderr[-6000:]}"
        return executed

    return run


@pytest.fixture(scope="session")
def slower_roads(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A workspace whose first release is live, and whose service has answered four weeks of trips on roads that have become slower; tests take copies."""
    from labline.operations.git import git
    from labline.operations.registry import promote
    from labline.operations.releasing import release
    from labline.operations.retrain.example import dvc, serve_trips, world, write_workspace

    root = write_workspace(tmp_path_factory.mktemp("slower roads") / "work")
    (root / "pipelines").mkdir()
    shutil.copy(ROOT / "pipelines" / "monitor.ipynb", root / "pipelines")
    dvc(root, "repro")
    git(root, "add", "--all")
    git(root, "commit", "--quiet", "--message", "A run")
    first = promote(root, release(root).label, "prod").release
    serve_trips(root, world("2025-03-01", 28, 2.6, seed=1), str(first.digest))
    return root
