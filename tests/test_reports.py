"""Reports on demand: one by its parameters, many with a front page, the same by papermill, on paper, and what is said of those that fail."""

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import nbformat
import pytest
from judging import after

from labline.operations.printing import find_browser

ROOT = Path(__file__).parents[1]
PIPELINE = """stages:
  report:
    cmd: >-
      papermill pipelines/report.ipynb build/report/report.ipynb -r month '${report.month}' -r segment_column ${report.segment_column} -p within ${train.within}
    deps: [build/evaluate, build/validate]
    outs: [build/report]
"""
FLAKY_PARAMETERS = """month: str = ""  # month
segment_column: str = "depot.region"  # column
segment: str = ""  # part
output_folder: str = "build/flaky"  # place"""
FLAKY = """import json
from pathlib import Path
if segment == "south":
    raise RuntimeError("the south is cut off")
about = {"model": "door", "candidate": "tree", "digest": "ab" * 32, "data": None}
Path(output_folder).mkdir(parents=True, exist_ok=True)
Path(output_folder, "flaky.json").write_text(json.dumps({"rows": 1, "mae": 1.0, "error": "1 hour", "verdict": "Fine.", "about": about}))"""


@pytest.fixture(scope="module")
def workspace(run_stage: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the judged workspace, with the notebooks of reports and a line that makes one."""
    folder = tmp_path_factory.mktemp("reports") / "a workspace"
    shutil.copytree(after("report", run_stage), folder)
    (folder / "pipelines").mkdir()
    for name in ("report", "review"):
        shutil.copy(ROOT / f"pipelines/{name}.ipynb", folder / "pipelines")
    parameters = FLAKY_PARAMETERS
    cells = [nbformat.v4.new_code_cell(parameters, metadata={"tags": ["parameters"]}), nbformat.v4.new_code_cell(FLAKY)]
    kernel = {"kernelspec": {"name": "labline", "display_name": "labline", "language": "python"}}
    nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata=kernel), folder / "pipelines/flaky.ipynb")
    (folder / "dvc.yaml").write_text(PIPELINE)
    (folder / "params.yaml").write_text("report: {month: '', segment_column: depot.region}\ntrain: {within: 3.0}\n")
    (folder / "settings.ini").write_text((ROOT / "settings.ini").read_text())
    return folder


def labline(workspace: Path, *words: str, code: int = 0) -> str:
    """Run `labline`; returns what it prints, on both streams."""
    done = subprocess.run([str(Path(sys.executable).with_name("labline")), *words], cwd=workspace, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout + done.stderr


def contents(folder: Path) -> dict[str, bytes]:
    """The figures and facts in a folder."""
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir()) if path.suffix in (".png", ".json")}


def test_one_report_has_a_folder_of_its_own_and_says_what_it_is_about(workspace: Path) -> None:
    """A part is named by its column; what the line wrote stays; papermill makes the same figures and facts."""
    before = contents(workspace / "build/report")
    said = labline(workspace, "report", "-p", "month=2025-09", "-p", "region=south")
    folder = workspace / "runs/reports/report/2025-09-south"
    facts = json.loads((folder / "report.json").read_text())
    assert (facts["month"], facts["segment"]) == ("2025-09", "south")
    assert "came within 3 hours of it" in facts["verdict"]
    assert "runs/reports/report/2025-09-south/report.html" in said
    assert "Model door, candidate tree" in re.sub(r"<[^>]+>", "", (folder / "report.html").read_text())
    assert contents(workspace / "build/report") == before
    words = ["-r", "month", "2025-09", "-r", "segment_column", "depot.region", "-r", "segment", "south", "-p", "within", "3.0"]
    command = [sys.executable, "-m", "papermill", "--engine", "labline", "-k", "labline", "--no-progress-bar", "pipelines/report.ipynb"]
    plain = workspace / "runs/plain"
    plain.mkdir()
    command += ["runs/plain/report.ipynb", *words, "-r", "output_folder", "runs/plain"]
    subprocess.run(command, cwd=workspace, check=True, capture_output=True, timeout=600)
    assert contents(plain) == contents(folder)


def test_many_reports_have_a_front_page(workspace: Path) -> None:
    """A month with all its parts; each cell leads to a page."""
    said = labline(workspace, "reports", "--month", "2025-10", "--jobs", "2", "--output", "all of October")
    home = workspace / "all of October"
    front = (home / "index.html").read_text()
    assert "3 reports; begin with" in said
    links = set(re.findall(r'<td[^>]*><a href="([^"]+)"', front))
    assert links == {f"2025-10{part}/report.html" for part in ("", "-north", "-south")}
    assert all((home / link).stat().st_size > 100_000 for link in links)
    facts = json.loads((home / "2025-10-south/report.json").read_text())
    assert facts["error"] in front
    assert facts["verdict"] in front
    assert not re.findall(r"""(?:src|href)=["'](?:https?:)?//""", front)


def test_the_reports_that_fail_are_named_and_the_others_are_there(workspace: Path) -> None:
    """Also after a run in which they did not fail."""
    said = labline(workspace, "reports", "flaky", "--month", "2025-09", code=1)
    assert "1 of 3 reports failed" in said
    front = (workspace / "runs/reports/flaky/index.html").read_text()
    assert front.count("failed</td>") == 1
    assert front.count("1 hour</a>") == 2
    assert "the south is cut off" in labline(workspace, "report", "flaky", "-p", "segment=south", code=1)


def test_a_reviewer_gets_pictures_card_and_paper(workspace: Path) -> None:
    """Without code; the PDF where there is a browser."""
    said = labline(workspace, "report", "review", *(["--pdf"] if find_browser() else []))
    folder = workspace / "runs/reports/review/usual"
    page = re.sub(r"<[^>]+>", "", (folder / "review.html").read_text())
    assert "Is this model fit for use?" in page
    assert "What it relies on" in page
    assert "When inputs are wrong" in page
    assert "read_evidence" not in page
    assert {path.name for path in folder.glob("*.png")} == {"calibration.png", "hours.png", "inputs.png", "slices.png"}
    if find_browser():
        assert "review.pdf" in said
        assert (folder / "review.pdf").read_bytes().startswith(b"%PDF")


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["report", "reprot"], "Did you mean `report`"),
        (["report", "-p", "month=2024-02"], "Choose one of `2025-09`, `2025-10`"),
        (["report", "-p", "town=south"], "unknown parameter `town`"),
        (["report", "-p", "month"], "Write it as name=value"),
        (["reports", "--month", "2024-02"], "there are not enough predictions for the month `2024-02`"),
        (["reports", "--segment", "east"], "Choose one of `north`, `south`"),
    ],
)
def test_what_is_not_there_is_told_with_what_there_is(workspace: Path, words: list[str], expected: str) -> None:
    """A report, a month, a column, a part."""
    assert expected in " ".join(labline(workspace, *words, code=1).split())
