"""Raw rows into matrices: any text is survived, training and serving encode alike, memory stays flat."""

import os
import re
import subprocess
import sys
from datetime import datetime
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st
from training_rows import contract, rides

from labline.data.contract import Column
from labline.errors import DataError
from labline.models.preprocessing import MISSING, UNSEEN, Vocabularies, calendar, fit_preprocessor, model_inputs
from labline.models.stream import encode_rows, mixtures
from labline.models.task import Task

TIMES_AND_SHORTER = r"[0-9]{4}-[0-9]{2}-[0-9]{2}[T ][0-9]{2}:[0-9]{2}(:[0-9]{2}(\.[0-9]*)?)?"
ROOT = Path(__file__).parents[1]
PEAK = """
import resource, sys
from pathlib import Path
from training_rows import contract
from labline.models.preprocessing import fit_preprocessor
from labline.models.stream import encode_rows, mixtures
from labline.models.task import Task
path, folder = Path(sys.argv[1]), Path(sys.argv[2])
preprocessor = fit_preprocessor(path, contract().row, sample_rows=20_000)
encoded = encode_rows(path, preprocessor, Task("minutes"), folder)
assert sum(len(scores) for *_, scores in mixtures(encoded, seed=0, epoch=0)) == encoded.rows
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024)
"""


TIMES = st.from_regex(r"[0-9]{4}-[0-9]{2}-[0-9]{2}[T ][0-9]{2}:[0-9]{2}:[0-9]{2}", fullmatch=True)


@settings(max_examples=100, deadline=None)
@given(st.lists(TIMES | st.text(max_size=30), min_size=1, max_size=20))
def test_any_text_is_a_time_or_missing(texts: list[str]) -> None:
    parts = calendar(tf.constant([text.encode("utf-8", "surrogatepass") for text in texts])).numpy()
    for text, (hour, weekday, day) in zip(texts, parts, strict=True):
        try:
            moment = datetime.fromisoformat(text) if re.fullmatch(TIMES_AND_SHORTER, text) else None
        except ValueError:
            moment = None
        assert np.isnan([hour, weekday, day]).all() == (moment is None), text
        if moment is not None:
            assert (weekday, day) == (moment.weekday(), moment.timetuple().tm_yday)


@settings(max_examples=50, deadline=None)
@given(st.datetimes(min_value=datetime(1, 1, 1), max_value=datetime(9999, 12, 31)))
def test_every_moment_has_the_calendar_of_python(moment: datetime) -> None:
    (hour, weekday, day), = calendar(tf.constant([moment.replace(microsecond=0).isoformat()])).numpy()
    assert (weekday, day) == (moment.weekday(), moment.timetuple().tm_yday)
    assert hour == pytest.approx(moment.hour + moment.minute / 60 + moment.second / 3600, abs=1e-4)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.text(min_size=1, max_size=12), unique=True, max_size=20), st.lists(st.text(max_size=12), min_size=1, max_size=20))
def test_a_vocabulary_finds_what_it_knows(known: list[str], asked: list[str]) -> None:
    def encoded(texts: list[str]) -> list[bytes]:
        return [text.encode("utf-8", "surrogatepass") for text in texts]

    lookup = Vocabularies([encoded(known), ["same"]])  # type: ignore[list-item]
    codes = lookup(tf.constant([[text, b"same"] for text in encoded(known + asked)])).numpy()
    expected = [MISSING if not text else known.index(text) + 2 if text in known else UNSEEN for text in known + asked]
    assert codes[:, 0].tolist() == expected and (codes[:, 1] == 2).all()


def test_equal_texts_of_two_columns_have_codes_of_their_own() -> None:
    lookup = Vocabularies([["a", "b"], ["b"]])
    assert lookup(tf.constant([["b", "b"], ["a", "a"]])).numpy().tolist() == [[3, 2], [2, UNSEEN]]


def test_training_rows_and_requests_are_encoded_alike(tmp_path: Path) -> None:
    table = rides(500, seed=3)
    pq.write_table(table, tmp_path / "rows.parquet")
    preprocessor = fit_preprocessor(tmp_path / "rows.parquet", contract().row)
    encoded = encode_rows(tmp_path / "rows.parquet", preprocessor, Task("minutes"), tmp_path / "encoded")
    numbers, categories, _ = encoded.read()
    function = tf.function(lambda **rows: preprocessor.encode(rows)).get_concrete_function(**preprocessor.signature)
    inputs = model_inputs(table, preprocessor.strings, preprocessor.numeric)
    for place in range(0, 500, 50):
        found = function(**{name: tf.constant(values[place : place + 1]) for name, values in inputs.items()})
        assert np.array_equal(found[0], numbers[place : place + 1], equal_nan=True) and np.array_equal(found[1], categories[place : place + 1])


def test_statistics_come_from_the_rows_that_are_given_alone(tmp_path: Path) -> None:
    table = rides(2000, seed=4)
    pq.write_table(table.slice(0, 1000), tmp_path / "first.parquet")
    pq.write_table(table, tmp_path / "all.parquet")
    first, everything = (fit_preprocessor(tmp_path / f"{name}.parquet", contract().row) for name in ("first", "all"))
    assert first.quantiles[0, -1] == np.float32(max(table.slice(0, 1000)["distance_km"].to_pylist()))
    assert not np.array_equal(first.quantiles, everything.quantiles)


def test_many_categories_keep_the_most_frequent(tmp_path: Path) -> None:
    zones = [f"zone {number}" for number in range(400) for _ in range(5 + number % 7)]
    pq.write_table(pa.table({"zone": zones}), tmp_path / "zones.parquet")
    preprocessor = fit_preprocessor(tmp_path / "zones.parquet", {"zone": Column(type="category")}, maximum_categories=100)
    assert preprocessor.sizes == (102,) and all(int(zone.split()[1]) % 7 == 6 for zone in preprocessor.vocabularies["zone"][:50])


def test_an_epoch_holds_every_row_once(tmp_path: Path) -> None:
    pq.write_table(rides(1000, seed=5), tmp_path / "rows.parquet")
    preprocessor = fit_preprocessor(tmp_path / "rows.parquet", contract().row)
    encoded = encode_rows(tmp_path / "rows.parquet", preprocessor, Task("minutes"), tmp_path / "encoded")
    mixed = np.concatenate([scores for *_, scores in mixtures(encoded, seed=1, epoch=2, block=64, mixed=3)])
    assert np.array_equal(np.sort(mixed), np.sort(encoded.read()[2]))


def test_memory_does_not_grow_with_the_rows(tmp_path: Path) -> None:
    """Eight times the rows may cost a little for the longer index of the file, but not eight times the memory of the rows."""
    peaks = []
    for rows in (100_000, 800_000):
        part = rides(100_000, seed=6)
        with pq.ParquetWriter(tmp_path / f"{rows}.parquet", part.schema) as writer:
            for _ in range(rows // 100_000):
                writer.write_table(part)
        environment = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests'}"}
        command = [sys.executable, "-c", PEAK, str(tmp_path / f"{rows}.parquet"), str(tmp_path / f"encoded-{rows}")]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)
        assert done.returncode == 0, done.stderr[-3000:]
        peaks.append(int(done.stdout))
    assert peaks[1] - peaks[0] < 60, f"peak memory in MB: {peaks}"


def test_a_truncated_file_is_an_error_with_its_name(tmp_path: Path) -> None:
    pq.write_table(rides(100, seed=7), tmp_path / "rows.parquet")
    content = (tmp_path / "rows.parquet").read_bytes()
    (tmp_path / "rows.parquet").write_bytes(content[: len(content) // 2])
    with pytest.raises(DataError, match=r"rows\.parquet: not readable as parquet"):
        fit_preprocessor(tmp_path / "rows.parquet", contract().row)


def test_a_number_that_is_text_is_an_error_with_its_column() -> None:
    with pytest.raises(DataError, match="distance_km: .*cannot be read as double"):
        model_inputs(pa.table({"distance_km": ["three"]}), [], ["distance_km"])
