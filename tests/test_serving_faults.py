"""What goes wrong around a running service; each test counts the requests that were sent, answered and logged."""

import os
import resource
import shutil
import signal
import sqlite3
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from servingload import ROW, Counted, Served, difficult_bundle, load, served, until

from labline.models.example import example_bundle


@pytest.fixture(scope="module")
def releases(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Three releases of one model; the last has another speed."""
    folder = tmp_path_factory.mktemp("releases")
    return [example_bundle(folder, minutes_per_km=speed, version=number).path for number, speed in ((1, 2.0), (2, 2.1), (3, 3.0))]


@pytest.fixture(scope="module")
def difficult(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A release whose model can raise and hang."""
    return difficult_bundle(tmp_path_factory.mktemp("difficult"))


@pytest.fixture(scope="module")
def service(difficult: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """A service that several tests ask, with a short time for each request."""
    with served(tmp_path_factory.mktemp("service"), difficult, request_seconds=6, when_log_fails="refuse") as service:
        yield service


def logged(path: Path) -> set[str]:
    """The ids of the predictions in a log whose file is sound."""
    with sqlite3.connect(path) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        return {name for (name,) in connection.execute("SELECT id FROM predictions")}


def beside(service: Served, seconds: float, connections: int = 16, over: threading.Event | None = None) -> tuple[threading.Thread, Counted]:
    """Put load on a server in a thread; what it counts is whole when the thread has ended."""
    found = Counted()
    thread = threading.Thread(target=lambda: found.__dict__.update(load(service, connections, seconds=seconds, over=over).__dict__))
    thread.start()
    return thread, found


def test_sigterm_under_load_loses_nothing(releases: list[Path], tmp_path: Path) -> None:
    """What was taken is answered and logged; what came later finds a closed door, and no request is cut off."""
    with served(tmp_path / "service", releases[0]) as service:
        thread, found = beside(service, 3.0)
        time.sleep(1.0)
        assert service.stop(signal.SIGTERM) == 0
        thread.join()
    assert len(found.ids) > 20 and set(found.refused) <= {503}
    assert len(set(found.ids)) == len(found.ids) and set(found.ids) <= logged(service.log)
    assert found.sent == len(found.ids) + sum(found.refused.values()) + found.broken
    assert len(logged(service.log)) <= len(found.ids) + found.broken


def test_sigkill_under_load_leaves_every_answer_in_the_log(releases: list[Path], tmp_path: Path) -> None:
    """On disk before the answer leaves: so the log may hold more than was heard, and never less."""
    with served(tmp_path / "service", releases[0]) as service:
        thread, found = beside(service, 3.0)
        time.sleep(1.0)
        os.killpg(service.process.pid, signal.SIGKILL)
        thread.join()
    assert len(found.ids) > 20 and found.broken > 0
    assert set(found.ids) <= logged(service.log)
    with served(tmp_path / "service", releases[0]) as again:
        assert len(load(again, 1, most=1).ids) == 1


def test_a_log_that_is_gone_refuses_and_comes_back(releases: list[Path], tmp_path: Path) -> None:
    """A full disk: requests get 503 with a time to come again, the server lives, and goes on when there is room."""
    with served(tmp_path / "service", releases[0]) as service:
        assert service.ask("/predict", ROW)[0] == 200
        room = service.log.stat().st_size + service.log.with_name("predictions.db-wal").stat().st_size
        resource.prlimit(service.process.pid, resource.RLIMIT_FSIZE, (room, resource.RLIM_INFINITY))
        found = load(service, 4, seconds=0.5)
        assert set(found.refused) == {503} and found.broken == 0
        resource.prlimit(service.process.pid, resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        until(lambda: service.ask("/predict", ROW)[0] == 200, 60, service)
        after = load(service, 4, seconds=0.3)
        assert after.ids and not after.refused
        assert {*found.ids, *after.ids} <= logged(service.log)
        assert "labline_log_failures_total" in service.ask("/metrics")[1]


def test_a_setting_lets_it_answer_without_a_log(releases: list[Path], tmp_path: Path) -> None:
    """Answered and counted, and without an id that nobody could find again."""
    with served(tmp_path / "service", releases[0], when_log_fails="answer") as service:
        assert service.ask("/predict", ROW)[1]["prediction_id"]
        resource.prlimit(service.process.pid, resource.RLIMIT_FSIZE, (0, resource.RLIM_INFINITY))
        status, answer = service.ask("/predict", ROW)
        assert status == 200 and answer["minutes"] == 11.0 and not answer.get("prediction_id")
        failures = [line for line in service.ask("/metrics")[1].splitlines() if line.startswith("labline_log_failures_total")]
        assert float(failures[0].split()[-1]) >= 1


def test_a_model_that_raises_fails_its_own_request(service: Served) -> None:
    """Its neighbours in the batch are answered, and nothing of the inside is told."""
    thread, found = beside(service, 1.0, connections=8)
    answers = [service.ask("/predict", {**ROW, "zone": "raise"}) for _ in range(5)]
    thread.join()
    assert {status for status, _ in answers} == {500} and "secret" not in str(answers)
    assert found.ids and not found.refused and found.broken == 0


def test_a_thousand_connections(service: Served) -> None:
    """Each sends three requests; all are answered or told to come again, and none is cut off."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard < 2200:
        pytest.skip(f"this machine allows {hard} open files, too few for a thousand connections")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, 2200), hard))
    try:
        found = load(service, 1000, most=3000, seconds=60)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert found.sent == 3000 and found.broken == 0 and set(found.refused) <= {429}
    assert len(found.ids) >= 2900


def test_a_model_that_hangs_is_given_up(service: Served) -> None:
    """Its request ends with 504 when the time is up, and the next one is answered."""
    status, answer = service.ask("/predict", {**ROW, "zone": "hang"})
    assert status == 504 and "time" in str(answer)
    until(lambda: service.ask("/predict", ROW)[0] == 200, 60, service)
    assert service.ask("/healthz")[0] == 200


def test_swaps_under_load_fail_no_request(releases: list[Path], tmp_path: Path) -> None:
    """Six changes to and fro, the last a rollback; every answer is one of the releases'."""
    with served(tmp_path / "service", releases[0], folders=str(releases[0].parents[1])) as service:
        over = threading.Event()
        thread, found = beside(service, 300, over=over)
        for turn in range(5):
            status, report = service.ask("/releases", {"folder": str(releases[(turn + 1) % 2])})
            if status != 200:
                over.set()
            assert status == 200, report
        status, report = service.ask("/rollback", {})
        over.set()
        thread.join()
        assert status == 200, report
        assert found.ids and not found.refused and found.broken == 0
        assert set(found.ids) == logged(service.log) and len(set(found.ids)) == len(found.ids)
        with sqlite3.connect(service.log) as connection:
            kinds = dict(connection.execute("SELECT version, count(*) FROM predictions GROUP BY version"))
        assert set(kinds) == {1, 2}


def test_a_damaged_release_is_refused_under_load(releases: list[Path], tmp_path: Path) -> None:
    """The old one goes on."""
    folder = tmp_path / "eta" / "9"
    shutil.copytree(releases[1], folder)
    content = bytearray((folder / "saved_model.pb").read_bytes())
    content[len(content) // 2] ^= 1
    (folder / "saved_model.pb").write_bytes(content)
    with served(tmp_path / "service", releases[0], folders=str(tmp_path)) as service:
        thread, found = beside(service, 2.0)
        status, answer = service.ask("/releases", {"folder": str(folder)})
        thread.join()
        assert status in (409, 422) and "saved_model.pb" in str(answer)
        assert found.ids and not found.refused and found.broken == 0
        assert service.ask("/predict", ROW)[1]["release"] == "eta@v1"


def test_two_workers_share_the_load(releases: list[Path], tmp_path: Path) -> None:
    """A worker that is killed is replaced, and the log of both is one."""
    with served(tmp_path / "service", releases[0], workers=2) as service:
        found = load(service, 16, seconds=1.0)
        assert found.ids and found.broken == 0 and set(found.ids) <= logged(service.log)
        workers = subprocess.run(["pgrep", "-P", str(service.process.pid)], capture_output=True, text=True, check=True).stdout.split()
        assert len(workers) >= 2
        assert service.stop(signal.SIGTERM) == 0
