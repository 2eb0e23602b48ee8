"""Parts of a table: in the order of time with their gaps, or by the hash of an id; no row in two of them."""

from datetime import date, datetime, timedelta

import ibis
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from labline.data.contract import Column, Contract, Table
from labline.data.splits import PARTS, HashSplit, SplitSettings, check_parts, split_by_time
from labline.data.tables import connect
from labline.errors import DataError, ParameterError

START = datetime(2024, 1, 1)


@settings(max_examples=60, deadline=None)
@given(days=st.integers(3, 800), validation=st.integers(1, 90), test=st.integers(1, 90), gap=st.integers(0, 30), hour=st.integers(0, 23))
def test_parts_follow_each_other(days: int, validation: int, test: int, gap: int, hour: int) -> None:
    last = START + timedelta(days=days - 1, hours=hour)
    if days - validation - test - 2 * gap <= 0:
        with pytest.raises(ParameterError, match="no day is left for training"):
            split_by_time("at", START, last, validation, test, gap)
        return
    bounds = split_by_time("at", START, last, validation, test, gap).bounds
    assert bounds["train"][0] == START and bounds["test"][1] == datetime(last.year, last.month, last.day) + timedelta(days=1)
    assert bounds["validation"][0] - bounds["train"][1] == bounds["test"][0] - bounds["validation"][1] == timedelta(days=gap)
    assert bounds["validation"][1] - bounds["validation"][0] == timedelta(days=validation)
    assert bounds["test"][1] - bounds["test"][0] == timedelta(days=test)


def test_a_row_at_a_border_belongs_to_the_later_part() -> None:
    split = split_by_time("at", START, START + timedelta(days=29), 5, 5, 0)
    moments = ["2024-01-20 23:59:59", "2024-01-21 00:00:00", "2024-01-26 00:00:00", "2024-01-30 23:59:59"]
    rows = ibis.memtable(pd.DataFrame({"at": pd.to_datetime(moments).as_unit("us")}))
    with connect(threads=1) as connection:
        found = {part: connection.to_pandas(split.select(rows, part))["at"].dt.day.tolist() for part in PARTS}
    assert found == {"train": [20], "validation": [21], "test": [26, 30]}


def test_since_and_until_cut_off_stray_days() -> None:
    split = split_by_time("at", datetime(2008, 5, 1), datetime(2031, 1, 1), 10, 10, 2, since="2025-01-01", until="2025-03-01")
    assert split.bounds["train"][0] == datetime(2025, 1, 1) and split.bounds["test"][1] == datetime(2025, 3, 1)
    assert "nothing before 2025-01-01 is used (`since`), nothing from 2025-03-01 on" in split.reasons[-1]


@pytest.mark.parametrize(("name", "days"), [("validation_days", (0, 5, 1)), ("test_days", (5, -1, 1)), ("gap_days", (5, 5, -1))])
def test_days_of_the_wrong_size(name: str, days: tuple[int, int, int]) -> None:
    with pytest.raises(ParameterError, match=f"`{name}` is below"):
        split_by_time("at", START, START + timedelta(days=100), *days)


def test_a_day_that_is_none() -> None:
    with pytest.raises(ParameterError, match="`until` is not a day.*`2025-03-01`"):
        split_by_time("at", START, START + timedelta(days=100), 5, 5, 1, until="March")


def test_hash_split_is_stable_when_rows_are_added() -> None:
    split = HashSplit("person", 0.2, 0.1)
    people = [ibis.memtable({"person": [f"p{number}" for number in range(rows)]}) for rows in (500, 2000)]
    with connect(threads=1) as connection:
        few, many = ({part: set(connection.to_pandas(split.select(rows, part))["person"]) for part in PARTS} for rows in people)
    assert all(few[part] <= many[part] for part in PARTS)
    assert sum(map(len, many.values())) == len(set.union(*many.values())) == 2000
    assert 0.17 < len(many["validation"]) / 2000 < 0.23 and 0.08 < len(many["test"]) / 2000 < 0.12


@pytest.mark.parametrize("shares", [(0.0, 0.1), (0.1, 0.0), (0.5, 0.5), (0.9, 0.2)])
def test_shares_must_leave_rows_for_all(shares: tuple[float, float]) -> None:
    with pytest.raises(ParameterError, match="`validation_share` and `test_share`"):
        HashSplit("person", *shares)


def test_the_contract_decides_between_time_and_hash() -> None:
    columns = {"id": Column(type="text", role="id"), "at": Column(type="timestamp", role="time"), "y": Column(type="number", role="target")}
    rows = ibis.memtable(pd.DataFrame({"id": ["a"], "at": [pd.Timestamp(date(2025, 6, 1))], "y": [1.0]}))
    with_time = Contract(name="a", model="m", main="t", tables={"t": Table(path="*", columns=columns)})
    without = Contract(name="a", model="m", main="t", tables={"t": Table(path="*", columns={name: columns[name] for name in ("id", "y")})})
    with connect(threads=1) as connection:
        assert SplitSettings(since="2025-01-01").choose(connection, rows, with_time).describe()["method"] == "time"
        assert SplitSettings().choose(connection, rows, without).describe()["method"] == "hash"
        with pytest.raises(DataError, match="has no rows"):
            SplitSettings().choose(connection, rows.limit(0), with_time)


def test_a_part_without_rows_is_named_with_its_span() -> None:
    split = split_by_time("at", START, START + timedelta(days=99), 10, 10, 5)
    with pytest.raises(DataError, match="no row falls into `test` from 2024-03-31 until 2024-04-10"):
        check_parts({"train": 1, "validation": 1, "test": 0}, split)
