"""The request contract: what is refused and in which words, and that nothing but `Problem` or `Checked` comes out of any bytes."""

import json
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from labline.data.contract import Column, Contract, Table
from labline.serving.problems import Problem
from labline.serving.requests import Checked, Checker

COLUMNS = {
    "trip_id": Column(type="text", role="id"),
    "requested_at": Column(type="timestamp", role="time"),
    "zone": Column(type="category"),
    "vehicle": Column(type="category", categories=["car", "van"]),
    "distance_km": Column(type="number", unit="km", min=0, max=150, nullable=True),
    "passengers": Column(type="integer", min=1, max=8, nullable=True),
    "night": Column(type="boolean", nullable=True),
    "remark": Column(type="text", nullable=True),
    "minutes": Column(type="number", role="target", unit="min"),
}
LOOKUPS = {"speed_kmh": Column(type="number", unit="km/h"), "road": Column(type="category")}
CONTRACT = Contract(
    name="trips", model="eta", main="trips", tables={"trips": Table(path="trips.parquet", columns=COLUMNS)}, lookups=LOOKUPS, timezone="Europe/Vienna"
)
REFERENCE = {
    "columns": {
        "distance_km": {"min": 0.1, "max": 60.0},
        "zone": {"categories": {"A": 0.6, "B": 0.4}, "others": 0.0},
        "road": {"categories": {"N1": 0.9}, "others": 0.1},
    }
}
GOOD = {"requested_at": "2025-03-03T08:30:00", "zone": "A", "vehicle": "car"}
CHECKER = Checker(CONTRACT, REFERENCE, most_rows=50)


def body(*rows: Any) -> bytes:
    return json.dumps({"rows": list(rows)}).encode()


def errors(checked: Checked) -> list[str]:
    return [f"{error.path}: {error.message}" for error in checked.errors]


def raw(**fields: str) -> bytes:
    """A good row, with some fields as they stand in JSON."""
    return json.dumps(GOOD).encode()[:-1] + b"".join(f', "{name}": {text}'.encode() for name, text in fields.items()) + b"}"


@pytest.mark.parametrize(
    ("field", "text", "expected"),
    [
        ("distance_km", "-4", "-4 is below 0"),
        ("distance_km", "150.5", "150.5 is above 150"),
        ("distance_km", '"4"', '"4" is not a number'),
        ("distance_km", '""', '"" is not a number'),
        ("distance_km", "true", "true is not a number"),
        ("distance_km", "[4]", "a list is not a number"),
        ("distance_km", '{"a": 4}', "an object is not a number"),
        ("distance_km", "NaN", "NaN is not a number"),
        ("distance_km", "-Infinity", "-Infinity is not a number"),
        ("distance_km", "1e999", "inf is too large; the largest number is 3.4e+38"),
        ("distance_km", "9" * 5000, "inf is too large; the largest number is 3.4e+38"),
        ("speed_kmh", "-1e39", "-1e+39 is too large; the largest number is 3.4e+38"),
        ("passengers", "2.5", "2.5 is not a whole number"),
        ("passengers", "9", "9 is above 8"),
        ("night", "2", "2 is above 1"),
        ("night", "0.5", "0.5 is not true or false"),
        ("night", '"yes"', '"yes" is not true or false'),
        ("remark", "5", "5 is not a text"),
        ("remark", '"' + "x" * 201 + '"', "a text of 201 characters is longer than 200"),
        ("remark", r'"a\u0000b"', "the text holds a null character"),
        ("remark", r'"\ud800"', "the text is not valid Unicode"),
        ("trip_id", "1.5", "1.5 is not a text"),
        ("trip_id", "9" * 30, f"{'9' * 30} is not a text"),
    ],
)
def test_a_bad_value_is_refused_in_the_words_of_the_contract(field: str, text: str, expected: str) -> None:
    assert errors(CHECKER.friendly(raw(**{field: text}))) == [f"{field}: {expected}"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("2025-02-30T08:00:00", "is a date or time that does not exist"),
        ("2025-03-03T24:00:00", "is a date or time that does not exist"),
        ("2025-03-03T08:30:00+25:00", "is a date or time that does not exist"),
        ("03.03.2025 08:30", "is no date and time such as 2025-03-03T08:30:00"),
        ("2025-03-03", "is no date and time such as 2025-03-03T08:30:00"),
        ("0001-01-01T00:00:00", "lies outside the years 1900 to 2199"),
    ],
)
def test_impossible_moments_are_refused(text: str, expected: str) -> None:
    checked = CHECKER.friendly(body({**GOOD, "requested_at": text}, GOOD))
    assert errors(checked) == [f'rows[0].requested_at: "{text}" {expected}'] and checked.places == [1]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("2025-03-03T08:30:00", "2025-03-03T08:30:00"),
        ("2025-03-03 08:30", "2025-03-03T08:30:00"),
        ("2025-03-03T07:30:00Z", "2025-03-03T08:30:00"),
        ("2025-07-03T08:30:59.999-02:00", "2025-07-03T12:30:59"),
    ],
)
def test_moments_become_local_wall_time(text: str, expected: str) -> None:
    for rows in (1, 40):
        checked = CHECKER.friendly(body(*[{**GOOD, "requested_at": text}] * rows))
        assert checked.rows.columns["requested_at"].tolist() == [expected] * rows
    arrays = {name: np.array([value]) for name, value in {**GOOD, "requested_at": text}.items()}
    assert CHECKER.columns(arrays).rows.columns["requested_at"].tolist() == [expected]


def test_a_bad_row_gets_all_its_errors_and_its_neighbours_stay_good() -> None:
    checked = CHECKER.friendly(body(GOOD, {"zone": None, "vehicle": "bus", "distance": 4, "passengers": 0}, {**GOOD, "trip_id": 17}, 5, {**GOOD, "zone": ""}))
    assert errors(checked) == [
        "rows[1].requested_at: a value is required",
        "rows[1].zone: a value is required",
        'rows[1].vehicle: "bus" is none of `car`, `van`',
        "rows[1].passengers: 0 is below 1",
        "rows[1].distance: unknown field. Did you mean `distance_km`? There are `requested_at`, `zone`, `vehicle`, `distance_km`, `passengers`, "
        "`night`, `remark`, `speed_kmh`, `road`, `trip_id`",
        "rows[3]: 5 is not an object with named fields",
        "rows[4].zone: a value is required",
    ]
    assert (checked.places, checked.keys, checked.total, checked.single) == ([0, 2], [None, "17"], 5, False)


TWICE = ['"distance_km": 4, "distance_km": 4', '"distance_km" : 4, "distance_km" : 5', '"distance_km": 4, "remark": "\\u003a", "distance_km": 5']


@pytest.mark.parametrize("twice", TWICE)
def test_a_field_that_stands_twice_is_refused(twice: str) -> None:
    row = json.dumps(GOOD)[:-1] + ", " + twice + "}"
    assert errors(CHECKER.friendly(row.encode())) == ["distance_km: the field is given 2 times"]
    checked = CHECKER.friendly(f'{{"rows": [{json.dumps(GOOD)}, {row}]}}'.encode())
    assert errors(checked) == ["rows[1].distance_km: the field is given 2 times"] and checked.places == [0]


def test_texts_may_hold_whatever_json_can_say() -> None:
    remark = 'a: "b", {c}: [é] 日本 🚕 \\ \t:'
    row = {**GOOD, "remark": remark}
    for dumped in (json.dumps(row), json.dumps(row, ensure_ascii=False), json.dumps(row, indent=3)):
        assert CHECKER.friendly(dumped.encode()).rows.records()[0]["remark"] == remark
    assert CHECKER.friendly(raw(remark=r'"a\u003ab"')).rows.records()[0]["remark"] == "a:b"


def test_missing_values_are_nan_and_empty_texts() -> None:
    checked = CHECKER.friendly(raw(distance_km="null", remark="null", road="null", night="false"))
    record = checked.rows.records()[0]
    assert record == {**GOOD, "distance_km": None, "passengers": None, "night": 0.0, "remark": None, "speed_kmh": None, "road": None}
    assert list(checked.rows.columns) == list(CONTRACT.row) and checked.single and checked.keys == [None]


def test_unusual_values_are_warned_of() -> None:
    checked = CHECKER.friendly(body({**GOOD, "vehicle": "bus"}, {**GOOD, "distance_km": 97, "zone": "Z9", "road": "N7"}, GOOD))
    assert checked.warnings == [["rows[1].distance_km: 97 km is beyond what training saw (0.1 to 60)", 'rows[1].zone: "Z9" was never seen in training'], []]
    assert CHECKER.friendly(raw(distance_km="97")).warnings == [["distance_km: 97 km is beyond what training saw (0.1 to 60)"]]
    assert Checker(CONTRACT).friendly(raw(distance_km="97")).warnings == [[]]


@pytest.mark.parametrize(
    ("sent", "status", "expected"),
    [
        (b"", 400, "not JSON"),
        (b"{", 400, "not JSON"),
        (b"[1, 2]", 400, "a list, not an object"),
        (b'"x"', 400, '"x", not an object'),
        ('{"zone": "é"}'.encode("latin-1"), 400, "not in UTF-8"),
        ('{"zone": "A"}'.encode("utf-16"), 400, "not in UTF-8"),
        (b"\xef\xbb\xbf{}", 400, "not JSON"),
        (b'{"zone": "a\x00b"}', 400, "not JSON"),
        (b'{"zone": ' + b"[" * 100_000, 400, "nested too deeply"),
        (b'{"rows": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", 400, "nested too deeply"),
        (b'{"rows": 5}', 400, "rows: 5 is not a list of rows"),
        (b'{"rows": [], "rows": []}', 400, "`rows` and nothing else"),
        (b'{"rows": [{}], "zone": "A"}', 400, "`rows` and nothing else"),
        (b'{"rows": []}', 400, "there are no rows"),
        (body(*[GOOD] * 51), 413, "51 rows are more than the 50"),
        (body(*[{}] * 1000), 413, "more than 50 rows can hold"),
        (b'{"rows": [' + b"1," * 100_000 + b"1]}", 413, "more than 50 rows can hold"),
    ],
)
def test_a_body_that_is_wrong_as_a_whole_is_a_problem(sent: bytes, status: int, expected: str) -> None:
    with pytest.raises(Problem) as caught:
        CHECKER.friendly(sent)
    assert caught.value.status == status and expected in str(caught.value)


def test_braces_in_texts_are_not_counted_as_rows() -> None:
    rows = [{**GOOD, "remark": "{,}" * 60}] * 50
    assert CHECKER.friendly(body(*rows)).total == 50


def test_many_unknown_fields_cost_little_and_are_counted() -> None:
    checked = CHECKER.friendly(json.dumps({**GOOD, **{f"field {number}": 1 for number in range(300)}}).encode())
    assert len(checked.errors) == 6 and checked.errors[-1].message == "295 more unknown fields"
    long = CHECKER.friendly(json.dumps({**GOOD, "x" * 10_000: 1}).encode())
    assert len(long.errors[0].path) < 60 and len(long.errors[0].message) < 300


def rows_as(form: str, rows: list[dict[str, Any]]) -> bytes:
    """The same rows in one of the forms of TensorFlow Serving's API."""
    columns = {name: [row.get(name) for row in rows] for name in rows[0]}
    contents: dict[str, Any] = {
        "instances": {"instances": rows},
        "wrapped instances": {"instances": [{name: [value] for name, value in row.items()} for row in rows]},
        "inputs": {"inputs": columns},
        "wrapped inputs": {"inputs": {name: [[value] for value in values] for name, values in columns.items()}},
    }
    return json.dumps({"signature_name": "serving_default", **contents[form]}).encode()


@pytest.mark.parametrize("form", ["instances", "wrapped instances", "inputs", "wrapped inputs"])
def test_the_formats_of_tensorflow_serving_say_the_same(form: str) -> None:
    rows = [{**GOOD, "distance_km": 4.5, "trip_id": "t1"}, {**GOOD, "distance_km": 97, "trip_id": "t2", "vehicle": "van"}]
    friendly = CHECKER.friendly(body(*rows))
    checked, format = CHECKER.instances(rows_as(form, rows))
    assert format == ("column" if "inputs" in form else "row")
    assert checked.rows.records() == friendly.rows.records() and checked.keys == friendly.keys and len(checked.warnings[1]) == 1
    bad = [rows[0], {**rows[1], "distance_km": -4, "vehicle": "bus"}]
    checked, _ = CHECKER.instances(rows_as(form, bad))
    places = {"inputs.vehicle[1]", "inputs.distance_km[1]"} if "inputs" in form else {"instances[1].vehicle", "instances[1].distance_km"}
    assert {error.path for error in checked.errors} == places and checked.places == [0]


@pytest.mark.parametrize(
    ("sent", "expected"),
    [
        (b"{}", "either `instances` or `inputs`"),
        (b'{"instances": [], "inputs": {}}', "either `instances` or `inputs`"),
        (b'{"instances": [{}], "signature_name": "other"}', "signature_name: there is only the signature `serving_default`"),
        (b'{"instances": [{}], "instances": [{}]}', "given twice"),
        (b'{"instances": 3}', "instances: 3 is not a list of rows"),
        (b'{"inputs": [1]}', "inputs: a list is not an object"),
        (b'{"inputs": {"zone": "A"}}', 'inputs.zone: "A" is not a list'),
        (b'{"inputs": {"zone": ["A"], "zone": ["A"]}}', "inputs.zone: the field is given twice"),
        (b'{"inputs": {"zone": ["A"], "requested_at": ["2025-03-03T08:30"]}}', "vehicle: a value is required"),
        (b'{"inputs": {"zone": ["A", "B"], "requested_at": ["2025-03-03T08:30"], "vehicle": ["car"]}}', "different numbers of rows"),
        (b'{"inputs": {"zone": [], "requested_at": [], "vehicle": []}}', "there are no rows"),
    ],
)
def test_bodies_for_tensorflow_serving_that_are_wrong_as_a_whole(sent: bytes, expected: str) -> None:
    with pytest.raises(Problem) as caught:
        CHECKER.instances(sent)
    assert caught.value.status == 400 and expected in str(caught.value)


def test_columns_are_checked_as_rows_are() -> None:
    columns = {
        "requested_at": np.array(["2025-03-03T08:30", "2025-03-03T08:31", "NaT", "2025-03-03T08:32"], dtype="datetime64[us]"),
        "zone": np.array([b"A", "é".encode(), b"\xff", b"Z9"], dtype=object)[:, None],
        "vehicle": np.array(["car", "van", "bus", "car"]),
        "distance_km": np.array([4.0, np.nan, np.inf, 97.0], dtype=np.float32),
        "passengers": np.array([1, 8, 9, 2]),
        "night": np.array([True, False, True, True]),
        "trip_id": np.array([1, 2, 3, 4]),
    }
    checked = CHECKER.columns(columns, prefix="batch")
    assert {error.path for error in checked.errors} == {f"batch[2].{name}" for name in ("requested_at", "zone", "vehicle", "distance_km", "passengers")}
    assert (checked.places, checked.keys, checked.total) == ([0, 1, 3], ["1", "2", "4"], 4)
    assert checked.rows.columns["zone"].tolist() == ["A", "é", "Z9"] and math.isnan(checked.rows.columns["distance_km"][1])
    assert checked.warnings[2] == ["batch[3].distance_km: 97 km is beyond what training saw (0.1 to 60)", 'batch[3].zone: "Z9" was never seen in training']


@pytest.mark.parametrize(
    ("columns", "expected"),
    [
        ({}, "a value is required"),
        ({**{name: [value] for name, value in GOOD.items()}, "mood": [1]}, "mood: unknown field"),
        ({name: [[value, value]] for name, value in GOOD.items()}, "the shape is (1, 2)"),
        ({name: [value] * 51 for name, value in GOOD.items()}, "51 rows are more than the 50"),
        ({name: np.array([], dtype=object) for name in GOOD}, "there are no rows"),
    ],
)
def test_columns_that_are_wrong_as_a_whole(columns: dict[str, Any], expected: str) -> None:
    with pytest.raises(Problem) as caught:
        CHECKER.columns(columns)
    assert expected in str(caught.value)


WORDS = st.sampled_from(["A", "car", "2025-03-03T08:30", "2025-03-03T08:30:00Z"])
SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | WORDS
VALUES = st.recursive(SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3), max_leaves=6)
ROWS = st.dictionaries(st.sampled_from([*CONTRACT.row, "trip_id", "rows", "nonsense"]) | st.text(max_size=5), VALUES, max_size=12)
GOOD_ROWS = ROWS.map(lambda row: {**{name: value for name, value in row.items() if name in CONTRACT.row}, **GOOD})
CONTENTS = st.lists(ROWS | GOOD_ROWS | VALUES, max_size=4)
BODIES = (
    st.one_of(ROWS, GOOD_ROWS, VALUES)
    | st.builds(lambda rows: {"rows": rows}, CONTENTS)
    | st.builds(lambda rows: {"instances": rows}, CONTENTS)
    | st.builds(lambda columns: {"inputs": columns}, st.dictionaries(st.sampled_from([*CONTRACT.row]), st.lists(SCALARS, max_size=3), max_size=9))
)


def holds(check: Callable[[bytes], Any], sent: bytes) -> None:
    """Nothing but a Problem with a client's status, or rows of which each is good or has an error."""
    try:
        found = check(sent)
    except Problem as problem:
        assert 400 <= problem.status < 500 and problem.body("r") and problem.plain_body()
        return
    checked: Checked = found[0] if isinstance(found, tuple) else found
    bad = {error.place for error in checked.errors}
    assert sorted([*checked.places, *bad]) == list(range(checked.total)) and not bad & set(checked.places)
    assert len(checked.rows) == len(checked.keys) == len(checked.warnings) == len(checked.places)
    numbers, texts = checked.rows.blocks
    assert not np.isinf(numbers.astype(np.float32)).any() and all(isinstance(text, str) for text in texts.ravel())
    json.dumps([checked.rows.records(), checked.warnings], allow_nan=False).encode()
    Problem(422, "refused", details=[{"path": error.path, "message": error.message} for error in checked.errors]).body("r")


@settings(deadline=None, max_examples=80)
@given(BODIES, st.booleans())
def test_any_json_is_checked_or_is_a_problem(value: Any, escape: bool) -> None:
    sent = json.dumps(value, ensure_ascii=escape).encode(errors="surrogatepass")
    holds(CHECKER.friendly, sent)
    holds(CHECKER.instances, sent)


@settings(deadline=None, max_examples=50)
@given(st.binary(max_size=60), st.integers(0, 80), st.integers(0, 40))
def test_any_bytes_are_checked_or_are_a_problem(noise: bytes, start: int, length: int) -> None:
    for sent in (body(GOOD), json.dumps(GOOD).encode(), rows_as("wrapped instances", [GOOD]), rows_as("inputs", [GOOD])):
        damaged = sent[:start] + noise + sent[start + length :]
        for check in (CHECKER.friendly, CHECKER.instances):
            holds(check, noise)
            holds(check, damaged)


@settings(deadline=None, max_examples=50)
@given(GOOD_ROWS)
@example({**GOOD, "distance_km": math.inf})
@example({**GOOD, "distance_km": -math.inf, "zone": math.inf})
def test_all_ways_agree(row: dict[str, Any]) -> None:
    """The fast way, the slow way beside a bad row, and the way through arrays judge a row alike."""
    alone = CHECKER.friendly(json.dumps(row).encode(errors="surrogatepass"))
    beside = CHECKER.friendly(body(row, {}))
    assert [error.message for error in alone.errors] == [error.message for error in beside.errors if error.place == 0]
    assert alone.rows.records() == beside.rows.records()
    arrays = {name: np.fromiter([value], dtype=object, count=1) for name, value in row.items()}
    if not any(isinstance(value, float) and math.isnan(value) for value in row.values()):  # NaN in an array is missing
        checked = CHECKER.columns(arrays)
        assert [error.message for error in checked.errors] == [error.message for error in alone.errors]
        assert checked.rows.records() == alone.rows.records()
