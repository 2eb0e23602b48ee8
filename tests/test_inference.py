"""From people's files to a contract: real tables, every format and encoding, dirt of all kinds, and what is refused."""

import datetime
import gzip
import random
import sqlite3
import tempfile
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import ibis
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sklearn import datasets

from labline.data.canonical import adopt, load_readings, read_delivery
from labline.data.contract import Contract
from labline.data.inference import Inference
from labline.data.quality import validate
from labline.data.reading import read_raw
from labline.data.recognising import recognise_table, typed_rows
from labline.data.tables import ROW, connect
from labline.errors import DataError, LablineError

FEW = settings(max_examples=12, deadline=None, suppress_health_check=list(HealthCheck))


def accepted(folder: Path) -> pd.DataFrame:
    """The accepted table of a workspace, after `validate` rejected no row of it."""
    contract = Contract.load(folder / "contract.yaml")
    quality = validate(contract, folder / "data", folder / "out", threads=1)
    assert quality.tables["rejected"].tolist() == [0], quality.reasons
    return pd.read_parquet(folder / "out" / "tables" / f"{contract.main}.parquet")


def uses(inference: Inference) -> dict[str, str]:
    """Label of the column → what it is used for."""
    return dict(zip(inference.findings["column"], inference.findings["use"], strict=True))


# ---- real tables


def real(shared_data: Path, name: str) -> Path:
    path = shared_data / "tabular" / name
    if not path.is_file():
        pytest.skip(f"no real data: {path} does not exist")
    return path


def test_titanic(shared_data: Path, tmp_path: Path) -> None:
    inference = adopt([real(shared_data, "titanic.csv")], tmp_path / "new", "survived")
    contract, used = inference.contract, uses(inference)
    columns = contract.tables["titanic"].columns
    assert (contract.task, contract.id, contract.time, columns["survived"].categories) == ("classification", "passenger_id", None, ["0", "1"])
    assert used["Name"] == used["Ticket"] == "left out" and used["Cabin"] == used["Age"] == "feature" and columns["age"].nullable
    assert inference.split.method == "strata" and not any("leakage" in note for note in inference.notes)
    assert len(accepted(tmp_path / "new")) == 891


def test_bike_sharing_is_what_was_once_written_by_hand(shared_data: Path, tmp_path: Path) -> None:
    inference = adopt([real(shared_data, "bike_sharing_hour.csv")], tmp_path / "new", "cnt", name="hours")
    mine, theirs = inference.contract.tables["hours"].columns, Contract.load(Path(__file__).parent / "bike_sharing" / "contract.yaml").tables["hours"].columns
    roles = {name: "feature" if column.role == "other" else column.role for name, column in theirs.items()}  # `other` is taste: what the day tells as well
    assert {name: column.role for name, column in mine.items()} == roles
    assert {name for name, column in mine.items() if column.type == "timestamp"} == {"dteday"}
    assert "Suspected leakage, left out: `casual`. cnt = registered + casual, in a sample of 17,379 rows." in inference.notes
    assert inference.split.method == "time" and inference.contract.task == "regression"
    rows = accepted(tmp_path / "new")
    assert len(rows) == 17_379 and (rows["casual"] + rows["registered"] == rows["cnt"]).all()


def test_telco_churn(shared_data: Path, tmp_path: Path) -> None:
    inference = adopt([real(shared_data, "telco_churn.csv")], tmp_path / "new", "Churn")
    columns = inference.contract.tables["telco_churn"].columns
    assert columns["churn"].categories == ["No", "Yes"] and inference.contract.id == "customer_id" and columns["total_charges"].nullable
    assert columns["multiple_lines"].categories == ["No", "No phone service", "Yes"] and columns["partner"].type == "boolean"
    assert not inference.left_out.size and accepted(tmp_path / "new")["total_charges"].isna().sum() == 11


@pytest.mark.parametrize(("name", "task", "classes"), [
    ("diabetes", "regression", 0), ("breast_cancer", "classification", 2), ("wine", "classification", 3),
    ("iris", "classification", 3), ("digits", "classification", 10)])
def test_the_tables_of_scikit_learn(name: str, task: str, classes: int, tmp_path: Path) -> None:
    frame = getattr(datasets, f"load_{name}")(as_frame=True).frame
    frame.to_parquet(tmp_path / f"{name}.parquet")
    inference = adopt([tmp_path / f"{name}.parquet"], tmp_path / "new", "target")
    assert inference.contract.task == task and len(inference.contract.tables[name].columns["target"].categories or []) == classes
    assert len(accepted(tmp_path / "new")) == len(frame) and not any("leakage" in note for note in inference.notes)
    constant = {column for column in frame if frame[column].nunique() == 1}
    assert set(inference.left_out["column"]) == constant


# ---- formats


CITIES = ["Köln", "Besançon", "Ávila"]


def table(rows: int = 120, seed: int = 3) -> pd.DataFrame:
    """A clean table of all kinds, with letters that one encoding of Western Europe holds."""
    rng = np.random.default_rng(seed)
    weight = rng.uniform(1, 90, rows).round(2)
    return pd.DataFrame({
        "Order ID": [f"A-{number:05d}" for number in range(rows)], "Ordered at": pd.date_range("2023-01-01", periods=rows, freq="D"),
        "City": rng.choice(CITIES, rows), "Weight (kg)": weight, "Express": rng.random(rows) < 0.5, "Pieces": rng.integers(1, 50, rows),
        "Price": (weight * 3 + rng.normal(0, 40, rows)).round(2)})


LAYOUTS = {
    "plain": (",", ".", "utf-8"), "tab": ("\t", ".", "utf-8"), "bar": ("|", ".", "utf-8-sig"), "wide": (",", ".", "utf-16"), "old": (",", ".", "cp1252"),
    "semicolon": (";", ",", "cp1252"), "latin": (";", ",", "latin-1")}  # separator, decimal mark, encoding


def written(frame: pd.DataFrame, path: Path) -> Path:
    """A file of the format that its name tells."""
    if path.suffix == ".xlsx":
        frame.to_excel(path, index=False)
    elif path.suffix == ".jsonl":
        frame.to_json(path, orient="records", lines=True, date_format="iso", force_ascii=False)
    elif path.suffix == ".json":
        frame.to_json(path, orient="records", date_format="iso")
    elif path.suffix == ".parquet":
        frame.to_parquet(path)
    elif path.suffix == ".db":
        with closing(sqlite3.connect(path)) as connection:
            frame.to_sql("orders", connection, index=False)
    else:
        separator, decimal, encoding = LAYOUTS[path.stem]
        frame.to_csv(path, index=False, sep=separator, decimal=decimal, encoding=encoding)
    return path


@pytest.mark.parametrize("name", ["plain.csv", "tab.tsv", "semicolon.csv", "bar.txt", "wide.csv", "latin.csv", "old.csv", "book.xlsx", "lines.jsonl",
                                  "list.json", "typed.parquet", "shop.db"])
def test_every_format_gives_the_same_table(name: str, tmp_path: Path) -> None:
    frame = table()
    path = written(frame, tmp_path / name)
    address = f"sqlite:///{path}::orders" if name == "shop.db" else path
    inference = adopt([address], tmp_path / "new", "Price", name="orders")
    rows = accepted(tmp_path / "new").sort_values("order_id", ignore_index=True)
    assert list(rows.columns) == ["order_id", "ordered_at", "city", "weight_kg", "express", "pieces", "price"]
    for column, label in zip(rows.columns, frame.columns, strict=True):
        assert rows[column].tolist() == frame[label].tolist(), column
    columns = inference.contract.tables["orders"].columns
    assert (inference.contract.time, inference.contract.id, columns["weight_kg"].unit, columns["express"].type) == ("ordered_at", "order_id", "kg", "boolean")


def test_several_files_and_a_folder_are_one_table(tmp_path: Path) -> None:
    frame = table()
    (tmp_path / "in").mkdir()
    for number in range(3):
        part = frame.iloc[40 * number: 40 * number + 40]
        part[frame.columns[::-1] if number == 1 else frame.columns].to_csv(tmp_path / "in" / f"part{number}.csv", index=False)
    for address in ([tmp_path / "in"], [tmp_path / "in" / "part*.csv"], sorted((tmp_path / "in").iterdir())):
        with connect(threads=1) as connection, tempfile.TemporaryDirectory() as scratch:
            raw = read_raw(connection, address, scratch)
            assert raw.count == 120 and connection.to_pandas(raw.rows.order_by(ROW))["Order ID"].tolist() == frame["Order ID"].tolist()


def test_a_packed_file_and_a_file_with_a_title(tmp_path: Path) -> None:
    text = "Orders of 2023\n\n" + table().to_csv(index=False)
    (tmp_path / "orders.csv.gz").write_bytes(gzip.compress(text.encode()))
    inference = adopt([tmp_path / "orders.csv.gz"], tmp_path / "new", "price")
    assert inference.contract.name == "orders" and any("2 lines above the names were skipped" in note for note in inference.notes)


# ---- dirt


def test_dirt_of_all_kinds(tmp_path: Path) -> None:
    rng = np.random.default_rng(5)
    count = 400
    days = [datetime.date(2021, 1, 1) + datetime.timedelta(days=int(number)) for number in rng.integers(0, 700, count)]
    frame = pd.DataFrame({
        "Car name": rng.choice(["Alto", "ALTO ", "Swift", "Ertiga"], count),
        "Mileage": [rng.choice([f"{value:.2f} kmpl", "null", "?"], p=[0.9, 0.05, 0.05]) for value in rng.uniform(10, 30, count)],
        "Price new": [f"{value:.2f} Cr" if value > 1 else f"{100 * value:.2f} Lakh" for value in rng.uniform(0.1, 3, count)],
        "Discount": [f"{value} %" for value in rng.integers(0, 40, count)], "Paid": [f"${value:,.2f}" for value in rng.uniform(500, 90_000, count)],
        "Serviced": rng.choice(["Y", "n", "yes", "No", "unknown", ""], count),
        "Sold on": [day.strftime(rng.choice(["%Y-%m-%d", "%d.%m.%Y", "%d %B %Y"])) for day in days],
        "Dealer": ["one dealer"] * count, "Warmth": rng.choice([-999.0, 20.5, 21.5, 22.25, 30.0], count),
        "Notes": [f"seen in the street number {value}" for value in range(count)],
        "class": rng.integers(1, 4, count), "Tags": ["[1, 2]"] * count})
    frame["Warmth again"] = frame["Warmth"]
    frame.to_csv(tmp_path / "used cars.csv", index=False)
    inference = adopt([tmp_path / "used cars.csv"], tmp_path / "new", "paid", time="")
    rows, columns, used = accepted(tmp_path / "new"), inference.contract.tables["used_cars"].columns, uses(inference)
    assert set(rows["car_name"]) == {"Alto", "Swift", "Ertiga"} or set(rows["car_name"]) == {"ALTO", "Swift", "Ertiga"}
    assert columns["mileage"].unit == "kmpl" and columns["mileage"].nullable and rows["price_new"].between(1e6, 3e7).all()
    assert columns["discount"].unit == "%" and columns["paid"].unit == "USD" and columns["serviced"].type == "boolean" and columns["class_"].label == "class"
    assert columns["sold_on"].type == "timestamp" and rows["sold_on"].notna().all() and sorted(rows["sold_on"].dt.date) == sorted(days)
    assert used["Dealer"] == used["Warmth again"] == used["Notes"] == "left out" and rows["warmth"].min() == 20.5


def test_repeated_rows_are_dropped_where_that_is_no_chance(tmp_path: Path) -> None:
    frame = table(200).drop(columns="Order ID")
    pd.concat([frame, frame.iloc[:130]]).to_csv(tmp_path / "twice.csv", index=False)
    inference = adopt([tmp_path / "twice.csv"], tmp_path / "new", "price")
    assert len(accepted(tmp_path / "new")) == 200
    assert any("130 rows (39.4%) repeat another one in every column; of each one is kept" in note for note in inference.notes)


def test_rows_without_a_target_are_left_out_and_counted(tmp_path: Path) -> None:
    frame = table()
    frame.loc[:49, "Price"] = np.nan
    frame.to_csv(tmp_path / "half.csv", index=False)
    inference = adopt([tmp_path / "half.csv"], tmp_path / "new", "price")
    assert len(accepted(tmp_path / "new")) == 70 and "50 of 120 rows have no `Price` and are left out." in inference.notes


def test_groups_and_the_next_delivery(tmp_path: Path) -> None:
    frame = table(300).drop(columns=["Order ID", "Ordered at"])
    frame.insert(0, "Customer", np.random.default_rng(1).integers(0, 60, 300))
    frame.to_csv(tmp_path / "first.csv", index=False)
    inference = adopt([tmp_path / "first.csv"], tmp_path / "new", "price", identifier="customer")
    contract = Contract.load(tmp_path / "new" / "contract.yaml")
    assert (inference.split.method, inference.split.column, contract.id) == ("groups", "customer", "row_id")
    frame.drop(columns="Price").to_csv(tmp_path / "next.csv", index=False)
    with connect(threads=1) as connection, tempfile.TemporaryDirectory() as scratch:
        raw = read_raw(connection, [tmp_path / "next.csv"], scratch)
        later = connection.to_pandas(read_delivery(raw, load_readings(tmp_path / "new" / "reading.yaml"), contract, first=300).order_by(ROW))
    earlier = pd.read_parquet(tmp_path / "new" / "data" / "first.parquet")
    assert later[["customer", "city", "weight_kg"]].equals(earlier[["customer", "city", "weight_kg"]]) and later["row_id"].iloc[0] == "301"


# ---- what is refused


def csv_of(**columns: list) -> bytes:
    return pd.DataFrame(columns).to_csv(index=False).encode()


REFUSED: dict[str, tuple[bytes, str, dict, str]] = {
    "no such column": (csv_of(Price=range(60), Size=range(60)), "Prise", {}, "unknown target `Prise`. Did you mean `Price`? There are `Price`, `Size`."),
    "one class": (csv_of(Left=["no"] * 60, age=range(60)), "Left", {}, "all rows have the same value"),
    "too many classes": (csv_of(Name=[f"name {number}" for number in range(10_000)], age=range(10_000)), "Name", {}, "10,000 classes in 10,000 rows"),
    "all missing": (csv_of(y=["n/a"] * 60, age=range(60)), "y", {}, "all values are missing"),
    "text for regression": (csv_of(y=["red", "blue"] * 30, age=range(60)), "y", {"task": "regression"}, "a regression needs numbers"),
    "ten rows": (csv_of(y=range(10), x=range(10)), "y", {}, "the table has 10 rows, and at least 50 are needed"),
    "a time as target": (csv_of(y=pd.date_range("2024-01-01", periods=60).astype(str), x=range(60)), "y", {}, "it is a time"),
    "empty": (b"", "y", {}, "the file is empty"),
    "blank": (b"\n\n  \n", "y", {}, "the file is empty"),
    "names alone": (b"a,b\n", "a", {}, "the table has names, and no rows"),
    "no names": (b"5.1,3.5,a\n4.9,3.0,b\n" * 30, "a", {}, "the first line holds values, and no names"),
    "a picture": (b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR", "y", {}, "the file is a picture, and no table"),
    "a web page": (b"<!DOCTYPE html>\n<html><body>Sign in</body></html>", "y", {}, "the file is a web page, and no table"),
    "binary": (bytes(range(256)) * 4, "y", {}, "the file is binary"),
    "old Excel": (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + b"\0" * 600, "y", {}, "the old kind"),
    "cut parquet": (b"PAR1\x15\x04", "y", {}, "damaged"),
    "one column": (b"y\n" + b"1\n" * 60, "y", {}, "the table has one column"),
    "torn lines": (b"a,b\n" + b"1,2\n1,2,3\n" * 60, "a", {}, "lines cannot be read"),
    "words as time": (csv_of(y=range(60), x=["a", "b", "c"] * 20), "y", {"time": "x"}, "holds no times"),
    "nothing to learn from": (csv_of(y=range(60), x=["a"] * 60), "y", {}, "no column is left to learn from"),
    "wrong encoding": ("y;größe\n1;2\n".encode("cp1252") * 60, "y", {"encoding": "utf-8-sig"}, "the file is not written in utf-8-sig"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_refused_says_why_and_leaves_nothing(case: str, tmp_path: Path) -> None:
    content, target, options, sentence = REFUSED[case]
    (tmp_path / "in.csv").write_bytes(content)
    with pytest.raises(LablineError) as caught:
        adopt([tmp_path / "in.csv"], tmp_path / "new", target, **options)
    assert sentence in str(caught.value) and "\n" not in str(caught.value), str(caught.value)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.csv"]


def test_two_files_with_different_columns(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_bytes(csv_of(x=range(60), y=range(60)))
    (tmp_path / "b.csv").write_bytes(csv_of(x=range(60), z=range(60)))
    with pytest.raises(DataError, match=r"only a.csv has `y`, and only b.csv has `z`"):
        adopt([tmp_path / "a.csv", tmp_path / "b.csv"], tmp_path / "new", "x")
    with pytest.raises(DataError, match="no file is there"):
        adopt([tmp_path / "c.csv"], tmp_path / "new", "x")
    assert not (tmp_path / "new").exists()


def test_a_workspace_that_is_there_is_never_overwritten(tmp_path: Path) -> None:
    table().to_csv(tmp_path / "in.csv", index=False)
    adopt([tmp_path / "in.csv"], tmp_path / "new", "price")
    before = {path: path.read_bytes() for path in (tmp_path / "new").rglob("*") if path.is_file()}
    with pytest.raises(LablineError, match="is not overwritten"):
        adopt([tmp_path / "in.csv"], tmp_path / "new", "weight_kg")
    assert {path: path.read_bytes() for path in (tmp_path / "new").rglob("*") if path.is_file()} == before


# ---- anything at all


def read_back(texts: list[str], comma: bool = False) -> tuple[list, str]:
    """A column of texts as it is recognised and read, and its type."""
    rows = ibis.memtable(pa.table({"x": pa.array(texts, pa.string()), ROW: pa.array(range(1, len(texts) + 1), pa.int64())}))
    with connect(threads=1) as connection:
        readings = recognise_table(connection, rows, len(texts), comma)
        found = connection.to_pyarrow(typed_rows(rows, readings).order_by(ROW))["x"].to_pylist()
    return found, readings[0].spelling.type


STYLES: dict[str, Callable[[float], str]] = {
    "plain": lambda value: f"{value:.2f}", "thousands": lambda value: f"{value:,.2f}",
    "european": lambda value: f"{value:,.2f}".translate(str.maketrans(",.", ".,")),
    "spaced": lambda value: f"{value:,.2f}".replace(",", " "), "euro": lambda value: f"{value:.2f} €",
    "dollar": lambda value: f"${value:,.2f}" if value >= 0 else f"-${-value:,.2f}",
    "percent": lambda value: f"{value:.2f}%", "kilometres": lambda value: f"{value:.2f} km",
    "debt": lambda value: f"({-value:,.2f})" if value < 0 else f"{value:,.2f}"}


@FEW
@given(values=st.lists(st.integers(-10**9, 10**9), min_size=5, max_size=40), style=st.sampled_from(sorted(STYLES)))
def test_numbers_come_back_in_whatever_style_they_are_written(values: list[int], style: str) -> None:
    numbers = [value / 100 for value in values]
    found, kind = read_back([STYLES[style](number) for number in numbers])
    if kind == "boolean":
        assert set(values) <= {0, 100}
    else:
        assert kind == "number" and found == pytest.approx(numbers), (style, found)


@FEW
@given(moments=st.lists(st.datetimes(datetime.datetime(1995, 1, 1), datetime.datetime(2035, 1, 1)), min_size=30, max_size=60),
       format=st.sampled_from(["%Y-%m-%d", "%d.%m.%Y", "%d/%m/%Y %H:%M", "%m/%d/%Y", "%Y-%m-%dT%H:%M:%S", "%d %B %Y", "%b %d, %Y", "%m/%d/%y %I:%M %p"]))
def test_moments_come_back_in_whatever_format_they_are_written(moments: list[datetime.datetime], format: str) -> None:
    moments = [*moments, datetime.datetime(2024, 3, 25, 16, 30)]
    texts = [moment.strftime(format) for moment in moments]
    found, kind = read_back(texts)
    assert kind == "timestamp" and [moment.strftime(format) for moment in found] == texts


DIRTY = st.one_of(
    st.sampled_from(["", " ", "?", "NA", "n/a", "null", "-", "none", "unknown", "nan", "NaN", "inf", "1e999", "0x1F", "'", '"', ",", ";", "\\", "\t",
                     "a\nb", "Ünïcödé", "𝔘", "\u00a0",
                     "1,234", "1.234,5", "12 %", "$5", "5 km", "yes", "NO", "2024-02-30", "31/12/2024", "12:30", "[1, 2]", "{}", "0012", "A4",
                     "--5", "1 2 3", "٣", "²"]),
    st.integers(-10**20, 10**20).map(str), st.floats(allow_nan=True, allow_infinity=True).map(str), st.text(max_size=12))


@FEW
@given(seed=st.integers(0, 10**6), pools=st.lists(st.lists(DIRTY, min_size=1, max_size=8), min_size=1, max_size=5), rows=st.integers(1, 150),
       labels=st.lists(st.text(max_size=8), min_size=6, max_size=6))
def test_no_table_breaks_it(seed: int, pools: list[list[str]], rows: int, labels: list[str]) -> None:
    """Whatever is in the cells: a sentence and nothing left behind, or a table that `validate` accepts as a whole."""
    drawn = random.Random(seed)
    columns = [[drawn.choice(pool) for _ in range(rows)] for pool in pools] + [[str(drawn.randint(0, 10**6)) for _ in range(rows)]]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "in.parquet")
        names = [f"{number} {label}" for number, label in enumerate(labels)][:len(columns)]
        pq.write_table(pa.table([pa.array(column, pa.string()) for column in columns], names=names), path)
        for target in (names[0], names[-1]):
            new = Path(folder, f"new{names.index(target)}")
            try:
                adopt([path], new, target, threads=1)
            except LablineError as error:
                assert str(error).strip() and not new.exists()
            else:
                accepted(new)
