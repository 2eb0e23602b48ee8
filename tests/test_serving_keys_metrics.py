"""Keys are known by digests in a file that is trusted only as far as it deserves; metrics are cheap, bounded and added up."""

import hashlib
import os
import random
import threading
from pathlib import Path

import numpy as np
import pytest
from prometheus_client.parser import text_string_to_metric_families
from workspaces import ROOT, run

from labline.data.contract import Column
from labline.errors import ParameterError, WorkspaceError
from labline.serving.keys import Keys, own_secret
from labline.serving.metrics import ENOUGH, FAMILIES, MANY, Metrics, Snapshot
from labline.serving.rows import Rows

COLUMNS = {
    "distance_km": Column(type="number", nullable=True),
    "zone": Column(type="category", nullable=True),
    "passengers": Column(type="integer", nullable=True),
    "requested_at": Column(type="timestamp"),
    "note": Column(type="text", nullable=True),
}
TRAINED = {
    "rows": 100,
    "columns": {
        "distance_km": {"min": 0.5, "max": 40.0, "missing": 0.1},
        "zone": {"categories": {"a": 0.6, "b": 0.4}, "others": 0.0, "missing": 0.0},
        "passengers": {"missing": 1.0},
        "note": {"categories": {"call": 0.1}, "others": 0.9, "missing": 0.0},
    },
}


def samples(text: bytes) -> dict[tuple[str, ...], float]:
    """Name and label values of each sample → its number, as a Prometheus client reads them."""
    return {
        (sample.name, *(sample.labels[label] for label in sorted(sample.labels))): sample.value
        for family in text_string_to_metric_families(text.decode())
        for sample in family.samples
    }


def some_rows(count: int, seed: int = 0) -> Rows:
    chance = np.random.default_rng(seed)
    distances = np.where(chance.random(count) < 0.1, np.nan, chance.uniform(0, 50, count))
    zones = chance.choice(np.array(["a", "b", "c", ""], dtype=object), count)
    texts = {"requested_at": np.full(count, "2025-06-15T10:00:00", dtype=object), "note": np.full(count, "bell", dtype=object)}
    return Rows({"distance_km": distances, "zone": zones, "passengers": np.full(count, 2.0), **texts})


@pytest.mark.parametrize("sizes", [[1] * 200, [64] * 40, [MANY + 1, 3, 2000, 7]], ids=["single", "small", "mixed"])
def test_statistics_of_inputs_are_those_of_the_rows(sizes: list[int]) -> None:
    metrics, batches = Metrics(), [some_rows(size, seed) for seed, size in enumerate(sizes)]
    metrics.watch_inputs("eta", COLUMNS, TRAINED)
    for batch in batches:
        metrics.observe_inputs("eta", batch)
        metrics.observe_inputs("unwatched", batch)
    found = samples(metrics.render())
    distances = np.concatenate([batch.columns["distance_km"] for batch in batches])
    present = distances[~np.isnan(distances)]
    assert found["labline_input_values_total", "distance_km", "eta"] == len(present)
    assert found["labline_input_missing_total", "distance_km", "eta"] == len(distances) - len(present)
    assert found["labline_input_sum", "distance_km", "eta"] == pytest.approx(present.sum())
    assert found["labline_input_sum_of_squares", "distance_km", "eta"] == pytest.approx((present**2).sum())
    assert found["labline_input_beyond_total", "distance_km", "eta"] == ((present < 0.5) | (present > 40)).sum()
    assert found["labline_input_beyond_total", "passengers", "eta"] == found["labline_input_unseen_total", "note", "eta"] == 0, "nothing is known of them"
    looked_at = found["labline_input_values_total", "zone", "eta"] + found["labline_input_missing_total", "zone", "eta"]
    zones = np.concatenate([batch.columns["zone"] for batch in batches])
    assert 0 < looked_at <= len(zones) and 0 < found["labline_input_unseen_total", "zone", "eta"] < looked_at
    if max(sizes) == 1:
        assert looked_at == len(zones) and found["labline_input_unseen_total", "zone", "eta"] == (zones == "c").sum()


def test_a_new_release_keeps_what_was_counted() -> None:
    metrics = Metrics()
    for number in range(1, 4):
        metrics.watch_inputs("eta", COLUMNS, TRAINED if number < 3 else None)
        metrics.observe_inputs("eta", some_rows(5))
        assert samples(metrics.render())["labline_input_values_total", "passengers", "eta"] == 5 * number


def test_labels_are_bounded_and_escaped() -> None:
    metrics, chance = Metrics(["/predict", '/models/{name}"\\\n/predict']), random.Random(1)
    for _ in range(2000):
        path, method = "".join(chr(chance.randrange(1, 0x2FFF)) for _ in range(8)), chance.choice(["GET", "BREW", "\x00", "get"])
        metrics.observe_request(path, method, 404, chance.random())
    metrics.observe_request('/models/{name}"\\\n/predict', "POST", 200, 1e9)
    found = samples(metrics.render())
    requests = {labels[1:]: number for labels, number in found.items() if labels[0] == "labline_requests_total"}
    assert set(requests) == {("GET", "other", "404"), ("other", "other", "404"), ("POST", '/models/{name}"\\\n/predict', "200")}
    assert sum(requests.values()) == 2001


def test_histograms_count_every_value_once() -> None:
    metrics, chance = Metrics(["/predict"]), random.Random(2)
    seconds = [0.0, 0.0005, 10.0, 11.0, *(10 ** chance.uniform(-5, 2) for _ in range(500))]
    for value in seconds:
        metrics.observe_request("/predict", "POST", 200, value)
        metrics.observe_batch("eta", requests=3, rows=int(1000 * value))
    found = samples(metrics.render())
    for bound in FAMILIES["labline_request_seconds"].buckets:
        assert found["labline_request_seconds_bucket", str(bound), "/predict"] == sum(value <= bound for value in seconds)
    assert found["labline_request_seconds_bucket", "+Inf", "/predict"] == found["labline_request_seconds_count", "/predict"] == len(seconds)
    assert found["labline_request_seconds_sum", "/predict"] == pytest.approx(sum(seconds)) and found["labline_batch_requests_sum", "eta"] == 3 * len(seconds)


def test_workers_are_added_up(tmp_path: Path) -> None:
    workers = [Metrics(["/predict"]) for _ in range(3)]
    for place, worker in enumerate(workers):
        worker.watch_inputs("eta", COLUMNS, TRAINED)
        worker.observe_inputs("eta", some_rows(10))
        worker.observe_request("/predict", "POST", 200, 0.001 * (place + 1))
        worker.set_queue("eta", place)
        worker.set_releases("eta", [("eta@v1", "5f1c", "live")])
        worker.set_ages("eta", {"speeds": 100.0 * place})
        worker.snapshot().save(tmp_path / str(place))
    found = samples(workers[0].render(Snapshot.load(tmp_path / name) for name in ("1", "2", "none")))
    assert found["labline_requests_total", "POST", "/predict", "200"] == found["labline_request_seconds_count", "/predict"] == 3
    assert found["labline_request_seconds_bucket", "0.002", "/predict"] == 2 and found["labline_queue_rows", "eta"] == 3
    assert found["labline_release_info", "5f1c", "eta", "eta@v1", "live"] == 1 and found["labline_table_age_seconds", "eta", "speeds"] == 200
    assert found["labline_input_values_total", "passengers", "eta"] == 30
    successor = Metrics(["/predict"], before=Snapshot.load(tmp_path / "2"))
    successor.observe_request("/predict", "POST", 200, 0.001)
    assert samples(successor.render())["labline_requests_total", "POST", "/predict", "200"] == 2
    assert ("labline_queue_rows", "eta") not in samples(successor.render())
    assert samples(workers[2].render())["labline_requests_total", "POST", "/predict", "200"] == 1


def test_threads_count_together() -> None:
    metrics = Metrics(["/predict"])
    metrics.watch_inputs("eta", COLUMNS, TRAINED)

    def count() -> None:
        for _ in range(300):
            metrics.observe_request("/predict", "POST", 200, 0.001)
            metrics.observe_inputs("eta", rows)
            metrics.snapshot()

    rows, threads = some_rows(ENOUGH // 16), [threading.Thread(target=count) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    found = samples(metrics.render())
    assert found["labline_requests_total", "POST", "/predict", "200"] == 900
    assert found["labline_input_values_total", "passengers", "eta"] == 900 * len(rows)


def test_all_families_are_there_from_the_beginning() -> None:
    text = Metrics().render().decode()
    assert all(f"# TYPE {name} " in text for name in FAMILIES) and "labline_log_failures_total 0.0" in text


def test_a_key_is_not_on_disk(tmp_path: Path) -> None:
    keys = Keys(tmp_path / "deep" / "keys.json")
    secrets = {name: keys.add(name, roles) for name, roles in {"app": ["read"], "job": ["promote", "write"]}.items()}
    text = keys.path.read_text()
    for name, secret in secrets.items():
        key = keys.check(secret)
        assert len(secret) == 43 and secret not in text and hashlib.sha256(secret.encode()).hexdigest() in text
        assert key is not None and key.name == name
    assert keys.path.stat().st_mode & 0o777 == 0o600 and [key.roles for key in keys.list()] == [("read",), ("write", "promote")]


@pytest.mark.parametrize("shown", ["", "a", "Ж😀", "\ud800", "\x00", "a" * 100_000])
def test_odd_keys_are_no_keys(tmp_path: Path, shown: str) -> None:
    keys = Keys(tmp_path / "keys.json")
    assert keys.check(shown) is None
    keys.add("app", ["read"])
    assert keys.check(shown) is None


def test_changes_are_seen_at_once(tmp_path: Path) -> None:
    service, person = Keys(tmp_path / "keys.json"), Keys(tmp_path / "keys.json")
    for _ in range(20):
        secret = person.add("app", ["read"])
        assert service.check(secret) is not None
        person.remove("app")
        assert service.check(secret) is None
    service.path.unlink()
    assert service.list() == () and service.check(secret) is None


@pytest.mark.parametrize("mode", [0o620, 0o602, 0o666])
def test_a_file_that_others_write_is_refused(tmp_path: Path, mode: int) -> None:
    keys = Keys(tmp_path / "keys.json")
    secret = keys.add("app", ["read"])
    assert keys.check(secret) is not None
    keys.path.chmod(mode)
    for attempt in (lambda: keys.check(secret), lambda: keys.add("b", ["read"]), lambda: keys.remove("app")):
        with pytest.raises(WorkspaceError, match=f"found '{mode:o}'.*chmod 600"):
            attempt()
    keys.path.chmod(0o600)
    assert keys.check(secret) is not None


@pytest.mark.skipif(os.geteuid() != 0, reason="needs two users")
def test_a_file_of_somebody_else_is_refused(tmp_path: Path) -> None:
    keys = Keys(tmp_path / "keys.json")
    secret = keys.add("app", ["read"])
    os.chown(keys.path, 65534, 65534)
    with pytest.raises(WorkspaceError, match="belongs to another user"):
        keys.check(secret)


@pytest.mark.parametrize("content", [b"", b"{}", b"[1]", b'[{"name": "a"}]', b"\xff"])
def test_a_damaged_file_is_refused(tmp_path: Path, content: bytes) -> None:
    keys = Keys(tmp_path / "keys.json")
    keys.add("app", ["read"])
    keys.path.write_bytes(content)
    with pytest.raises(WorkspaceError, match="not a file of keys"):
        keys.check("a")


def test_processes_add_keys_side_by_side(tmp_path: Path) -> None:
    script = "import sys; from labline.serving.keys import Keys; [Keys(sys.argv[1]).add(f'{sys.argv[2]}-{number}', ['read']) for number in range(8)]"
    path = str(tmp_path / "keys.json")
    threads = [threading.Thread(target=run, args=("python", "-c", script, path, name), kwargs={"cwd": ROOT}) for name in ("a", "b", "c")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(Keys(path).list()) == 24 and len({key.digest for key in Keys(path).list()}) == 24


def test_names_are_unique(tmp_path: Path) -> None:
    keys = Keys(tmp_path / "keys.json")
    keys.add("app", ["read"])
    with pytest.raises(ParameterError, match="there is a key `app` already"):
        keys.add("app", ["write"])
    assert len(keys.list()) == 1


def test_the_secret_of_the_service_stays(tmp_path: Path) -> None:
    path = tmp_path / "salt"
    found: list[bytes] = []
    threads = [threading.Thread(target=lambda: found.append(own_secret(path))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(found)) == 1 and len(found) == 4 and path.stat().st_mode & 0o777 == 0o600
    path.chmod(0o640)
    with pytest.raises(WorkspaceError, match="others have rights"):
        own_secret(path)
