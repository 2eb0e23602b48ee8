"""Benchmark 1: New York taxi trips, trained on March 2018 to June 2019, scored on later months without retraining.

The records are imported, validated and completed by the functions that the line calls. The candidates train with their default recipes and answer
as SavedModels from raw rows. Beside them, on the same rows and the same encoded features: scikit-learn's HistGradientBoostingRegressor and
LightGBM, both with absolute-error loss, with their default settings and tuned by Optuna on the validation weeks. Everybody sees the
training weeks to learn from and the validation weeks to stop, tune and choose by; nobody sees the scored months before the end.
Needs the packages of the extra `bench`, and the real data, which are not part of the repository.
"""

import argparse
import os
import tempfile
import time
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

from machine import machine, markdown

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # threads that wait for others do not spin, which matters on a busy machine

import ibis
import lightgbm
import numpy as np
import optuna
import pandas as pd
import tensorflow as tf
from sklearn.ensemble import HistGradientBoostingRegressor

from labline.data.contract import Contract
from labline.data.preparation import complete_rows
from labline.data.quality import validate
from labline.data.tables import connect, write_parquet
from labline.models.candidates import CANDIDATES, Settings
from labline.models.metrics import paired_bootstrap
from labline.models.preprocessing import fit_preprocessor, model_inputs
from labline.models.savedmodel import load
from labline.models.selection import Budgets, measure_latency, model_size, read_errors, select
from labline.models.task import Task
from labline.models.training import train
from labline.models.trees import tree_inputs
from labline.rides import features
from labline.rides.taxi import import_taxi, taxi_contract
from labline.settings import load_parameters

ROOT = Path(__file__).parents[1]
PARTS = {
    "train": (datetime(2018, 3, 1), datetime(2019, 5, 3)),
    "validation": (datetime(2019, 5, 6), datetime(2019, 7, 1)),
    "2019-07": (datetime(2019, 7, 1), datetime(2019, 8, 1)),
    "2020-02": (datetime(2020, 2, 1), datetime(2020, 3, 1)),
    "2020-04": (datetime(2020, 4, 1), datetime(2020, 5, 1)),
    "2020-12": (datetime(2020, 12, 1), datetime(2021, 1, 1)),
}
SCORED = list(PARTS)[2:]
GOALS = {"2019-07": 3.40, "2020-02": 3.15}
SEED = 7
Rows = dict[str, pd.DataFrame]
Matrices = dict[str, np.ndarray]
Tuned = Callable[[optuna.Trial | None], tuple[Any, float]]


def prepare(source: Path, folder: Path) -> Contract:
    """Import, validate and complete the trips; write one parquet file for each part."""
    imported = import_taxi(source / "trips_2018_2020.parquet", source / "weather_hourly.parquet", source / "zones.csv", folder / "data")
    contract = taxi_contract(Contract.load(ROOT / "contract.yaml"))
    quality = validate(contract, folder / "data", folder / "validate")
    print(f"{imported.summary}; {1 - quality.tables.set_index('table')['rejected_share']['legs']:.2%} of the legs accepted.")
    with tempfile.TemporaryDirectory() as scratch, connect() as connection:
        tables = {name: connection.read_parquet((folder / "validate" / "tables" / f"{name}.parquet").as_posix()) for name in contract.tables}
        completed = complete_rows(connection, features, tables, contract, tables["legs"], {}, Path(scratch))
        for part, (start, end) in PARTS.items():
            chosen = completed.filter(completed.requested_at >= start, completed.requested_at < end)
            write_parquet(connection, chosen, folder / "rows" / f"{part}.parquet", ["requested_at", "leg_id"])
    return contract


def run_candidates(contract: Contract, folder: Path, rows: Rows) -> tuple[dict[str, dict[str, np.ndarray]], str]:
    """Train all candidates; their predictions by part, and what the stage `select` would choose."""
    predictions, sizes, met = {}, {}, {}
    given = load_parameters(ROOT / "params.yaml")["select"]
    budgets = Budgets(*(float(given[name]) for name in ("single_row_ms", "thousand_rows_ms", "size_mb")))
    for name in CANDIDATES:
        start = time.perf_counter()
        trained = train(name, folder / "rows", contract, Task(contract.target), Settings(seed=SEED), folder / name, bar=False)
        model = load(trained.folder / "model")
        predictions[name] = {part: model(frame)[contract.target].to_numpy(np.float64) for part, frame in rows.items() if part != "train"}
        latency = measure_latency(trained.folder / "model", rows["validation"].head(1000))
        sizes[name] = model_size(trained.folder / "model")
        met[name] = budgets.met(latency, sizes[name])
        costs = f"one row {latency[1]:.1f} ms, 1,000 rows {latency[1000]:.1f} ms, {sizes[name] / 1e6:.1f} MB"
        print(f"- `{name}`: trained in {time.perf_counter() - start:.0f} s; {costs}", flush=True)
    errors = read_errors({name: folder / name / "predictions.parquet" for name in CANDIDATES}, contract.id, contract.time)
    selection = select(errors, sizes, met, unit="min")
    print(f"\n{selection.reason}\n")
    return predictions, selection.champion


def encode(contract: Contract, folder: Path, rows: Rows) -> tuple[Matrices, list[int]]:
    """The rows as the matrices that the project's own trees see, and the places of the category codes."""
    preprocessor = fit_preprocessor(folder / "rows" / "train.parquet", contract.row)
    tables = {part: ibis.memtable(frame[list(contract.row)]).to_pyarrow() for part, frame in rows.items()}
    inputs = {part: model_inputs(table, preprocessor.strings, preprocessor.numeric) for part, table in tables.items()}
    tensors = {part: {name: tf.constant(values) for name, values in columns.items()} for part, columns in inputs.items()}
    matrices = {part: tree_inputs(*preprocessor.encode(columns)).numpy() for part, columns in tensors.items()}
    return matrices, list(range(len(preprocessor.numbers), len(preprocessor.numbers) + len(preprocessor.texts)))


def tuned_histogram(matrices: Matrices, target: Matrices, categories: list[int]) -> Tuned:
    """Fit scikit-learn's boosting for a trial; without one, with its default settings."""

    def fit(trial: optuna.Trial | None) -> tuple[Any, float]:
        given: dict[str, Any] = {}
        if trial:
            given = {
                "max_leaf_nodes": trial.suggest_int("max_leaf_nodes", 15, 127, log=True),
                "learning_rate": trial.suggest_float("learning_rate", 0.03, 0.2, log=True),
                "min_samples_leaf": trial.suggest_int("min_samples_leaf", 10, 200, log=True),
                "l2_regularization": trial.suggest_float("l2_regularization", 1e-3, 30, log=True),
                "max_features": trial.suggest_float("max_features", 0.3, 1.0),
                "max_iter": 800, "early_stopping": True, "n_iter_no_change": 20, "tol": 0}
        places = categories if not trial or trial.suggest_categorical("categorical", [True, False]) else None
        model = HistGradientBoostingRegressor(loss="absolute_error", categorical_features=places, random_state=SEED, **given)
        held = {"X_val": matrices["validation"], "y_val": target["validation"]} if trial else {}
        model.fit(matrices["train"], target["train"], **held)
        return model, float(np.abs(model.predict(matrices["validation"]) - target["validation"]).mean())

    return fit


def tuned_lightgbm(matrices: Matrices, target: Matrices, categories: list[int]) -> Tuned:
    """Fit LightGBM for a trial; without one, with its default settings."""

    def fit(trial: optuna.Trial | None) -> tuple[Any, float]:
        given: dict[str, Any] = {}
        if trial:
            given = {
                "num_leaves": trial.suggest_int("num_leaves", 15, 255, log=True),
                "learning_rate": trial.suggest_float("learning_rate", 0.03, 0.15, log=True),
                "min_child_samples": trial.suggest_int("min_child_samples", 10, 200, log=True),
                "reg_lambda": trial.suggest_float("reg_lambda", 1e-3, 30, log=True),
                "colsample_bytree": trial.suggest_float("colsample_bytree", 0.3, 1.0),
                "subsample": trial.suggest_float("subsample", 0.5, 1.0), "subsample_freq": 1, "n_estimators": 1500}
        places = categories if not trial or trial.suggest_categorical("categorical", [True, False]) else []
        model = lightgbm.LGBMRegressor(objective="mae", random_state=SEED, n_jobs=2, verbose=-1, deterministic=True, force_row_wise=True, **given)
        stop = [lightgbm.early_stopping(50, verbose=False)] if trial else []
        model.fit(matrices["train"], target["train"], categorical_feature=places, eval_set=[(matrices["validation"], target["validation"])], callbacks=stop)
        return model, float(np.abs(model.predict(matrices["validation"]) - target["validation"]).mean())

    return fit


def tune(name: str, fit: Tuned, trials: int, seconds: float) -> tuple[Any, int]:
    """The best model of a study, and the number of trials that were made."""
    best: list[tuple[float, Any]] = []

    def objective(trial: optuna.Trial) -> float:
        model, error = fit(trial)
        if not best or error < best[0][0]:
            best[:] = [(error, model)]
        return error

    study = optuna.create_study(sampler=optuna.samplers.TPESampler(seed=SEED))
    study.optimize(objective, n_trials=trials, timeout=seconds)
    chosen = ", ".join(f"{key} {value:.3g}" if isinstance(value, float) else f"{key} {value}" for key, value in study.best_params.items())
    print(f"- {name}: {len(study.trials)} trials, validation MAE {study.best_value:.3f} with {chosen}", flush=True)
    return best[0][1], len(study.trials)


def verdict(errors: dict[str, dict[str, np.ndarray]], champion: str, peers: list[str]) -> list[str]:
    """The goals, each with what was reached."""
    lines = []
    for month, goal in GOALS.items():
        means = {name: values[month].mean() for name, values in errors.items()}
        best = min(peers, key=lambda name: means[name])
        gain = paired_bootstrap(errors[champion][month], errors[best][month])
        ratio = means["mlp"] / means[best]
        lines += [
            f"- {month}: champion `{champion}` {means[champion]:.3f} (wanted {goal:.2f}): {'reached' if means[champion] <= goal else 'missed'}",
            f"- {month}: champion minus best peer ({best}, {means[best]:.3f}): {gain.value:+.3f} min, 95 % interval {gain.low:+.3f} to {gain.high:+.3f}: "
            f"{'reached' if means[champion] <= means[best] else 'missed'}",
            f"- {month}: `mlp` is at {ratio:.3f} of the best peer (wanted at most 1.02): {'reached' if ratio <= 1.02 else 'missed'}"]
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=ROOT.parent / "shared" / "data" / "nyc_taxi", help="folder of the taxi records")
    parser.add_argument("--trials", type=int, default=30, help="trials of each tuning")
    parser.add_argument("--minutes", type=float, default=20.0, help="no new trial of a tuning begins after this time")
    given = parser.parse_args()
    if not given.data.is_dir():
        print(f"Skipped: there are no taxi records at {given.data}; name their folder by --data.")
        return
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    print(f"{machine('scikit-learn', 'lightgbm', 'optuna', 'keras', 'duckdb')}\n", flush=True)
    with tempfile.TemporaryDirectory(prefix="labline-benchmark-") as temporary:
        folder = Path(temporary)
        contract = prepare(given.data, folder)
        rows = {part: pd.read_parquet(folder / "rows" / f"{part}.parquet") for part in PARTS}
        print(", ".join(f"{part} {len(frame):,} rows" for part, frame in rows.items()) + "\n", flush=True)
        predictions, champion = run_candidates(contract, folder, rows)
        matrices, categories = encode(contract, folder, rows)
    target = {part: frame[contract.target].to_numpy(np.float64) for part, frame in rows.items()}
    for name, maker in (("HistGradientBoosting", tuned_histogram), ("LightGBM", tuned_lightgbm)):
        fit = maker(matrices, target, categories)
        for label, model in ((f"{name}, default", fit(None)[0]), (f"{name}, tuned", tune(name, fit, given.trials, 60 * given.minutes)[0])):
            predictions[label] = {part: model.predict(matrices[part]) for part in rows if part != "train"}
    peers = [name for name in predictions if name not in CANDIDATES]
    median = float(np.median(target["train"]))
    naive = {part: frame["usual_minutes"].fillna(median).to_numpy(np.float64) for part, frame in rows.items()}
    everybody = {"naive baseline": naive} | predictions
    errors = {name: {part: np.abs(values[part] - target[part]) for part in ("validation", *SCORED)} for name, values in everybody.items()}
    labels = {name: f"**{name}** (champion)" if name == champion else name for name in errors}
    table = [[labels[name], *(f"{error.mean():.3f}" for error in values.values())] for name, values in errors.items()]
    print("\nMean absolute error in minutes:\n")
    print(markdown(["model", "validation", *SCORED], table))
    print("\n" + "\n".join(verdict(errors, champion, peers)))


if __name__ == "__main__":
    main()
