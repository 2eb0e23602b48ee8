"""Real trips become the tables of the rides, and what is wrong with an input is said clearly."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
from workspaces import ROOT
from workspaces import run as command

from labline.data.contract import Contract
from labline.data.quality import validate
from labline.data.tables import connect
from labline.errors import DataError
from labline.rides.taxi import Imported, import_taxi, taxi_contract

CONTRACT = taxi_contract(Contract.load(ROOT / "contract.yaml"))


@pytest.fixture(scope="module")
def source(shared_data: Path) -> Path:
    folder = shared_data / "nyc_taxi"
    if not folder.is_dir():
        pytest.skip(f"no real data: {folder} does not exist")
    return folder


@pytest.fixture(scope="module")
def imported(source: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Imported, Path]:
    out = tmp_path_factory.mktemp("taxi trips")
    return import_taxi(source / "trips_2018_2020.parquet", source / "weather_hourly.parquet", source / "zones.csv", out / "data"), out


def test_all_months_are_imported(imported: tuple[Imported, Path]) -> None:
    result, out = imported
    assert len(result.legs) == 36 and min(result.legs) == "2018-01" and max(result.legs) == "2020-12"
    assert sum(result.legs.values()) + result.outside == 360_000 and result.outside == 10
    assert sorted(path.stem for path in (out / "data" / "legs").iterdir()) == sorted(result.legs)
    assert result.zones == 265 and 59_568 <= result.hours <= 59_592


def test_a_leg_is_the_record_it_came_from(imported: tuple[Imported, Path], source: Path) -> None:
    _, out = imported
    legs = pd.read_parquet(out / "data" / "legs" / "2020-04.parquet").set_index("leg_id")
    records = pd.read_parquet(source / "trips_2018_2020.parquet").query("file_month == '2020-04'").reset_index(drop=True)
    leg, record = legs.loc["2020-04-0000100"], records.iloc[99]
    assert leg["requested_at"] == f"{record['pickup_datetime']:%Y-%m-%d %H:%M:%S}" and leg["driven"] == record["trip_distance"]
    assert leg["minutes"] == pytest.approx((record["dropoff_datetime"] - record["pickup_datetime"]).total_seconds() / 60)
    assert (leg["from_zone"], leg["to_zone"]) == (str(record["pickup_location_id"]), str(record["dropoff_location_id"]))


def test_planned_distance_is_that_of_the_centroids(imported: tuple[Imported, Path]) -> None:
    legs = pd.read_parquet(imported[1] / "data" / "legs" / "2019-07.parquet")
    from_airport = legs[(legs["from_zone"] == "132") & (legs["to_zone"] == "230")]  # JFK Airport to Times Square
    assert from_airport["distance"].nunique() == 1 and from_airport["distance"].iloc[0] * 1.609344 == pytest.approx(20.8, abs=0.1)
    assert legs.loc[legs["from_zone"] == "264", "distance"].isna().all()
    assert (legs.loc[legs["from_zone"] == legs["to_zone"], "distance"].dropna() == 0).all()


def test_most_legs_are_accepted(imported: tuple[Imported, Path]) -> None:
    _, out = imported
    quality = validate(CONTRACT, out / "data", out / "validate")
    assert quality.tables.set_index("table").loc["legs", "rejected_share"] < 0.02
    with connect() as connection:
        legs = connection.read_parquet((out / "validate" / "tables" / "legs.parquet").as_posix())
        ends = connection.to_pandas(legs.agg(least=legs.minutes.min(), most=legs.minutes.max(), driven=legs.driven_km.min(), rows=legs.count())).iloc[0]
    assert ends["least"] >= 0.5 and ends["most"] <= 180 and ends["driven"] > 0 and ends["rows"] > 350_000


def test_the_same_records_give_the_same_bytes(imported: tuple[Imported, Path], source: Path, tmp_path: Path) -> None:
    import_taxi(source / "trips_2018_2020.parquet", source / "weather_hourly.parquet", source / "zones.csv", tmp_path)
    for name in ("legs/2018-01.parquet", "legs/2020-12.parquet", "weather.parquet", "zones.parquet"):
        assert (tmp_path / name).read_bytes() == (imported[1] / "data" / name).read_bytes(), name


@pytest.fixture
def records(tmp_path: Path) -> Path:
    """A folder with the smallest inputs that can be imported."""
    begin = pd.Timestamp("2019-07-01 09:00")
    pd.DataFrame({"tpep_pickup_datetime": [begin], "tpep_dropoff_datetime": [begin + pd.Timedelta("8min")], "PULocationID": [1], "DOLocationID": [1],
                  "passenger_count": [1.0], "trip_distance": [0.7]}).to_parquet(tmp_path / "trips.parquet")
    weather = {"time_utc": begin, "temperature_c": 20.0, "precipitation_mm": 0.0, "rain_mm": 0.0, "windspeed_kmh": 5.0}
    pd.DataFrame([weather]).to_parquet(tmp_path / "weather.parquet")
    (tmp_path / "zones.csv").write_text("LocationID,Borough,Zone,lat,lon\n1,EWR,Newark Airport,40.69,-74.17\n")
    return tmp_path


def run(folder: Path) -> Imported:
    return import_taxi(folder / "trips.parquet", folder / "weather.parquet", folder / "zones.csv", folder / "data with spaces")


def test_the_names_of_the_commission_are_understood(records: Path) -> None:
    assert run(records) == Imported({"2019-07": 1}, outside=0, hours=1, zones=1)


def test_the_command_imports_and_rewrites_the_contract(records: Path, tmp_path: Path) -> None:
    contract = tmp_path / "contract.yaml"
    shutil.copy(ROOT / "contract.yaml", contract)
    words = ["labline", "import", "taxi", "--out", "data", "--contract", "contract.yaml"]
    given = {"--trips": "trips.parquet", "--weather": "weather.parquet", "--zones": "zones.csv"}
    done = command(*words, *(word for option, name in given.items() for word in (option, str(records / name))), cwd=tmp_path)
    assert Contract.load(contract) == CONTRACT and "taxi" in contract.read_text()
    assert "legs" in done.stdout and list((tmp_path / "data" / "legs").glob("*.parquet"))
    again = command(*words, "--trips", "nowhere", "--weather", "x", "--zones", "y", cwd=tmp_path, check=False)
    assert again.returncode != 0 and "Traceback" not in again.stderr and Contract.load(contract) == CONTRACT


def rename(name: str, column: str) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        frame = pd.read_parquet(folder / name)
        frame.rename(columns={column: "other"}).to_parquet(folder / name)

    return apply


def truncate(folder: Path) -> None:
    content = (folder / "trips.parquet").read_bytes()
    (folder / "trips.parquet").write_bytes(content[: len(content) // 2])


def empty(folder: Path) -> None:
    pd.read_parquet(folder / "trips.parquet").iloc[:0].to_parquet(folder / "trips.parquet")


def drop_zones(folder: Path) -> None:
    (folder / "zones.csv").write_text("LocationID,Borough,Zone\n1,EWR,Newark Airport\n")


@pytest.mark.parametrize(("spoil", "said"), [
    (lambda folder: (folder / "trips.parquet").unlink(), "the file of the trips does not exist"),
    (lambda folder: (folder / "weather.parquet").unlink(), "the file of the weather does not exist"),
    (rename("trips.parquet", "trip_distance"), "column `trip_distance` of the trips is missing"),
    (rename("weather.parquet", "rain_mm"), "column `rain_mm` of the weather is missing"),
    (drop_zones, "column `lat` of the zones is missing"),
    (truncate, "the file is cut off or damaged"),
    (empty, "the file of the trips holds no trips"),
], ids=["no trips", "no weather", "no distance", "no rain", "no centroids", "truncated", "empty"])
def test_a_spoilt_input_is_named(records: Path, spoil: Callable[[Path], None], said: str) -> None:
    spoil(records)
    with pytest.raises(DataError, match=said):
        run(records)
    assert not (records / "data with spaces" / "legs").exists()
