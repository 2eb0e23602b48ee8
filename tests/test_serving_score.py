"""Batch scoring: every row is answered once or set aside with its reasons, whatever the input, and however often the run was killed."""

import json
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest
from postgresql import running_server

from labline.errors import DataError
from labline.models.example import example_bundle, example_rows
from labline.serving.parts import Parts
from labline.serving.release import Release, open_release
from labline.serving.score import Scored, score
from labline.serving.settings import Settings

ROWS, PART = 1000, 64
BAD = {3: ("distance_km", -4.0), 500: ("vehicle", "boat"), 501: ("passengers", 9.0), 999: ("distance_km", 151.0)}
SETTINGS = Settings(most_rows=PART)


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    folder = tmp_path_factory.mktemp("releases")
    return {version: example_bundle(folder, minutes_per_km=1.0 + version, version=version).path for version in (1, 2)}


@pytest.fixture(scope="module")
def releases(bundles: dict[int, Path]) -> dict[int, Release]:
    return {version: open_release(path, settings=SETTINGS) for version, path in bundles.items()}


@pytest.fixture
def release(releases: dict[int, Release]) -> Release:
    return releases[1]


@pytest.fixture(scope="module")
def table() -> pa.Table:
    """A thousand trips, four of which the service would refuse."""
    frame = example_rows(ROWS, seed=5)
    for place, (name, value) in BAD.items():
        frame.loc[place, name] = value
    frame.insert(0, "trip_id", [f"trip-{place:05d}" for place in range(ROWS)])
    return pa.Table.from_pandas(frame, preserve_index=False)


@pytest.fixture
def source(table: pa.Table, tmp_path: Path) -> Path:
    path = tmp_path / "trips.parquet"
    pq.write_table(table, path, row_group_size=300)
    return path


def run(source: str | Path, output: Path, release: Release, **options: Any) -> tuple[Scored, list[str]]:
    said: list[str] = []
    return score(source, output, release, say=said.append, **options), said


def check(scored: Scored, table: pa.Table, release: Release) -> None:
    """The answers are those of the service, in the order of the input; the bad rows lie aside."""
    answers, aside = pq.read_table(scored.output), pq.read_table(scored.aside)
    good = np.setdiff1d(np.arange(table.num_rows), list(BAD))
    assert answers["trip_id"].to_pylist() == table["trip_id"].take(pa.array(good)).to_pylist()
    rows = [{name: value for name, value in row.items() if value is not None} for row in table.take(pa.array(good[:50])).to_pylist()]
    checked = release.checker.friendly(json.dumps({"rows": rows}, default=str).encode())
    for name, values in release.predict(checked.rows).items():
        assert np.array_equal(answers[name].to_numpy()[:50], values)
    assert aside["row"].to_pylist() == sorted(BAD) and aside["trip_id"].to_pylist() == [f"trip-{place:05d}" for place in BAD]
    assert aside["reasons"].to_pylist()[:2] == [["distance_km: -4 is below 0"], ['vehicle: "boat" is none of `car`, `van`']]
    assert (scored.rows, scored.accepted, scored.rejected) == (ROWS, ROWS - len(BAD), len(BAD))


def stopping(monkeypatch: pytest.MonkeyPatch, release: Release, after: int) -> Callable[[], int]:
    """Let the model fail after so many calls; returns a function that counts the rows that it was asked about."""
    predict, sizes = release.predictor.predict, list[int]()

    def limited(rows: Any) -> Any:
        if len(sizes) == after:
            raise MemoryError("the machine is full")
        sizes.append(len(rows))
        return predict(rows)

    monkeypatch.setattr(release.predictor, "predict", limited)
    return lambda: sum(sizes)


def same(one: Path, other: Path) -> bool:
    return one.read_bytes() == other.read_bytes() and one.with_suffix(".rejected.parquet").read_bytes() == other.with_suffix(".rejected.parquet").read_bytes()


def test_rows_are_answered_as_by_the_service_and_bad_ones_lie_aside(source: Path, table: pa.Table, release: Release, tmp_path: Path) -> None:
    scored, said = run(source, tmp_path / "out" / "scores.parquet", release)
    check(scored, table, release)
    assert said == [] and sorted(path.name for path in scored.output.parent.iterdir()) == ["scores.parquet", "scores.rejected.parquet"]


def in_files(table: pa.Table, folder: Path) -> str:
    (folder / "trips" / "late").mkdir(parents=True)
    (folder / "trips" / "_SUCCESS").touch()
    pq.write_table(table.slice(0, 400), folder / "trips" / "a.parquet")
    pq.write_table(table.slice(400, 350).select(table.column_names[::-1]), folder / "trips" / "b.parquet")
    pq.write_table(table.slice(750), folder / "trips" / "late" / "c.parquet")
    return str(folder / "trips")


def in_csv(table: pa.Table, folder: Path) -> str:
    for number, start in enumerate((0, 600)):
        pyarrow.csv.write_csv(table.slice(start, 600 if number == 0 else 400), folder / f"trips-{number}.csv")
    return str(folder / "trips-*.csv")


def in_sqlite(table: pa.Table, folder: Path) -> str:
    with closing(sqlite3.connect(folder / "trips.db")) as database, database:
        database.execute(f"CREATE TABLE trips (trip_id TEXT, requested_at TIMESTAMP, zone TEXT, vehicle TEXT, {', '.join(f'{name} REAL' for name in NUMBERS)})")
        rows = table.set_column(1, "requested_at", table["requested_at"].cast(pa.timestamp("s")).cast(pa.string())).to_pylist()
        database.executemany(f"INSERT INTO trips VALUES ({', '.join('?' * 7)})", [tuple(row.values()) for row in rows[::-1]])
    return f"sqlite:///{folder}/trips.db::trips"


def in_duckdb(table: pa.Table, folder: Path) -> str:
    pq.write_table(table, folder / "all.parquet")
    with duckdb.connect(folder / "trips.duckdb") as database:
        database.execute(f"CREATE TABLE trips AS FROM read_parquet('{folder}/all.parquet') ORDER BY zone")
    return f"duckdb:///{folder}/trips.duckdb::trips"


NUMBERS = ("distance_km", "passengers", "speed_kmh")


@pytest.mark.parametrize("store", [in_files, in_csv, in_sqlite, in_duckdb])
def test_wherever_the_rows_lie_the_answers_are_the_same(
    store: Callable[[pa.Table, Path], str], source: Path, table: pa.Table, release: Release, tmp_path: Path
) -> None:
    (tmp_path / "store").mkdir()
    scored, _ = run(store(table, tmp_path / "store"), tmp_path / "scores.parquet", release)
    check(scored, table, release)
    straight, _ = run(source, tmp_path / "straight.parquet", release)
    assert pq.read_table(scored.output).equals(pq.read_table(straight.output))


def test_rows_of_postgresql(table: pa.Table, release: Release, tmp_path: Path) -> None:
    import psycopg

    with running_server() as server:
        url = server.url().replace("+psycopg", "")
        with psycopg.connect(url) as connection:
            columns = "trip_id text, requested_at timestamp, zone text, vehicle text, distance_km float, passengers float, speed_kmh float"
            connection.execute(f"CREATE TABLE trips ({columns})")
            with connection.cursor() as cursor:
                cursor.executemany("INSERT INTO trips VALUES (%s, %s, %s, %s, %s, %s, %s)", [tuple(row.values()) for row in table.to_pylist()])
        scored, _ = run(f"{url}::trips", tmp_path / "scores.parquet", release)
    check(scored, table, release)


CHILD = """
import sys, time
from labline.serving.release import open_release
from labline.serving.score import score
from labline.serving.settings import Settings

release = open_release(sys.argv[1], settings=Settings(most_rows=64))
predict = release.predictor.predict
release.predictor.predict = lambda rows: (time.sleep(0.05), predict(rows))[1]
score(sys.argv[2], sys.argv[3], release)
"""


def test_a_killed_run_goes_on_without_a_double_or_missing_row(
    monkeypatch: pytest.MonkeyPatch, source: Path, table: pa.Table, bundles: dict[int, Path], release: Release, tmp_path: Path
) -> None:
    output, parts = tmp_path / "scores.parquet", tmp_path / "scores.parts" / "parts.jsonl"
    child = subprocess.Popen([sys.executable, "-c", CHILD, str(bundles[1]), str(source), str(output)])
    try:
        until = time.monotonic() + 240
        while not (parts.is_file() and parts.read_bytes().count(b"\n") > 4) and child.poll() is None and time.monotonic() < until:
            time.sleep(0.01)
    finally:
        child.kill()
    assert child.wait() == -signal.SIGKILL and not output.exists()
    done = parts.read_bytes().count(b"\n") - 1
    assert 4 <= done < ROWS // PART
    asked = stopping(monkeypatch, release, after=-1)
    scored, said = run(source, output, release)
    assert said == [f"Going on after {done * PART} rows."] and scored.resumed == done * PART
    assert asked() <= ROWS - done * PART
    check(scored, table, release)
    run(source, tmp_path / "straight.parquet", release)
    assert same(output, tmp_path / "straight.parquet")


@pytest.mark.parametrize("store", [in_files, in_csv, in_sqlite])
def test_a_run_that_fails_again_and_again_comes_to_the_same_end(
    store: Callable[[pa.Table, Path], str], monkeypatch: pytest.MonkeyPatch, table: pa.Table, release: Release, tmp_path: Path
) -> None:
    (tmp_path / "store").mkdir()
    address = store(table, tmp_path / "store")
    for after in (1, 0, 4, 5):
        with monkeypatch.context() as patch:
            stopping(patch, release, after)
            with pytest.raises(MemoryError):
                score(address, tmp_path / "scores.parquet", release)
        assert not (tmp_path / "scores.parquet").exists()
    scored, said = run(address, tmp_path / "scores.parquet", release)
    assert said == [f"Going on after {10 * PART} rows."]
    check(scored, table, release)
    run(address, tmp_path / "straight.parquet", release)
    assert same(scored.output, tmp_path / "straight.parquet")


def test_a_part_that_cannot_be_written_leaves_no_gap(monkeypatch: pytest.MonkeyPatch, source: Path, table: pa.Table, release: Release, tmp_path: Path) -> None:
    add, calls = Parts.add, list[int]()

    def failing(parts: Parts, start: int, *others: Any) -> Any:
        calls.append(start)
        if len(calls) == 4:
            raise OSError(28, "No space left on device")
        return add(parts, start, *others)

    monkeypatch.setattr(Parts, "add", failing)
    with pytest.raises(DataError, match="the disk is full"):
        score(source, tmp_path / "scores.parquet", release)
    assert len(calls) > 4
    scored, said = run(source, tmp_path / "scores.parquet", release)
    assert said == [f"Going on after {3 * PART} rows."]
    check(scored, table, release)


@pytest.fixture
def begun(monkeypatch: pytest.MonkeyPatch, release: Release, tmp_path: Path) -> Iterator[Callable[[str | Path], Path]]:
    """A function that leaves a run of five parts undone and gives its output."""

    def begin(address: str | Path) -> Path:
        with monkeypatch.context() as patch:
            stopping(patch, release, 5)
            with pytest.raises(MemoryError):
                score(address, tmp_path / "begun.parquet", release)
        return tmp_path / "begun.parquet"

    yield begin


def test_a_changed_file_starts_anew(begun: Callable[[str | Path], Path], source: Path, table: pa.Table, release: Release) -> None:
    output = begun(source)
    pq.write_table(table.slice(0, 900), source)
    scored, said = run(source, output, release)
    assert said == ["Starting anew: the input has changed."] and (scored.rows, scored.resumed) == (900, 0)


def test_a_changed_release_starts_anew(begun: Callable[[str | Path], Path], source: Path, table: pa.Table, releases: dict[int, Release]) -> None:
    scored, said = run(source, begun(source), releases[2])
    assert said == ["Starting anew: the release has changed."] and scored.resumed == 0
    check(scored, table, releases[2])


def test_other_columns_in_the_output_start_anew(begun: Callable[[str | Path], Path], source: Path, table: pa.Table, release: Release) -> None:
    scored, said = run(source, begun(source), release, inputs=True)
    assert said == ["Starting anew: the columns of the output have changed."]
    check(scored, table, release)
    answers = pq.read_table(scored.output)
    assert answers.column_names == ["trip_id", "minutes", "minutes_low", "minutes_high", *release.bundle.contract.row]
    assert answers["requested_at"][0].as_py() == "2025-03-01T00:00:00" and answers["distance_km"].null_count > 0


ONE = "WHERE trip_id = 'trip-00007'"


@pytest.mark.parametrize("change", [f"UPDATE trips SET distance_km = 1.5 {ONE}", f"DELETE FROM trips {ONE}", "DELETE FROM trips"])
def test_a_changed_table_starts_anew(change: str, begun: Callable[[str | Path], Path], table: pa.Table, release: Release, tmp_path: Path) -> None:
    address = in_sqlite(table, tmp_path)
    output = begun(address)
    with closing(sqlite3.connect(tmp_path / "trips.db")) as database, database:
        database.execute(change)
    scored, said = run(address, output, release)
    assert said == [f"Going on after {5 * PART} rows.", "Starting anew: the input has changed."] and scored.resumed == 0
    straight, _ = run(address, tmp_path / "straight.parquet", release)
    assert scored.output.read_bytes() == straight.output.read_bytes()


def test_rows_that_come_to_a_table_behind_the_finished_parts_are_answered(
    begun: Callable[[str | Path], Path], table: pa.Table, release: Release, tmp_path: Path
) -> None:
    address = in_sqlite(table, tmp_path)
    output = begun(address)
    with closing(sqlite3.connect(tmp_path / "trips.db")) as database, database:
        database.execute("INSERT INTO trips SELECT 'trip-99999', requested_at, zone, vehicle, 2, 1, 30 FROM trips WHERE trip_id = 'trip-00000'")
    scored, _ = run(address, output, release)
    assert (scored.rows, scored.resumed) == (ROWS + 1, 5 * PART)
    assert pq.read_table(output)["trip_id"].to_pylist()[-1] == "trip-99999"


def test_texts_that_are_no_numbers_are_refused_row_by_row(release: Release, tmp_path: Path) -> None:
    lines = ["requested_at,zone,vehicle,distance_km,passengers", "2025-03-01T08:00,north,car, 4 ,2", "2025-03-01T08:00,north,car,far,"]
    lines += ["soon,north,car,1,1", ",north,car,1,1"]
    (tmp_path / "trips.csv").write_text("\n".join([*lines, '"2025-03-01 08:00:00","a ""quoted""\nzone",van,1e1,']) + "\n")
    scored, said = run(tmp_path / "trips.csv", tmp_path / "scores.parquet", release)
    assert said == ["Taken as missing in every row, because the input does not have them: `speed_kmh`."]
    assert pq.read_table(scored.output).select(["row", "minutes"]).to_pylist() == [{"row": 0, "minutes": 11.0}, {"row": 4, "minutes": 23.0}]
    reasons = {row["row"]: row["reasons"] for row in pq.read_table(scored.aside).to_pylist()}
    assert reasons[1] == ['distance_km: "far" is not a number'] and reasons[3] == ["requested_at: a value is required"]
    assert reasons[2][0].startswith('requested_at: "soon"')


def test_a_row_for_which_the_model_gives_no_number_lies_aside(monkeypatch: pytest.MonkeyPatch, source: Path, release: Release, tmp_path: Path) -> None:
    predict = release.predictor.predict

    def failing(rows: Any) -> Any:
        answers = predict(rows)
        return answers | {"minutes": np.where(rows.columns["zone"] == "west", np.float32("inf"), answers["minutes"])}

    monkeypatch.setattr(release.predictor, "predict", failing)
    scored, _ = run(source, tmp_path / "scores.parquet", release, inputs=True)
    aside = pq.read_table(scored.aside)
    lost = aside.filter(pa.compute.equal(aside["zone"], "west"))
    assert lost.num_rows > 50 and lost["reasons"].to_pylist() == [["the model gives no number"]] * lost.num_rows
    assert aside["row"].to_pylist() == sorted(aside["row"].to_pylist()) and set(BAD) <= set(aside["row"].to_pylist())
    assert scored.accepted + scored.rejected == ROWS and "west" not in pq.read_table(scored.output)["zone"].to_pylist()


def test_no_rows_make_an_output_without_rows(source: Path, table: pa.Table, release: Release, tmp_path: Path) -> None:
    pq.write_table(table.slice(0, 0), source)
    scored, _ = run(source, tmp_path / "scores.parquet", release)
    assert (scored.rows, scored.aside) == (0, None) and pq.read_table(scored.output).column_names[:2] == ["trip_id", "minutes"]
    pq.write_table(table.slice(3, 1), source)
    scored, _ = run(source, tmp_path / "scores.parquet", release)
    assert (scored.accepted, scored.rejected) == (0, 1) and pq.read_table(scored.output).num_rows == 0


def test_what_cannot_be_scored_is_said_before_anything_is_written(source: Path, table: pa.Table, release: Release, tmp_path: Path) -> None:
    pq.write_table(table.rename_columns({"zone": "place"}), tmp_path / "other.parquet")
    cases = [
        (tmp_path / "other.parquet", tmp_path / "scores.parquet", "required columns are missing: `zone`. Name them so; there are"),
        (source, source, "the output lies among the input"),
        (tmp_path, tmp_path / "deep" / "scores.parquet", "the output lies among the input"),
        (source, tmp_path / "scores.csv", "the output is a parquet file"),
        (tmp_path / "absent.parquet", tmp_path / "scores.parquet", "no file is there"),
    ]
    before = sorted(tmp_path.iterdir())
    for address, output, message in cases:
        with pytest.raises(DataError, match=message):
            score(address, output, release)
    assert sorted(tmp_path.iterdir()) == before
