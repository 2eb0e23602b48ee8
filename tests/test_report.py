"""The report for people who read no code: the page, its sentences, and what it says when something is not there."""

import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
from judging import after

from labline.data.contract import Contract
from labline.errors import ParameterError
from labline.operations.advice import recommend
from labline.operations.report import Findings, find, verdict


@pytest.fixture(scope="module")
def workspace(run_stage: Callable[..., Path]) -> Path:
    """The workspace after the report."""
    return after("report", run_stage)


def findings_of(workspace: Path, **options: str) -> Findings:
    contract = Contract.load(workspace / "contract.yaml")
    return find(workspace / "build/evaluate/predictions.parquet", contract, workspace / "build/validate/tables", resamples=100, **options)


def test_the_report_is_on_the_latest_month_and_compares_with_the_one_before(workspace: Path) -> None:
    """Without any parameter."""
    facts = json.loads((workspace / "build/report/report.json").read_text())
    assert facts["month"] == "2025-10"
    assert "In October 2025, a prediction was off by" in facts["verdict"]
    assert "September 2025" in facts["verdict"]
    assert len(facts["recommendations"]) == 3
    for name in facts["figures"]:
        assert (workspace / "build/report" / name).stat().st_size > 5000
    assert facts["figures"] == ["allowance.png", "clock.png", "places.png", "weeks.png"]


def test_its_recommendations_follow_from_the_figures(workspace: Path) -> None:
    """The slow depot, by the name that people know, and the late afternoons, with the numbers."""
    findings = findings_of(workspace, segment_column="depot.region")
    rows = pd.read_parquet(workspace / "build/evaluate/predictions.parquet")
    rows = rows[rows["sent_at"].dt.month == 10]
    texts = {advice.title: advice.text for advice in recommend(findings, most=20)}
    slow = rows.loc[rows["depot"] == "D3", "actual"].mean()
    station = next(title for title in texts if title.startswith("Station capacity nearer"))
    assert station in ("Station capacity nearer: Cedar (D3)", "Station capacity nearer: south")
    assert f"it takes {slow:.0f} hours on average" in texts[station]
    add = next(title for title in texts if title.startswith("Add "))
    assert re.fullmatch(r"Add \d+ hours from 15:00 to 19:00", add)
    promised = int(add.split()[1])
    afternoon = rows[rows["sent_at"].dt.hour.between(15, 18)]
    assert (afternoon["actual"] <= afternoon["prediction"] + promised).mean() >= 0.9


def test_a_month_and_a_region_can_be_chosen(workspace: Path) -> None:
    """The figures are those of these rows alone; a first month has nothing before it."""
    findings = findings_of(workspace, month="2025-09", segment_column="depot.region", segment="south")
    rows = pd.read_parquet(workspace / "build/evaluate/predictions.parquet")
    rows = rows[(rows["sent_at"].dt.month == 9) & (rows["depot"] == "D3")]
    assert findings.rows == len(rows)
    assert findings.now["mae"].value == pytest.approx((rows["prediction"] - rows["actual"]).abs().mean(), abs=1e-4)
    assert findings.change is None
    assert "In September 2025 for south" in verdict(findings)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"month": "2024-02"}, "Choose one of `2025-09`, `2025-10`"),
        ({"segment_column": "depot.region", "segment": "east"}, "Choose one of `north`, `south`"),
        ({"segment_column": "depot.town"}, "unknown attribute `town`"),
        ({"segment_column": "depto"}, "Did you mean `depot`"),
        ({"segment": "south"}, "Set `segment_column`"),
    ],
)
def test_what_is_not_there_is_told_with_what_there_is(workspace: Path, options: dict[str, str], expected: str) -> None:
    """A month, a region, an attribute, a column."""
    with pytest.raises(ParameterError, match=re.escape(expected)):
        findings_of(workspace, **options)


def test_the_page_shows_no_code_and_fetches_nothing(workspace: Path) -> None:
    """Executed by the line's own engine, as `dvc repro` does it."""
    notebook = Path(__file__).parents[1] / "pipelines/report.ipynb"
    command = [sys.executable, "-m", "papermill", "--engine", "labline", "-k", "labline", "--no-progress-bar", str(notebook), "build/page/report.ipynb"]
    command += ["-r", "segment_column", "depot.region"]
    (workspace / "build/page").mkdir(exist_ok=True)
    done = subprocess.run(command, cwd=workspace, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    page = (workspace / "build/page/report.html").read_text()
    assert "How good were the predictions?" in page
    assert "Three recommendations" in page
    for code in ("import json", "set_style", "findings = find", "month: str", "segment_column"):
        assert code not in re.sub(r"<[^>]+>", "", page), code
    assert not re.findall(r"""(?:src|href)=["'](?:https?:)?//""", page)
    assert page.count("data:image/png") == 4


def test_the_stage_leaves_the_same_bytes_twice(workspace: Path, run_stage: Callable[..., Path]) -> None:
    """Figures and facts; in an ordinary kernel what a warm one left."""
    files = sorted(path for path in (workspace / "build/report").iterdir() if path.suffix in (".png", ".json"))
    before = [path.read_bytes() for path in files]
    run_stage(workspace, "report", kernel="python3", segment_column="depot.region")
    assert [path.read_bytes() for path in files] == before


def test_a_case_may_bring_its_own_words(workspace: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """By a function in its feature builder; the general ones fill up to three."""
    (tmp_path / "parcel_features.py").write_text(
        "from labline.operations.advice import Recommendation\n"
        "def recommendations(findings):\n"
        "    return [Recommendation('Send a second van to Cedar', f'{findings.rows} parcels waited.', 1.0)]\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    advice = recommend(findings_of(workspace), "parcel_features")
    assert advice[0].title == "Send a second van to Cedar"
    assert len(advice) == 3
