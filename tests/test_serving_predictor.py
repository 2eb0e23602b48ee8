"""The predictor: the signature's answers for less, several releases side by side, and memory that comes back."""

import gc
import shutil
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

from labline.errors import ModelError
from labline.models.bundle import Bundle
from labline.models.example import example_bundle, example_rows
from labline.models.graph import flat_graph
from labline.serving.predictor import ROWS, Predictor
from labline.serving.rows import Rows

TABLE = np.arange(2_000_000, dtype=np.float32)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return example_bundle(tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="module")
def predictor(bundle: Bundle) -> Iterator[Predictor]:
    opened = Predictor(bundle.path)
    yield opened
    opened.close()


def rows_of(bundle: Bundle, count: int, seed: int = 0) -> Rows:
    return Rows.read({name: values.to_numpy() for name, values in example_rows(count, seed).items()}, bundle.contract)


def signature_answers(path: Path, rows: Rows) -> dict[str, np.ndarray]:
    signature = tf.saved_model.load(str(path)).signatures["serving_default"]
    tensors = {name: tf.constant(values, tf.string if values.dtype == object else tf.float32) for name, values in rows.columns.items()}
    return {name: values.numpy() for name, values in signature(**tensors).items()}


def save(path: Path, answer: Callable[..., dict[str, tf.Tensor]], **columns: tf.DType) -> Path:
    specs = {name: tf.TensorSpec([None], kind, name) for name, kind in columns.items()}
    tf.saved_model.save(tf.Module(), str(path), signatures=tf.function(answer).get_concrete_function(**specs))
    return path


def resident() -> float:
    """Memory of this process in MB."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096 / 1e6


@pytest.mark.parametrize("count", [1, 2, 64, ROWS, ROWS + 1])
def test_it_answers_as_the_signature_does(bundle: Bundle, predictor: Predictor, count: int) -> None:
    """However many rows come at once, missing values among them."""
    rows = rows_of(bundle, count, seed=count)
    expected = signature_answers(bundle.path, rows)
    given = predictor.predict(rows)
    assert list(given) == ["minutes", "minutes_low", "minutes_high"]
    for name, values in given.items():
        assert values.dtype == np.float32
        np.testing.assert_allclose(values, expected[name], rtol=1e-6)


def test_it_answers_the_samples_of_the_bundle(bundle: Bundle, predictor: Predictor) -> None:
    """The row of which nothing is known and the one with unseen categories are the last two."""
    samples = bundle.samples["instances"]
    rows = Rows.read({name: [sample[name] for sample in samples] for name in samples[0]}, bundle.contract)
    expected = [answer["minutes"] for answer in bundle.samples["predictions"]]
    np.testing.assert_allclose(predictor.predict(rows)["minutes"], expected, rtol=1e-6)
    assert samples[-2]["zone"] == ""
    assert np.isnan(samples[-2]["distance_km"])


def test_no_rows_have_no_answers(bundle: Bundle, predictor: Predictor) -> None:
    assert {name: (values.shape, values.dtype) for name, values in predictor.predict(rows_of(bundle, 0)).items()} == {
        name: ((0,), np.dtype(np.float32)) for name in predictor.outputs
    }


def test_it_says_what_it_takes(bundle: Bundle, predictor: Predictor) -> None:
    assert set(predictor.inputs) == set(bundle.contract.row)
    assert {name for name, numeric in predictor.numeric.items() if numeric} == {"distance_km", "passengers", "speed_kmh"}
    assert len(predictor.digest) == 64


def test_texts_of_any_kind_arrive(tmp_path: Path) -> None:
    """In any script, with line breaks, and long."""
    lengths = Predictor(save(tmp_path / "model", lambda zone: {"minutes": tf.cast(tf.strings.length(zone), tf.float32)}, zone=tf.string))
    texts = ["", "Zürich", "東京", "a\nb", "x" * 10_000, "null\x00byte"]
    assert lengths.predict(Rows({"zone": np.array(texts, object)}))["minutes"].tolist() == [len(text.encode()) for text in texts]
    lengths.close()


def test_a_large_table_is_a_variable_and_answers_alike(tmp_path: Path) -> None:
    """Two tables, one of them in a function that is called twice."""
    small = np.arange(300_000, dtype=np.int64)

    @tf.function
    def look(places: tf.Tensor) -> tf.Tensor:
        return tf.gather(tf.constant(TABLE), places) + tf.cast(tf.gather(tf.constant(small), places), tf.float32)

    path = save(tmp_path / "model", lambda km: {"minutes": look(tf.cast(km, tf.int32)) - look(tf.cast(km / 2, tf.int32))}, km=tf.float32)
    flat = flat_graph(path)
    assert sorted({values.nbytes for values in flat.arrays.values()}) == [2_400_000, 8_000_000]
    assert flat.graph.ByteSize() < 20_000
    rows = Rows({"km": np.array([0.0, 7.0, 200_000.0])})
    tables = Predictor(path)
    np.testing.assert_array_equal(tables.predict(rows)["minutes"], signature_answers(path, rows)["minutes"])
    tables.close()


def test_releases_live_side_by_side(bundle: Bundle, predictor: Predictor, tmp_path: Path) -> None:
    """Closing one leaves the others as they are; closing twice does nothing."""
    rows = rows_of(bundle, 5)
    before = predictor.predict(rows)["minutes"]
    later = Predictor(example_bundle(tmp_path, minutes_per_km=3.0).path)
    changed = later.predict(rows)["minutes"]
    assert (changed > before).all()
    later.close()
    later.close()
    assert (predictor.predict(rows)["minutes"] == before).all()
    with pytest.raises(ModelError, match="was closed"):
        later.predict(rows)


def test_a_call_under_way_ends_before_the_memory_is_given_back(tmp_path: Path) -> None:
    """Whoever closes does not wait for it."""

    def slow(km: tf.Tensor) -> dict[str, tf.Tensor]:
        turns = tf.cast(tf.reduce_max(km), tf.int32)
        return {"minutes": 0.0 * km + tf.while_loop(lambda turn, _: turn < turns, lambda turn, total: (turn + 1, total + 1.0), (0, 0.0))[1]}

    looping = Predictor(save(tmp_path / "model", slow, km=tf.float32))
    answers: list[float] = []
    thread = threading.Thread(target=lambda: answers.extend(looping.predict(Rows({"km": np.array([100_000.0])}))["minutes"]))
    thread.start()
    while not looping._running and not answers:
        threading.Event().wait(0.001)
    looping.close()
    thread.join(120)
    assert answers == [100_000.0]
    assert not hasattr(looping, "_session")


def test_many_threads_may_call_it_at_once(bundle: Bundle, predictor: Predictor) -> None:
    rows = [rows_of(bundle, 20, seed) for seed in range(4)]
    expected = [predictor.predict(part)["minutes"] for part in rows]
    wrong: list[int] = []

    def ask(place: int) -> None:
        for _ in range(50):
            if not np.array_equal(predictor.predict(rows[place])["minutes"], expected[place]):
                wrong.append(place)

    threads = [threading.Thread(target=ask, args=(place,)) for place in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_memory_comes_back_without_the_garbage_collector(tmp_path: Path) -> None:
    """A service freezes its objects, so that nothing of a release may wait for a collection; each of these holds 8 MB."""
    path = save(tmp_path / "model", lambda km: {"minutes": tf.gather(tf.constant(TABLE), tf.cast(km, tf.int32))}, km=tf.float32)
    rows, sizes = Rows({"km": np.array([5.0])}), []
    gc.collect()
    gc.disable()
    try:
        for _ in range(30):
            opened = Predictor(path)
            assert opened.predict(rows)["minutes"].tolist() == [5.0]
            opened.close()
            sizes.append(resident())
    finally:
        gc.enable()
    assert max(sizes[20:]) - max(sizes[5:10]) < 16


def test_what_the_model_raises_comes_through(tmp_path: Path) -> None:
    """As TensorFlow's error, and the next rows are answered."""
    picky = Predictor(save(tmp_path / "model", lambda zone: {"minutes": tf.strings.to_number(zone)}, zone=tf.string))
    with pytest.raises(tf.errors.InvalidArgumentError, match="north"):
        picky.predict(Rows({"zone": np.array(["1", "north"], object)}))
    assert picky.predict(Rows({"zone": np.array(["1", "2"], object)}))["minutes"].tolist() == [1.0, 2.0]
    picky.close()


def test_a_model_that_lost_a_file_or_a_part_of_it_is_refused(bundle: Bundle, tmp_path: Path) -> None:
    shutil.copytree(bundle.path, tmp_path / "copy")
    graph = tmp_path / "copy/saved_model.pb"
    content = graph.read_bytes()
    graph.write_bytes(content[: len(content) // 2])
    with pytest.raises(ModelError, match="damaged"):
        Predictor(tmp_path / "copy")
    graph.write_bytes(content.replace(b"RealDiv", b"RealDiw"))
    with pytest.raises(ModelError, match="does not know the operation `RealDiw`"):
        Predictor(tmp_path / "copy")
    graph.unlink()
    with pytest.raises(ModelError, match="no SavedModel here"):
        Predictor(tmp_path / "copy")


def test_a_foreign_model_is_refused(tmp_path: Path) -> None:
    """Of another rank, another type, with variables, or with answers that are no numbers."""
    holder = tf.Module()
    holder.weight = tf.Variable(2.0)
    weighted = tf.function(lambda km: {"minutes": km * holder.weight}).get_concrete_function(km=tf.TensorSpec([None], tf.float32, "km"))
    tf.saved_model.save(holder, str(tmp_path / "variables"), signatures=weighted)
    square = tf.function(lambda km: {"minutes": km}).get_concrete_function(km=tf.TensorSpec([None, 1], tf.float32, "km"))
    tf.saved_model.save(tf.Module(), str(tmp_path / "square"), signatures=square)
    save(tmp_path / "whole", lambda km: {"minutes": tf.cast(km, tf.float32)}, km=tf.int64)
    save(tmp_path / "words", lambda km: {"minutes": tf.strings.as_string(km)}, km=tf.float32)
    expected = {"variables": "keeps variables", "square": "rank other than 1", "whole": "types of `km`", "words": "types of `minutes`"}
    for name, message in expected.items():
        with pytest.raises(ModelError, match=message):
            Predictor(tmp_path / name)
