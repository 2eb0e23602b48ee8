"""Raw files that cannot be used, and files that are written: each accident names the file and one remedy."""

import os
from datetime import datetime
from pathlib import Path

import duckdb
import ibis
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from labline.data.contract import Column, Contract, Table
from labline.data.quality import validate
from labline.data.tables import connect, file_month, no_room, raw_files, scan, write_parquet
from labline.data.version import check_version
from labline.errors import DataError

TRIPS = Table(
    path="trips/*.parquet",
    columns={
        "trip": Column(type="text", role="id"),
        "at": Column(type="timestamp", role="time"),
        "length": Column(type="number", min=0),
        "minutes": Column(type="number", role="target", min=0),
    },
)
CONTRACT = Contract(name="trips", model="duration", main="trips", tables={"trips": TRIPS})


def month(number: int, rows: int = 50) -> pa.Table:
    """Good rows of one month of 2025."""
    return pa.table(
        {
            "trip": [f"{number}-{row}" for row in range(rows)],
            "at": pa.array([datetime(2025, number, 1 + row % 28) for row in range(rows)], pa.timestamp("us")),
            "length": [1.0 + row for row in range(rows)],
            "minutes": [2.0 + row for row in range(rows)],
        }
    )


def numbered(rows: int) -> ibis.Table:
    """Rows with a number and a text that has another order."""
    table = ibis.range(0, rows).unnest().name("number").as_table()
    return table.mutate(name=table["number"].cast("string").hexdigest("md5"))


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Three good months, in a path with spaces and a quote."""
    folder = tmp_path / "my ride's data"
    (folder / "trips").mkdir(parents=True)
    for number in (1, 2, 3):
        pq.write_table(month(number), folder / f"trips/2025-{number:02d}.parquet")
    return folder


def refused(data: Path, tmp_path: Path) -> str:
    """The message with which validation refuses the data; nothing accepted may be left."""
    with pytest.raises(DataError) as raised:
        validate(CONTRACT, data, tmp_path / "build", threads=1)
    assert not (tmp_path / "build" / "quarantine.parquet").exists()
    return str(raised.value)


def test_good_files_pass_in_a_path_with_spaces(data: Path, tmp_path: Path) -> None:
    quality = validate(CONTRACT, data, tmp_path / "a build", threads=1)
    assert quality.tables[["files", "read", "accepted"]].values.tolist() == [[3, 150, 150]]


def test_data_not_pulled(tmp_path: Path) -> None:
    (tmp_path / "data.dvc").write_text("outs:\n- md5: 0\n  path: data\n")
    for look in (lambda: raw_files(TRIPS, tmp_path / "data"), lambda: check_version(tmp_path / "data")):
        with pytest.raises(DataError, match="not pulled.*`dvc pull`"):
            look()


def test_pulled_folder_without_the_table(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    with pytest.raises(DataError, match=r"no file matches `trips/\*\.parquet`.*contract"):
        raw_files(TRIPS, tmp_path / "data")


@pytest.mark.parametrize("kept", [0, 4, 200, -8])
def test_truncated_file_is_named(data: Path, tmp_path: Path, kept: int) -> None:
    path = data / "trips/2025-02.parquet"
    path.write_bytes(path.read_bytes()[:kept])
    message = refused(data, tmp_path)
    assert "trips/2025-02.parquet" in message and "cut off or damaged" in message and "dvc checkout" in message


def test_file_damaged_in_the_middle_is_named(data: Path, tmp_path: Path) -> None:
    path = data / "trips/2025-02.parquet"
    content = bytearray(path.read_bytes())
    content[30:90] = b"\xff" * 60
    path.write_bytes(content)
    assert "trips/2025-02.parquet" in refused(data, tmp_path)


def test_missing_column(data: Path, tmp_path: Path) -> None:
    pq.write_table(month(2).drop_columns(["minutes"]), data / "trips/2025-02.parquet")
    message = refused(data, tmp_path)
    assert "2025-02.parquet: required column `minutes` is missing" in message and "the file has `trip`" in message


def test_renamed_column_shows_the_nearest_name(data: Path, tmp_path: Path) -> None:
    pq.write_table(month(2).rename_columns({"length": "length_miles"}), data / "trips/2025-02.parquet")
    assert "If `length_miles` is the same column, give it as `source`" in refused(data, tmp_path)


def test_column_of_another_type(data: Path, tmp_path: Path) -> None:
    changed = month(3).set_column(2, "length", pa.array(["far"] * 50))
    pq.write_table(changed, data / "trips/2025-03.parquet")
    message = refused(data, tmp_path)
    assert "2025-03.parquet: column `length` does not hold values of the type `number` (found 'string')" in message


def test_optional_column_may_be_absent(data: Path, tmp_path: Path) -> None:
    columns = {**TRIPS.columns, "wind": Column(type="number", required=False, nullable=True)}
    contract = Contract(name="trips", model="duration", main="trips", tables={"trips": Table(path=TRIPS.path, columns=columns)})
    pq.write_table(month(3).append_column("wind", pa.array([7.0] * 50)), data / "trips/2025-03.parquet")
    validate(contract, data, tmp_path / "build", threads=1)
    assert pd.read_parquet(tmp_path / "build/tables/trips.parquet")["wind"].notna().sum() == 50


def test_month_without_rows(data: Path, tmp_path: Path) -> None:
    pq.write_table(month(2, rows=0), data / "trips/2025-02.parquet")
    assert "no rows for the month 2025-02" in refused(data, tmp_path)
    assert validate(CONTRACT, data, tmp_path / "build", allow_empty_months=True, threads=1).tables["read"].tolist() == [100]


def test_month_without_file(data: Path, tmp_path: Path) -> None:
    (data / "trips/2025-02.parquet").unlink()
    assert "no file for the month 2025-02" in refused(data, tmp_path)


def test_empty_table(data: Path, tmp_path: Path) -> None:
    for number in (2, 3):
        (data / f"trips/2025-{number:02d}.parquet").unlink()
    pq.write_table(month(1, rows=0), data / "trips/2025-01.parquet")
    assert "no rows" in refused(data, tmp_path)


@pytest.mark.parametrize(
    ("name", "expected"), [("2025-02.parquet", "2025-02"), ("legs_2025-12_v2.csv", "2025-12"), ("2025-13.csv", None), ("zones.parquet", None)]
)
def test_month_in_a_name(name: str, expected: str | None) -> None:
    assert file_month(name) == expected


def test_same_bytes_with_any_number_of_threads(tmp_path: Path) -> None:
    written = set()
    for threads in (1, 2, 4):
        with connect(memory_limit="1GB", threads=threads) as connection:
            rows = numbered(400_000)
            written.add(write_parquet(connection, rows, tmp_path / f"{threads}.parquet", ["name"]).read_bytes())
    assert len(written) == 1


def test_larger_than_memory(tmp_path: Path) -> None:
    with connect(memory_limit="120MB", threads=1) as connection:
        path = write_parquet(connection, numbered(4_000_000), tmp_path / "large.parquet", ["name"])
        assert connection.execute(connection.read_parquet(path.as_posix()).count()) == 4_000_000


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full on this system")
def test_full_disk(data: Path, tmp_path: Path) -> None:
    target = tmp_path / "build" / "table.parquet"
    target.parent.mkdir()
    target.write_bytes(b"before")
    os.symlink("/dev/full", target.with_name(".table.parquet.part"))
    with connect(threads=1) as connection, pytest.raises(DataError, match="the disk is full.*Free space"):
        write_parquet(connection, scan(connection, TRIPS, data, "trips"), target, ["trip"])
    assert target.read_bytes() == b"before"
    assert [path.name for path in target.parent.iterdir()] == ["table.parquet"]


def test_memory_limit_that_is_too_low_has_its_own_remedy() -> None:
    problem = no_room(duckdb.OutOfMemoryException("could not allocate block"), Path("build/x.parquet"))
    assert problem is not None and "`memory_limit`" in str(problem)
    assert no_room(ValueError("something else"), Path("x")) is None


def test_connection_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    with connect(threads=1) as connection:
        connection.to_parquet(numbered(10), tmp_path / "ten.parquet")
        (tmp_path / "ten.parquet").unlink()
        assert len(list(tmp_path.iterdir())) == 1
    assert list(tmp_path.iterdir()) == []
