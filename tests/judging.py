"""A small workspace in which candidates have been trained, for the tests of the stages that judge, package and report."""

import atexit
import functools
import json
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import tensorflow as tf

CONTRACT = """
name: parcels
model: door
main: parcels
tables:
  parcels:
    path: parcels.parquet
    columns:
      parcel: {type: text, role: id}
      sent_at: {type: timestamp, role: time, meaning: when the parcel was sent}
      depot: {type: category, meaning: depot that sends it}
      weight: {type: number, unit: kg, meaning: weight of the parcel, nullable: true}
      fragile: {type: boolean, meaning: whether it is fragile, nullable: true}
      hours: {type: number, role: target, unit: h, meaning: hours until it is at the door}
  depots:
    path: depots.parquet
    columns:
      depot: {type: category, role: id}
      name: {type: text, role: other}
      region: {type: category, role: other}
lookups:
  usual_hours: {type: number, unit: h, meaning: usual hours from this depot, nullable: true}
"""
ROW = {"sent_at": tf.string, "depot": tf.string, "weight": tf.float32, "fragile": tf.float32, "usual_hours": tf.float32}
BOUNDS = {"train": ("2025-01-01", "2025-07-01"), "validation": ("2025-07-01", "2025-09-01"), "test": ("2025-09-01", "2025-11-01")}


def parcels(rows: int = 12_000, seed: int = 1) -> pd.DataFrame:
    """Parcels over ten months: depot D3 is slow, afternoons are late, some weights are missing."""
    random = np.random.default_rng(seed)
    table = pd.DataFrame({"parcel": [f"p{i:06d}" for i in range(rows)], "sent_at": pd.date_range("2025-01-01", "2025-10-31 23:00", periods=rows).floor("s")})
    table["depot"] = random.choice(["D1", "D2", "D3"], rows, p=[0.5, 0.3, 0.2])
    table["weight"] = np.where(random.random(rows) < 0.05, np.nan, random.gamma(2, 3, rows).round(2))
    table["fragile"] = random.random(rows) < 0.2
    table["usual_hours"] = np.where(random.random(rows) < 0.05, np.nan, 10 + 12.0 * (table["depot"] == "D3"))
    late = 5.0 * table["sent_at"].dt.hour.between(15, 18)
    table["hours"] = 10 + 12 * (table["depot"] == "D3") + table["weight"].fillna(6) / 2 + late + random.laplace(0, 2, rows)
    return table


class Rule(tf.Module):
    """A model of hand-made rules, exported like a trained one; the simple one does not know the depots."""

    def __init__(self, knows_depots: bool, random: bool = False) -> None:
        super().__init__()
        self.knows_depots, self.random = knows_depots, random

    def answer(self, **row: tf.Tensor) -> dict[str, tf.Tensor]:
        weight = tf.where(tf.math.is_nan(row["weight"]), 6.0, row["weight"])
        slow = tf.where(row["depot"] == "D3", 12.0, 0.0) if self.knows_depots else 2.4
        unused = [tf.cast(tf.strings.length(row["sent_at"]), tf.float32), row["fragile"], row["usual_hours"]]
        hours = 11.0 + weight / 2 + slow + sum(tf.where(tf.math.is_nan(value), 0.0, value) * 0.0 for value in unused)
        if self.random:
            hours += tf.random.uniform(tf.shape(hours))
        return {"hours": hours, "hours_low": hours - 4.0, "hours_high": hours + 4.0}

    def export(self, path: Path) -> None:
        signature = {name: tf.TensorSpec([None], dtype, name=name) for name, dtype in ROW.items()}
        tf.saved_model.save(self, str(path), signatures=tf.function(self.answer).get_concrete_function(**signature))


def predictions(rows: pd.DataFrame, knows_depots: bool) -> pd.DataFrame:
    """What a training run leaves behind for the validation rows."""
    hours = 11 + rows["weight"].fillna(6) / 2 + (12.0 * (rows["depot"] == "D3") if knows_depots else 2.4)
    kept = rows[["parcel", "sent_at"]].assign(actual=rows["hours"], prediction=hours)
    return kept.assign(low=hours - 4, high=hours + 4)


def empty_notebook(path: Path, parameters: str = "seed: int = 7") -> None:
    """An executed notebook of a stage that is not run here."""
    path.parent.mkdir(parents=True, exist_ok=True)
    cell = {"cell_type": "code", "metadata": {"tags": ["parameters"]}, "source": [parameters], "outputs": [], "execution_count": None, "id": "a"}
    path.write_text(json.dumps({"cells": [cell], "metadata": {}, "nbformat": 4, "nbformat_minor": 5}))


def make_workspace(folder: Path) -> Path:
    """The workspace after training: two candidates and what is left of a third, the parts, the accepted tables, an as-of table."""
    table = parcels()
    (folder / "build/validate/tables").mkdir(parents=True)
    (folder / "build/prepare/asof").mkdir(parents=True)
    (folder / "contract.yaml").write_text(CONTRACT)
    (folder / "params.yaml").write_text("train: {candidates: [tree, linear]}\n")
    parts = {part: table[(table["sent_at"] >= first) & (table["sent_at"] < last)] for part, (first, last) in BOUNDS.items()}
    for part, rows in parts.items():
        rows.to_parquet(folder / f"build/prepare/{part}.parquet", index=False)
    depots = pd.DataFrame({"depot": ["D1", "D2", "D3"], "name": ["Alder", "Birch", "Cedar"], "region": ["north", "north", "south"]})
    depots.to_parquet(folder / "build/validate/tables/depots.parquet", index=False)
    depots.assign(usual_hours=10.0)[["depot", "usual_hours"]].to_parquet(folder / "build/prepare/asof/usual.parquet", index=False)
    bounds = {part: {"from": f"{first}T00:00:00", "until": f"{last}T00:00:00"} for part, (first, last) in BOUNDS.items()}
    split = {"method": "time", "bounds": bounds, "rows": {part: len(rows) for part, rows in parts.items()}}
    (folder / "build/prepare/split.json").write_text(json.dumps(split))
    (folder / "build/validate/version.json").write_text('{"md5": null}')
    for candidate, knows_depots in (("linear", False), ("tree", True), ("boosting", True)):
        Rule(knows_depots).export(folder / f"build/train/{candidate}/model")
        predictions(parts["validation"], knows_depots).to_parquet(folder / f"build/train/{candidate}/predictions.parquet", index=False)
        empty_notebook(folder / f"build/train/{candidate}/train.ipynb")
    empty_notebook(folder / "build/validate/validate.ipynb")
    empty_notebook(folder / "build/prepare/prepare.ipynb", 'builder: str = "labline.data.features"')
    return folder


@functools.cache
def shared_workspace() -> Path:
    """One such workspace for the whole test run; a path with a space."""
    folder = Path(tempfile.mkdtemp(prefix="judged workspace "))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return make_workspace(folder)


STAGES: dict[str, dict[str, Any]] = {
    "select": {},
    "evaluate": {"baseline": "usual_hours", "sample_rows": 500, "resamples": 200},
    "package": {"samples": 20},
    "report": {"segment_column": "depot.region"},
}
_done: list[str] = []


def after(stage: str, run_stage: Callable[..., Path]) -> Path:
    """The shared workspace after a stage; it and those before it are run once."""
    order = ["select", "evaluate", *([stage] if stage in ("package", "report") else [])]
    for name in order[: order.index(stage) + 1]:
        if name not in _done:
            run_stage(shared_workspace(), name, **STAGES[name])
            _done.append(name)
    return shared_workspace()
