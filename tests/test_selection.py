"""Which candidate wins, why, and what of it is written where."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from judging import after, shared_workspace

from labline.errors import DataError, ModelError
from labline.models.metrics import ErrorSummary
from labline.models.selection import Budgets, read_errors, select, trained

FINE = {"single_row": True, "thousand_rows": True, "size": True}
SIZES = {"linear": 1000, "tree": 2000, "mlp": 9000}


def summaries(tmp_path: Path, noise: dict[str, float], own: float = 1.0) -> dict[str, ErrorSummary]:
    """Errors of candidates that share their hard days; `noise` scales them, `own` is what each adds."""
    random = np.random.default_rng(4)
    rows = pd.DataFrame({"id": range(4000), "at": pd.date_range("2025-01-01", periods=4000, freq="31min"), "actual": random.gamma(4, 6, 4000)})
    shared = random.laplace(0, 4, 4000)
    paths = {}
    for name, scale in noise.items():
        paths[name] = tmp_path / f"{name}.parquet"
        rows.assign(prediction=rows["actual"] + shared * scale + random.normal(0, own, 4000)).to_parquet(paths[name])
    return read_errors(paths, "id", "at")


def test_the_simplest_within_the_interval_of_the_best_wins(tmp_path: Path) -> None:
    """Not the best one, when the data cannot tell them apart."""
    selection = select(summaries(tmp_path, {"linear": 1.4, "tree": 1.0, "mlp": 0.998}), SIZES, dict.fromkeys(SIZES, FINE), unit="min")
    table = selection.comparison.set_index("candidate")
    assert selection.champion == "tree"
    assert table.loc["linear", "difference_low"] > 0
    assert table.loc["tree", "difference_low"] <= 0
    assert "`tree` is chosen" in selection.reason
    assert " min" in selection.reason


def test_the_best_wins_where_the_data_do_tell_them_apart(tmp_path: Path) -> None:
    """However complex it is."""
    selection = select(summaries(tmp_path, {"linear": 1.4, "tree": 1.2, "mlp": 1.0}), SIZES, dict.fromkeys(SIZES, FINE))
    assert selection.champion == selection.best == "mlp"
    assert "no simpler candidate" in selection.reason


def test_what_is_over_budget_neither_wins_nor_sets_the_mark(tmp_path: Path) -> None:
    """The others are compared with the best of those that remain."""
    met = {"linear": FINE, "tree": FINE, "mlp": Budgets(50, 500, 0.005).met({1: 1.0, 1000: 2.0}, SIZES["mlp"])}
    selection = select(summaries(tmp_path, {"linear": 1.4, "tree": 1.2, "mlp": 1.0}), SIZES, met)
    assert selection.champion == selection.best == "tree"
    assert "Over budget and left out: `mlp` (size)" in selection.reason


def test_nobody_within_the_budgets_is_an_error(tmp_path: Path) -> None:
    """Which says whose budget it was."""
    met = {name: FINE | {"single_row": False} for name in SIZES}
    with pytest.raises(ModelError, match=r"'mlp': \['single_row'\].*Raise the budget"):
        select(summaries(tmp_path, dict.fromkeys(SIZES, 1.0)), SIZES, met)


@pytest.mark.parametrize("metric", ["mae", "rmse", "median_ae", "p90_ae"])
def test_every_metric_can_decide(tmp_path: Path, metric: str) -> None:
    """With the same rule."""
    selection = select(summaries(tmp_path, {"linear": 1.5, "tree": 1.0, "mlp": 1.0}), SIZES, dict.fromkeys(SIZES, FINE), metric=metric)
    assert selection.champion == "tree"
    assert selection.as_dict()["metric"] == metric


def test_the_decision_is_the_same_for_the_same_seed(tmp_path: Path) -> None:
    """And so is the table, to the last digit."""
    errors = summaries(tmp_path, {"linear": 1.01, "tree": 1.0, "mlp": 0.99})
    first, second = (select(errors, SIZES, dict.fromkeys(SIZES, FINE), seed=9) for _ in range(2))
    assert first.comparison.equals(second.comparison)
    assert first.reason == second.reason


def test_predictions_of_other_data_are_refused(tmp_path: Path) -> None:
    """The same ids with another target come from an older version of the data."""
    rows = pd.DataFrame({"id": range(100), "at": pd.date_range("2025-01-01", periods=100, freq="h"), "actual": 1.0, "prediction": 2.0})
    rows.to_parquet(tmp_path / "new.parquet")
    rows.assign(actual=1.1).to_parquet(tmp_path / "old.parquet")
    with pytest.raises(DataError, match="`old` and `new` predicted different rows.*dvc repro"):
        read_errors({"new": tmp_path / "new.parquet", "old": tmp_path / "old.parquet"}, "id", "at")


def test_the_stage_writes_the_decision_and_keeps_times_out_of_it(run_stage: Callable[..., Path]) -> None:
    """The rule that knows the depots wins; what was measured lies elsewhere."""
    workspace = after("select", run_stage)
    champion = json.loads((workspace / "build/select/champion.json").read_text())
    table = pd.read_csv(workspace / "build/select/comparison.csv")
    assert champion["champion"] == "tree"
    assert champion["error"] < 5
    assert table["candidate"].tolist() == ["linear", "tree"]
    assert table.filter(regex="_met$").all().all()
    assert not table.filter(regex="latency|_ms").columns.tolist()
    latency = json.loads((workspace / "runs/select/latency.json").read_text())
    assert set(latency["tree"]) == {"1", "1000"}
    assert (workspace / "build/select/comparison.png").stat().st_size > 5000


def test_the_stage_leaves_the_same_bytes_twice(run_stage: Callable[..., Path]) -> None:
    """Though the times differ; in an ordinary kernel what a warm one left."""
    workspace = after("select", run_stage)
    files = [workspace / "build/select" / name for name in ("champion.json", "comparison.csv", "comparison.png")]
    before = [path.read_bytes() for path in files]
    run_stage(workspace, "select", kernel="python3")
    assert [path.read_bytes() for path in files] == before


def test_a_candidate_that_was_not_trained_is_an_error() -> None:
    """With the command that trains it; who is simpler is not a matter of the order of the wish."""
    with pytest.raises(DataError, match="dvc repro train@mlp"):
        trained(shared_workspace() / "build/train", ["linear", "mlp"])
    assert list(trained(shared_workspace() / "build/train", ["tree", "linear"], ["linear", "tree"])) == ["linear", "tree"]
