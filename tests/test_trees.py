"""Tree ensembles as graphs against scikit-learn: thresholds, missing values, categories, many leaves."""

from collections.abc import Iterator

import numpy as np
import pytest
import tensorflow as tf
from sklearn.ensemble import HistGradientBoostingRegressor
from sklearn.tree import DecisionTreeRegressor
from threadpoolctl import threadpool_limits

from labline.models.trees import TreeEnsemble, ensemble_from_boosting, ensemble_from_tree, tree_inputs


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """OpenMP's threads wait for each other by spinning, which takes minutes on a busy machine."""
    with threadpool_limits(1, user_api="openmp"):
        yield


def rows(count: int, seed: int, categories: int = 30) -> np.ndarray:
    """Three numbers, of which one is often a tie and one sometimes missing, and two categories, one sometimes missing."""
    random = np.random.default_rng(seed)
    numbers = [random.normal(size=count), np.round(random.gamma(2, 3, count)), random.exponential(5, count)]
    table = np.stack([*numbers, random.integers(1, categories, count), random.integers(1, 5, count)], axis=1).astype(np.float32)
    table[random.random(count) < 0.1, 2] = np.nan
    table[random.random(count) < 0.1, 3] = np.nan
    return table


def target(table: np.ndarray) -> np.ndarray:
    filled = np.nan_to_num(table, nan=2.0)
    return np.sin(3 * filled[:, 0]) * 5 + filled[:, 1] * (filled[:, 4] - 2) + np.where(filled[:, 3] % 4 == 1, 6, 0) + np.log1p(filled[:, 2])


def hard_rows(model_rows: np.ndarray, thresholds: list[np.ndarray], seed: int) -> np.ndarray:
    """Values on, just below and just above thresholds, infinities, missing values everywhere, and categories never seen."""
    random = np.random.default_rng(seed)
    edges = np.concatenate([part[np.isfinite(part)] for part in thresholds])
    numbers = np.concatenate([edges, np.nextafter(edges, np.inf), np.nextafter(edges, -np.inf), [np.nan, 1e30, -1e30]])
    codes = np.array([np.nan, 0, 1, 2, 3, 4, 29, 30, 31, 200, 254])
    table = np.concatenate([random.choice(numbers, (4000, 3)), random.choice(codes, (4000, 2))], axis=1)
    return np.concatenate([table, model_rows.astype(np.float64)])


def agree(ensemble: TreeEnsemble, found: np.ndarray, expected: np.ndarray) -> None:
    assert np.max(np.abs(found - expected) / np.maximum(np.abs(expected), 1e-6)) < 1e-9


@pytest.mark.parametrize("leaves", [2, 31, 32, 33, 64, 65, 150])
@pytest.mark.parametrize("loss", ["squared_error", "absolute_error"])
def test_boosting_answers_as_scikit_learn(leaves: int, loss: str) -> None:
    table = rows(3000, seed=leaves)
    model = HistGradientBoostingRegressor(loss=loss, max_iter=25, max_leaf_nodes=leaves, min_samples_leaf=5, categorical_features=[3, 4], random_state=0)
    model.fit(table, target(table))
    ensemble = ensemble_from_boosting(model)
    assert ensemble.bits == (32 if leaves <= 32 else 64)
    hard = hard_rows(table, ensemble.thresholds[:3], seed=1)
    agree(ensemble, ensemble(tf.constant(hard)).numpy(), model.predict(hard))


@pytest.mark.parametrize("leaves", [2, 64, 65, 700])
@pytest.mark.parametrize("criterion", ["squared_error", "absolute_error"])
def test_a_tree_answers_as_scikit_learn(leaves: int, criterion: str) -> None:
    table = rows(2000, seed=leaves)
    model = DecisionTreeRegressor(criterion=criterion, max_leaf_nodes=leaves, random_state=0).fit(table, target(table))
    ensemble = ensemble_from_tree(model)
    hard = hard_rows(table, ensemble.thresholds, seed=2).astype(np.float32)
    agree(ensemble, ensemble(tf.constant(hard, tf.float64)).numpy(), model.predict(hard))


def test_missing_values_where_training_had_none() -> None:
    table = np.nan_to_num(rows(1000, seed=3), nan=1.0)
    holes = table.copy()
    holes[::3, 0], holes[::5, 3] = np.nan, np.nan
    boosting = HistGradientBoostingRegressor(max_iter=10, categorical_features=[3, 4]).fit(table, target(table))
    agree(ensemble_from_boosting(boosting), ensemble_from_boosting(boosting)(tf.constant(holes, tf.float64)).numpy(), boosting.predict(holes))


def test_a_column_that_is_missing_as_a_whole_can_be_split_on() -> None:
    """A test of *missing or not* has an infinite threshold."""
    random = np.random.default_rng(0)
    table = random.normal(size=(2000, 1)).astype(np.float32)
    table[:700] = np.nan
    answer = np.where(np.isnan(table[:, 0]), 10.0, 1.0)
    probe = np.array([[np.nan], [0.0], [1e38], [-1e38]], np.float32)
    boosting = HistGradientBoostingRegressor(max_iter=5).fit(table, answer)
    agree(ensemble_from_boosting(boosting), ensemble_from_boosting(boosting)(tf.constant(probe, tf.float64)).numpy(), boosting.predict(probe))
    tree = DecisionTreeRegressor().fit(table, answer)
    agree(ensemble_from_tree(tree), ensemble_from_tree(tree)(tf.constant(probe, tf.float64)).numpy(), tree.predict(probe))


def test_one_row_gives_the_same_as_many() -> None:
    table = rows(500, seed=5)
    model = HistGradientBoostingRegressor(max_iter=10, categorical_features=[3, 4]).fit(table, target(table))
    ensemble = ensemble_from_boosting(model)
    function = tf.function(ensemble).get_concrete_function(tf.TensorSpec([None, 5], tf.float64))
    together = function(tf.constant(table, tf.float64)).numpy()
    alone = np.concatenate([function(tf.constant(table[place : place + 1], tf.float64)).numpy() for place in range(100)])
    assert np.array_equal(together[:100], alone)


def test_the_graph_holds_its_table_once() -> None:
    table = rows(2000, seed=6)
    model = HistGradientBoostingRegressor(max_iter=50, categorical_features=[3, 4]).fit(table, target(table))
    ensemble = ensemble_from_boosting(model)
    graph = tf.function(ensemble).get_concrete_function(tf.TensorSpec([None, 5], tf.float64)).graph.as_graph_def()
    assert graph.ByteSize() < ensemble.table.nbytes + ensemble.values.nbytes + 50_000


def test_codes_beyond_the_limit_are_unseen() -> None:
    codes = tree_inputs(tf.zeros([3, 0]), tf.constant([[254], [255], [0]])).numpy()[:, 0]
    assert codes[:2].tolist() == [254, 1] and np.isnan(codes[2])
