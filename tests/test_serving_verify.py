"""Verification: all ways give one answer, and a way that gives another is named with the row and both values."""

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import tensorflow as tf

from labline.errors import LablineError, ModelError
from labline.models import example
from labline.models.example import example_bundle, example_rows
from labline.serving import scoring
from labline.serving.predictor import Predictor
from labline.serving.rows import Rows
from labline.serving.verify import verify_everywhere
from labline.serving.ways import WAYS, Case

QUICK = {name: way for name, way in WAYS.items() if "fresh" not in name}  # a fresh process imports TensorFlow first


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return example_bundle(tmp_path_factory.mktemp("release")).path


@pytest.fixture
def rows() -> pd.DataFrame:
    """Rows as they lie in a table: times are times, what is missing is NaN, and there is more than a model takes."""
    return example_rows(60, seed=3).assign(trip_id=[f"t{place}" for place in range(60)], minutes=10.0, driver="Ann")


def test_seven_ways_give_the_same_answers(bundle: Path, rows: pd.DataFrame) -> None:
    proof = verify_everywhere(bundle, rows)
    assert proof["paths"] == ["notebook", "SavedModel in a fresh process", "REST in rows", "REST in columns", "friendly API", "gRPC", "batch"]
    assert (proof["rows"], proof["refused"], proof["equal"], proof["tolerance"]) == (60, 0, True, 1e-5) and proof["largest_difference"] <= 1e-6


def test_rows_that_a_service_refuses_are_left_out_and_the_result_is_the_same_every_time(bundle: Path, rows: pd.DataFrame) -> None:
    rows.loc[[3, 40], "distance_km"] = -1.0
    rows.loc[50, "zone"] = None
    first, second = (verify_everywhere(bundle, rows, ways=QUICK) for _ in range(2))
    assert first == second and (first["rows"], first["refused"]) == (57, 3)


def test_a_server_that_answers_otherwise_is_caught(monkeypatch: pytest.MonkeyPatch, bundle: Path, rows: pd.DataFrame) -> None:
    predict, place = Predictor.predict, int(np.flatnonzero(rows["zone"] == "west")[0])

    def slower_in_the_west(self: Predictor, asked: Rows) -> Any:
        answers = predict(self, asked)
        west = (asked.columns["zone"] == "west") & (len(asked) != 20)  # the samples with which a release is opened are answered as recorded
        return answers | {"minutes": answers["minutes"] + np.float32(0.01) * west}

    monkeypatch.setattr(Predictor, "predict", slower_in_the_west)
    with pytest.raises(ModelError, match=rf"rows\[{place}\]: REST in rows answers `minutes` otherwise for \d+ of 60 rows: the notebook says .*'west'.* .found"):
        verify_everywhere(bundle, rows, ways=QUICK)
    assert not [thread for thread in threading.enumerate() if thread.name == "labline-verify"]


def test_a_batch_that_reads_rows_otherwise_is_caught(monkeypatch: pytest.MonkeyPatch, bundle: Path, rows: pd.DataFrame) -> None:
    read = scoring.row_columns

    def rounded(table: Any, contract: Any) -> dict[str, Any]:
        return {name: np.floor(values) if name == "distance_km" else values for name, values in read(table, contract).items()}

    monkeypatch.setattr(scoring, "row_columns", rounded)
    with pytest.raises(ModelError, match="batch answers `minutes` otherwise for"):
        verify_everywhere(bundle, rows, ways=QUICK)


def test_a_model_that_looks_at_its_neighbours_is_caught(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, rows: pd.DataFrame) -> None:
    def sociable(folder: Path, minutes_per_km: float = 2.0, name: str = "eta") -> Path:
        contract = example.example_contract(name)

        def minutes(**row: tf.Tensor) -> dict[str, tf.Tensor]:
            known = tf.where(tf.math.is_nan(row["distance_km"]), 5.0, row["distance_km"])
            answers = known + tf.reduce_mean(known)
            return {"minutes": answers, "minutes_low": answers, "minutes_high": answers}

        inputs = {column: tf.TensorSpec([None], tf.float32 if kind.numeric else tf.string, column) for column, kind in contract.row.items()}
        function = tf.function(minutes, autograph=False).get_concrete_function(**inputs)
        tf.saved_model.save(tf.Module(), str(folder), signatures={"serving_default": function})
        return folder

    monkeypatch.setattr(example, "example_model", sociable)
    with pytest.raises(ModelError, match=r"rows\[0\]: friendly API answers `minutes` otherwise for \d+ of 60 rows"):
        verify_everywhere(example_bundle(tmp_path).path, rows, ways=QUICK)


@pytest.mark.parametrize("way", ["REST in rows", "REST in columns", "friendly API", "gRPC"])
def test_a_way_that_is_closed_is_named(way: str, bundle: Path, rows: pd.DataFrame) -> None:
    def elsewhere(case: Case) -> Any:
        return WAYS[way](Case(case.release, case.frame, case.completed, case.folder, "http://127.0.0.1:9", "127.0.0.1:9"))

    ways: dict[str, Callable[[Case], Any]] = {"notebook": WAYS["notebook"], way: elsewhere}
    with pytest.raises(LablineError, match="gives no answers|cannot be reached"):
        verify_everywhere(bundle, rows, ways=ways)
