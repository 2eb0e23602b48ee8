"""The papermill engine as people meet it: on the command line, twice, in a terminal, and interrupted."""

import json
import os
import pty
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import nbformat
import papermill as papermill_library
import pytest
from small import papermill, saved, write_notebook

from labline.errors import ParameterError
from labline.notebooks.failure import CellFailed, RefusedParameter

BUSY = (
    "import sys, time\nimport pandas as pd\nfrom IPython.display import display\nfrom ipywidgets import IntProgress",
    "for part in range(3):\n    print(f'\\r{part}/3', end='', file=sys.stderr)\nprint('a\\rb', object(), __import__('os').getcwd())",
    "frame = pd.DataFrame({'x': range(rows)})\ndisplay(IntProgress(value=1))\nframe.style.format(precision=1)",
    "import matplotlib.pyplot as plt\nfigure, axis = plt.subplots(figsize=(3, 2))\naxis.plot(frame['x'])",
)


def test_two_runs_leave_the_same_bytes_and_nothing_of_the_run(tmp_path: Path) -> None:
    (tmp_path / "dvc.yaml").touch()
    write_notebook(tmp_path / "pipelines" / "busy.ipynb", *BUSY)
    contents = []
    for _ in range(2):
        papermill(tmp_path, "busy", "-p", "rows", "5")
        folder = tmp_path / "build" / "busy"
        contents.append({path.name: path.read_bytes() for path in folder.iterdir()})
    assert contents[0] == contents[1] and set(contents[0]) == {"busy.ipynb", "busy.html"}

    text = contents[0]["busy.ipynb"].decode()
    assert str(tmp_path) not in text and "papermill" not in text and "start_time" not in text and "widget-view" not in text
    assert not re.search(r"0x[0-9a-f]{6}", text) and "1/3" not in text and "b <object object at 0x…> ." in text
    assert "rows = 5" in text and saved(tmp_path, "busy").cells[2].id == "injected-parameters"


def test_a_notebook_without_ids_gives_the_same_bytes_too(tmp_path: Path) -> None:
    path = write_notebook(tmp_path / "pipelines" / "old.ipynb", "rows", "rows")
    notebook = json.loads(path.read_text())
    notebook["nbformat_minor"] = 4
    for cell in notebook["cells"]:
        del cell["id"]
    path.write_text(json.dumps(notebook))
    contents = set()
    for _ in range(2):
        papermill(tmp_path, "old", "-p", "rows", "2")
        contents.add((tmp_path / "build" / "old" / "old.ipynb").read_bytes())
    assert len(contents) == 1


def test_the_page_needs_no_network_and_hides_what_is_tagged(tmp_path: Path) -> None:
    write_notebook(tmp_path / "pipelines" / "page.ipynb", *BUSY[2:], tags=["remove-input"], parameters="rows: int = 3\nimport_me: str = ''")
    notebook = nbformat.read(tmp_path / "pipelines" / "page.ipynb", as_version=4)
    notebook.cells.insert(2, nbformat.v4.new_code_cell(BUSY[0], id="imports"))
    nbformat.write(notebook, tmp_path / "pipelines" / "page.ipynb")
    notebook.cells[1].metadata["tags"] = ["parameters", "remove-input"]
    nbformat.write(notebook, tmp_path / "pipelines" / "page.ipynb")
    papermill(tmp_path, "page", "-p", "rows", "4")
    html = (tmp_path / "build" / "page" / "page.html").read_text()
    assert "data:image/png;base64," in html and "<table" in html and "plt.subplots" not in html and ">rows<" not in html
    assert not re.search(r"""(?:src|href)=["']?(?:https?:)?//|@import|url\(http""", html)
    assert "<script" not in html and len(html) < 100_000


def test_a_log_has_one_line_per_code_cell(tmp_path: Path) -> None:
    write_notebook(tmp_path / "pipelines" / "busy.ipynb", *BUSY)
    log = papermill(tmp_path, "busy", DVC_STAGE="busy@a").stderr
    lines = [line for line in log.splitlines() if line.startswith("busy@a")]
    assert len(lines) == 6 and re.match(r"busy@a   3/6  .* s$", lines[1]) and re.match(r"busy@a: done after .* s$", lines[-1])
    assert "1/3" not in log and "\r" not in log


def test_a_terminal_has_a_live_line(tmp_path: Path) -> None:
    write_notebook(tmp_path / "pipelines" / "busy.ipynb", "import sys, time\nprint('\\r50 % of it', end='', file=sys.stderr)\ntime.sleep(1)")
    leader, follower = pty.openpty()
    command = [str(Path(sys.executable).parent / "papermill"), "-k", "labline", "--engine", "labline", "pipelines/busy.ipynb", "build/busy.ipynb"]
    process = subprocess.Popen(command, cwd=tmp_path, stderr=follower, stdout=follower, stdin=subprocess.DEVNULL)
    os.close(follower)
    shown = b""
    while True:
        try:
            part = os.read(leader, 4096)
        except OSError:
            break
        if not part:
            break
        shown += part
    os.close(leader)
    assert process.wait() == 0
    assert b"\r\x1b[2Kbusy" in shown and "50 % of it" in shown.decode() and "busy: done after" in shown.decode().splitlines()[-1]


def test_papermill_as_a_library_gets_typed_errors(tmp_path: Path) -> None:
    path = write_notebook(tmp_path / "small.ipynb", "1 / 0")
    with pytest.raises(RefusedParameter, match="`rows` must be of type `int`") as refused:
        papermill_library.execute_notebook(path, tmp_path / "out.ipynb", {"rows": "many"}, engine_name="labline", kernel_name="labline")
    assert isinstance(refused.value, ParameterError) and not (tmp_path / "out.ipynb").exists()
    with pytest.raises(CellFailed, match="cell 3 raised `ZeroDivisionError` in line 1"):
        papermill_library.execute_notebook(path, tmp_path / "out.ipynb", engine_name="labline", kernel_name="labline")


def test_values_arrive_in_the_declared_types(tmp_path: Path) -> None:
    parameters = "share: float = 0.5\nquick: bool = False\nname: str = ''\nsizes: list[int] = [1]\nseed: int | None = 7"
    write_notebook(tmp_path / "pipelines" / "types.ipynb", "[share, quick, name, sizes, seed]", parameters=parameters)
    papermill(tmp_path, "types", "-p", "share", "1", "-p", "quick", "true", "-r", "name", "007", "-r", "sizes", "1,2", "-p", "seed", "None")
    assert saved(tmp_path, "types").cells[-1].outputs[0].data["text/plain"] == "[1.0, True, '007', [1, 2], None]"


def start(workspace: Path, stage: str) -> subprocess.Popen[bytes]:
    """Start a notebook and wait until its first cells are saved."""
    path = workspace / "build" / stage / f"{stage}.ipynb"
    command = [str(Path(sys.executable).parent / "papermill"), "-k", "labline", "--engine", "labline", f"pipelines/{stage}.ipynb", str(path)]
    process = subprocess.Popen(command, cwd=workspace, stderr=subprocess.PIPE)
    for _ in range(600):
        if path.exists() and '"execution_count": 2' in path.read_text():
            return process
        time.sleep(0.1)
    process.kill()
    raise AssertionError("the second cell was never saved")


SLOW = ("early = 1", "import time\ntime.sleep(60)", "late = 1")


def test_an_interrupted_run_is_saved_and_says_where(tmp_path: Path) -> None:
    write_notebook(tmp_path / "pipelines" / "slow.ipynb", *SLOW)
    process = start(tmp_path, "slow")
    time.sleep(1)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert process.returncode != 0 and b"cell 4 was interrupted" in said and b"Traceback" not in said
    assert [cell.metadata.get("state") for cell in saved(tmp_path, "slow").cells] == [None, None, None, None, None, "failed", "skipped"]


def test_a_run_that_is_killed_leaves_a_notebook_that_says_so(tmp_path: Path) -> None:
    write_notebook(tmp_path / "pipelines" / "slow.ipynb", *SLOW)
    process = start(tmp_path, "slow")
    process.kill()
    process.communicate(timeout=60)
    notebook = saved(tmp_path, "slow")
    assert "has not finished" in notebook.cells[0].source and notebook.cells[-1].execution_count is None
    assert [path.name for path in (tmp_path / "build" / "slow").iterdir()] == ["slow.ipynb"]
