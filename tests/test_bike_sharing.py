"""The same notebooks on another case: bicycle rentals, with their own contract and nothing else."""

import json
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest

from labline.data.contract import Contract


@pytest.fixture(scope="module")
def prepared(bike_sharing: Path, run_stage: Callable[..., Path]) -> Path:
    """The workspace after validate and prepare."""
    run_stage(bike_sharing, "validate")
    run_stage(bike_sharing, "prepare", validation_days=60, test_days=60, gap_days=7)
    return bike_sharing


def test_validate_accepts_the_table(prepared: Path) -> None:
    counts = json.loads((prepared / "build/validate/quality.json").read_text())["hours"]
    assert counts["read"] == 17_379 and counts["rejected"] == 0
    assert pd.read_parquet(prepared / "build/validate/quarantine.parquet").empty
    accepted = pd.read_parquet(prepared / "build/validate/tables/hours.parquet")
    assert (accepted["casual"] + accepted["registered"] == accepted["cnt"]).all()


def test_prepared_rows_hold_no_outcome(prepared: Path) -> None:
    contract = Contract.load(prepared / "contract.yaml")
    for part in ("train", "validation", "test"):
        columns = list(pd.read_parquet(prepared / f"build/prepare/{part}.parquet").columns)
        assert columns == ["instant", *contract.row, "cnt"]
        assert not {"casual", "registered"} & set(columns)


def test_parts_follow_each_other_with_a_gap(prepared: Path) -> None:
    days = {part: pd.read_parquet(prepared / f"build/prepare/{part}.parquet")["dteday"] for part in ("train", "validation", "test")}
    assert (days["validation"].min() - days["train"].max()).days == 8
    assert (days["test"].min() - days["validation"].max()).days == 8
    assert days["test"].max() == pd.Timestamp("2012-12-31") and days["test"].nunique() == 60


def test_explore_draws_its_figures(prepared: Path, run_stage: Callable[..., Path]) -> None:
    executed = run_stage(prepared, "explore", sample_rows=3000)
    figures = sorted(path.name for path in executed.parent.glob("*.png"))
    assert figures == ["association.png", "features.png", "target.png", "target_by_feature.png"]
    text = executed.read_text()
    assert "Taken one at a time, `hr`" in text


@pytest.mark.parametrize("stage", ["validate", "prepare", "explore"])
def test_notebooks_know_no_column_by_name(stage: str) -> None:
    notebook = json.loads((Path(__file__).parents[1] / f"pipelines/{stage}.ipynb").read_text())
    code = "\n".join("".join(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == "code")
    for contract in ("contract.yaml", "tests/bike_sharing/contract.yaml"):
        tables = Contract.load(Path(__file__).parents[1] / contract).tables
        for column in {name for table in tables.values() for name in table.columns} - {"name"}:
            assert f'"{column}"' not in code and f"'{column}'" not in code
    assert "def " not in code and 8 <= len(notebook["cells"]) <= 14


def test_the_line_goes_on_to_the_report(prepared: Path, run_stage: Callable[..., Path]) -> None:
    for candidate in ("linear", "tree"):
        folder = f"build/train/{candidate}"
        run_stage(prepared, "train", output=f"train/{candidate}", candidate=candidate, output_folder=folder, epochs=1, tree_leaves=50)
    run_stage(prepared, "select", resamples=200)
    run_stage(prepared, "evaluate", resamples=100, sample_rows=500)
    run_stage(prepared, "package", samples=20)
    run_stage(prepared, "report")

    champion = json.loads((prepared / "build/select/champion.json").read_text())["champion"]
    metrics = json.loads((prepared / "build/evaluate/metrics.json").read_text())
    assert champion == "tree", "hours and weekdays are no straight line"
    assert metrics["model"]["mae"]["value"] < metrics["baseline"]["mae"]["value"]
    model = Contract.load(prepared / "contract.yaml").model
    assert (prepared / "build/package" / model / "1" / "saved_model.pb").is_file()
    assert (prepared / "build/report/report.json").is_file()
