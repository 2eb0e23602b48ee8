"""Benchmark 3: an epoch of `mlp` streamed from parquet against an epoch of the same network from arrays in memory.

The stream encodes the parquet file once, into a temporary folder, and reads every epoch from there; the encoding pass is listed by itself, and
once more spread over the epochs of a training. Beside it are two ways to keep everything in memory: Keras's own (`fit` on arrays), and this
project's mixtures on arrays. An epoch of each is measured in turn, with the same network and batch size. Each round compares the stream with the
two others; the median of the ratios counts, because what else the machine does changes from round to round. The processor's seconds stand beside those
of the clock.

A second table has the time of one call of the exported signature, with scikit-learn's own `predict` beside it: the trees became a graph, and
that should cost nothing.
"""

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any

os.environ.update({"TF_CPP_MIN_LOG_LEVEL": "2", "TF_ENABLE_ONEDNN_OPTS": "0"})

import keras  # noqa: E402
import numpy as np  # noqa: E402
import pyarrow as pa  # noqa: E402
import pyarrow.parquet as pq  # noqa: E402
import tensorflow as tf  # noqa: E402
from machine import machine, markdown  # noqa: E402
from sklearn.ensemble import HistGradientBoostingRegressor  # noqa: E402
from threadpoolctl import threadpool_limits  # noqa: E402

from labline.data.contract import Column  # noqa: E402
from labline.models.networks import Network, NetworkSettings, frozen, seed_everything  # noqa: E402
from labline.models.preprocessing import fit_preprocessor, model_inputs  # noqa: E402
from labline.models.savedmodel import Score, export_model  # noqa: E402
from labline.models.stream import EncodedRows, encode_rows, training_batches  # noqa: E402
from labline.models.task import Interval, Task, row_losses  # noqa: E402
from labline.models.trees import ensemble_from_boosting, tree_inputs  # noqa: E402

COLUMNS = {
    "requested_at": Column(type="timestamp", role="time"),
    **{name: Column(type="category") for name in ("from_zone", "to_zone", "vehicle", "mobility_aid")},
    **{f"number_{place}": Column(type="number", nullable=True) for place in range(18)},
}
MOST = 1.15


def write_rows(path: Path, rows: int) -> None:
    """A table as wide as that of the rides case: a time, four categories, eighteen numbers, a target."""
    random = np.random.default_rng(0)
    numbers = {f"number_{place}": random.gamma(2, 3, rows) for place in range(18)}
    first, second, third = list(numbers.values())[:3]
    sizes = {"from_zone": 60, "to_zone": 60, "vehicle": 3, "mobility_aid": 4}
    moments = datetime(2025, 1, 1).timestamp() + np.sort(random.integers(0, 365 * 86_400, rows))
    pq.write_table(pa.table({
        "requested_at": pa.array((moments * 1e6).astype("datetime64[us]")),
        **{name: [f"{name} {code}" for code in random.integers(0, size, rows)] for name, size in sizes.items()},
        **numbers,
        "minutes": (3 + 2 * first + second * np.sin(third) ** 2) * random.lognormal(0, 0.2, rows),
    }), path)


class InMemory:
    """The batches of an epoch as the stream cuts them, from arrays in memory."""

    def __init__(self, encoded: EncodedRows, batch_size: int) -> None:
        self.arrays, self.batch_size, self.random = encoded.read(), batch_size, np.random.default_rng(0)

    def dataset(self) -> tf.data.Dataset:
        numbers, categories, scores = self.arrays

        def generate() -> Iterator[Any]:
            order = self.random.permutation(len(scores))
            for part in np.array_split(order, max(len(order) // 65_536, 1)):
                yield (numbers[part], categories[part]), scores[part]

        matrices = tf.TensorSpec([None, numbers.shape[1]], tf.float32), tf.TensorSpec([None, categories.shape[1]], tf.int32)
        data = tf.data.Dataset.from_generator(generate, output_signature=(matrices, tf.TensorSpec([None], tf.float32)))
        batches = data.rebatch(self.batch_size, drop_remainder=True)
        return batches.apply(tf.data.experimental.assert_cardinality(len(scores) // self.batch_size)).prefetch(8)


def epochs(encoded: EncodedRows, network: Network, batch_size: int, rounds: int) -> dict[str, np.ndarray]:
    """Seconds of the clock and of the processor of each epoch, [rounds, 2], by where the rows come from; a first round is not counted."""
    numbers, categories, scores = encoded.read()
    whole = len(scores) // batch_size * batch_size
    arrays = {"x": (numbers[:whole], categories[:whole]), "y": scores[:whole], "batch_size": batch_size}
    streamed, memory = training_batches(encoded, batch_size, seed=0), InMemory(encoded, batch_size).dataset()
    ways: dict[str, Callable[[], Any]] = {
        "streamed from the encoded parquet": lambda: network.fit(streamed, epochs=1, shuffle=False, verbose=0),
        "arrays in memory, Keras's own": lambda: network.fit(**arrays, epochs=1, verbose=0),
        "arrays in memory, mixtures": lambda: network.fit(memory, epochs=1, shuffle=False, verbose=0),
    }
    spent = {name: np.zeros((rounds + 1, 2)) for name in ways}
    for number in range(rounds + 1):
        for name, run in ways.items() if number % 2 else reversed(ways.items()):
            clock, processor = time.perf_counter(), time.process_time()
            run()
            spent[name][number] = time.perf_counter() - clock, time.process_time() - processor
    return {name: values[1:] for name, values in spent.items()}


def milliseconds(call: Callable[[], Any], calls: int = 60) -> float:
    """Median time of a call."""
    spent = []
    for number in range(calls + 5):
        start = time.perf_counter()
        call()
        if number >= 5:
            spent.append(time.perf_counter() - start)
    return float(np.median(spent) * 1000)


def latencies(path: Path, encoded: EncodedRows, preprocessor: Any, network: Network, folder: Path) -> list[list[str]]:
    """Rows of the second table."""
    numbers, categories, scores = encoded.evenly(20_000)
    inputs = tree_inputs(tf.constant(numbers), tf.constant(categories)).numpy()
    with threadpool_limits(1, user_api="openmp"):
        native = list(range(numbers.shape[1], inputs.shape[1]))
        boosting = HistGradientBoostingRegressor(loss="absolute_error", max_iter=300, early_stopping=False, categorical_features=native)
        boosting.fit(inputs, scores)
    ensemble = ensemble_from_boosting(boosting)
    candidates: dict[str, Score] = {"mlp": frozen(network), "boosting, 300 trees": lambda numbers, categories: ensemble(tree_inputs(numbers, categories))}
    table = pq.read_table(path).slice(0, 1000)
    lines = []
    for name, score in candidates.items():
        export_model(folder / "model", score, preprocessor, Task("minutes"), Interval(-0.2, 0.2))
        signature = tf.saved_model.load(str(folder / "model")).signatures["serving_default"]
        times = []
        for rows in (1, 1000):
            inputs_of_rows = model_inputs(table.slice(0, rows), preprocessor.strings, preprocessor.numeric)
            tensors = {key: tf.constant(values) for key, values in inputs_of_rows.items()}
            times.append(milliseconds(partial(signature, **tensors)))
        megabytes = (folder / "model" / "saved_model.pb").stat().st_size / 1e6
        lines.append([f"{name}: signature, raw rows", *[f"{value:.2f}" for value in times], f"{megabytes:.1f}"])
    with threadpool_limits(1, user_api="openmp"):
        times = [milliseconds(partial(boosting.predict, inputs[:rows])) for rows in (1, 1000)]
    lines.append(["boosting, 300 trees: scikit-learn, encoded rows", *[f"{value:.2f}" for value in times], ""])
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=200_000, help="training rows")
    parser.add_argument("--rounds", type=int, default=7, help="measured epochs of each way")
    parser.add_argument("--epochs", type=int, default=12, help="epochs over which the encoding pass is spread")
    given = parser.parse_args()
    settings, task = NetworkSettings(), Task("minutes")
    seed_everything(0)
    with tempfile.TemporaryDirectory(prefix="labline-benchmark-") as temporary:
        folder = Path(temporary)
        write_rows(folder / "train.parquet", given.rows)
        start = time.perf_counter()
        preprocessor = fit_preprocessor(folder / "train.parquet", COLUMNS)
        encoded = encode_rows(folder / "train.parquet", preprocessor, task, folder / "encoded")
        encoding = time.perf_counter() - start
        network = Network(preprocessor, settings, start=2.5)
        moving = {"use_ema": True, "ema_momentum": settings.average}
        optimizer = keras.optimizers.AdamW(settings.learning_rate, weight_decay=settings.weight_decay, clipnorm=1.0, **moving)
        network.compile(optimizer=optimizer, loss=lambda actual, score: row_losses(task, actual, score, tf.math))
        spent = epochs(encoded, network, settings.batch_size, given.rounds)
        calls = latencies(folder / "train.parquet", encoded, preprocessor, network, folder)
    streamed, keras_own, mixed = (values[:, 0] for values in spent.values())
    spread = streamed + encoding / given.epochs
    clocks = dict(zip(spent, (streamed, keras_own, mixed), strict=True))
    clocks["fitting the preprocessor and encoding, once"] = np.full(given.rounds, encoding)
    clocks[f"streamed, encoding spread over {given.epochs} epochs"] = spread
    lines = []
    for name, clock in clocks.items():
        processor = f"{np.median(spent[name][:, 1]):.2f}" if name in spent else ""
        ratios = [f"{np.median(clock / other):.2f}" for other in (keras_own, mixed)]
        lines.append([name, f"{np.median(clock):.2f}", processor, f"{given.rows / np.median(clock):,.0f}", *ratios])
    print(f"{given.rows:,} rows of {len(COLUMNS)} columns, medians of {given.rounds} rounds; {machine('tensorflow-cpu', 'keras', 'scikit-learn')}\n")
    print(markdown(["an epoch of mlp", "seconds", "processor seconds", "rows/s", "of Keras's own", "of mixtures"], lines))
    print()
    print(markdown(["one call", "1 row, ms", "1,000 rows, ms", "MB"], calls))
    ratio = max(float(np.median(streamed / other)) for other in (keras_own, mixed))
    if ratio > MOST:
        sys.exit(f"\na streamed epoch took {ratio:.2f} times one in memory; the bound is {MOST:g}")


if __name__ == "__main__":
    main()
