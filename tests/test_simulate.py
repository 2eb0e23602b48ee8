"""The simulated rides: determinism, causes that can be seen, changes, and exports whose defects are the documented ones."""

import subprocess
import sys
from dataclasses import replace
from datetime import date
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from labline.errors import DataError, ParameterError
from labline.rides.city import BRIDGES
from labline.rides.defects import Defects
from labline.rides.dispatch import EMBEDDED, embedded, export_dirty, write_raw
from labline.rides.scenario import BridgeClosed, Change, HardWinter, MilesVendor, NewFleet, Scenario, SensorMissing
from labline.rides.simulate import AIDS, VEHICLES, Tables, simulate, simulate_months
from labline.rides.traffic import is_day_off

RAW_LEGS = {
    "leg_id": pa.string(),
    "requested_at": pa.string(),
    "from_zone": pa.string(),
    "to_zone": pa.string(),
    "distance": pa.float64(),
    "distance_unit": pa.string(),
    "vehicle": pa.string(),
    "mobility_aid": pa.string(),
    "passengers": pa.int64(),
    "driven": pa.float64(),
    "minutes": pa.float64(),
}
TIMES = [r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d", r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d", r"\d\d/\d\d/\d{4} \d\d:\d\d"]


@pytest.fixture(scope="module")
def tables() -> Tables:
    return simulate(Scenario(legs=60_000))


@pytest.fixture(scope="module")
def legs(tables: Tables) -> pd.DataFrame:
    """Legs beside the truth and the weather of their hour."""
    rides = tables.legs.to_pandas().merge(tables.truth.to_pandas(), on="leg_id")
    rides["observed_at"] = rides["requested_utc"].dt.floor("h")
    rides["hour"] = rides["requested_at"].dt.hour
    rides["day_off"] = is_day_off(rides["requested_at"].to_numpy("datetime64[s]"))
    return rides.merge(tables.weather.to_pandas(), on="observed_at", how="left")


def changed(*changes: Change, legs: int = 60_000) -> pd.DataFrame:
    result = simulate(Scenario(legs=legs, changes=changes))
    return result.legs.to_pandas().merge(result.truth.to_pandas(), on="leg_id")


def contents(directory: Path) -> dict[str, bytes]:
    return {path.relative_to(directory).as_posix(): path.read_bytes() for path in sorted(directory.rglob("*")) if path.is_file()}


def raw_legs(directory: Path) -> pd.DataFrame:
    parts = [pq.read_table(path).to_pandas().assign(file=path.stem) for path in sorted((directory / "legs").iterdir())]
    return pd.concat(parts, ignore_index=True)


# Determinism


def test_same_scenario_same_tables(tables: Tables) -> None:
    again = simulate(Scenario(legs=60_000))
    for name in ("legs", "truth", "weather", "zones"):
        assert getattr(again, name).equals(getattr(tables, name)), name
    assert not simulate(Scenario(legs=60_000, seed=8)).legs.equals(tables.legs)


def test_months_do_not_depend_on_how_many_follow(tables: Tables) -> None:
    for month in simulate_months(Scenario(legs=60_000), months=2):
        here = tables.legs.filter(pc.starts_with(tables.legs["leg_id"], month.name))
        assert month.legs.equals(here.combine_chunks())
    beyond = list(simulate_months(Scenario(legs=6_000, months=2), months=3))
    assert [month.name for month in beyond] == ["2025-01", "2025-02", "2025-03"]


def test_files_are_the_same_bytes_in_another_process(tmp_path: Path) -> None:
    code = "import sys; from labline.rides.dispatch import embedded; embedded(sys.argv[1], months=2)"
    root = Path(__file__).parent.parent
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "other")], check=True, cwd=root)
    embedded(tmp_path / "here", months=2)
    assert contents(tmp_path / "here") == contents(tmp_path / "other")


def test_embedded_data_versions_share_files(tmp_path: Path) -> None:
    embedded(tmp_path / "shorter", months=11)
    embedded(tmp_path / "longer", months=12)
    shorter, longer = contents(tmp_path / "shorter"), contents(tmp_path / "longer")
    assert set(longer) - set(shorter) == {"legs/2025-12.parquet"}
    assert [name for name in shorter if shorter[name] != longer[name]] == ["weather.parquet"]
    hours = [pq.read_table(tmp_path / name / "weather.parquet") for name in ("shorter", "longer")]
    assert hours[0].equals(hours[1].slice(0, hours[0].num_rows))
    assert sum(map(len, longer.values())) < 5_000_000


def test_tables_and_streaming_give_the_same_files(tmp_path: Path) -> None:
    scenario = Scenario(legs=5_000, months=3, seed=3)
    write_raw(scenario, tmp_path / "streamed")
    export_dirty(simulate(scenario), tmp_path / "whole", seed=3)
    assert contents(tmp_path / "streamed") == contents(tmp_path / "whole")


# Clean tables


def test_clean_legs_are_possible(tables: Tables, legs: pd.DataFrame) -> None:
    assert len(legs) == 60_000 and legs["leg_id"].is_unique
    assert legs.notna().all().all()
    assert legs["minutes"].min() >= 1 and (legs["minutes"] > 180).mean() < 0.001
    assert legs["distance_km"].between(0.3, 80).all()
    assert set(legs["vehicle"]) == set(VEHICLES) and set(legs["mobility_aid"]) == set(AIDS)
    assert set(legs["from_zone"]) == set(legs["to_zone"]) == set(tables.zones["zone"].to_pylist())


def test_local_times_exist_and_belong_to_utc(legs: pd.DataFrame) -> None:
    utc = legs["requested_utc"].dt.tz_localize("UTC").dt.tz_convert("America/Chicago").dt.tz_localize(None)
    assert (utc == legs["requested_at"]).all()
    assert legs["requested_utc"].is_monotonic_increasing
    legs["requested_at"].dt.tz_localize("America/Chicago", ambiguous="NaT", nonexistent="raise")


def test_weather_has_every_hour(tables: Tables) -> None:
    hours = tables.weather["observed_at"].to_pandas()
    assert (hours.diff().dropna() == pd.Timedelta("1h")).all()
    assert hours.min() <= tables.truth["requested_utc"].to_pandas().min() - pd.Timedelta("1h")


def test_zones_lie_in_six_areas(tables: Tables) -> None:
    zones = tables.zones.to_pandas()
    assert len(zones) == 48 and (zones["area"].value_counts() == 8).all()
    assert set(zones["road_class"]) == {"motorway", "arterial", "street"} and len(BRIDGES) == 3


# Causes


def test_rush_hours_are_slow_on_working_days(legs: pd.DataFrame) -> None:
    working = legs[~legs["day_off"]].groupby("hour")["slowdown"].mean()
    rest = legs[legs["day_off"]].groupby("hour")["slowdown"].mean()
    assert working[[8, 17]].min() > 1.15 * working[12]
    assert working[[8, 17]].min() > 1.25 * rest[[8, 17]].max()


@pytest.mark.parametrize(("column", "threshold"), [("rain_mm", 1.0), ("snow_cm", 0.5), ("wind_kmh", 50.0)])
def test_weather_slows(legs: pd.DataFrame, column: str, threshold: float) -> None:
    noon = legs[legs["hour"].between(10, 14)]
    assert noon.loc[noon[column] > threshold, "slowdown"].mean() > 1.05 * noon.loc[noon[column] == noon[column].clip(upper=threshold / 4), "slowdown"].mean()


def test_stretchers_load_longer(legs: pd.DataFrame) -> None:
    loading = legs.groupby("vehicle")["loading"].mean()
    assert loading["stretcher"] > 1.5 * loading["wheelchair_van"] > 3 * loading["ambulatory"]
    assert legs.groupby("mobility_aid")["loading"].mean()[list(AIDS)].is_monotonic_increasing


def test_recent_legs_tell_of_the_next(legs: pd.DataFrame) -> None:
    surprise = np.log(legs["slowdown"]) - np.log(legs["slowdown"]).groupby([legs["hour"], legs["day_off"]]).transform("mean")
    daily = surprise.groupby(legs["requested_at"].dt.date).mean()
    assert daily.autocorr(1) > 0.3


def test_truth_is_the_best_prediction(legs: pd.DataFrame) -> None:
    noise = legs["minutes"] - legs["expected"]
    usual_speed = legs["driven_km"].sum() / legs["minutes"].sum()
    naive = (legs["minutes"] - legs["distance_km"] / usual_speed).abs().mean()
    assert abs(noise.mean()) < 0.2
    assert 3 < noise.abs().mean() < 0.5 * naive
    parts = legs["dispatch"] + legs["loading"] + legs["driving"] + legs["trouble"]
    assert np.allclose(parts.clip(lower=1), legs["minutes"], atol=0.06)


# Changes


def test_closed_bridge_lengthens_crossing_legs_only(legs: pd.DataFrame) -> None:
    closed = changed(BridgeClosed(month="2025-06"))
    june = legs["leg_id"].str.startswith("2025-06")
    hit = june & legs["crosses_river"]
    assert (closed["distance_km"] == legs["distance_km"]).all()
    assert (closed.loc[~hit, "minutes"] == legs.loc[~hit, "minutes"]).all()
    assert (closed.loc[hit, "driven_km"] >= legs.loc[hit, "driven_km"]).all()
    assert closed.loc[hit, "minutes"].mean() > 1.1 * legs.loc[hit, "minutes"].mean()


def test_hard_winter_slows_its_months(legs: pd.DataFrame) -> None:
    hard = changed(HardWinter(month="2025-12"))
    december = legs["leg_id"].str.startswith("2025-12")
    assert hard.loc[december, "minutes"].mean() > 1.05 * legs.loc[december, "minutes"].mean()
    assert (hard.loc[~december, "minutes"] == legs.loc[~december, "minutes"]).all()


def test_new_fleet_lasts(legs: pd.DataFrame) -> None:
    fleet = changed(NewFleet(month="2025-07"))
    later = legs["leg_id"] >= "2025-07"
    assert (fleet.loc[~later, "vehicle"] == legs.loc[~later, "vehicle"]).all()
    shares = fleet.loc[later, "vehicle"].value_counts(normalize=True)
    assert abs(shares["stretcher"] - 0.24) < 0.01 and abs(shares["wheelchair_van"] - 0.38) < 0.01
    assert fleet.loc[later & (fleet["mobility_aid"] == "stretcher"), "loading"].mean() < 0.8 * legs.loc[legs["mobility_aid"] == "stretcher", "loading"].mean()


def test_vendor_with_miles(tmp_path: Path) -> None:
    for name, labelled in (("told", True), ("untold", False)):
        write_raw(Scenario(legs=24_000, months=2, changes=(MilesVendor(month="2025-02", labelled=labelled),)), tmp_path / name)
    told, untold = raw_legs(tmp_path / "told"), raw_legs(tmp_path / "untold")
    miles = [(frame["distance_unit"] == "mi").groupby(frame["file"]).mean() for frame in (told, untold)]
    assert miles[0]["2025-01"] < 0.15 < 0.5 < miles[0]["2025-02"]
    assert miles[1]["2025-02"] < 0.15
    assert told["distance"].equals(untold["distance"])


def test_sensor_missing(tmp_path: Path) -> None:
    write_raw(Scenario(legs=2_000, months=3, changes=(SensorMissing(month="2025-02"),)), tmp_path)
    weather = pq.read_table(tmp_path / "weather.parquet").to_pandas()
    missing = weather["wind_kmh"].isna().groupby(weather["observed_at"].dt.strftime("%Y-%m")).mean()
    assert missing["2025-02"] == 1 and missing[["2025-01", "2025-03"]].max() < 0.05


@pytest.mark.parametrize(
    ("kind", "values", "named"),
    [
        (Scenario, {"legs": 0}, "legs"),
        (Scenario, {"months": 0}, "months"),
        (Scenario, {"seed": -1}, "seed"),
        (Scenario, {"start": date(2025, 1, 2)}, "start"),
        (NewFleet, {"month": "2025-13"}, "2025-13"),
        (BridgeClosed, {"month": "2025-06", "bridge": "London Bridge"}, "London Bridge"),
        (SensorMissing, {"month": "2025-06", "sensor": "fog"}, "fog"),
    ],
)
def test_impossible_scenarios_are_refused(kind: type, values: dict, named: str) -> None:
    with pytest.raises(ParameterError, match=named):
        kind(**values)


# Exports


def test_raw_schema_and_values(tmp_path: Path) -> None:
    write_raw(Scenario(legs=12_000, months=2), tmp_path)
    for path in (tmp_path / "legs").iterdir():
        schema = pq.read_schema(path)
        assert dict(zip(schema.names, schema.types, strict=True)) == RAW_LEGS
    legs = raw_legs(tmp_path)
    times = legs["requested_at"].replace("", np.nan).dropna()
    known = times.str.fullmatch("|".join(TIMES))
    assert set(times[~known]) <= {"00/00/0000"}
    assert all(times.str.fullmatch(form).mean() > 0.1 for form in TIMES)
    assert set(legs["distance_unit"].dropna()) == {"km", "mi", ""}
    assert pq.read_table(tmp_path / "weather.parquet").column_names == ["observed_at", "temperature_c", "rain_mm", "snow_cm", "wind_kmh"]
    assert pq.read_table(tmp_path / "zones.parquet").column_names == ["zone", "name", "area", "road_class", "latitude", "longitude"]


def test_defects_have_about_their_shares(tmp_path: Path) -> None:
    ledger = write_raw(EMBEDDED, tmp_path).groupby("defect")["rows"].sum()
    hours = 365 * 24
    factors = {"weather_blank": 4 * hours, "weather_outage": 6 * hours, "weather_duplicate": hours, "weather_wrong": hours}
    shares = {name: share for name, share in vars(Defects()).items() if name not in ("iso_time", "day_first_time", "miles", "blank")}
    for name, share in shares.items():
        expected = share * factors.get(name, EMBEDDED.legs)
        spread = np.sqrt(expected) * (6 if name == "weather_outage" else 1)
        assert abs(ledger[name] - expected) < 5 * spread, name


def test_defects_are_seen_in_the_files(tmp_path: Path) -> None:
    done = write_raw(EMBEDDED, tmp_path)
    ledger = done.groupby("defect")["rows"].sum()
    legs, clean = raw_legs(tmp_path), simulate(EMBEDDED).legs.to_pandas()
    known = legs[legs["leg_id"].replace("", np.nan).notna()]
    late = known["leg_id"].str[:7] != known["file"]
    assert abs(late.sum() - ledger["late"]) < 0.2 * ledger["late"]
    assert (pd.PeriodIndex(known.loc[late, "file"], freq="M") == pd.PeriodIndex(known.loc[late, "leg_id"].str[:7], freq="M") + 1).all()
    last = done[done["file"] == "legs/2025-12.parquet"].set_index("defect")["rows"]
    lost = len(set(clean["leg_id"]) - set(known["leg_id"]))
    assert abs(lost - ledger["lost"] - last["late"] - ledger["no_id"]) < 10
    twice = known.drop(columns="file").duplicated(keep="first").sum()
    assert abs(twice - ledger["duplicate"]) < 10
    again = known["leg_id"].duplicated().sum() - twice
    assert abs(again - ledger["near_duplicate"]) < 10
    assert abs((known["minutes"] < 0).mean() - 0.003) < 0.001
    assert abs((known["driven"] == 99999).mean() - 0.002) < 0.001
    assert (known["passengers"] == 0).any() and (known["from_zone"] == "Z77").any() and (known["distance"] == 3000).any()


def test_without_defects_the_raw_files_are_the_clean_legs(tmp_path: Path) -> None:
    scenario = Scenario(legs=3_000, months=2)
    none = Defects(**dict.fromkeys(vars(Defects()), 0.0))
    write_raw(scenario, tmp_path, defects=none)
    raw, clean = raw_legs(tmp_path), simulate(scenario).legs.to_pandas()
    assert raw["requested_at"].tolist() == clean["requested_at"].dt.strftime("%Y-%m-%d %H:%M:%S").tolist()
    for name, source in (("distance_km", "distance"), ("driven_km", "driven"), ("minutes", "minutes"), ("leg_id", "leg_id")):
        assert raw[source].tolist() == clean[name].tolist()


def test_a_folder_with_other_months_is_left_alone(tmp_path: Path) -> None:
    embedded(tmp_path, months=2)
    before = contents(tmp_path)
    with pytest.raises(DataError, match="2025-02.parquet"):
        embedded(tmp_path, months=1)
    assert contents(tmp_path) == before


def test_an_export_that_fails_leaves_no_half_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(table: pa.Table, where: Path, **options: object) -> None:
        Path(where).write_bytes(b"PAR1")
        raise OSError("No space left on device")

    monkeypatch.setattr(pq, "write_table", full)
    with pytest.raises(OSError, match="No space left"):
        embedded(tmp_path, months=1)
    assert contents(tmp_path) == {}


# Scale


def test_a_million_legs_at_once() -> None:
    million = simulate(Scenario(legs=1_000_000, months=6))
    assert million.legs.num_rows == 1_000_000
    assert pc.count_distinct(million.legs["leg_id"]).as_py() == 1_000_000


def test_no_python_runs_per_leg() -> None:
    """The number of Python calls does not depend on the number of legs."""

    def calls(legs: int) -> int:
        counted = 0

        def count(*event: object) -> None:
            nonlocal counted
            counted += 1

        sys.setprofile(count)
        try:
            simulate(Scenario(legs=legs, months=1))
        finally:
            sys.setprofile(None)
        return counted

    calls(100)
    assert calls(50_000) < 1.05 * calls(500)


def test_another_city_by_its_coefficients() -> None:
    scenario = Scenario(legs=2_000, months=1)
    calm = replace(scenario.coefficients, traffic=replace(scenario.coefficients.traffic, noise=0.0))
    usual, still = (simulate(one) for one in (scenario, replace(scenario, coefficients=calm)))
    assert usual.legs["distance_km"].equals(still.legs["distance_km"])
    assert not usual.legs["minutes"].equals(still.legs["minutes"])
