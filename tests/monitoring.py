"""Prediction logs for tests of the monitor: example trips that were answered, in any place that a log can lie."""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from labline.models.bundle import Bundle
from labline.models.example import example_contract, example_judged, example_rows
from labline.serving.actuals import Actuals
from labline.serving.log import PredictionLog
from labline.serving.store import Entry

HALF_HOUR = 1800.0


def trips(weeks: int, bundle: Bundle, seed: int = 4) -> pd.DataFrame:
    """Answered trips, half an hour apart, from a Monday on; what came true is known a day later."""
    rows = example_judged(example_rows(weeks * 7 * 48, seed=seed), seed=seed)
    rows["requested_at"] += pd.Timestamp("2025-05-05") - rows["requested_at"].iloc[0]
    rows["at"] = (rows["requested_at"] - pd.Timestamp(0)).dt.total_seconds()
    rows["received_at"] = rows["at"] + 86400.0
    return rows.assign(id=[f"{seed}-{place:06d}" for place in range(len(rows))], model="eta", version=1, role="live", digest=bundle.digest)


def write_flat(rows: pd.DataFrame, path: Path) -> str:
    """Write trips as one flat parquet file; returns the log's address."""
    rows.to_parquet(path, index=False)
    return str(path)


def write_log(rows: pd.DataFrame, url: str, keys: Sequence[str | None] | None = None) -> PredictionLog:
    """Write trips into a database as the service would, with the actual values that are there; returns the open log."""
    log = PredictionLog(url)
    names = list(example_contract().row)
    inputs = rows[names].assign(requested_at=rows["requested_at"].dt.strftime("%Y-%m-%dT%H:%M:%S")).astype(object)
    inputs = inputs.where(inputs.notna(), None)
    answers = rows[["prediction", "low", "high"]].astype(float).set_axis(["minutes", "minutes_low", "minutes_high"], axis=1)
    facts = zip(rows.to_dict("records"), inputs.to_dict("records"), answers.to_dict("records"), keys or [None] * len(rows), strict=True)
    log.write([
        Entry(row["id"], "request", row["at"], "eta", row["version"], row["digest"], row["role"], key, json.dumps(given), json.dumps(answer))
        for row, given, answer, key in facts
    ])  # fmt: skip
    actuals = Actuals(log, example_contract())
    known = rows[rows["actual"].notna()]
    for moment, part in known.groupby(np.floor(known["received_at"] / 86400)):
        actuals.add([{"prediction_id": row["id"], "value": row["actual"]} for row in part.to_dict("records")], now=float(moment) * 86400.0)
    return log
