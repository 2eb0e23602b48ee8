"""Rows against the contract: every rejected row has all its reasons, and only too many of them stop the line."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from labline.data.contract import Column, Contract, Table
from labline.data.quality import Quality, require, summarise, validate
from labline.errors import DataError

CONTRACT = Contract(
    name="trips",
    model="duration",
    main="trips",
    tables={
        "trips": Table(
            path="trips/*.csv",
            columns={
                "trip": Column(type="text", role="id"),
                "at": Column(type="timestamp", role="time", formats=["%Y-%m-%d %H:%M:%S", "%d/%m/%Y %H:%M"]),
                "length_km": Column(
                    type="number", source="length", unit="km", min=0, max=100, unit_column="unit", units={"km": 1.0, "mi": 1.609344}, nullable=True
                ),
                "kind": Column(type="category", categories=["van", "car"], missing=["n/a"], nullable=True),
                "seats": Column(type="integer", min=1, max=8, missing=["-1"], nullable=True),
                "shared": Column(type="boolean", nullable=True),
                "minutes": Column(type="number", role="target", unit="min", min=0),
            },
        )
    },
)
GOOD = {"at": "2025-01-05 10:00:00", "length": "5", "unit": "km", "kind": "van", "seats": "2", "shared": "yes", "minutes": "12"}


def check(tmp_path: Path, rows: list[dict[str, str]], file: str = "2025-01.csv") -> tuple[Quality, pd.DataFrame, pd.DataFrame]:
    """Validate rows that differ from a good one; the result, the accepted rows and the quarantine."""
    (tmp_path / "data/trips").mkdir(parents=True, exist_ok=True)
    frame = pd.DataFrame([{"trip": f"t{number}", **GOOD, **row} for number, row in enumerate(rows)])
    frame.to_csv(tmp_path / "data/trips" / file, index=False)
    quality = validate(CONTRACT, tmp_path / "data", tmp_path / "build", threads=1)
    return quality, pd.read_parquet(tmp_path / "build/tables/trips.parquet"), pd.read_parquet(tmp_path / "build/quarantine.parquet")


def reasons(tmp_path: Path, **changes: str) -> str:
    """The reasons against one row that differs from a good one."""
    quarantine = check(tmp_path, [{}, changes])[2]
    return "" if quarantine.empty else quarantine["reasons"].iloc[0]


@pytest.mark.parametrize(
    ("column", "value", "reason"),
    [
        ("minutes", "", "minutes is missing"),
        ("minutes", "-3", "minutes is below 0 min"),
        ("minutes", "soon", "minutes is not a number"),
        ("minutes", "inf", "minutes is not a number"),
        ("minutes", "NaN", "minutes is not a number"),
        ("length", "200", "length_km is above 100 km"),
        ("length", "99", ""),
        ("unit", "furlong", "length_km has no known unit"),
        ("unit", "", "length_km has no known unit"),
        ("kind", "tram", "kind is not one of its categories"),
        ("kind", "n/a", ""),
        ("kind", " van ", ""),
        ("seats", "2.5", "seats is not a whole number"),
        ("seats", "2.0", ""),
        ("seats", "-1", ""),
        ("seats", "99", "seats is above 8"),
        ("shared", "perhaps", "shared is not true or false"),
        ("shared", "F", ""),
        ("at", "05/01/2025 10:00", ""),
        ("at", "2025-02-30 10:00:00", "at is not a time in a known format"),
        ("at", "", "at is missing"),
        ("at", "1999-01-01 10:00:00", "at lies more than 92 days from the month of its file"),
        ("trip", "", "trip is missing"),
    ],
)
def test_one_fault_one_reason(tmp_path: Path, column: str, value: str, reason: str) -> None:
    assert reasons(tmp_path, **{column: value}) == reason


def test_a_row_has_all_its_reasons(tmp_path: Path) -> None:
    found = reasons(tmp_path, at="never", length="-2", kind="tram", minutes="")
    assert found.split("; ") == ["at is not a time in a known format", "length_km is below 0 km", "kind is not one of its categories", "minutes is missing"]


def test_a_missing_length_needs_no_unit(tmp_path: Path) -> None:
    assert reasons(tmp_path, length="", unit="") == ""


def test_values_are_read_as_their_types(tmp_path: Path) -> None:
    odd = {"at": "06/01/2025 07:30", "length": "10", "unit": "mi", "kind": "n/a", "seats": "-1", "shared": "No", "minutes": " 7.5 "}
    _, accepted, _ = check(tmp_path, [odd])
    row = accepted.iloc[0]
    assert row["at"] == pd.Timestamp("2025-01-06 07:30") and row["length_km"] == pytest.approx(16.09344)
    assert row["kind"] is None and np.isnan(row["seats"]) and row["shared"] is np.False_ and row["minutes"] == 7.5


def test_quarantine_leads_back_to_the_row(tmp_path: Path) -> None:
    _, _, quarantine = check(tmp_path, [{}, {"minutes": "-1"}, {}, {"minutes": "x"}])
    assert quarantine[["table", "file", "row"]].values.tolist() == [["trips", "trips/2025-01.csv", 2], ["trips", "trips/2025-01.csv", 4]]
    assert json.loads(quarantine["raw"][0]) == {"trip": "t1", **GOOD, "minutes": "-1"}


def test_repeats_keep_the_first_and_conflicts_keep_none(tmp_path: Path) -> None:
    rows = [{"trip": "a"}, {"trip": "b"}, {"trip": "a"}, {"trip": "b", "minutes": "13"}, {"trip": "c"}]
    _, accepted, quarantine = check(tmp_path, rows)
    assert accepted["trip"].tolist() == ["a", "c"]
    assert dict(zip(quarantine["row"], quarantine["reasons"], strict=True)) == {
        2: "trip appears again with other values", 3: "trip repeats an earlier row", 4: "trip appears again with other values"}  # fmt: skip


def test_a_bad_row_does_not_take_the_good_one_with_its_id_along(tmp_path: Path) -> None:
    _, accepted, quarantine = check(tmp_path, [{"trip": "a", "minutes": "-1"}, {"trip": "a"}])
    assert len(accepted) == 1 and quarantine["reasons"].tolist() == ["minutes is below 0 min"]


def test_repeats_are_found_across_files(tmp_path: Path) -> None:
    check(tmp_path, [{"trip": "a"}])
    quality, _, quarantine = check(tmp_path, [{"trip": "a"}], file="2025-02.csv")
    assert quarantine["file"].tolist() == ["trips/2025-02.csv"]
    assert quality.tables["outside_month"].tolist() == [1]


def test_late_rows_are_noted_and_kept(tmp_path: Path) -> None:
    quality, accepted, _ = check(tmp_path, [{}, {"at": "2024-12-30 23:00:00"}])
    assert len(accepted) == 2 and quality.tables["outside_month"].tolist() == [1]
    assert "Rows outside the month of their file, kept: 1." in summarise(quality)


def test_only_too_many_bad_rows_stop_the_line(tmp_path: Path) -> None:
    quality, _, _ = check(tmp_path, [{}, {}, {}, {"minutes": "-1"}])
    require(quality, max_rejected_share=0.25)
    with pytest.raises(DataError, match=r"more than 20.0% of the rows are rejected; most often: minutes is below 0 min \(1\) \(found '25.0%'\)"):
        require(quality, max_rejected_share=0.2)


def test_every_row_rejected(tmp_path: Path) -> None:
    quality, accepted, quarantine = check(tmp_path, [{"minutes": ""}, {"minutes": "-1"}])
    assert accepted.empty and len(quarantine) == 2
    with pytest.raises(DataError, match=r"`trips`: every row is rejected; most often: minutes is below 0 min \(1\); minutes is missing \(1\)"):
        require(quality, max_rejected_share=1.0)


def test_metrics_are_plain_numbers(tmp_path: Path) -> None:
    quality, _, _ = check(tmp_path, [{}, {"minutes": "-1", "kind": "tram"}])
    assert json.loads(json.dumps(quality.metrics())) == {"trips": {
        "files": 1, "read": 2, "accepted": 1, "rejected": 1, "outside_month": 0, "rejected_share": 0.5,
        "reasons": {"kind is not one of its categories": 1, "minutes is below 0 min": 1}}}  # fmt: skip


def test_reports_show_what_was_seen(tmp_path: Path) -> None:
    quality, _, _ = check(tmp_path, [{"length": ""}, {"length": "500"}, {"kind": "tram"}, {"kind": "n/a"}])
    ranges = quality.ranges.set_index("column").loc["length_km"]
    assert ranges["most"] == "500" and ranges["accepted most"] == "5" and ranges["max"] == 100
    unknown = quality.categories[~quality.categories["known"]]
    assert unknown["value"].tolist() == ["tram"] and unknown["accepted"].tolist() == [0]
    assert quality.missing.set_index("column").loc["length_km", "share"] == 0.25


def test_columns_that_the_contract_does_not_know_are_named(tmp_path: Path) -> None:
    quality, _, _ = check(tmp_path, [{"colour": "red"}])
    assert quality.tables["unknown_columns"].tolist() == ["colour"]


def test_two_runs_write_the_same_bytes(tmp_path: Path) -> None:
    rows = [{"trip": str(number % 40), "minutes": str(number % 7 - 1)} for number in range(300)]
    check(tmp_path, rows)
    first = {path.name: path.read_bytes() for path in (tmp_path / "build").rglob("*.parquet")}
    validate(CONTRACT, tmp_path / "data", tmp_path / "build", threads=3)
    assert {path.name: path.read_bytes() for path in (tmp_path / "build").rglob("*.parquet")} == first


ROWS = st.fixed_dictionaries({"trip": st.sampled_from(["a", "b", "c", "d", ""]), "minutes": st.sampled_from(["1", "2", "-1", "x", ""])})


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(ROWS, min_size=1, max_size=30))
def test_no_row_is_lost_and_accepted_ids_are_unique(tmp_path_factory: pytest.TempPathFactory, rows: list[dict[str, str]]) -> None:
    quality, accepted, quarantine = check(tmp_path_factory.mktemp("any"), rows)
    assert len(accepted) + len(quarantine) == len(rows) == quality.tables["read"].sum()
    assert accepted["trip"].is_unique and quarantine["reasons"].ne("").all()
    assert not quarantine.duplicated(["file", "row"]).any()
