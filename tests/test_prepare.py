"""Prepared rows: what they hold, what a builder may do to them, and that nothing later reaches them."""

import json
import sys
from collections.abc import Iterator, Mapping
from datetime import datetime
from pathlib import Path
from types import ModuleType
from typing import Any

import ibis
import numpy as np
import pandas as pd
import pytest

from labline.data.contract import Column, Contract, Table
from labline.data.preparation import prepare
from labline.data.splits import SplitSettings
from labline.errors import ContractError, DataError, ParameterError, WorkspaceError

SPLIT = SplitSettings(validation_days=10, test_days=10, gap_days=3)
COLUMNS = {
    "trip": Column(type="text", role="id"),
    "at": Column(type="timestamp", role="time"),
    "road": Column(type="category"),
    "wheels": Column(type="integer", nullable=True),
    "speed": Column(type="number", role="outcome", nullable=True),
    "minutes": Column(type="number", role="target"),
}
PLAIN = Contract(name="trips", model="duration", main="trips", tables={"trips": Table(path="*", columns=COLUMNS)})
LOOKING = Contract(name="trips", model="duration", main="trips", tables=PLAIN.tables, lookups={"road_speed": Column(type="number", nullable=True)})


def trips(rows: int = 2400, changed_from: int | None = None) -> pd.DataFrame:
    """Accepted trips, one an hour; from row `changed_from` on everything that is known afterwards is another."""
    random = np.random.default_rng(5)
    frame = pd.DataFrame({"trip": [f"t{number:05d}" for number in range(rows)], "at": pd.date_range("2025-01-01", periods=rows, freq="h").as_unit("us")})
    frame["road"] = random.choice(["a", "b", "c"], rows)
    frame["wheels"] = pd.array(random.choice([4, 6], rows), dtype="Int64")
    frame["speed"] = random.uniform(20, 60, rows).round(1)
    frame["minutes"] = random.uniform(5, 50, rows).round(1)
    if changed_from is not None:
        frame.loc[changed_from:, ["speed", "minutes"]] = frame.loc[changed_from:, ["speed", "minutes"]] * 2 + 1
    return frame


def write(tmp_path: Path, frame: pd.DataFrame, name: str = "tables") -> Path:
    """Accepted tables as validation leaves them."""
    folder = tmp_path / name
    folder.mkdir(parents=True)
    frame.to_parquet(folder / "trips.parquet")
    return folder


@pytest.fixture
def yesterday() -> Iterator[str]:
    """A builder that looks up the median speed of a road on the day before; its dotted name."""

    def asof_tables(tables: Mapping[str, ibis.Table], contract: Contract, requests: ibis.Table, settings: Mapping[str, Any]) -> dict[str, ibis.Table]:
        history = tables["trips"]
        day = history["at"].truncate("D") + ibis.interval(days=1)
        return {"speeds": history.group_by("road", known_at=day).agg(road_speed=history["speed"].quantile(0.5) * settings.get("factor", 1))}

    def complete(rows: ibis.Table, asof: Mapping[str, ibis.Table], contract: Contract) -> ibis.Table:
        return rows.mutate(known_at=rows["at"].truncate("D")).left_join(asof["speeds"], ["road", "known_at"])

    def latest(tables: Mapping[str, ibis.Table], contract: Contract, now: datetime, settings: Mapping[str, Any]) -> dict[str, ibis.Table]:
        speeds = asof_tables(tables, contract, tables["trips"], settings)["speeds"]
        return {"speeds": speeds.filter(speeds["known_at"] <= now).group_by("road").agg(known_at=ibis._["known_at"].max())}

    module = ModuleType("yesterday_builder")
    module.__dict__.update(asof_tables=asof_tables, complete=complete, latest=latest)
    sys.modules[module.__name__] = module
    yield module.__name__
    del sys.modules[module.__name__]


def parts(folder: Path) -> dict[str, pd.DataFrame]:
    """The three parts as frames."""
    return {part: pd.read_parquet(folder / f"{part}.parquet") for part in ("train", "validation", "test")}


def test_parts_hold_id_raw_row_and_target(tmp_path: Path) -> None:
    prepared = prepare(PLAIN, write(tmp_path, trips()), tmp_path / "build", split=SPLIT)
    for part, frame in parts(tmp_path / "build").items():
        assert list(frame.columns) == ["trip", "at", "road", "wheels", "minutes"]
        assert len(frame) == prepared.counts[part] and frame["at"].is_monotonic_increasing
    split = json.loads((tmp_path / "build/split.json").read_text())
    assert split["rows"] == prepared.counts == {"train": 1776, "validation": 240, "test": 240}
    assert split["bounds"]["test"] == {"from": "2025-04-01T00:00:00", "until": "2025-04-11T00:00:00"}


def test_rows_are_completed_by_the_builder(tmp_path: Path, yesterday: str) -> None:
    frame = trips()
    prepared = prepare(LOOKING, write(tmp_path, frame), tmp_path / "build", yesterday, {"factor": 1}, SPLIT)
    train = parts(tmp_path / "build")["train"]
    row = train.iloc[500]
    before = frame[(frame["road"] == row["road"]) & (frame["at"].dt.normalize() == row["at"].normalize() - pd.Timedelta(days=1))]
    assert row["road_speed"] == before["speed"].median()
    assert train["road_speed"].isna().sum() == 24 and prepared.missing.loc["road_speed", "train"] == 24 / 1776
    assert prepared.asof == {"speeds": 3}
    assert pd.read_parquet(tmp_path / "build/asof/speeds.parquet")["known_at"].eq(pd.Timestamp("2025-04-11")).all()


def test_nothing_later_reaches_a_row(tmp_path: Path, yesterday: str) -> None:
    prepare(LOOKING, write(tmp_path, trips(), "before"), tmp_path / "a", yesterday, split=SPLIT)
    prepare(LOOKING, write(tmp_path, trips(changed_from=1000), "after"), tmp_path / "b", yesterday, split=SPLIT)
    first, second = (pd.concat(parts(tmp_path / name).values()).set_index("trip") for name in "ab")
    same = first.index < "t01000"
    pd.testing.assert_frame_equal(first[same], second[same])
    changed_day = (first["at"] >= "2025-02-11") & ~same
    features = ["at", "road", "wheels", "road_speed"]
    own_day = (first["at"] < "2025-02-12") & ~same
    pd.testing.assert_frame_equal(first.loc[own_day, features], second.loc[own_day, features])
    assert (first.loc[changed_day & ~own_day, "road_speed"] != second.loc[changed_day & ~own_day, "road_speed"]).mean() > 0.9


def test_since_keeps_the_history_for_lookups(tmp_path: Path, yesterday: str) -> None:
    cut = SplitSettings(validation_days=10, test_days=10, gap_days=3, since="2025-02-01", until="2025-04-01")
    prepare(LOOKING, write(tmp_path, trips()), tmp_path / "build", yesterday, split=cut)
    rows = parts(tmp_path / "build")
    assert rows["train"]["at"].min() == pd.Timestamp("2025-02-01") and rows["test"]["at"].max() < pd.Timestamp("2025-04-01")
    assert rows["train"]["road_speed"].notna().all()


def test_two_runs_write_the_same_bytes(tmp_path: Path, yesterday: str) -> None:
    tables = write(tmp_path, trips())
    for name, threads in (("a", 1), ("b", 3)):
        prepare(LOOKING, tables, tmp_path / name, yesterday, split=SPLIT, threads=threads)
    first, second = ({path.relative_to(tmp_path / name): path.read_bytes() for path in (tmp_path / name).rglob("*") if path.is_file()} for name in "ab")
    assert len(first) == 5 and first == second


def test_an_old_asof_table_does_not_stay(tmp_path: Path) -> None:
    (tmp_path / "build/asof").mkdir(parents=True)
    (tmp_path / "build/asof/old.parquet").write_bytes(b"")
    prepare(PLAIN, write(tmp_path, trips()), tmp_path / "build", split=SPLIT)
    assert list((tmp_path / "build/asof").iterdir()) == []


def test_a_table_without_time(tmp_path: Path) -> None:
    columns = {name: column for name, column in COLUMNS.items() if name != "at"}
    contract = Contract(name="t", model="m", main="trips", tables={"trips": Table(path="*", columns=columns)})
    prepared = prepare(contract, write(tmp_path, trips().drop(columns="at")), tmp_path / "build")
    frames = parts(tmp_path / "build")
    assert sum(prepared.counts.values()) == 2400 and list(frames["test"].columns) == ["trip", "road", "wheels", "minutes"]
    assert json.loads((tmp_path / "build/split.json").read_text())["method"] == "hash"


def test_validation_has_not_run(tmp_path: Path) -> None:
    with pytest.raises(WorkspaceError, match="trips.parquet: the table does not exist.*`dvc repro validate`"):
        prepare(PLAIN, tmp_path, tmp_path / "build")


def test_unknown_builder(tmp_path: Path) -> None:
    with pytest.raises(ParameterError, match="no module `labline.data.futures`"):
        prepare(PLAIN, write(tmp_path, trips()), tmp_path / "build", "labline.data.futures")


def test_lookups_that_nobody_computes(tmp_path: Path) -> None:
    with pytest.raises(ContractError, match="`road_speed`.*`prepare.builder`"):
        prepare(LOOKING, write(tmp_path, trips()), tmp_path / "build", split=SPLIT)


def test_a_builder_that_doubles_rows_or_forgets_a_column(tmp_path: Path, yesterday: str) -> None:
    tables, module = write(tmp_path, trips()), sys.modules[yesterday]
    module.complete = lambda rows, asof, contract: rows.union(rows).mutate(road_speed=1.0)  # type: ignore[attr-defined]
    with pytest.raises(DataError, match="returned 4,800 rows for 2,400"):
        prepare(LOOKING, tables, tmp_path / "build", yesterday, split=SPLIT)
    module.complete = lambda rows, asof, contract: rows  # type: ignore[attr-defined]
    with pytest.raises(ContractError, match="unknown column `road_speed`"):
        prepare(LOOKING, tables, tmp_path / "build", yesterday, split=SPLIT)
    assert not (tmp_path / "build").exists()


def test_a_hole_where_a_part_should_be(tmp_path: Path) -> None:
    frame = trips()
    holed = frame[(frame["at"] < "2025-03-10") | (frame["at"] >= "2025-04-05")]
    with pytest.raises(DataError, match="no row falls into `validation` from 2025-03-19 until 2025-03-29"):
        prepare(PLAIN, write(tmp_path, holed), tmp_path / "build", split=SPLIT)
