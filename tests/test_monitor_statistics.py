"""The figures of the monitor against SciPy's on the rows themselves, and how often quiet windows raise an alarm."""

import math

import ibis
import numpy as np
import pandas as pd
import pytest
from scipy import stats
from scipy.spatial.distance import jensenshannon

from labline.models.example import example_contract, example_held_out, example_judged, example_rows
from labline.operations.monitor.counting import Grid, count_frame, count_table, watched
from labline.operations.monitor.distances import Bins, chi_square, jensen_shannon, kolmogorov_smirnov, stability_index, wasserstein
from labline.operations.monitor.drift import drift_of
from labline.operations.monitor.reference import Reference
from labline.operations.monitor.verdict import Bounds, column_checks

DRAW = np.random.default_rng(5)
NUMBERS = {
    "two decimals": (DRAW.gamma(2, 4, 5000).round(2), DRAW.gamma(2, 5, 3000).round(2)),
    "whole numbers": (DRAW.poisson(3, 4000).astype(float), DRAW.poisson(4, 900).astype(float)),
    "many ties": (DRAW.choice([0.0, 1.0, 5.5], 3000, p=[0.8, 0.1, 0.1]), DRAW.choice([0.0, 1.0, 5.5], 3000, p=[0.5, 0.3, 0.2])),
    "negative": ((DRAW.normal(-50, 10, 2000)).round(1), (DRAW.normal(-45, 20, 2500)).round(1)),
    "apart": (DRAW.uniform(0, 1, 500).round(3), DRAW.uniform(2, 3, 500).round(3)),
}


@pytest.mark.parametrize("name", NUMBERS)
def test_numbers_give_what_scipy_gives(name: str) -> None:
    before, after = NUMBERS[name]
    grid = Grid.of(before)
    old, new = (count_frame(pd.Series(values), grid) for values in (before, after))
    table = ibis.memtable(pd.DataFrame({"prediction": after}))
    in_engine = count_table(table, watched(example_contract())[-1], grid)
    assert (in_engine.values == new.values).all() and (in_engine.counts == new.counts).all()
    assert math.isclose(kolmogorov_smirnov(old, new), stats.ks_2samp(before, after).statistic, rel_tol=1e-9)
    assert math.isclose(wasserstein(old, new), stats.wasserstein_distance(before, after), rel_tol=1e-9)
    bins = Bins.of(old)
    cut = [np.bincount(np.searchsorted(bins.edges, np.round(values / grid.step) * grid.step), minlength=len(bins.labels)) for values in (before, after)]
    assert math.isclose(jensen_shannon(bins.count(old), bins.count(new)), jensenshannon(*(part / part.sum() for part in cut), base=2), rel_tol=1e-9)
    expected = stats.chi2_contingency(np.stack(cut)[:, np.sum(cut, axis=0) > 0], correction=False)
    statistic, degrees = chi_square(bins.count(old), bins.count(new))
    assert math.isclose(statistic, expected.statistic, rel_tol=1e-9) and degrees == expected.dof


def test_finer_numbers_differ_by_less_than_a_step() -> None:
    before, after = DRAW.normal(0, 1, 8000), DRAW.normal(0.2, 1.1, 8000)
    grid = Grid.of(before)
    old, new = (count_frame(pd.Series(values), grid) for values in (before, after))
    assert abs(kolmogorov_smirnov(old, new) - stats.ks_2samp(before, after).statistic) < 0.002
    assert abs(wasserstein(old, new) - stats.wasserstein_distance(before, after)) < grid.step


def test_categories_give_what_scipy_gives() -> None:
    before, after = DRAW.choice(list("abcd"), 3000, p=[0.4, 0.3, 0.2, 0.1]), DRAW.choice(list("abcd"), 800, p=[0.3, 0.3, 0.3, 0.1])
    rule = ("a", "b", "c", "d")
    counted = [count_frame(pd.Series(values, dtype=object), rule) for values in (before, after)]
    old, new = (Bins.of(counted[0]).count(one) for one in counted)
    table = np.stack([[np.sum(values == letter) for letter in rule] for values in (before, after)])
    expected = stats.chi2_contingency(table, correction=False)
    assert np.allclose(chi_square(old, new), (expected.statistic, expected.dof))
    assert math.isclose(jensen_shannon(old, new), jensenshannon(*(line / line.sum() for line in table), base=2), rel_tol=1e-9)
    shares = table / table.sum(axis=1, keepdims=True)
    assert math.isclose(stability_index(old, new), float(((shares[1] - shares[0]) * np.log(shares[1] / shares[0])).sum()), rel_tol=1e-9)


def world(days: int, rows: int, seed: int) -> pd.DataFrame:
    """Quiet trips: rows of a day share their traffic, and speeds wander from week to week by more than from row to row."""
    draw = np.random.default_rng(seed)
    trips, slow = example_rows(days * rows, seed=seed), np.zeros(days + 60)
    trips["requested_at"] = pd.Timestamp("2025-01-06") + pd.to_timedelta(np.arange(len(trips)) * 86400 / rows, unit="s")
    for place in range(1, days + 60):
        slow[place] = 0.9 * slow[place - 1] + draw.normal(0, 1)
    day = np.arange(len(trips)) // rows
    trips["speed_kmh"] = (trips["speed_kmh"] + 2.0 * draw.normal(0, 1, days)[day] + 1.5 * slow[60:][day]).clip(8, 90).round(1)
    trips["distance_km"] = (trips["distance_km"] * np.exp(draw.normal(0, 0.05, days))[day]).round(1)
    return example_judged(trips, seed=seed)


@pytest.mark.parametrize(("rows", "hours"), [(48, 168.0), (200, 168.0), (200, 24.0)])
def test_quiet_windows_raise_an_alarm_in_at_most_two_of_a_hundred(rows: int, hours: float) -> None:
    """Twenty releases and ten windows after each, in a world that does not change, though its days and weeks differ."""
    importance = {"distance_km": 8.0, "speed_kmh": 3.0, "zone": 0.5, "vehicle": 0.5, "passengers": 0.4}
    length, alarms, naive = round(hours / 24) * rows, 0, 0
    for seed in range(20):
        trips = world(42 + round(hours / 2.4), rows, seed)
        reference, later = Reference.of_rows(trips.iloc[: 42 * rows], example_contract(), {"importance": importance}), trips.iloc[42 * rows :]
        watching = {name: one for name, one in reference.columns.items() if one.one.hours <= hours}
        for place in range(10):
            window = later.iloc[place * length : (place + 1) * length]
            counts = {name: count_frame(one.one.of_frame(window), one.rule) for name, one in watching.items()}
            moved = drift_of(counts, {}, reference, hours)
            alarms += "alarm" in [check.status for check in column_checks(moved, reference, Bounds())]
            naive += bool((moved["psi"] >= Bounds().drift_alarm).any())
    assert alarms <= 4 and naive >= 10 * max(alarms, 1), (alarms, naive)


def test_the_same_windows_with_a_real_change_all_raise_one() -> None:
    held_out = example_held_out()
    reference = Reference.of_rows(held_out, example_contract(), {"importance": {"distance_km": 8.0, "speed_kmh": 3.0}})
    for seed in range(5):
        week = example_judged(example_rows(336, seed=20 + seed))
        counts = {}
        for name, one in reference.columns.items():
            changed = week.assign(distance_km=week["distance_km"] * 1.609)
            counts[name] = count_frame(one.one.of_frame(changed), one.rule)
        found = {check.cause: check.status for check in column_checks(drift_of(counts, {}, reference, 168.0), reference, Bounds())}
        assert found["drift:distance_km"] == "alarm"
