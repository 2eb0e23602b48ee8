"""Metrics and intervals: exact sums, bounded size, and a bootstrap that is right for dependent rows."""

import math
import time
from pathlib import Path

import ibis
import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from labline.errors import ModelError
from labline.models.metrics import ALL, ErrorSummary, bootstrap, intervals, paired_bootstrap, regression_metrics, resampling_weights, summarise, with_clusters


def rides(rows: int = 5000, seed: int = 0) -> pd.DataFrame:
    random = np.random.default_rng(seed)
    actual = random.gamma(3, 8, rows)
    table = pd.DataFrame({"id": range(rows), "at": pd.date_range("2025-01-01", periods=rows, freq="17min"), "actual": actual})
    return table.assign(prediction=actual + random.standard_t(3, rows) * 4, kind=random.choice(["a", "b", None], rows))


def summary_of(table: pd.DataFrame, path: Path, threads: int) -> dict[str, ErrorSummary]:
    table.to_parquet(path)
    connection = ibis.duckdb.connect(threads=threads)
    result = summarise(with_clusters(connection.read_parquet(path), "at", "id"), by="kind")
    connection.disconnect()
    return result


def test_sums_do_not_depend_on_the_order_of_rows_or_on_threads(tmp_path: Path) -> None:
    """Equal to the last bit, since they are written to files that must not change."""
    table = rides()
    first = summary_of(table, tmp_path / "a.parquet", threads=1)
    second = summary_of(table.sample(frac=1, random_state=3), tmp_path / "b.parquet", threads=2)
    assert list(first) == list(second)
    for kind in first:
        assert np.array_equal(first[kind].sums, second[kind].sums)
        assert np.array_equal(first[kind].histogram, second[kind].histogram)


@pytest.mark.parametrize("scale", [1e-3, 1.0, 200.0])
def test_summed_metrics_equal_those_of_the_rows(scale: float) -> None:
    """From tiny errors to such as fill the last bins; quantiles to the width of a bin."""
    table = rides()
    table["prediction"] = table["actual"] + (table["prediction"] - table["actual"]) * scale
    exact = regression_metrics(table["actual"], table["prediction"])
    rows = with_clusters(ibis.memtable(table), "at", "id")
    for name, value in summarise(rows)[ALL].metrics().items():
        assert value[0] == pytest.approx(exact[name], rel=0.02, abs=0.01), name


def test_a_million_rows_leave_a_small_summary(tmp_path: Path) -> None:
    """The size depends on the number of days alone."""
    path = tmp_path / "million.parquet"
    connection = ibis.duckdb.connect()
    many = "select i as id, timestamp '2025-01-01' + to_seconds(i * 5) as at, random() * 60 as actual, random() * 60 as prediction from range(1000000) t(i)"
    connection.raw_sql(f"copy ({many}) to '{path}' (format parquet)")
    started = time.perf_counter()
    summary = summarise(with_clusters(connection.read_parquet(path), "at", "id"))[ALL]
    figures = intervals(summary, resampling_weights(len(summary.sums)))
    assert time.perf_counter() - started < 60
    assert summary.sums[:, 0].sum() == 1_000_000
    assert summary.sums.nbytes + summary.histogram.nbytes < 1_000_000
    assert figures["mae"].low < 20 < figures["mae"].high + 0.1
    connection.disconnect()


def test_intervals_by_days_hold_what_they_promise_and_intervals_by_rows_do_not() -> None:
    """Days err together, and a bad day follows a bad one: 95 % intervals of the bias over 50 histories."""
    held = {"days": 0, "rows": 0}
    days = np.repeat(np.arange(90), 20)
    for history in range(50):
        random = np.random.default_rng(history)
        shocks = random.normal(0, 1, 90)
        level = np.zeros(90)
        for day in range(1, 90):
            level[day] = 0.4 * level[day - 1] + shocks[day]
        errors = np.repeat(level, 20) + random.normal(0, 2, 1800)
        by_days = bootstrap(np.zeros(1800), errors, days, resamples=300, seed=history)["bias"]
        by_rows = bootstrap(np.zeros(1800), errors, resamples=300, seed=history)["bias"]
        held["days"] += by_days.low <= 0 <= by_days.high
        held["rows"] += by_rows.low <= 0 <= by_rows.high
    assert held["days"] >= 41
    assert held["rows"] <= 30


def test_the_difference_of_two_models_is_known_better_than_their_errors() -> None:
    """What both suffer from on the same day cancels."""
    random = np.random.default_rng(2)
    days = np.repeat(np.arange(60), 30)
    hard = np.abs(np.repeat(random.normal(5, 2, 60), 30) + random.normal(0, 3, 1800))
    easier = hard + random.normal(-0.2, 0.5, 1800)
    difference = paired_bootstrap(easier, hard, days)
    alone = bootstrap(np.zeros(1800), hard, days)["bias"]
    assert difference.high < 0
    assert difference.high - difference.low < 0.3 * (alone.high - alone.low)


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 300), st.integers(1, 40), st.integers(0, 2**31))
def test_every_resample_draws_as_many_clusters_as_there_are(clusters: int, block: int, seed: int) -> None:
    """Whatever the length of the runs."""
    weights = resampling_weights(clusters, 20, seed, block)
    assert weights.shape == (20, clusters)
    assert (weights.sum(axis=1) == clusters).all()
    assert (weights >= 0).all()


@settings(max_examples=15, deadline=None)
@given(st.lists(st.floats(-1e4, 1e4), min_size=1, max_size=200), st.integers(0, 1000))
def test_an_interval_holds_its_figure(errors: list[float], seed: int) -> None:
    """Or has no bounds, where there is too little to say."""
    for name, figure in bootstrap(np.zeros(len(errors)), errors, np.arange(len(errors)), resamples=50, seed=seed).items():
        assert math.isnan(figure.low) or figure.low <= figure.value <= figure.high, name


def test_an_infinite_prediction_is_named_by_its_row() -> None:
    """The first one."""
    with pytest.raises(ModelError, match=r"rows\[2\]"):
        regression_metrics([1.0, 2.0, 3.0], [1.0, 2.0, math.inf])
