"""The stage `train`: what it writes, what it says when something is wrong, and that nothing half-written is taken for good."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from training_rows import contract, rides, write_rides

from labline.data.contract import Contract
from labline.errors import DataError, LablineError, ModelError, ParameterError
from labline.models.candidates import CANDIDATES, BoostingSettings, Settings, TreeSettings
from labline.models.metrics import regression_metrics
from labline.models.networks import NetworkSettings
from labline.models.savedmodel import load
from labline.models.task import Task
from labline.models.training import Trained, train

QUICK = Settings(NetworkSettings(widths=(16, 16), epochs=2), TreeSettings(leaves=30), BoostingSettings(iterations=30))
TASK = Task("minutes")


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_rides(tmp_path_factory.mktemp("rows"))


def trained(candidate: str, rows: Path, folder: Path, task: Task = TASK, settings: Settings = QUICK, of: Contract | None = None) -> Trained:
    return train(candidate, rows, of or contract(), task, settings, folder, bar=False)


def changed(rows: Path, folder: Path, part: str, table: pa.Table) -> Path:
    """A copy of the rows in which one table is another."""
    write_rides(folder)
    pq.write_table(table, folder / f"{part}.parquet")
    return folder


@pytest.mark.parametrize("candidate", list(CANDIDATES))
def test_every_candidate_leaves_the_same_kinds_of_files(rows: Path, tmp_path: Path, candidate: str) -> None:
    result = trained(candidate, rows, tmp_path / candidate)
    assert {path.name for path in (tmp_path / candidate).iterdir()} == {"live", "metrics.json", "model", "predictions.parquet"}
    written = json.loads((tmp_path / candidate / "metrics.json").read_text())
    predictions = pd.read_parquet(tmp_path / candidate / "predictions.parquet")
    expected = regression_metrics(predictions["actual"], predictions["prediction"])
    assert written == result.metrics and all(written[name] == pytest.approx(value, abs=1e-5) for name, value in expected.items())
    assert {"train_loss", "validation_loss"} == set(result.curves["loss"])


@pytest.mark.parametrize("transform", ["log", "identity"])
@pytest.mark.parametrize("loss", ["absolute_error", "squared_error"])
@pytest.mark.parametrize("candidate", ["linear", "tree", "boosting", "mlp"])
def test_every_transform_and_loss_learns(rows: Path, tmp_path: Path, candidate: str, transform: str, loss: str) -> None:
    settings = replace(QUICK, network=replace(QUICK.network, epochs=6))
    result = trained(candidate, rows, tmp_path, Task("minutes", transform=transform, loss=loss), settings)
    actual = pd.read_parquet(tmp_path / "predictions.parquet")["actual"]
    assert result.metrics["mae"] < 0.7 * np.abs(actual - actual.median()).mean()


def test_training_again_replaces_what_was_there(rows: Path, tmp_path: Path) -> None:
    trained("mlp", rows, tmp_path / "one")
    first = trained("tree", rows, tmp_path / "one")
    assert set(first.curves["part"]) == {"tree"} and load(tmp_path / "one" / "model").digest == first.digest


def test_a_category_that_is_not_in_the_training_rows_is_answered(rows: Path, tmp_path: Path) -> None:
    table = rides(600, seed=8)
    place = table.schema.get_field_index("zone")
    strange = changed(rows, tmp_path / "rows", "validation", table.set_column(place, "zone", pa.array(["elsewhere"] * 600)))
    for candidate in ("linear", "tree", "boosting", "mlp"):
        assert np.isfinite(trained(candidate, strange, tmp_path / candidate).metrics["mae"])


def test_columns_without_any_value_do_not_hurt(rows: Path, tmp_path: Path) -> None:
    table = rides(1500, seed=9)
    for name, kind in {"zone": pa.string(), "rain_mm": pa.float64()}.items():
        table = table.set_column(table.schema.get_field_index(name), name, pa.array([None] * 1500, kind))
    empty = changed(rows, tmp_path / "rows", "train", table)
    for candidate in ("linear", "tree", "boosting", "mlp"):
        assert np.isfinite(trained(candidate, empty, tmp_path / candidate).metrics["mae"])


def test_an_unknown_candidate_lists_those_there_are(rows: Path, tmp_path: Path) -> None:
    with pytest.raises(ParameterError) as caught:
        trained("forest", rows, tmp_path / "forest")
    assert all(f"`{name}`" in str(caught.value) for name in CANDIDATES) and not (tmp_path / "forest").exists()


@pytest.mark.parametrize(
    ("part", "table", "message"),
    [
        ("train", rides(50, seed=1).drop_columns("zone"), "columns are missing: `zone`"),
        ("train", rides(0, seed=1), "no training rows"),
        ("validation", rides(0, seed=1), "no rows to learn from"),
        ("validation", rides(50, seed=1).drop_columns("minutes"), "columns are missing: `minutes`"),
    ],
)
def test_tables_that_cannot_be_learned_from(rows: Path, tmp_path: Path, part: str, table: pa.Table, message: str) -> None:
    with pytest.raises(DataError, match=message):
        trained("tree", changed(rows, tmp_path / "rows", part, table), tmp_path / "tree")
    assert not (tmp_path / "tree" / "model").exists()


@pytest.mark.parametrize(("value", "found"), [(None, "nan"), (-3.0, "-3.0")])
def test_a_target_that_is_missing_or_negative(rows: Path, tmp_path: Path, value: float | None, found: str) -> None:
    table = rides(100, seed=1)
    minutes = [value, *table["minutes"].to_pylist()[1:]]
    table = table.set_column(table.schema.get_field_index("minutes"), "minutes", pa.array(minutes, pa.float64()))
    with pytest.raises(DataError, match=f"minutes: the target must be at least 0 .found {found}"):
        trained("tree", changed(rows, tmp_path / "rows", "train", table), tmp_path / "tree")


def test_an_export_that_is_interrupted_leaves_no_model(rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*arguments: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("labline.models.savedmodel._make_canonical", interrupted)
    with pytest.raises(KeyboardInterrupt):
        trained("tree", rows, tmp_path / "tree")
    assert not (tmp_path / "tree" / "model").exists() and not (tmp_path / "tree" / "metrics.json").exists()
    monkeypatch.undo()
    trained("tree", rows, tmp_path / "tree")
    assert {path.name for path in (tmp_path / "tree").iterdir()} == {"live", "metrics.json", "model", "predictions.parquet"}


def test_trees_that_answer_differently_are_refused(rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("labline.models.candidates.ensemble_from_tree", lambda model: lambda inputs: inputs[:, 0] * 0.0)
    with pytest.raises(ModelError, match="does not answer as scikit-learn does"):
        trained("tree", rows, tmp_path / "tree")


def test_few_rows_are_enough(tmp_path: Path) -> None:
    small = write_rides(tmp_path / "rows", rows=60)
    for candidate in ("linear", "tree", "boosting", "mlp", "ensemble"):
        assert np.isfinite(trained(candidate, small, tmp_path / candidate).metrics["mae"])


def test_an_unwritable_folder_is_not_hidden(rows: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises((OSError, LablineError)):
        trained("tree", rows, tmp_path / "file")
