"""The test set, opened once: what `evaluate` writes is true of the predictions that it writes."""

import json
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from judging import CONTRACT, after, parcels

from labline.data.contract import Contract
from labline.models.evaluation import open_predictions, overall, score
from labline.models.metrics import MISSING, regression_metrics
from labline.models.robustness import scenarios
from labline.models.slices import cuts, judge


@pytest.fixture(scope="module")
def evaluated(run_stage: Callable[..., Path]) -> Path:
    """The folder of outputs, with the contract beside."""
    return after("evaluate", run_stage) / "build" / "evaluate"


def contract_in(folder: Path) -> Contract:
    (folder / "contract.yaml").write_text(CONTRACT)
    return Contract.load(folder / "contract.yaml")


def test_the_metrics_are_those_of_the_predictions(evaluated: Path) -> None:
    """Each inside its interval; the baseline beside; better than it."""
    metrics = json.loads((evaluated / "metrics.json").read_text())
    rows = pd.read_parquet(evaluated / "predictions.parquet")
    assert metrics["rows"] == len(rows) > 1000
    for name, value in regression_metrics(rows["actual"], rows["prediction"]).items():
        assert metrics["model"][name]["value"] == pytest.approx(value, abs=1e-4), name
        assert metrics["model"][name]["low"] <= value + 1e-4
        assert metrics["model"][name]["high"] >= value - 1e-4
    assert metrics["baseline"]["mae"]["value"] == pytest.approx((rows["baseline"] - rows["actual"]).abs().mean(), abs=1e-4)
    assert metrics["gain"]["baseline"]["high"] < 0
    inside = rows["actual"].between(rows["low"], rows["high"]).mean()
    assert metrics["model"]["coverage"]["value"] == pytest.approx(inside, abs=1e-4)


def test_a_missing_baseline_falls_back_to_the_training_median(evaluated: Path) -> None:
    """The column where there is one, the median where it is empty."""
    rows = pd.read_parquet(evaluated / "predictions.parquet")
    median = pd.read_parquet(evaluated.parent / "prepare/train.parquet")["hours"].median()
    empty = rows["usual_hours"].isna()
    assert empty.any()
    assert np.allclose(rows.loc[empty, "baseline"], median)
    assert rows.loc[~empty, "baseline"].equals(rows.loc[~empty, "usual_hours"])


def test_slices_are_cut_by_the_contract_and_hold_all_rows(evaluated: Path) -> None:
    """No column is named in the notebook; each cut is a partition whose errors add up."""
    slices = pd.read_csv(evaluated / "slices.csv", dtype={"value": str})
    cut_names = ["sent_at.hour", "sent_at.weekday", "sent_at.week", "depot", "weight", "fragile", "usual_hours", "prediction"]
    assert slices["slice"].unique().tolist() == cut_names
    mae = json.loads((evaluated / "metrics.json").read_text())["model"]["mae"]["value"]
    for name, part in slices.groupby("slice"):
        assert part["share"].sum() == pytest.approx(1, abs=1e-4), name
        assert (part["mae"] * part["share"]).sum() == pytest.approx(mae, abs=1e-3), name
    assert MISSING in slices.loc[slices["slice"] == "weight", "value"].tolist()
    afternoon = slices[(slices["slice"] == "sent_at.hour") & (slices["value"] == "16")].iloc[0]
    assert afternoon["mae_low"] > mae
    assert afternoon["bias_high"] < 0


def test_wrong_inputs_are_answered_and_their_cost_is_told(evaluated: Path) -> None:
    """Every scenario of the contract; a weight in grams hurts, a depot never seen costs the slow one's hours."""
    effects = pd.read_csv(evaluated / "robustness.csv").set_index("scenario")
    assert effects.index.tolist() == [scenario.name for scenario in scenarios(Contract.load(evaluated.parents[1] / "contract.yaml"))]
    assert (effects["answered"] == 1).all()
    assert effects.loc["`weight` in grams instead of kg", "change_low"] > 100
    assert effects.loc["`depot` has a value never seen in training", "change"] > 1
    assert effects.loc["`usual_hours` missing", "change"] == 0


def test_importance_ranks_what_the_model_uses(evaluated: Path) -> None:
    """The depot first, then the weight, then nothing."""
    ranking = pd.read_csv(evaluated / "importance.csv")
    assert ranking["column"].tolist()[:2] == ["depot", "weight"]
    assert (ranking["importance"].iloc[2:] == 0).all()


def test_the_card_says_what_the_files_say(evaluated: Path) -> None:
    """In sentences: reason, metrics, limits, and a request that can be sent."""
    card, metrics = (evaluated / "card.md").read_text(), json.loads((evaluated / "metrics.json").read_text())
    assert "# Model card: `door`" in card
    assert f"{metrics['model']['mae']['value']:.2f} (" in card
    assert "With `weight` missing" in card or "`weight` in grams instead of kg" in card
    request = card.split("curl -d '")[1].split("'")[0]
    assert set(json.loads(request)["instances"][0]) == {"sent_at", "depot", "weight", "fragile", "usual_hours"}


def test_the_stage_leaves_the_same_bytes_twice(evaluated: Path, run_stage: Callable[..., Path]) -> None:
    """Tables, metrics, figures and card; in an ordinary kernel what a warm one left."""
    names = [path.name for path in evaluated.iterdir() if path.suffix in (".json", ".csv", ".parquet", ".png", ".md")]
    before = {name: (evaluated / name).read_bytes() for name in names}
    run_stage(evaluated.parents[1], "evaluate", kernel="python3", baseline="usual_hours", sample_rows=500, resamples=200)
    assert [name for name in names if (evaluated / name).read_bytes() != before[name]] == []
    assert {"metrics.json", "slices.csv", "predicted.csv", "hours.png", "card.md"} <= set(names)


def test_memory_does_not_grow_with_the_test_set(tmp_path: Path) -> None:
    """Scoring four times the rows takes no more memory."""
    contract = contract_in(tmp_path)
    table = pa.Table.from_pandas(parcels(20_000), preserve_index=False)
    peaks = []
    for times in (2, 8):
        with pq.ParquetWriter(tmp_path / "test.parquet", table.schema) as writer:
            for _ in range(times):
                writer.write_table(table, row_group_size=20_000)
        tracemalloc.start()
        score(lambda rows: pd.DataFrame({"hours": np.full(len(rows), 14.0)}), tmp_path / "test.parquet", tmp_path / "scored.parquet", contract, batch=5000)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 1.3 * peaks[0]


def test_a_contract_without_time_is_judged_all_the_same(tmp_path: Path) -> None:
    """Rows are independent then, and no cut is by the clock."""
    (tmp_path / "contract.yaml").write_text(CONTRACT.replace("role: time", "role: other"))
    contract = Contract.load(tmp_path / "contract.yaml")
    parcels(2000).to_parquet(tmp_path / "test.parquet", index=False)
    score(lambda rows: pd.DataFrame({"hours": np.full(len(rows), 14.0)}), tmp_path / "test.parquet", tmp_path / "scored.parquet", contract, fallback=14.0)
    rows = open_predictions(tmp_path / "scored.parquet", contract)
    figures = overall(rows, resamples=100)
    assert figures["mae"].low < figures["mae"].value < figures["mae"].high
    assert [cut.name for cut in cuts(rows, contract)][:2] == ["depot", "weight"]
    assert judge(rows, cuts(rows, contract)[0], resamples=50)["rows"].sum() == 2000
