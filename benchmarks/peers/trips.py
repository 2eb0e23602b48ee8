"""Answered trips with the thirty columns of the rides case, any number of them, from NumPy alone; as a log in parquet files, and for the peers."""

from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from labline.data.contract import Contract

PART = 1_000_000
DAYS = 60.0
START = pd.Timestamp("2026-01-01")
SKEWED = {
    "distance_km": (2.3, 5.3, 2), "road_km": (2.2, 6.0, 12), "usual_minutes": (4.0, 8.4, 12), "recent_minutes": (3.9, 8.6, 12), "pair_legs": (0.5, 200.0, 0),
}  # fmt: skip
AROUND = {
    "from_latitude": (39.99, 0.067, 2), "from_longitude": (-89.33, 0.107, 2), "to_latitude": (39.99, 0.067, 2), "to_longitude": (-89.32, 0.107, 2),
    "temperature_c": (4.3, 5.6, 1), "usual_speed_kmh": (21.7, 7.8, 12),
}  # fmt: skip
MISSING = {"distance_km": 0.015, "passengers": 0.02, "mobility_aid": 0.012, "from_latitude": 0.01, "to_latitude": 0.01, "temperature_c": 0.01, "wind_kmh": 0.01}


def trips(count: int, contract: Contract, seed: int, first: int = 0, total: int = 0) -> pd.DataFrame:
    """Trips in the order of their time: the raw row's columns, `actual`, `prediction`, `low`, `high` and `at`; the same for the same seed.

    Parameters
    ----------
    count : rows.
    contract : of the rides case.
    seed : of all that is drawn.
    first, total : the place of the first row among all that are spread over the sixty days; 0 for a table of its own.
    """
    draw = np.random.default_rng([seed, first])
    seconds = (first + np.arange(count)) * DAYS * 86400 / (total or count)
    rows: dict[str, object] = {"requested_at": START + pd.to_timedelta(seconds.round(), unit="s")}
    for name, column in list(contract.row.items())[1:]:
        if name in SKEWED:
            shape, scale, digits = SKEWED[name]
            rows[name] = draw.gamma(shape, scale, count).round(digits)
        elif name in AROUND:
            mean, deviation, digits = AROUND[name]
            rows[name] = draw.normal(mean, deviation, count).round(digits)
        elif name in ("rain_mm", "snow_cm", "snow_day_cm"):
            rows[name] = np.where(draw.random(count) < 0.1, draw.exponential(1.0, count).round(1), 0.0)
        elif name == "wind_kmh":
            rows[name] = draw.gamma(4.0, 4.1, count).round(1)
        elif name == "passengers":
            rows[name] = draw.choice([1.0, 2.0, 3.0, 4.0], count, p=[0.72, 0.2, 0.06, 0.02])
        elif name.endswith("_ratio"):
            rows[name] = np.exp(draw.normal(0.0, 0.11, count))
        else:
            kinds = np.array(column.categories or [f"Z{zone:02}" for zone in range(1, 50)], dtype=object)
            rows[name] = kinds[np.minimum(draw.gamma(1.5, len(kinds) / 4, count).astype(int), len(kinds) - 1)]
    found = pd.DataFrame(rows)
    for name, share in MISSING.items():
        found.loc[draw.random(count) < share, name] = None if found[name].dtype == object else np.nan
    predicted = (found["usual_minutes"].to_numpy() * np.exp(draw.normal(0, 0.05, count)) + 4.0).round(6)
    actual = (predicted * np.exp(draw.normal(0, 0.25, count))).round(1)
    return found.assign(actual=actual, prediction=predicted, low=0.7 * predicted, high=1.35 * predicted, at=START.timestamp() + seconds)


def write_log(folder: Path, count: int, contract: Contract, seed: int, distinct: int = 10 * PART) -> Path:
    """Write trips as parquet files of a million rows, as the service's log is exported, into a folder of their own, which is returned.
    Files that are there already are kept.

    Parameters
    ----------
    folder : where to.
    count, contract, seed : see `trips`.
    distinct : rows that differ; from there on files are links to earlier ones, which the reader takes for files like others.
    """
    place = folder / f"log_{count}"
    place.mkdir(exist_ok=True)
    for first in range(0, count, PART):
        path, before = place / f"{first // PART:03}.parquet", place / f"{first % distinct // PART:03}.parquet"
        if path.exists():
            continue
        if before.exists():
            path.hardlink_to(before)
            continue
        rows = trips(min(PART, count - first), contract, seed, first, min(count, distinct))
        ids = [f"{number:012x}" for number in range(first, first + len(rows))]
        rows = rows.assign(id=ids, received_at=rows["at"] + 3600.0, model=contract.model, role="live")
        pq.write_table(pa.Table.from_pandas(rows, preserve_index=False), path, compression="zstd", compression_level=1, row_group_size=250_000)
    return place
