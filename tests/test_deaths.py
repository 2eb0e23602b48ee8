"""How a notebook's kernel can die, and what a person is told: the cell, the signal, the memory, the last output, and an exit code that says it."""

import json
import re
from pathlib import Path

import psutil
import pytest
from small import papermill, saved, write_notebook
from workspaces import ROOT, run

LIMITS = "rows: int = 3\nmax_minutes: float = 0  # for the whole notebook\nmax_memory_gb: float = 0  # for its kernel"
LAST_WORDS = "import os, signal, time\nprint('so far')\ntime.sleep(1)  # the kernel sends what was printed after a moment"
HOARD = """import time
blocks = []
for number in range(400):
    blocks.append(bytearray(b'x') * 10_000_000)
    print(f'{number} blocks')
    time.sleep(0.02)"""


def states(workspace: Path, stage: str) -> list[str | None]:
    return [cell.metadata.get("state") for cell in saved(workspace, stage).cells if cell.cell_type == "code"]


def timeline(workspace: Path, stage: str) -> dict[str, object]:
    return dict(json.loads((workspace / f"build/{stage}/runs/{stage}.timeline.json").read_text()))


@pytest.mark.parametrize(
    ("source", "code", "words"),
    [
        ("os.kill(os.getpid(), signal.SIGKILL)", 137, "its kernel was killed by SIGKILL"),
        ("os.kill(os.getpid(), signal.SIGSEGV)", 139, "its kernel was killed by SIGSEGV (a library accessed"),
        ("os._exit(3)", 1, "its kernel ended by itself with exit code 3"),
    ],
)
def test_the_cell_the_signal_the_memory_and_the_last_output_are_named(tmp_path: Path, source: str, code: int, words: str) -> None:
    write_notebook(tmp_path / "pipelines" / "dies.ipynb", "early = 1", f"{LAST_WORDS}\n{source}", "late = 1")
    done = papermill(tmp_path, "dies", check=False)
    assert done.returncode == code
    assert f"cell 4 did not end: {words}" in done.stderr and "    import os" in done.stderr and "The last that it printed:\n\n    so far\n" in done.stderr
    assert re.search(r"It had taken up to 0\.\d\d GB of memory; the machine had [\d.]+ of [\d.]+ GB free\.", done.stderr)
    assert "Traceback" not in done.stderr and "build/dies/dies.html" in done.stderr
    assert words in saved(tmp_path, "dies").cells[0].source and states(tmp_path, "dies") == [None, None, None, "failed", "skipped"][1:]
    assert timeline(tmp_path, "dies")["state"] == "failed"


def test_more_memory_than_allowed(tmp_path: Path) -> None:
    write_notebook(tmp_path / "pipelines" / "hoards.ipynb", HOARD, "late = 1", parameters=LIMITS)
    done = papermill(tmp_path, "hoards", "-p", "max_memory_gb", "0.4", check=False)
    assert done.returncode == 137 and "its kernel was stopped, because the notebook took 0." in done.stderr
    assert "`max_memory_gb` allows 0.4" in done.stderr and re.search(r"The last that it printed:\s+\d+ blocks", done.stderr)
    assert states(tmp_path, "hoards")[-2:] == ["failed", "skipped"]


def test_what_a_cell_started_is_ended_with_it(tmp_path: Path) -> None:
    child = "import subprocess\nchild = subprocess.Popen(['sleep', '600'], start_new_session=True)\nopen('child', 'w').write(str(child.pid))\nchild.wait()"
    write_notebook(tmp_path / "pipelines" / "waits.ipynb", child, parameters=LIMITS)
    done = papermill(tmp_path, "waits", "-p", "max_minutes", "0.1", check=False)
    assert done.returncode == 124 and "ran longer than `max_minutes` = 0.1 allows" in done.stderr
    pid = int((tmp_path / "child").read_text())
    assert not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE


def test_within_its_limits_a_notebook_is_left_alone(tmp_path: Path) -> None:
    write_notebook(tmp_path / "pipelines" / "modest.ipynb", "sum(range(rows))", parameters=LIMITS)
    papermill(tmp_path, "modest", "-p", "max_minutes", "5", "-p", "max_memory_gb", "8")
    assert saved(tmp_path, "modest").cells[-1].outputs[0].data["text/plain"] == "3"


def test_a_limit_that_is_none(tmp_path: Path) -> None:
    write_notebook(tmp_path / "pipelines" / "modest.ipynb", "1", parameters=LIMITS)
    done = papermill(tmp_path, "modest", "-p", "max_minutes", "-1", check=False)
    assert "`max_minutes` must be a number that is 0 or above" in done.stderr and not (tmp_path / "build").exists()


def test_every_stage_takes_limits(tmp_path: Path) -> None:
    for path in sorted((ROOT / "pipelines").glob("*.ipynb")):
        text = path.read_text()
        assert "max_minutes: float = 0" in text and "max_memory_gb: float = 0" in text, path.name


def test_times_lie_outside_the_outputs_of_a_workspace(tmp_path: Path) -> None:
    (tmp_path / "dvc.yaml").touch()
    write_notebook(tmp_path / "pipelines" / "small.ipynb", "# Heading", "sum(range(rows))")
    papermill(tmp_path, "small")
    assert sorted(path.name for path in (tmp_path / "build/small").iterdir()) == ["small.html", "small.ipynb"]
    times = json.loads((tmp_path / "runs/small/small.timeline.json").read_text())
    assert [cell["title"] for cell in times["cells"]] == ["Small: rows: int = 3", "Heading: sum(range(rows))"]
    assert times["seconds"] >= sum(cell["seconds"] for cell in times["cells"]) and times["cells"][0]["peak_memory_gb"] > 0.01
    page = (tmp_path / "runs/small/small.timeline.html").read_text()
    assert page.count("<i style=") == 3 and "sum(range(rows))" in page and "http" not in page


def test_what_cells_print_can_be_streamed(tmp_path: Path) -> None:
    write_notebook(tmp_path / "pipelines" / "prints.ipynb", "print(rows + 1, 'legs')")
    assert "  4 legs\n" in papermill(tmp_path, "prints", "--log-output").stderr and "4 legs" not in papermill(tmp_path, "prints").stderr
    assert "prints" not in papermill(tmp_path, "prints", "--no-progress-bar").stderr.replace("prints.ipynb", "").replace("/prints", "")


def test_papermill_alone_never_calls_a_dead_kernel_completed(tmp_path: Path) -> None:
    write_notebook(tmp_path / "dies.ipynb", "import os\nos._exit(9)")
    done = run("papermill", "-k", "labline", "--engine", "labline", "dies.ipynb", "out.ipynb", cwd=tmp_path, check=False)
    assert done.returncode != 0 and "completed" not in (tmp_path / "out.ipynb").read_text()
