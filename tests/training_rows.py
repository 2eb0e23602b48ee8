"""A small generated table of rides to train on, and a command that trains candidates on it in a process of its own."""

import sys
from datetime import datetime, timedelta
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from labline.data.contract import Column, Contract, Table

COLUMNS = {
    "leg_id": Column(type="text", role="id"),
    "requested_at": Column(type="timestamp", role="time"),
    "zone": Column(type="category", nullable=True),
    "vehicle": Column(type="category"),
    "distance_km": Column(type="number"),
    "passengers": Column(type="integer", nullable=True),
    "holiday": Column(type="boolean"),
    "minutes": Column(type="number", role="target", unit="minutes"),
}
LOOKUPS = {"rain_mm": Column(type="number", nullable=True)}


def contract() -> Contract:
    """What the columns mean."""
    return Contract(name="rides", model="eta", main="legs", tables={"legs": Table(path="legs/*.parquet", columns=COLUMNS)}, lookups=LOOKUPS)


def rides(rows: int, seed: int) -> pa.Table:
    """Rides with missing values, rare zones, and a target that can be learned."""
    random = np.random.default_rng(seed)
    zone, distance, rain = random.geometric(0.15, rows), random.gamma(2, 4, rows), random.exponential(1, rows)
    start = np.sort(random.integers(0, 60 * 24 * 120, rows))
    passengers = random.integers(1, 4, rows).astype(float)
    minutes = 2 + distance * (1.2 + 0.6 * np.exp(-((start / 60 % 24 - 8) ** 2) / 4) + 0.1 * rain) + zone % 4
    passengers[random.random(rows) < 0.1], rain[random.random(rows) < 0.05] = np.nan, np.nan
    return pa.table({
        "leg_id": [f"leg-{seed}-{number:06}" for number in range(rows)],
        "requested_at": [datetime(2025, 1, 1) + timedelta(minutes=int(minute)) for minute in start],
        "zone": [None if number == 5 else f"zone {number}" for number in zone],
        "vehicle": random.choice(["ambulatory", "wheelchair_van", "stretcher"], rows, p=[0.7, 0.2, 0.1]),
        "distance_km": distance,
        "passengers": pa.array(passengers, from_pandas=True).cast(pa.int64()),
        "holiday": random.random(rows) < 0.03,
        "rain_mm": pa.array(rain, from_pandas=True),
        "minutes": minutes * random.lognormal(0, 0.1, rows),
    })


def write_rides(folder: Path, rows: int = 3000) -> Path:
    """Write `train.parquet` and `validation.parquet`."""
    folder.mkdir(parents=True, exist_ok=True)
    pq.write_table(rides(rows, seed=0), folder / "train.parquet")
    pq.write_table(rides(rows // 3, seed=1), folder / "validation.parquet")
    return folder


def train_all(data: Path, output: Path, history: int, candidates: list[str]) -> None:
    """Train candidates quickly, after a number of other functions were traced in the process."""
    import tensorflow as tf

    from labline.models.candidates import BoostingSettings, Settings, TreeSettings
    from labline.models.networks import NetworkSettings
    from labline.models.task import Task
    from labline.models.training import train

    for number in range(history):
        tf.function(lambda value, number=number: value + number).get_concrete_function(tf.TensorSpec([]))
    settings = Settings(NetworkSettings(widths=(16, 16), epochs=3), TreeSettings(leaves=20), BoostingSettings(iterations=20))
    for candidate in candidates:
        train(candidate, data, contract(), Task("minutes"), settings, output / candidate, bar=False)


if __name__ == "__main__":
    train_all(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]), sys.argv[4:])
