"""The exported SavedModels: the same bytes in two processes, loadable without Labline, and right for hard rows."""

import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from tensorflow.core.protobuf import saved_model_pb2
from training_rows import write_rides

from labline.errors import ModelError
from labline.models.savedmodel import SavedPredictor, load, model_digest

ROOT = Path(__file__).parents[1]
NAMES = ["linear", "tree", "boosting", "mlp", "ensemble"]
FOREIGN = """
import json, sys
import tensorflow as tf
signature = tf.saved_model.load(sys.argv[1]).signatures["serving_default"]
inputs = {name: tf.constant(values, spec.dtype) for (name, spec), values in
          zip(sorted(signature.structured_input_signature[1].items()), json.loads(sys.argv[2]).values())}
print(json.dumps({name: values.numpy().tolist() for name, values in signature(**inputs).items()}))
print("labline" in sys.modules)
"""


def python(*arguments: str, cwd: Path = ROOT) -> str:
    """Run Python as the kernel does, and return what it printed."""
    path = f"{ROOT}{os.pathsep}{ROOT / 'tests'}"
    environment = {**os.environ, "PYTHONHASHSEED": "0", "PYTHONPATH": path, "TF_ENABLE_ONEDNN_OPTS": "0", "TF_CPP_MIN_LOG_LEVEL": "2"}
    done = subprocess.run([sys.executable, *arguments], cwd=cwd, env=environment, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr[-5000:]
    return done.stdout


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """All candidates, trained by two processes with different histories, at the same time."""
    data = write_rides(tmp_path_factory.mktemp("rows"))
    outputs = [tmp_path_factory.mktemp("run") for _ in range(2)]
    with ThreadPoolExecutor() as pool:
        list(pool.map(lambda output, history: python("tests/training_rows.py", str(data), str(output), history, *NAMES), outputs, ("0", "11")))
    return outputs


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def hard_rows() -> pd.DataFrame:
    """One good row, then one with everything missing, and rows with unseen, malformed or absurd values."""
    good = {"requested_at": "2025-01-31T07:30:00", "zone": "zone 1", "vehicle": "stretcher", "distance_km": 5.0}
    good |= {"passengers": 1.0, "holiday": 0.0, "rain_mm": 0.5}
    changes: list[dict[str, object]] = [
        {}, dict.fromkeys(good), {"zone": "zone 999"}, {"zone": ""}, {"vehicle": "ambulatory "}, {"requested_at": "yesterday"},
        {"requested_at": "2025-02-30T10:00:00"}, {"distance_km": 1e30}, {"distance_km": -1e30}, {"distance_km": float("inf")}, {"zone": "x" * 10_000},
    ]
    return pd.DataFrame([good | change for change in changes])


@pytest.mark.parametrize("name", NAMES)
def test_two_processes_write_the_same_bytes(runs: list[Path], name: str) -> None:
    first, second = (contents(run / name) for run in runs)
    assert {"model/saved_model.pb", "model/fingerprint.pb", "model/variables/variables.index", "predictions.parquet", "metrics.json"} <= set(first)
    assert [path for path in first if first[path] != second.get(path)] == [] and set(first) == set(second)
    assert model_digest(runs[0] / name / "model") == model_digest(runs[1] / name / "model")


@pytest.mark.parametrize("name", NAMES)
def test_hard_rows_get_finite_answers(runs: list[Path], name: str) -> None:
    predict = load(runs[0] / name / "model")
    answers = predict(hard_rows())
    assert np.isfinite(answers.to_numpy()).all()
    assert (answers["minutes_low"] <= answers["minutes"]).all() and (answers["minutes"] <= answers["minutes_high"]).all()
    assert (answers["minutes_low"] >= 0).all()


@pytest.mark.parametrize("name", NAMES)
def test_a_row_is_answered_alike_alone_and_among_others(runs: list[Path], name: str) -> None:
    predict, rows = load(runs[0] / name / "model"), hard_rows()
    together = predict(rows).to_numpy()
    alone = np.concatenate([predict(rows.iloc[[place]]).to_numpy() for place in range(len(rows))])
    assert np.allclose(together, alone, rtol=1e-5)


def test_predictions_are_those_of_the_exported_model(runs: list[Path]) -> None:
    rows = pd.read_parquet(runs[0] / "mlp" / "predictions.parquet")
    assert list(rows) == ["leg_id", "requested_at", "actual", "prediction", "low", "high"] and len(rows) == 1000
    assert (rows["low"] <= rows["prediction"]).all() and 0.78 < ((rows["low"] <= rows["actual"]) & (rows["actual"] <= rows["high"])).mean() < 0.83


def test_tensorflow_alone_loads_and_answers(runs: list[Path], tmp_path: Path) -> None:
    rows: dict[str, list] = {"distance_km": [5.0], "holiday": [0.0], "passengers": [1.0], "rain_mm": [0.5]}
    rows |= {"requested_at": ["2025-01-31T07:30:00"], "vehicle": ["stretcher"], "zone": ["zone 1"]}
    (tmp_path / "foreign.py").write_text(FOREIGN)
    printed, imported = python(str(tmp_path / "foreign.py"), str(runs[0] / "ensemble" / "model"), json.dumps(rows), cwd=tmp_path).strip().splitlines()[-2:]
    expected = load(runs[0] / "ensemble" / "model")(pd.DataFrame(rows))
    assert imported == "False"
    assert {name: values[0] for name, values in json.loads(printed).items()} == pytest.approx(expected.iloc[0].to_dict(), rel=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_the_signature_is_that_of_tensorflow_serving(runs: list[Path], name: str) -> None:
    model = saved_model_pb2.SavedModel.FromString((runs[0] / name / "model" / "saved_model.pb").read_bytes())
    (graph,) = model.meta_graphs
    signature = graph.signature_def["serving_default"]
    assert list(graph.meta_info_def.tags) == ["serve"] and signature.method_name == "tensorflow/serving/predict"
    assert {len(entry.tensor_shape.dim) for entry in (*signature.inputs.values(), *signature.outputs.values())} == {1}
    assert set(signature.outputs) == {"minutes", "minutes_low", "minutes_high"}
    operations = {node.op for function in graph.graph_def.library.function for node in function.node_def}
    assert not operations & {"VarHandleOp", "HashTableV2", "LookupTableFindV2", "PyFunc", "ReadVariableOp"}


def test_a_truncated_model_is_an_error_of_ours(runs: list[Path], tmp_path: Path) -> None:
    content = (runs[0] / "tree" / "model" / "saved_model.pb").read_bytes()
    (tmp_path / "saved_model.pb").write_bytes(content[: len(content) // 2])
    with pytest.raises(ModelError, match="cannot be loaded"):
        SavedPredictor(tmp_path)
