"""Rows on which Labline and its peers must agree: a reference and two windows, the same bytes wherever they are made.

Each numeric column comes as it is and, as `… in tenths`, as the words of the ten parts into which the reference divides it, the missing values a part of
their own. So a peer that cuts numbers in its own way can be asked about the very same parts.
"""

import hashlib
from pathlib import Path

import numpy as np
import pandas as pd

from labline.models.example import example_judged, example_rows

CATEGORIES = ("zone", "vehicle")
NUMBERS = ("distance_km", "speed_kmh", "passengers", "prediction")
IN_TENTHS = " in tenths"
REFERENCE, WINDOW = 15_000, 3_000


def reference() -> pd.DataFrame:
    """Fifteen thousand trips, half an hour apart, with what the example's model answers and what came true."""
    return _rounded(example_judged(example_rows(REFERENCE, seed=11), seed=11))


def quiet() -> pd.DataFrame:
    """Three thousand trips of the same kind."""
    return _rounded(example_judged(_later(example_rows(WINDOW, seed=12)), seed=12))


def moved() -> pd.DataFrame:
    """Three thousand trips that are longer, slower, from other zones, and more often without a number of passengers; the model errs more on them."""
    rows, draw = _later(example_rows(WINDOW, seed=13)), np.random.default_rng(14)
    rows["distance_km"] = (1.15 * rows["distance_km"]).round(1)
    rows["speed_kmh"] = (rows["speed_kmh"] - 0.7).round(1)
    rows["zone"] = rows["zone"].where(draw.random(WINDOW) > 0.05, "east")
    rows["vehicle"] = rows["vehicle"].where(draw.random(WINDOW) > 0.05, "van")
    rows["passengers"] = rows["passengers"].where(draw.random(WINDOW) > 0.05)
    return _rounded(example_judged(rows, seed=13))


def _later(rows: pd.DataFrame) -> pd.DataFrame:
    return rows.assign(requested_at=rows["requested_at"] + pd.Timedelta(days=REFERENCE // 48 + 1))


def _rounded(rows: pd.DataFrame) -> pd.DataFrame:
    """Without the digits in which processors differ."""
    answers = ["actual", "prediction", "low", "high"]
    return rows.assign(**{name: rows[name].astype(float).round(2) for name in answers})


def all_windows() -> dict[str, pd.DataFrame]:
    """Name → rows, the reference first."""
    return {"reference": reference(), "quiet": quiet(), "moved": moved()}


def digest(windows: dict[str, pd.DataFrame]) -> str:
    """What the rows are, in 16 digits."""
    return hashlib.sha256("".join(rows.to_csv(index=False) for rows in windows.values()).encode()).hexdigest()[:16]


def in_tenths(windows: dict[str, pd.DataFrame]) -> dict[str, pd.DataFrame]:
    """The same rows with each number as the word of its part too."""
    found = {name: rows.copy() for name, rows in windows.items()}
    for column in NUMBERS:
        known = windows["reference"][column].dropna()
        edges = np.unique(np.quantile(known, np.arange(1, 10) / 10, method="inverted_cdf"))
        edges = edges[edges < known.max()]
        for name, rows in windows.items():
            words = pd.Series(np.searchsorted(edges, rows[column]), rows.index).map("part {}".format)
            found[name][column + IN_TENTHS] = words.where(rows[column].notna(), "missing")
    return found


def write(folder: Path) -> dict[str, pd.DataFrame]:
    """Write each window as parquet for the peers, and return the rows."""
    windows = all_windows()
    for name, rows in in_tenths(windows).items():
        rows.to_parquet(folder / f"{name}.parquet", index=False)
    return windows
