"""Actuals that come late, early, twice, corrected or for nobody are kept, counted and joined."""

import threading
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
import sqlalchemy as sa
from postgresql import Server, running_server

from labline.data.contract import Contract
from labline.serving.actuals import PAGE, PART, Actuals, Report
from labline.serving.log import Entry, LogError, PredictionLog, logged, new_ids

NOW = 1_750_000_000.0
TEXT = """
name: rides
model: eta
main: legs
timezone: America/Chicago
tables:
  legs:
    path: legs.parquet
    columns:
      leg: {type: text, role: id}
      distance_km: {type: number, unit: km}
      minutes: {type: number, role: target, unit: min, min: 0.5, max: 180}
"""


def contract(change: tuple[str, str] = ("", "")) -> Contract:
    return msgspec.yaml.decode(TEXT.replace(*change) if change[0] else TEXT, type=Contract)


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with running_server() as started:
        yield started


@pytest.fixture(params=["sqlite", "postgresql"])
def log(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[PredictionLog]:
    """An empty log in each of the two databases."""
    url = f"sqlite:///{tmp_path}/log.db"
    if request.param == "postgresql":
        server = request.getfixturevalue("server")
        url = server.url()
        engine = sa.create_engine(url)
        with engine.begin() as connection:
            connection.exec_driver_sql("DROP SCHEMA public CASCADE; CREATE SCHEMA public")
        engine.dispose()
    opened = PredictionLog(url, salt=b"a secret")
    yield opened
    opened.close()


def predict(log: PredictionLog, *keys: str | None, minutes: float = 10.0, model: str = "eta", role: str = "live", at: float = NOW - 600) -> list[str]:
    """Log one prediction for each key; their ids."""
    ids = new_ids(len(keys))
    answer = msgspec.json.encode({"minutes": minutes}).decode()
    log.write([Entry(id, "request", at + place, model, 1, "5f1c", role, key, "{}", answer) for place, (id, key) in enumerate(zip(ids, keys, strict=True))])
    return ids


def counts(report: Report) -> tuple[int, int, int, int]:
    return report.new, report.corrected, report.repeated, report.unmatched


def joined(actuals: Actuals) -> list[tuple]:
    return [(row["key"], row["actual"], row["revision"], row["error"]) for row in actuals.outcomes()]


def history(log: PredictionLog) -> list[tuple]:
    with log.reading() as connection:
        return [tuple(row) for row in connection.exec_driver_sql("SELECT revision, value FROM actuals ORDER BY sequence")]


def test_by_id_and_by_key(log: PredictionLog) -> None:
    actuals = Actuals(log, contract())
    first, _, _ = predict(log, None, "b", "c")
    assert counts(actuals.add([{"prediction_id": first, "value": 12}, {"key": "b", "value": 9.5, "at": "2025-06-15T10:00:00"}], NOW)) == (2, 0, 0, 0)
    assert joined(actuals) == [(None, 12.0, 1, -2.0), ("b", 9.5, 1, 0.5), ("c", None, None, None)]
    at = [(row["actual_at"], row["received_at"]) for row in actuals.outcomes()]
    assert at == [(None, NOW), (NOW - 400, NOW), (None, None)], "ten in the morning in Chicago"


def test_before_the_prediction(log: PredictionLog) -> None:
    actuals = Actuals(log, contract())
    assert counts(actuals.add([{"key": "a", "value": 12}, {"prediction_id": "nobody", "value": 12}], NOW)) == (2, 0, 0, 2)
    assert actuals.unmatched() == 2
    predict(log, "a")
    assert joined(actuals) == [("a", 12.0, 1, -2.0)] and actuals.unmatched() == 1


def test_repeated_and_corrected(log: PredictionLog) -> None:
    actuals = Actuals(log, contract())
    predict(log, "a")
    assert counts(actuals.add([{"key": "a", "value": 12}], NOW)) == (1, 0, 0, 0)
    for _ in range(2):
        assert counts(actuals.add([{"key": "a", "value": 12}, {"key": "a", "value": 12.0}], NOW)) == (0, 0, 2, 0)
    assert counts(actuals.add([{"key": "a", "value": 13}, {"key": "a", "value": 13}, {"key": "a", "value": 12}], NOW + 1)) == (0, 2, 1, 0)
    assert counts(actuals.add([{"key": "a", "value": 12, "at": NOW}], NOW)) == (0, 1, 0, 0), "a time that was not known is new"
    assert joined(actuals) == [("a", 12.0, 4, -2.0)] and history(log) == [(1, 12.0), (2, 13.0), (3, 12.0), (4, 12.0)]


def test_several_predictions_with_one_key(log: PredictionLog) -> None:
    actuals = Actuals(log, contract())
    predict(log, "a", "a", "b")
    third = predict(log, "a", minutes=20.0, role="shadow", at=NOW)[0]
    actuals.add([{"key": "a", "value": 12}], NOW)
    assert joined(actuals) == [("a", 12.0, 1, -2.0), ("a", 12.0, 1, -2.0), ("b", None, None, None), ("a", 12.0, 1, 8.0)]
    actuals.add([{"prediction_id": third, "value": 14}], NOW)
    assert [row[1] for row in joined(actuals)] == [12.0, 12.0, None, 14.0], "what came last counts, by id or by key"


def test_models_do_not_mix(log: PredictionLog) -> None:
    eta, pay = Actuals(log, contract()), Actuals(log, contract(), model="pay")
    mine, theirs = predict(log, "a")[0], predict(log, "a", model="pay")[0]
    assert counts(eta.add([{"key": "a", "value": 12}, {"prediction_id": theirs, "value": 13}], NOW)) == (2, 0, 0, 1)
    assert joined(eta) == [("a", 12.0, 1, -2.0)] and joined(pay) == [("a", None, None, None)]
    assert counts(pay.add([{"prediction_id": theirs, "value": 15}, {"prediction_id": mine, "value": 15}], NOW)) == (2, 0, 0, 1)
    assert joined(pay) == [("a", 15.0, 1, -5.0)] and eta.unmatched() == pay.unmatched() == 1


def test_bad_items_do_not_hinder_good_ones(log: PredictionLog) -> None:
    actuals = Actuals(log, contract())
    predict(log, "a", "b")
    items = [{"key": "a", "value": 12}, {"key": "b", "value": -4}, 7, {"key": "b", "value": 4, "at": NOW + 400}, {"key": "b", "value": 4, "at": NOW + 200}]
    report = actuals.add(items, NOW)
    assert counts(report) == (2, 0, 0, 0) and [row[1] for row in joined(actuals)] == [12.0, 4.0]
    assert report.errors == [
        {"path": "actuals[1].value", "message": "-4 is below 0.5"},
        {"path": "actuals[2]", "message": "an object is needed"},
        {"path": "actuals[3].at", "message": "the time lies in the future"},
    ]
    assert msgspec.json.decode(msgspec.json.encode(report))["new"] == 2


def test_keys_that_the_log_hides(log: PredictionLog) -> None:
    hashing, omitting = contract(("role: id", "role: id, log: hash")), contract(("role: id", "role: id, log: omit"))
    hidden = logged("a", hashing.tables["legs"].columns["leg"], log.salt)
    predict(log, hidden)
    actuals = Actuals(log, hashing)
    assert counts(actuals.add([{"key": "a", "value": 12}], NOW)) == (1, 0, 0, 0) and joined(actuals) == [(hidden, 12.0, 1, -2.0)]
    assert "send `prediction_id`" in Actuals(log, omitting).add([{"key": "a", "value": 12}], NOW).errors[0]["message"]


def test_targets_that_are_no_plain_numbers(log: PredictionLog) -> None:
    late = Actuals(log, contract(("type: number, role: target, unit: min, min: 0.5, max: 180", "type: boolean, role: target")))
    assert counts(late.add([{"key": "a", "value": True}, {"key": "b", "value": 0}, {"key": "c", "value": 0.5}], NOW)) == (2, 0, 0, 2)


def test_a_long_delivery_in_any_order(log: PredictionLog) -> None:
    actuals = Actuals(log, contract())
    keys = [f"leg-{number}" for number in range(2 * PART + 7)]
    items = [{"key": key, "value": 1 + place} for place, key in enumerate(reversed(keys)) if place < 170]
    assert counts(actuals.add(items[50:], NOW)) == (120, 0, 0, 120)
    predict(log, *keys)
    assert counts(actuals.add(items, NOW)) == (50, 0, 120, 0)
    assert {row[0]: row[1] for row in joined(actuals) if row[1]} == {item["key"]: float(item["value"]) for item in items}


def test_spans_and_pages(log: PredictionLog) -> None:
    actuals = Actuals(log, contract())
    ids = new_ids(PAGE + 20)
    log.write([Entry(id, "request", NOW + place // 3, "eta", 1, "5f1c", "live", None, "{}", '{"other":1}') for place, id in enumerate(ids)])
    assert [row["id"] for row in actuals.outcomes()] == ids
    assert [row["id"] for row in actuals.outcomes(since=NOW + 1, until=NOW + 3)] == ids[3:9]
    table = actuals.table(until=NOW + 1)
    assert table.num_rows == 3 and table["predicted"].to_pylist() == [None] * 3 and actuals.table(until=0).num_rows == 0


def test_two_at_a_time(log: PredictionLog) -> None:
    actuals = Actuals(log, contract())
    reports: list[Report] = []

    def deliver(value: int) -> None:
        reports.append(actuals.add([{"key": f"leg-{number}", "value": value} for number in range(20)]))

    threads = [threading.Thread(target=deliver, args=(value,)) for value in (1, 2, 3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(report.new for report in reports) == 20 and sum(report.corrected for report in reports) == 40
    with log.reading() as connection:
        assert connection.exec_driver_sql("SELECT count(*), count(DISTINCT (key || revision)) FROM actuals").one() == (60, 60)


def test_a_log_that_is_away(tmp_path: Path) -> None:
    log = PredictionLog(f"sqlite:///{tmp_path}/log.db")
    actuals = Actuals(log, contract())
    (tmp_path / "log.db").rename(tmp_path / "lost.db")
    with pytest.raises(LogError, match="cannot be opened"):
        actuals.add([{"key": "a", "value": 12}])
    (tmp_path / "lost.db").rename(tmp_path / "log.db")
    assert counts(actuals.add([{"key": "a", "value": 12, "at": time.time()}])) == (1, 0, 0, 1)
    log.close()
