"""The monitor on logs as they are in life: late and odd actual values, empty windows, lost columns, two releases, a server that goes away."""

import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from ibis.backends.sqlite import Backend as SQLite
from monitoring import HALF_HOUR, trips, write_flat, write_log
from postgresql import Server, running_server

from labline.models.bundle import Bundle
from labline.models.example import example_bundle
from labline.operations.monitor.drift import drift
from labline.operations.monitor.history import leave, read_history, read_status
from labline.operations.monitor.log import open_log
from labline.operations.monitor.look import Found, Options, look, look_at
from labline.operations.monitor.reference import Reference
from labline.operations.monitor.window import Choice, Window, put_aside, with_actuals
from labline.serving.actuals import Actuals
from labline.serving.store import LogError

OPTIONS = Options(windows=4)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return example_bundle(tmp_path_factory.mktemp("releases"))


@pytest.fixture(scope="module")
def reference(bundle: Bundle) -> Reference:
    return Reference.of(bundle)


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with running_server() as running:
        yield running


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The address of a database without tables."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/predictions.db"
    server: Server = request.getfixturevalue("server")
    import psycopg

    name = f"log_{abs(hash(tmp_path))}"
    with psycopg.connect(server.url().replace("+psycopg", ""), autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name}")
    return server.url(name)


def at_end(rows: pd.DataFrame) -> float:
    return float(rows["at"].max()) + HALF_HOUR


def seen(url: str, bundle: Bundle, reference: Reference, now: float, digest: str | None = None, options: Options = OPTIONS) -> Found:
    with open_log(url, bundle.contract) as log:
        return look(log, reference, Choice("eta", bundle.digest if digest is None else digest), now, options)


def causes(found: Found) -> dict[str, str]:
    return {check.cause: check.status for check in found.checks if check.status != "ok"}


def test_every_place_of_a_log_gives_the_same_figures(url: str, bundle: Bundle, reference: Reference, tmp_path: Path) -> None:
    rows = trips(2, bundle)
    rows.loc[rows.index >= 600, "actual"] = math.nan
    with_log = write_log(rows, url)
    exported, flat = tmp_path / "export.parquet", write_flat(rows, tmp_path / "flat.parquet")
    Actuals(with_log, bundle.contract).table().to_pandas().to_parquet(exported, index=False)
    with_log.close()
    founds = [seen(place, bundle, reference, at_end(rows)) for place in (url, str(exported), flat)]
    for found in founds:
        assert (found.facts.rows, found.facts.labelled) == (336, 600 - 336)
        assert math.isclose(found.outcomes[-1].metrics["mae"].value, founds[0].outcomes[-1].metrics["mae"].value, rel_tol=1e-9)
        figures = found.moved.set_index("name").drop(columns=["column", "part", "binned"]).sort_index().astype(float)
        expected = founds[0].moved.set_index("name").drop(columns=["column", "part", "binned"]).sort_index().astype(float)
        pd.testing.assert_frame_equal(figures, expected, rtol=1e-6)
        assert found.status == "ok"


def test_what_leaves_the_database_does_not_grow_with_the_log(bundle: Bundle, reference: Reference, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = trips(30, bundle)
    write_log(rows, f"sqlite:///{tmp_path}/log.db").close()
    fetched: list[int] = []
    original = SQLite.execute

    def counting(self: Any, *arguments: Any, **options: Any) -> Any:
        result = original(self, *arguments, **options)
        fetched.append(len(result) if hasattr(result, "__len__") else 1)
        return result

    monkeypatch.setattr(SQLite, "execute", counting)
    found = seen(f"sqlite:///{tmp_path}/log.db", bundle, reference, at_end(rows), options=Options(window_hours=30 * 168, windows=1, sample_rows=500))
    assert found.facts.rows == len(rows) == 10_080 and len(fetched) > 10 and max(fetched) < 2_500 and found.together is not None and found.together.rows <= 500


def test_actuals_for_unknown_predictions_twice_corrected_and_from_the_future(url: str, bundle: Bundle, reference: Reference) -> None:
    rows = trips(1, bundle)
    log = write_log(rows.assign(actual=math.nan), url, keys=[f"trip {place}" for place in range(len(rows))])
    now, actuals = at_end(rows), Actuals(log, bundle.contract)
    half = [{"key": f"trip {place}", "value": float(rows["actual"].iloc[place])} for place in range(200)]
    actuals.add([*half, *half, {"prediction_id": "nobody", "value": 5.0}, {"key": "nothing", "value": 5.0}], now=now - 3600)
    actuals.add([{"prediction_id": rows["id"].iloc[0], "value": 400.0}], now=now - 1800)
    assert len(actuals.add([{"key": "trip 300", "value": 5.0, "at": now + 9e6}], now=now).errors) == 1, "the service refuses it"
    with log.writing() as connection:
        values = f"('eta', 'trip 300', 1, 5.0, {now + 9e6}, {now - 60})"
        connection.exec_driver_sql(f"INSERT INTO actuals(model, key, revision, value, at, received_at) VALUES {values}")
    log.close()
    found = seen(url, bundle, reference, now)
    assert (found.facts.rows, found.facts.labelled, found.facts.unmatched, found.facts.future) == (336, 200, 2, 1)
    values = rows["actual"][:200].to_numpy(copy=True)
    values[0] = 400.0
    assert math.isclose(found.outcomes[-1].metrics["mae"].value, np.abs(rows["prediction"][:200] - values).mean(), rel_tol=1e-6)
    words = next(check.reason for check in found.checks if check.cause == "labels")
    assert "60% of the window's predictions" in words and "2 actual values belong to no prediction" in words
    assert "1 said to have happened in the future" in words


def test_what_came_later_is_not_known_at_an_earlier_moment(bundle: Bundle, reference: Reference, tmp_path: Path) -> None:
    rows = trips(3, bundle)
    rows["received_at"] = rows["at"] + 10 * 86400
    url = write_flat(rows, tmp_path / "log.parquet")
    early, late = (seen(url, bundle, reference, at_end(rows) - days * 86400) for days in (14, 0))
    assert early.facts.rows == 336 and early.facts.labelled == 0 and early.settled is None and early.status == "ok"
    assert [round(one.coverage, 1) for one in late.outcomes] == [1.0, 0.6, 0.0] and late.settled is late.outcomes[-2]


def test_an_empty_window_is_a_warning(url: str, bundle: Bundle, reference: Reference) -> None:
    rows = trips(1, bundle)
    write_log(rows, url).close()
    found = seen(url, bundle, reference, at_end(rows) + 21 * 86400)
    assert found.facts.rows == 0 and causes(found) == {"rows": "warn", "labels": "warn"} and found.moved.empty
    assert "look whether it runs" in found.checks[0].reason or "look whether it runs" in found.checks[1].reason


def test_a_window_with_one_row(url: str, bundle: Bundle, reference: Reference) -> None:
    rows = trips(1, bundle).iloc[:1]
    write_log(rows, url).close()
    found = seen(url, bundle, reference, float(rows["at"].iloc[0]) + 3 * 86400)
    assert found.facts.rows == 1 and found.facts.coverage == 1.0 and found.status == "ok" and found.together is None and found.settled is None
    assert any(check.reason.startswith("1 prediction is too few") for check in found.checks)


def test_a_column_that_vanished_is_named(url: str, bundle: Bundle, reference: Reference, tmp_path: Path) -> None:
    rows = trips(2, bundle)
    rows.loc[rows.index >= 336, ["speed_kmh", "passengers"]] = math.nan
    rows.loc[rows.index >= 336, "actual"] = math.nan
    write_log(rows, url).close()
    found = seen(url, bundle, reference, at_end(rows))
    assert causes(found)["drift:speed_kmh"] == "alarm" and causes(found)["drift:passengers"] == "ignored"
    assert "has vanished: it is missing in every row" in found.checks[0].reason
    flat = write_flat(rows[rows.index >= 336].drop(columns="speed_kmh"), tmp_path / "flat.parquet")
    assert causes(seen(flat, bundle, reference, at_end(rows)))["drift:speed_kmh"] == "alarm"


def test_a_log_of_two_releases_is_not_mixed(url: str, bundle: Bundle, reference: Reference, tmp_path: Path) -> None:
    rows = trips(2, bundle)
    other, shadow = trips(2, bundle, seed=8), trips(2, bundle, seed=9)
    other = other.assign(version=2, digest="f" * 64, role="canary", prediction=500.0, distance_km=140.0)
    shadow = shadow.assign(version=3, digest="e" * 64, role="shadow", prediction=500.0)
    write_log(pd.concat([rows, other, shadow], ignore_index=True), url).close()
    found = look_at(url, None, [bundle.path.parents[1]], "eta", bundle.contract, at_end(rows), OPTIONS)
    assert found.facts.rows == 336 and found.status == "ok" and found.release == "eta@v1"
    assert found.facts.others[["version", "role"]].to_records(index=False).tolist() in ([(3, "shadow"), (2, "canary")], [(2, "canary"), (3, "shadow")])
    assert "version 2 as canary (336)" in found.checks[0].reason or any("version 2 as canary (336)" in check.reason for check in found.checks)
    everything = seen(url, bundle, reference, at_end(rows), digest="")
    assert everything.facts.rows == 672, "without a digest all that clients were answered with, and no shadow"


def test_postgresql_gone_in_the_middle(bundle: Bundle, reference: Reference) -> None:
    with running_server() as server:
        rows = trips(2, bundle)
        write_log(rows, server.url()).close()
        with pytest.raises(LogError) as caught, open_log(server.url(), bundle.contract) as log:
            window = Window(float(rows["at"].min()), at_end(rows))
            with put_aside(log, with_actuals(log, Choice("eta").of(log.predictions, window), "eta", at_end(rows))) as part:
                server.stop()
                drift(part, reference, 336.0)
        assert "Start it" in str(caught.value) or "Look" in str(caught.value)
        assert str(caught.value).startswith("postgresql+psycopg://labline@127.0.0.1")
        server.start()
        assert seen(server.url(), bundle, reference, at_end(rows)).status == "ok"


def test_the_same_window_twice_is_one_line_of_history(bundle: Bundle, reference: Reference, tmp_path: Path) -> None:
    rows = trips(3, bundle)
    rows.loc[rows.index >= 672, "actual"] = math.nan
    url = write_flat(rows, tmp_path / "log.parquet")
    for hours in (0, 3, 7):
        leave(seen(url, bundle, reference, at_end(rows) + 3600 * hours), tmp_path / "left")
    assert len(read_history(tmp_path / "left" / "history.jsonl")) == 1
    assert len((tmp_path / "left" / "history.jsonl").read_text().splitlines()) == 1
    leave(seen(url, bundle, reference, at_end(rows) + 86400), tmp_path / "left")
    assert [line["rows"] for line in read_history(tmp_path / "left" / "history.jsonl")] == [336, 288]
    assert read_status(tmp_path / "left" / "status.json")["window"]["rows"] == 288


def test_the_notebook_and_what_it_leaves(bundle: Bundle, tmp_path: Path, run_stage: Callable[..., Path]) -> None:
    rows = trips(3, bundle)
    rows.loc[rows.index >= 672, "actual"] = math.nan
    rows.loc[rows.index >= 672, "distance_km"] /= 1.609
    (tmp_path / "contract.yaml").write_text(bundle.contract.dump())
    url = write_flat(rows, tmp_path / "log.parquet")
    moment = pd.Timestamp(at_end(rows), unit="s").isoformat()
    executed = run_stage(tmp_path, "monitor", log=url, folders=str(bundle.path.parents[1]), now=moment, windows=3)
    left = tmp_path / "runs" / "monitor"
    assert {path.name for path in left.iterdir()} >= {"status.json", "history.jsonl", "monitor.prom", "error.png", "moved.png", "columns.png"}
    said = read_status(left / "status.json")
    assert said["status"] == "alarm" and said["checks"][0]["cause"] == "drift:distance_km" and said["error"]["realised"]["until"] == "2025-05-19T00:00:00Z"
    assert json.loads(executed.read_text())["cells"]
