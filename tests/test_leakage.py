"""No feature of a leg may know what happened after it was asked for, nor how the leg itself turned out."""

from collections.abc import Callable
from datetime import datetime, timedelta
from pathlib import Path

import ibis
import numpy as np
import pandas as pd
import pytest

from labline.data.contract import Contract
from labline.data.tables import connect
from labline.rides import features

CONTRACT = Contract.load(Path(__file__).parent.parent / "contract.yaml")
FIRST = datetime(2025, 1, 6)
DAYS = 40
ZONES = list("ABCDEFGH")
WEATHER = ["temperature_c", "rain_mm", "snow_cm", "wind_kmh"]
Tables = dict[str, pd.DataFrame]


def town(seed: int = 1, count: int = 900) -> Tables:
    """Legs, weather and zones of a small town; some legs without a planned or a driven distance, one zone without a centre."""
    random = np.random.default_rng(seed)
    offset = np.sort(random.uniform(0, DAYS * 86_400, count)).round()
    planned = random.uniform(0.2, 25, count)
    driven = planned * random.uniform(1.0, 1.5, count)
    legs = pd.DataFrame({
        "leg_id": [f"L{number:05d}" for number in range(count)],
        "requested_at": pd.Timestamp(FIRST) + pd.to_timedelta(offset, unit="s"),
        "from_zone": random.choice(ZONES, count), "to_zone": random.choice(ZONES, count),
        "distance_km": np.where(random.random(count) < 0.05, np.nan, planned),
        "vehicle": random.choice(["ambulatory", "wheelchair_van"], count),
        "mobility_aid": "none", "passengers": 1,
        "driven_km": np.where(random.random(count) < 0.05, np.nan, driven),
        "minutes": 3 + driven * random.uniform(1.5, 4, count)})
    hours = pd.date_range(FIRST - timedelta(days=1), periods=24 * (DAYS + 3), freq="h")
    weather = pd.DataFrame({"observed_at": hours, **{name: random.normal(5, 3, len(hours)).round(1) for name in WEATHER}})
    zones = pd.DataFrame({"zone": ZONES, "name": ZONES, "area": list("NNNSSSWW"), "road_class": "street",
                          "latitude": [*np.linspace(41.7, 41.9, 7), np.nan], "longitude": -87.6})
    return {"legs": legs, "weather": weather, "zones": zones}


def load(connection: ibis.BaseBackend, tables: Tables) -> dict[str, ibis.Table]:
    loaded = {}
    for name, frame in tables.items():
        table = connection.create_table(ibis.util.gen_name(name), ibis.memtable(frame))
        times = {column: table[column].cast("timestamp(6)") for column in ("requested_at", "observed_at") if column in table.columns}
        loaded[name] = table.mutate(**times)
    return loaded


def history(tables: Tables, requests: pd.DataFrame | None = None) -> pd.DataFrame:
    """The features of requests (of all legs without any given), by leg id, as training computes them."""
    with connect(threads=1) as connection:
        loaded = load(connection, tables)
        rows = loaded["legs"] if requests is None else load(connection, {"requests": requests})["requests"]
        asof = features.asof_tables(loaded, CONTRACT, rows, {})
        completed = connection.to_pandas(features.complete(rows, asof, CONTRACT))
    return completed.set_index("leg_id").sort_index()[list(CONTRACT.lookups)]


def served(tables: Tables, requests: pd.DataFrame, now: datetime) -> pd.DataFrame:
    """The features of requests, by leg id, as a service with the tables of `now` computes them."""
    with connect(threads=1) as connection:
        loaded = load(connection, tables)
        rows = load(connection, {"requests": requests})["requests"]
        completed = connection.to_pandas(features.complete(rows, features.latest(loaded, CONTRACT, now, {}), CONTRACT))
    return completed.set_index("leg_id").sort_index()[list(CONTRACT.lookups)]


@pytest.fixture(scope="module")
def tables() -> Tables:
    return town()


@pytest.fixture(scope="module")
def original(tables: Tables) -> pd.DataFrame:
    return history(tables)


def completion(legs: pd.DataFrame) -> pd.Series:
    return legs["requested_at"] + pd.to_timedelta(legs["minutes"], unit="min")


def slow(legs: pd.DataFrame, chosen: pd.Series) -> pd.DataFrame:
    """The chosen legs take three times as long, over twice the distance."""
    factors = np.where(chosen, 3.0, 1.0), np.where(chosen, 2.0, 1.0)
    return legs.assign(minutes=legs["minutes"] * factors[0], driven_km=legs["driven_km"] * factors[1])


def without(legs: pd.DataFrame, chosen: pd.Series) -> pd.DataFrame:
    return legs[~chosen]


def different(legs: pd.DataFrame, chosen: pd.Series) -> pd.DataFrame:
    """The chosen legs lead elsewhere with another vehicle, take three times as long, and there are twice as many of them."""
    elsewhere = {"from_zone": "A", "to_zone": "H", "vehicle": "ambulatory"}
    moved = legs.assign(**{name: legs[name].where(~chosen, value) for name, value in elsewhere.items()})
    more = slow(moved, chosen)
    return pd.concat([more, more[chosen].assign(leg_id="X" + more.loc[chosen, "leg_id"])])


CUTS = [timedelta(days=9, hours=14, minutes=30), timedelta(days=30), timedelta(days=33, hours=8, minutes=59, seconds=59)]


@pytest.mark.parametrize("cut", CUTS, ids=str)
@pytest.mark.parametrize("alter", [different, without], ids=lambda alter: alter.__name__)
def test_later_legs_change_nothing(tables: Tables, original: pd.DataFrame, cut: timedelta, alter: Callable[[pd.DataFrame, pd.Series], pd.DataFrame]) -> None:
    moment = pd.Timestamp(FIRST + cut)
    legs = tables["legs"]
    altered = history(tables | {"legs": alter(legs, legs["requested_at"] > moment)})
    asked_before = legs.loc[legs["requested_at"] <= moment, "leg_id"]
    assert len(asked_before) > 100
    pd.testing.assert_frame_equal(altered.loc[asked_before], original.loc[asked_before], check_exact=True)


@pytest.mark.parametrize("cut", CUTS, ids=str)
def test_legs_under_way_change_nothing(tables: Tables, original: pd.DataFrame, cut: timedelta) -> None:
    moment = pd.Timestamp(FIRST + cut)
    legs = tables["legs"]
    altered = history(tables | {"legs": slow(legs, completion(legs) >= moment)})
    asked_before = legs.loc[legs["requested_at"] <= moment, "leg_id"]
    pd.testing.assert_frame_equal(altered.loc[asked_before], original.loc[asked_before], check_exact=True)


@pytest.mark.parametrize("place", [0, 250, 611, 899])
def test_own_outcome_changes_nothing(tables: Tables, original: pd.DataFrame, place: int) -> None:
    legs = tables["legs"].copy()
    leg = legs["leg_id"][place]
    legs.loc[place, ["minutes", "driven_km"]] = (0.6, 0.05) if place % 2 else (legs["minutes"][place] * 5, np.nan)
    altered = history(tables | {"legs": legs}, legs.loc[[place]])
    pd.testing.assert_frame_equal(altered.loc[[leg]], original.loc[[leg]], check_exact=True)


@pytest.mark.parametrize("cut", CUTS[::2], ids=str)
def test_weather_of_the_current_hour_changes_nothing(tables: Tables, original: pd.DataFrame, cut: timedelta) -> None:
    moment = pd.Timestamp(FIRST + cut)
    weather = tables["weather"].copy()
    utc = moment.tz_localize(CONTRACT.timezone).tz_convert("UTC").tz_localize(None)
    weather.loc[weather["observed_at"] > utc - pd.Timedelta(hours=1), WEATHER] = 40.0
    altered = history(tables | {"weather": weather})
    legs = tables["legs"]
    asked_before = legs.loc[legs["requested_at"] <= moment, "leg_id"]
    pd.testing.assert_frame_equal(altered.loc[asked_before], original.loc[asked_before], check_exact=True)
    assert not altered.equals(original)


def test_weather_is_that_of_the_last_full_hour(tables: Tables, original: pd.DataFrame) -> None:
    asked = tables["legs"].set_index("leg_id")["requested_at"].dt.tz_localize(CONTRACT.timezone).dt.tz_convert("UTC").dt.tz_localize(None)
    hour = asked.dt.floor("h") - pd.Timedelta(hours=1)
    expected = tables["weather"].set_index("observed_at")["temperature_c"].reindex(hour).to_numpy()
    assert np.array_equal(original.loc[asked.index, "temperature_c"].to_numpy(), expected)


def test_earlier_legs_do_change_features(tables: Tables, original: pd.DataFrame) -> None:
    legs = tables["legs"]
    altered = history(tables | {"legs": slow(legs, legs["requested_at"] < FIRST + timedelta(days=10))})
    late = legs.loc[legs["requested_at"] > FIRST + timedelta(days=12), "leg_id"]
    for name in ("road_km", "usual_speed_kmh", "usual_minutes", "recent_minutes", "from_month_ratio", "to_hour_ratio", "city_month_ratio"):
        assert (altered.loc[late, name] != original.loc[late, name]).any(), name


@pytest.mark.parametrize("cut", CUTS, ids=str)
def test_latest_tables_serve_what_training_saw(tables: Tables, cut: timedelta) -> None:
    now = FIRST + cut
    requests = town(seed=2, count=60)["legs"].assign(requested_at=pd.Timestamp(now))
    requests.loc[0, ["from_zone", "to_zone", "vehicle"]] = "A", "new zone", "stretcher"
    legs = tables["legs"]
    utc = pd.Timestamp(now).tz_localize(CONTRACT.timezone).tz_convert("UTC").tz_localize(None)
    weather = tables["weather"]
    known = tables | {"legs": legs[completion(legs) < now], "weather": weather[weather["observed_at"] <= utc - pd.Timedelta(hours=1)]}
    trained = history(tables, requests)
    pd.testing.assert_frame_equal(served(tables, requests, now), trained, check_exact=True)
    pd.testing.assert_frame_equal(served(known, requests, now), trained, check_exact=True)


def test_order_and_threads_change_no_bit(tables: Tables, original: pd.DataFrame) -> None:
    shuffled = tables | {"legs": tables["legs"].sample(frac=1, random_state=3)}
    pd.testing.assert_frame_equal(history(shuffled), original, check_exact=True)
