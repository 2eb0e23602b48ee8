"""Rows that the service completes are the rows that `prepare` computed, value by value; and nothing that is missing makes a request fail."""

import os
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from datetime import datetime, timedelta
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import ibis
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from test_leakage import CONTRACT, DAYS, FIRST, Tables, completion, load, town

from labline.data import vectors
from labline.data.builders import ROWS, Recorder
from labline.data.contract import Contract
from labline.data.incoming import RawTables, open_tables
from labline.data.preparation import complete_rows
from labline.data.quality import validate
from labline.data.tables import connect
from labline.rides import features
from labline.serving.completion import Completer, open_completer
from labline.serving.plan import Plan, Unplannable
from labline.serving.refresh import Refresher
from labline.serving.rows import Rows

DATA = Path(__file__).parent.parent / "data"
LONG = os.environ.get("LABLINE_LONG") == "1"
SENT = [name for name in CONTRACT.row if name not in CONTRACT.lookups]
LOOKUPS = list(CONTRACT.lookups)


def release(asof: dict[str, pa.Table], builder: str = "labline.rides.features", contract: Contract = CONTRACT) -> Any:
    """What a completer needs of a bundle."""
    lineage = {"parameters": {"prepare": {"builder": builder, "builder_settings": {}}}}
    return SimpleNamespace(name="eta", contract=contract, lineage=lineage, asof=lambda: asof)


def requests(frame: pd.DataFrame) -> Rows:
    """Rows of a frame as an application sends them: without what is looked up."""
    return Rows.read({name: frame[name].to_numpy() for name in SENT}, CONTRACT)


def assert_equal(found: Rows, expected: pd.DataFrame) -> None:
    """Every looked-up value is the expected one, to the last bit, and missing where that is missing; what was sent is as it was sent."""
    for name, values in found.columns.items():
        np.testing.assert_array_equal(values, expected[name].to_numpy(float) if name in LOOKUPS else requests(expected).columns[name], err_msg=name)


def prepared(tables: Tables, scratch: Path) -> tuple[pd.DataFrame, dict[str, pa.Table]]:
    """What `prepare` computes for all legs, in the order of time, and the as-of tables that it used."""
    scratch.mkdir()
    with connect(threads=1) as connection:
        loaded = load(connection, tables)
        rows = connection.to_pandas(complete_rows(connection, features, loaded, CONTRACT, loaded["legs"], {}, scratch))
    asof = {path.stem.removeprefix("asof_"): pq.read_table(path) for path in scratch.glob("asof_*.parquet")}
    return rows.sort_values(["requested_at", "leg_id"], ignore_index=True), asof


@pytest.fixture(scope="module")
def tables() -> Tables:
    made = town()
    made["legs"].loc[5, "from_zone"] = "nowhere"
    made["weather"][["rain_mm", "snow_cm", "wind_kmh"]] = made["weather"][["rain_mm", "snow_cm", "wind_kmh"]].abs()
    return made


@pytest.fixture(scope="module")
def offline(tables: Tables, tmp_path_factory: pytest.TempPathFactory) -> tuple[pd.DataFrame, dict[str, pa.Table]]:
    return prepared(tables, tmp_path_factory.mktemp("prepared") / "scratch")


@pytest.fixture(scope="module")
def completer(offline: tuple[pd.DataFrame, dict[str, pa.Table]]) -> Completer:
    return Completer(release(offline[1]))


def utc(moment: datetime) -> pd.Timestamp:
    return pd.Timestamp(moment).tz_localize(CONTRACT.timezone, ambiguous=True, nonexistent="shift_forward").tz_convert("UTC").tz_localize(None)


# the replay


def test_the_service_completes_every_row_as_prepare_did(offline: tuple[pd.DataFrame, dict[str, pa.Table]], completer: Completer) -> None:
    rows = offline[0]
    assert completer.fast and len(rows) == 900
    for size in (1, 64, 256):
        for start in range(0, min(len(rows), 20 * size), size):
            part = rows.iloc[start : start + size]
            assert_equal(completer.fill(requests(part)).rows, part)
    assert rows[LOOKUPS].notna().mean().min() > 0.3


def replay(tables: Tables, expected: pd.DataFrame, hours: Sequence[datetime], folder: Path, completer: Completer) -> int:
    """Take legs and weather as they become known, refresh at each full hour, and complete the requests of that hour; how many they were."""
    legs, weather = tables["legs"], tables["weather"]
    times, ends, known = legs["requested_at"], completion(legs), weather["observed_at"] + pd.Timedelta(hours=1)
    (folder / "accepted").mkdir()
    last, count = hours[0] - timedelta(days=1), 0
    early = {"legs": legs[ends < last], "weather": weather[known < utc(last)], "zones": tables["zones"]}
    with connect(threads=1) as connection:
        for name, table in load(connection, early).items():
            connection.to_parquet(table, folder / "accepted" / f"{name}.parquet")
    refresher = Refresher(release({}), completer, folder=folder / "new", accepted=folder / "accepted")
    for hour in hours:
        for name, rows in (("legs", legs[(ends >= last) & (ends < hour)]), ("weather", weather[(known >= utc(last)) & (known <= utc(hour))])):
            taken = refresher.take(name, sendable(rows))
            assert taken.errors == [] and taken.repeated <= 1
        refresher.clock = lambda now=hour: now  # type: ignore[misc]
        assert refresher.look()
        asked = expected[(expected["requested_at"] >= hour) & (expected["requested_at"] < hour + timedelta(hours=1))]
        if len(asked):
            assert_equal(completer.fill(requests(asked)).rows, asked)
        last, count = hour, count + len(asked)
    assert times.between(hours[0], hours[-1] + timedelta(hours=1), inclusive="left").sum() >= count
    refresher.close()
    return count


def sendable(rows: pd.DataFrame) -> list[dict[str, Any]]:
    """Rows as JSON has them."""
    plain = rows.assign(**{name: rows[name].dt.strftime("%Y-%m-%dT%H:%M:%S") for name in rows if rows[name].dtype.kind == "M"})
    return [{name: None if value != value else value for name, value in row.items()} for row in plain.to_dict("records")]


@pytest.fixture(scope="module")
def served(tables: Tables, offline: tuple[pd.DataFrame, dict[str, pa.Table]], tmp_path_factory: pytest.TempPathFactory) -> tuple[Completer, datetime, int]:
    """A completer that was refreshed by the hour, the last of these hours, and how many rows it completed as `prepare` did."""
    busiest = offline[0]["requested_at"].dt.floor("h")
    busiest = busiest[busiest >= FIRST + timedelta(days=DAYS - 6)].value_counts().sort_values(kind="stable").tail(2).index.sort_values()
    completer = Completer(release({name: table if name == "zones" else table.slice(0, 0) for name, table in offline[1].items()}))
    plan = completer._in_use[0]._plan
    count = replay(tables, offline[0], [hour.to_pydatetime() for hour in busiest], tmp_path_factory.mktemp("replay"), completer)
    assert completer._in_use[0]._plan is plan, "tables with the same columns need no new plan"
    return completer, busiest[-1].to_pydatetime(), count


def test_refreshed_by_the_hour_the_service_completes_rows_as_prepare_did(served: tuple[Completer, datetime, int]) -> None:
    assert served[2] >= 4


@pytest.mark.skipif(not LONG, reason="replays a month, for ten minutes (set LABLINE_LONG=1)")
def test_a_month_of_the_embedded_data(tmp_path: Path) -> None:
    """All rows of the last month from the tables of `prepare`; and those of every seventh hour, so of each hour of the day, from refreshed ones."""
    if not DATA.is_dir():
        pytest.skip("the data are not pulled (dvc pull)")
    validate(CONTRACT, DATA, tmp_path / "validate")
    accepted = {name: pd.read_parquet(tmp_path / "validate/tables" / f"{name}.parquet") for name in CONTRACT.tables}
    expected, asof = prepared(accepted, tmp_path / "scratch")
    last = expected["requested_at"].max().normalize() + timedelta(days=1)
    month = expected[expected["requested_at"] >= last - timedelta(days=30)]
    completer = Completer(release(asof))
    for start in range(0, len(month), 200):
        assert_equal(completer.fill(requests(month.iloc[start : start + 200])).rows, month.iloc[start : start + 200])
    hours = pd.date_range(last - timedelta(days=30), last, freq="7h", inclusive="left")
    refreshed = Completer(release({name: table if name == "zones" else table.slice(0, 0) for name, table in asof.items()}))
    assert len(month) > 4000 and replay(accepted, expected, [hour.to_pydatetime() for hour in hours], tmp_path, refreshed) > 400


def test_tables_that_are_not_refreshed_serve_later_days(tables: Tables, served: tuple[Completer, datetime, int]) -> None:
    completer, hour, _ = served
    later = pd.Timestamp(hour + timedelta(hours=30))
    filled = completer.fill(requests(tables["legs"].head(20).assign(requested_at=later)))
    since_midnight = (later - pd.Timestamp(hour).normalize()).total_seconds()
    assert filled.warnings == [] and filled.ages["weather"] == 30 * 3600 and filled.ages["roads"] == since_midnight and "zones" not in filled.ages
    assert np.isnan(filled.rows.columns["temperature_c"]).all() and not np.isnan(filled.rows.columns["usual_minutes"]).any()


# what each operation does

NUMBERS = [None, 0.0, -0.0, 0.5, 1.5, 2.5, -2.5, 3.0, 1e-300, 15.999999, 1e15, -7.25]
MOMENTS = [None, datetime(2025, 3, 1, 17, 45, 10), datetime(2025, 3, 1, 17, 59, 59, 500_001), datetime(1969, 12, 31, 23, 59, 59), datetime(2024, 2, 29)]
EDGES = pa.table({
    "x": pa.array(NUMBERS, pa.float64()),
    "y": pa.array(NUMBERS[::-1], pa.float64()),
    "n": pa.array([None, 0, 1, -1, 7, -7, 86_400, 3, 2, 10**12, 5, -3], pa.int64()),
    "s": pa.array([None, "", "a", "b", "ä", "Z", "a", "b", "c", "a ", "A", None], pa.string()),
    "t": pa.array([MOMENTS[place % len(MOMENTS)] for place in range(12)], pa.timestamp("us")),
    "b": pa.array([None, True, False] * 4, pa.bool_()),
    "c": pa.array([False, None, True, True] * 3, pa.bool_())})
OPERATIONS: dict[str, Callable[[ibis.Table], Any]] = {
    "add": lambda r: r.x + r.y, "subtract": lambda r: r.x - r.n, "multiply": lambda r: r.n * 24 + r.n, "divide": lambda r: r.x / r.y,
    "negate": lambda r: -r.x, "absolute": lambda r: r.n.abs(), "floor divide": lambda r: r.n // 3, "by a fraction": lambda r: r.x / 3,
    "less": lambda r: r.x < r.y, "at least": lambda r: r.n >= 2, "equal": lambda r: r.s == "a", "unequal": lambda r: r.x != r.y, "above": lambda r: r.s > "a",
    "later": lambda r: r.t > datetime(2025, 1, 1), "at most": lambda r: r.x <= 1.5,
    "and": lambda r: r.b & r.c, "or": lambda r: r.b | r.c, "not": lambda r: ~r.b, "missing": lambda r: r.s.isnull(), "there": lambda r: r.t.notnull(),
    "coalesce": lambda r: ibis.coalesce(r.x, r.y, 9.0), "fill": lambda r: r.n.fill_null(0), "if": lambda r: ibis.ifelse(r.b, r.x, r.y),
    "if or null": lambda r: ibis.ifelse(r.b, r.t, None), "null if not": lambda r: ibis.ifelse(r.x > 1, None, r.s),
    "cases": lambda r: ibis.cases((r.x.isnull(), -1), (r.x < 1, 0), (r.x < 3, 1), else_=5).cast("int64"),
    "clip": lambda r: r.x.clip(0.5, 10.0), "clip below": lambda r: r.x.clip(lower=0.5).ln(), "exponential": lambda r: r.x.clip(-50, 50).exp(),
    "whole": lambda r: r.x.cast("int64"), "number": lambda r: r.n.cast("float64"), "zero or one": lambda r: (r.x >= 1).cast("int64"),
    "seconds": lambda r: r.t.epoch_seconds().cast("int64"), "day": lambda r: (r.t.epoch_seconds().cast("int64") // 86_400).cast("int64"),
    "moment": lambda r: (r.n.clip(-1_000_000, 1_000_000) * 3600).as_timestamp("s").cast("timestamp(6)"), "hour": lambda r: r.t.hour().cast("int64"),
    "weekday": lambda r: r.t.day_of_week.index().cast("int64"), "start of the day": lambda r: r.t.truncate("D"),
    "start of the hour": lambda r: r.t.truncate("h"), "constant": lambda r: ibis.literal(2.5), "nothing": lambda r: ibis.null("float64")}


@pytest.fixture(scope="module")
def edges() -> dict[str, pa.Array]:
    """What DuckDB makes of the operations."""
    with connect(threads=1) as connection:
        rows = connection.create_table("edges", ibis.memtable(EDGES))
        answer = connection.to_pyarrow(rows.select(**{name: operation(rows) for name, operation in OPERATIONS.items()}))
    return {name: answer[name].combine_chunks() for name in answer.column_names}


@pytest.mark.parametrize("name", OPERATIONS)
def test_an_operation_does_what_duckdb_does(edges: dict[str, pa.Array], name: str) -> None:
    rows = Recorder().hold(ROWS, ibis.Schema.from_pyarrow(EDGES.schema))
    bound = Plan(rows.select("x", value=OPERATIONS[name](rows))).bind({})
    values, mask = bound.run({column: vectors.from_arrow(EDGES[column]) for column in EDGES.column_names}, len(EDGES))["value"]
    expected, there = vectors.from_arrow(edges[name])
    mask = np.ones(len(EDGES), bool) if mask is None else mask
    there = np.ones(len(EDGES), bool) if there is None else there
    assert mask.tolist() == there.tolist()
    np.testing.assert_array_equal(values[mask], expected[there])


@pytest.mark.parametrize("operation", [lambda r: r.x.exp(), lambda r: r.y.ln(), lambda r: (r.n / 0).cast("int64"), lambda r: (r.x - r.x) / (r.x - r.x) > 1])
def test_values_that_only_duckdb_can_judge_are_left_to_it(operation: Callable[[ibis.Table], Any]) -> None:
    rows = Recorder().hold(ROWS, ibis.Schema.from_pyarrow(EDGES.schema))
    columns = {column: vectors.from_arrow(EDGES[column]) for column in EDGES.column_names}
    bound = Plan(rows.select("x", value=operation(rows))).bind({})
    with pytest.raises((ArithmeticError, ValueError)):
        bound.run(columns | {"x": (np.full(12, 1000.0), None)}, 12)


def test_keys_with_missing_parts_are_never_found() -> None:
    recorder = Recorder()
    rows = recorder.hold(ROWS, ibis.Schema.from_pyarrow(EDGES.schema))
    other = recorder.hold("other", ibis.schema({"s": "string", "n": "int64", "value": "float64"}))
    table = pa.table({"s": ["a", None, "b"], "n": [1, 1, None], "value": [1.0, 2.0, 3.0]})
    values, mask = Plan(rows.left_join(other, ["s", "n"]).select("x", "value")).bind({"other": table}).run(
        {column: vectors.from_arrow(EDGES[column]) for column in EDGES.column_names}, 12)["value"]
    assert mask is not None and mask.tolist() == [False, False, True, *[False] * 9] and values[2] == 1.0
    doubled = pa.concat_tables([table, table])
    with pytest.raises(ArithmeticError, match="twice"):
        Plan(rows.left_join(other, ["s", "n"]).select("x", "value")).bind({"other": doubled})


# what is missing, and what is sent


def test_what_is_sent_wins_and_what_is_complete_is_not_touched(offline: tuple[pd.DataFrame, dict[str, pa.Table]], completer: Completer) -> None:
    part = offline[0].iloc[300:310]
    full = completer.fill(requests(part)).rows
    columns = {name: full.columns[name].copy() for name in CONTRACT.row}
    columns["usual_minutes"][:] = np.pi
    columns["rain_mm"][3:6] = np.nan
    columns["road_km"][4] = 0.1
    filled = completer.fill(Rows(columns)).rows
    assert (filled.columns["usual_minutes"] == np.pi).all() and filled.columns["road_km"][4] == 0.1
    np.testing.assert_array_equal(filled.columns["rain_mm"], full.columns["rain_mm"])
    known = Rows({name: np.where(np.isnan(values), 1.0, values) if values.dtype == float else values for name, values in full.columns.items()})
    same = completer.fill(known)
    assert same.rows is known and (same.ages, same.warnings) == ({}, [])
    empty = requests(part.iloc[:0])
    assert completer.fill(empty).rows is empty


@pytest.mark.parametrize(("absent", "how"), [("weather", "absent"), ("zones", "absent"), ("city_hours", "empty")])
def test_a_table_that_is_not_there(offline: tuple[pd.DataFrame, dict[str, pa.Table]], completer: Completer, absent: str, how: str) -> None:
    rows, asof = offline
    part = rows.iloc[500:520]
    others = {name: table for name, table in asof.items() if name != absent}
    lacking = Completer(release(others if how == "absent" else others | {absent: asof[absent].slice(0, 0)}))
    filled, full = lacking.fill(requests(part)), completer.fill(requests(part)).rows
    assert lacking.fast and any(f"`{absent}`" in sentence for sentence in filled.warnings)
    missing = {"weather": "temperature_c", "city_hours": "city_3h_ratio", "zones": "from_latitude"}[absent]
    neutral = 1.0 if absent == "city_hours" else np.nan
    np.testing.assert_array_equal(filled.rows.columns[missing], np.full(len(part), neutral))
    np.testing.assert_array_equal(filled.rows.columns["usual_minutes"], full.columns["usual_minutes"])


def test_unreadable_tables(tables: Tables, caplog: pytest.LogCaptureFixture) -> None:
    def broken() -> dict[str, pa.Table]:
        raise pa.ArrowInvalid("not a parquet file")

    bundle = release({})
    bundle.asof = broken
    filled = Completer(bundle).fill(requests(tables["legs"].head(3)))
    assert "and 12 more" in filled.warnings[0] and np.isnan(filled.rows.columns["usual_minutes"]).all() and "cannot be read" in caplog.text


@pytest.mark.parametrize("spoil", [lambda table: table.drop_columns("from_zone"), lambda table: table.set_column(0, "from_zone", pa.array([{}] * len(table)))])
def test_a_broken_table_is_told_once_and_fails_nobody(
    offline: tuple[pd.DataFrame, dict[str, pa.Table]], spoil: Callable[[pa.Table], pa.Table], caplog: pytest.LogCaptureFixture
) -> None:
    rows, asof = offline
    completer = Completer(release(asof | {"pairs": spoil(asof["pairs"])}))
    sent = requests(rows.head(3))
    caplog.clear()
    for _ in range(3):
        filled = completer.fill(sent)
        assert filled.rows is sent and filled.warnings[-1] == "Looked-up values are missing: they could not be computed."
    assert [record.levelname for record in caplog.records] == ["ERROR"]
    completer.replace(asof)
    assert_equal(completer.fill(sent).rows, rows.head(3))


def test_rows_before_the_tables_and_long_after_them(tables: Tables, completer: Completer) -> None:
    legs = tables["legs"].head(2)
    early = completer.fill(requests(legs.assign(requested_at=pd.Timestamp("2024-12-01"))))
    assert np.isnan(early.rows.columns["usual_minutes"]).all()
    assert early.warnings[0].startswith("Rows lie before the first entries of the as-of tables") and set(early.ages.values()) == {0.0}
    late = completer.fill(requests(legs.assign(requested_at=pd.Timestamp("2025-12-01"))))
    assert "more than 48 hours" in late.warnings[0] and min(late.ages.values()) > 200 * 86_400
    assert not np.isnan(late.rows.columns["usual_minutes"]).any()


def test_a_time_that_cannot_be_read(tables: Tables, completer: Completer, caplog: pytest.LogCaptureFixture) -> None:
    rows = requests(tables["legs"].head(2))
    rows = Rows(rows.columns | {"requested_at": np.array(["soon", ""], object)})
    filled = completer.fill(rows)
    assert filled.rows is rows and filled.warnings == ["Looked-up values are missing: they could not be computed."] and filled.ages == {}


# the slow way, and builders of other cases


@pytest.fixture
def other_builder() -> Iterator[ModuleType]:
    """The rides' builder under another name, to be changed."""
    module = ModuleType("other_builder")
    module.__dict__.update(asof_tables=features.asof_tables, latest=features.latest, complete=features.complete)
    sys.modules[module.__name__] = module
    yield module
    del sys.modules[module.__name__]


def test_an_operation_that_the_plan_does_not_know(
    offline: tuple[pd.DataFrame, dict[str, pa.Table]], other_builder: ModuleType, caplog: pytest.LogCaptureFixture
) -> None:
    def complete(rows: ibis.Table, asof: Any, contract: Contract) -> ibis.Table:
        completed = features.complete(rows, asof, contract)
        return completed.mutate(rain_mm=completed.rain_mm.round(1)).order_by(ibis.desc("road_km"))

    other_builder.complete = complete  # type: ignore[attr-defined]
    rows, asof = offline
    completer = Completer(release(asof, "other_builder"))
    part = rows.iloc[100:140]
    assert_equal(completer.fill(requests(part)).rows, part)
    assert not completer.fast and [record.getMessage() for record in caplog.records if "slow" in record.getMessage()] == [
        "looked-up columns are computed by DuckDB, which is slow: Unplannable: an expression that does not keep the rows"]


def test_values_that_the_plan_cannot_judge_go_to_duckdb(offline: tuple[pd.DataFrame, dict[str, pa.Table]], completer: Completer) -> None:
    rows = requests(offline[0].iloc[50:52])
    huge = Rows(rows.columns | {"distance_km": np.array([1e308, 4.0])})
    with pytest.MonkeyPatch.context() as patch, connect(threads=1):
        patch.setattr("labline.serving.plan.BoundPlan.run", lambda *given: (_ for _ in ()).throw(OverflowError("math range error")))
        slow = completer.fill(huge)
    fast = completer.fill(huge)
    assert slow.warnings == fast.warnings
    for name in LOOKUPS:
        np.testing.assert_array_equal(slow.rows.columns[name], fast.rows.columns[name], err_msg=name)


def test_a_builder_that_loses_rows(offline: tuple[pd.DataFrame, dict[str, pa.Table]], other_builder: ModuleType, caplog: pytest.LogCaptureFixture) -> None:
    other_builder.complete = lambda rows, asof, contract: features.complete(rows, asof, contract).filter(ibis._.distance_km > 10)  # type: ignore[attr-defined]
    sent = requests(offline[0].head(4))
    filled = Completer(release(offline[1], "other_builder")).fill(sent)
    assert filled.rows is sent and "could not be computed" in filled.warnings[-1] and "the feature builder returned 0 rows for 1" in caplog.text


def test_a_case_that_looks_nothing_up(bike_contract: Contract) -> None:
    assert open_completer(release({}, "labline.data.features", bike_contract)) is None
    with pytest.raises(Unplannable, match="without rows"):
        Plan(Recorder().hold("speeds", ibis.schema({"speed": "float64"})))


@pytest.fixture
def bike_contract() -> Contract:
    return Contract.load(Path(__file__).parent / "bike_sharing" / "contract.yaml")


# while requests come


def test_tables_are_replaced_between_two_batches(offline: tuple[pd.DataFrame, dict[str, pa.Table]]) -> None:
    rows, asof = offline
    zones = asof["zones"]
    moved = zones.set_column(zones.column_names.index("latitude"), "latitude", pa.array([50.0] * len(zones)))
    completer = Completer(release(asof))
    sent, ended, seen = requests(rows.iloc[200:232]), threading.Event(), set()

    def fill() -> None:
        while not ended.is_set():
            columns = completer.fill(sent).rows.columns
            seen.add(str([columns["from_latitude"], columns["to_latitude"]]))
            time.sleep(0.001)  # as a service that waits for requests; without, the other thread may starve

    thread = threading.Thread(target=fill)
    thread.start()
    for tables in (asof | {"zones": moved}, asof, asof | {"zones": moved}):
        completer.replace(tables)
    ended.set()
    thread.join()
    both = [completer.fill(sent).rows.columns[name] for name in ("from_latitude", "to_latitude")]
    assert 1 <= len(seen) <= 2 and set(np.concatenate(both)) == {50.0}


def test_several_processes_may_bring_rows_at_once(tmp_path: Path) -> None:
    contract = CONTRACT
    hours = [{"observed_at": f"2025-03-{day:02d}T{hour:02d}:00:00", "rain_mm": 0.1} for day in range(1, 5) for hour in range(24)]
    counts: list[int] = []

    def bring(part: list[dict[str, Any]]) -> None:
        counts.append(RawTables(contract, tmp_path, tmp_path / "nowhere").add("weather", part).new)

    threads = [threading.Thread(target=bring, args=(hours[start : start + 60],)) for start in (0, 20, 36)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    tables = RawTables(contract, tmp_path, tmp_path / "nowhere")
    assert sum(counts) == 96 == tables.since("weather").num_rows == tables.mark("changes")
    with connect(threads=1) as connection:
        assert connection.execute(open_tables(tables, connection)["legs"].count()) == 0


def test_weather_alone_is_refreshed_outside_the_workspace(offline: tuple[pd.DataFrame, dict[str, pa.Table]], tmp_path: Path) -> None:
    now = FIRST + timedelta(days=20, hours=9)
    completer = Completer(release(offline[1]))
    before = completer.tables
    refresher = Refresher(release({}), completer, folder=tmp_path, accepted=tmp_path / "nowhere", clock=lambda: now)
    observed = [{"observed_at": f"{utc(now - timedelta(hours=hours)):%Y-%m-%dT%H:%M:%S}", "temperature_c": -20.5} for hours in (1, 2)]
    assert refresher.take("weather", observed).new == 2 and refresher.look()
    changed = [name for name in before if not completer.tables[name].equals(before[name])]
    assert changed == ["weather"]
    asked = requests(offline[0].head(2).assign(requested_at=pd.Timestamp(now + timedelta(minutes=5))))
    assert completer.fill(asked).rows.columns["temperature_c"].tolist() == [-20.5, -20.5]
    refresher.take("legs", [{"leg_id": "L1", "requested_at": "2025-03-01T08:00:00", "from_zone": "A", "to_zone": "B", "vehicle": "ambulatory", "minutes": 9}])
    assert refresher.look()
    assert [name for name in before if not completer.tables[name].equals(before[name])] == ["weather"]


def test_refused_rows_name_their_place(tmp_path: Path) -> None:
    taken = RawTables(CONTRACT, tmp_path, tmp_path / "nowhere").add("weather", [
        {"observed_at": "2025-03-01T08:00:00", "rain_mm": -3.5}, {"observed_at": "2025-03-01T09:00:00"}, {"rain_mm": 1}, {"observed_at": [], "snow": 1}, None])
    assert taken.new == 1
    assert {error["path"]: error["message"].split(";")[0] for error in taken.errors} == {
        "rows[0].rain_mm": "-3.5 is below 0 mm", "rows[2].observed_at": "is missing", "rows[3].observed_at": "a plain value is needed",
        "rows[3].snow": "unknown column", "rows[4]": "an object with the columns is needed"}
