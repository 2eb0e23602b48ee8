"""The monitor's figures against Evidently's and NannyML's on the same rows.

Both are too heavy and too much at odds with each other for the development environment. `benchmarks/peers/figures.json` keeps what they said, with their
versions and a digest of the rows; `python benchmarks/drift.py --only figures` asks them again and says whether the file still holds.

Where definitions differ, the comparison is by one that both sides share:

- Labline counts missing values as a bin of their own, the peers leave them out. So they are given each number in the words of Labline's ten bins, with
  `missing` as a word, and only there population stability index, Jensen–Shannon distance and chi-square are compared. Left to themselves, Evidently cuts
  numbers by Sturges' rule over both samples, NannyML by Doane's over the reference.
- Evidently's Jensen–Shannon distance has the natural logarithm, Labline's and NannyML's the logarithm to base 2: a factor of √ln 2.
- Evidently gives the p-value of the Kolmogorov–Smirnov test in place of the statistic, and the Wasserstein distance in standard deviations of the reference.
- NannyML's chi-square is the test of homogeneity, as Labline's, but with Yates' correction for two categories. Evidently's takes the reference for the truth,
  and gives a p-value.
- Labline's grid has 2,000 steps over the range of a column. Where values are finer (`prediction` alone here), figures are within what a step can do.
"""

import json
import math
from pathlib import Path
from typing import Any

import ibis
import numpy as np
import pandas as pd
import pytest
from peers import windows
from scipy import stats

from labline.models.example import example_contract
from labline.operations.monitor.counting import Grid, count_table
from labline.operations.monitor.drift import compare
from labline.operations.monitor.estimate import Estimator
from labline.operations.monitor.reference import Reference
from labline.operations.monitor.usual import Usual

KEPT: dict[str, Any] = json.loads((Path(windows.__file__).parent / "figures.json").read_text())
FINER = "prediction"
COLUMNS = (*windows.CATEGORIES, *windows.NUMBERS)


@pytest.fixture(scope="module")
def rows() -> dict[str, pd.DataFrame]:
    made = windows.all_windows()
    assert windows.digest(made) == KEPT["rows"], "other rows than those the peers saw: run `python benchmarks/drift.py --only figures --write-figures`"
    return made


@pytest.fixture(scope="module")
def reference(rows: dict[str, pd.DataFrame]) -> Reference:
    return Reference.of_rows(rows["reference"], example_contract())


@pytest.fixture(scope="module")
def ours(rows: dict[str, pd.DataFrame], reference: Reference) -> dict[tuple[str, str], dict[str, Any]]:
    """Window and column → what the monitor says, counted in the database as it does; with the counts of both sides."""
    found = {}
    for name in ("quiet", "moved"):
        table = ibis.memtable(rows[name])
        for column in COLUMNS:
            baseline = reference.columns[column]
            counted = count_table(table, baseline.one, baseline.rule)
            found[name, column] = {**compare(baseline, counted, Usual()), "old": baseline.binned, "new": baseline.bins.count(counted)}
            found[name, column] |= {"sizes": (baseline.counted.present, counted.present)}
    return found


def peer(which: str, window: str, column: str, method: str) -> float:
    return float(KEPT[which]["drift"][window][column][method])


def binned(column: str) -> str:
    return column if column in windows.CATEGORIES else column + windows.IN_TENTHS


CASES = [(window, column) for window in ("quiet", "moved") for column in COLUMNS]
OF_NUMBERS = [(window, column) for window, column in CASES if column in windows.NUMBERS]


@pytest.mark.parametrize(("window", "column"), OF_NUMBERS)
def test_kolmogorov_smirnov_and_wasserstein(window: str, column: str, ours: dict[tuple[str, str], dict[str, Any]], reference: Reference) -> None:
    said, rule = ours[window, column], reference.columns[column].rule
    assert isinstance(rule, Grid)
    gap = 0.002 if column == FINER else 1e-9  # of cumulated shares: the rows within one step
    assert math.isclose(said["ks"], peer("nannyml", window, column, "kolmogorov_smirnov"), abs_tol=gap)
    old, new = said["sizes"]
    chance = stats.kstwo.sf(said["ks"], round(old * new / (old + new)))
    assert math.isclose(chance, peer("evidently", window, column, "ks"), rel_tol=0.25 if column == FINER else 1e-6)
    step = rule.step if column == FINER else 1e-9
    assert math.isclose(said["wasserstein"], peer("nannyml", window, column, "wasserstein"), abs_tol=step)
    assert math.isclose(said["deviations"], peer("evidently", window, column, "wasserstein"), rel_tol=1e-6 if column != FINER else 0.01)


@pytest.mark.parametrize(("window", "column"), CASES)
def test_stability_index_and_jensen_shannon(window: str, column: str, ours: dict[tuple[str, str], dict[str, Any]]) -> None:
    said, word = ours[window, column], binned(column)
    relative = 0.02 if column == FINER else 1e-6
    assert math.isclose(said["psi"], peer("evidently", window, word, "psi"), rel_tol=relative, abs_tol=2e-4 if column == FINER else 0.0)
    assert math.isclose(said["jensen_shannon"], peer("nannyml", window, word, "jensen_shannon"), rel_tol=relative)
    assert math.isclose(said["jensen_shannon"] * math.sqrt(math.log(2)), peer("evidently", window, word, "jensenshannon"), rel_tol=relative)


@pytest.mark.parametrize(("window", "column"), CASES)
def test_chi_square(window: str, column: str, ours: dict[tuple[str, str], dict[str, Any]]) -> None:
    said, word = ours[window, column], binned(column)
    relative = 0.05 if column == FINER else 1e-6
    used = said["old"] > 0
    old, new = said["old"][used].astype(float), said["new"][used].astype(float)
    if len(old) > 2:
        assert math.isclose(said["chi_square"], peer("nannyml", window, word, "chi2"), rel_tol=relative)
    else:
        assert math.isclose(stats.chi2_contingency(np.stack([old, new]), correction=True).statistic, peer("nannyml", window, word, "chi2"), rel_tol=relative)
        assert math.isclose(said["chi_square"], stats.chi2_contingency(np.stack([old, new]), correction=False).statistic, rel_tol=1e-9)
    expected = old * new.sum() / old.sum()
    chance = stats.chi2.sf((np.square(new - expected) / expected).sum(), len(old) - 1)
    assert math.isclose(chance, peer("evidently", window, word, "chisquare"), rel_tol=0.5 if column == FINER else 1e-5)


@pytest.mark.parametrize("window", ["quiet", "moved"])
def test_the_estimate_before_actual_values(window: str, rows: dict[str, pd.DataFrame], reference: Reference) -> None:
    """Two gradient boosters of different makers learn the same 15,000 errors, whose standard deviation is about as large as their mean.

    A booster with leaves of some tens of rows knows the error of a kind of trip to about 5 %, and over 3,000 rows of all kinds most of that cancels. So the
    two agree to 3 % of the error at the release, which is a third of the least growth that the monitor warns of; and both see that the moved rows bring more.
    """
    estimate = Estimator.known(reference, 168.0).estimate(rows[window].assign(actual=math.nan))
    theirs = float(KEPT["nannyml"]["mae"][window])
    assert abs(estimate.value - theirs) <= 0.03 * reference.error
    assert estimate.low <= theirs <= estimate.high
    true = float((rows[window]["prediction"] - rows[window]["actual"]).abs().mean())
    assert estimate.low <= true <= estimate.high
    if window == "moved":
        assert estimate.value > 1.08 * reference.error and theirs > 1.08 * reference.error
