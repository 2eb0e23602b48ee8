"""The prediction log: nothing that was acknowledged is lost, and what goes wrong is told and passes."""

import os
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa
from postgresql import Server, running_server
from workspaces import ROOT

from labline.serving.log import Entry, LogError, PredictionLog, new_ids
from labline.serving.store import MOST


def entries(count: int, key: str | None = None, role: str = "live", model: str = "eta") -> list[Entry]:
    row = '{"zone":"z7","distance_km":' + "4" * 600 + "}"
    return [Entry(id, f"request-{id[:8]}", time.time(), model, 1, "5f1c", role, key, row, '{"minutes":11.5}') for id in new_ids(count)]


def number(log: PredictionLog) -> int:
    with log.reading() as connection:
        return connection.exec_driver_sql("SELECT count(*) FROM predictions").scalar_one()


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with running_server() as started:
        yield started


@pytest.fixture
def database(server: Server, request: pytest.FixtureRequest) -> str:
    """The URL of an empty database."""
    name = f"log_{abs(hash(request.node.name))}"
    engine = sa.create_engine(server.url(), isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        connection.exec_driver_sql(f"CREATE DATABASE {name}")
    engine.dispose()
    return server.url(name)


@pytest.fixture(params=["sqlite", "postgresql"])
def log(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[PredictionLog]:
    """An empty log in each of the two databases."""
    opened = PredictionLog(f"sqlite:///{tmp_path}/log.db" if request.param == "sqlite" else request.getfixturevalue("database"))
    yield opened
    opened.close()


CHILD = """
import os, sys, time
from pathlib import Path
sys.path.insert(0, sys.argv[1] + "/tests")
from test_serving_log import *
log = PredictionLog(sys.argv[2], seconds=float(sys.argv[3]))
"""


def child(script: str, url: str, *before: str, seconds: float = 5.0, **options: object) -> subprocess.Popen[str]:
    """Start a process that has opened the log and runs a script."""
    command = [*before, sys.executable, "-c", CHILD + script, str(ROOT), url, str(seconds)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd="/", env={**os.environ, "PYTHONPATH": str(ROOT)}, **options)  # type: ignore[call-overload,no-any-return]


def said(process: subprocess.Popen[str]) -> list[str]:
    """What a process said, once it has ended well."""
    output, errors = process.communicate(timeout=60)
    assert process.returncode == 0, errors[-3000:]
    return output.splitlines()


def test_what_is_written_is_found(log: PredictionLog) -> None:
    few, many, shadows, others = entries(3, key="trip-1"), entries(3 * MOST + 1), entries(2, role="shadow"), entries(1, model="pay")
    for batch in (few, many, shadows, others, []):
        log.write(batch)
    assert number(log) == 3 + len(many) + 3
    assert log.find(few[0].id) == few[0] and log.find(shadows[1].id) == shadows[1] and log.find("?") is None
    newest = sorted(few + many, key=lambda entry: (entry.at, entry.id), reverse=True)
    assert log.recent("eta", 10) == newest[:10] and log.recent("pay", 10) == others and log.recent("none", 10) == []


def test_a_batch_that_is_sent_again_is_there_once(log: PredictionLog) -> None:
    batch = entries(5)
    log.write(batch[:3])
    log.write(batch)
    assert number(log) == 5


def test_texts_are_kept_as_they_are(log: PredictionLog) -> None:
    odd = Entry(new_ids(1)[0], "%s?:'", 0.1 + 0.2, "eta", 2**31 - 1, "", "live", 'Ж "\\ \u2028 😀', '{"a":"\\u0000"}', "{}")
    log.write([odd])
    assert log.find(odd.id) == odd


def test_several_threads_write(log: PredictionLog) -> None:
    threads = [threading.Thread(target=lambda: [log.write(entries(3)) for _ in range(5)]) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert number(log) == 4 * 5 * 3


def test_ids_are_unique_ordered_and_alike() -> None:
    ids = [id for _ in range(200) for id in new_ids(50)]
    assert len(set(ids)) == 10_000 and {len(id) for id in ids} == {32} and new_ids(0) == []
    milliseconds = [int(id[:12], 16) for id in ids]
    assert milliseconds == sorted(milliseconds) and abs(milliseconds[-1] / 1000 - time.time()) < 60


def test_commits_wait_for_the_disk(log: PredictionLog) -> None:
    query, on = ("PRAGMA synchronous", 2) if log.where.startswith("sqlite") else ("SHOW synchronous_commit", "on")
    assert log.store.kept().execute(query).fetchone()[0] == on


def test_processes_share_a_new_file(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/new/folder/log.db"
    writers = [child("for _ in range(20): log.write(entries(8))", url) for _ in range(3)]
    assert [said(writer) for writer in writers] == [[], [], []]
    log = PredictionLog(url)
    assert number(log) == 3 * 20 * 8
    log.close()


def test_a_killed_writer_loses_nothing_that_it_acknowledged(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/log.db"
    endless = "while True:\n    batch = entries(16)\n    log.write(batch)\n    print(*[entry.id for entry in batch], flush=True)"
    writer = child(endless, url)
    assert writer.stdout is not None and writer.stderr is not None
    acknowledged = [writer.stdout.readline() for _ in range(40)]
    writer.send_signal(signal.SIGKILL)
    acknowledged += writer.stdout.readlines()
    assert writer.wait() == -signal.SIGKILL
    writer.stdout.close()
    writer.stderr.close()
    ids = {id for line in acknowledged if line.endswith("\n") for id in line.split()}
    log = PredictionLog(url)
    with log.reading() as connection:
        assert connection.exec_driver_sql("PRAGMA integrity_check").scalar() == "ok"
        found = set(connection.exec_driver_sql("SELECT id FROM predictions").scalars())
    assert ids <= found and len(found - ids) <= 16 and len(ids) >= 640
    log.write(entries(2))
    assert number(log) == len(found) + 2
    log.close()


FULL = """
acknowledged, problem = 0, None
ballast = Path(log.store.path).with_name("ballast")
ballast.write_bytes(b"0" * 400_000)
for _ in range(2):
    problem = None
    while problem is None:
        try:
            log.write(entries(50))
            acknowledged += 50
        except LogError as error:
            problem = error
    try:
        log.write(entries(200))
        raise SystemExit("written to a full disk")
    except LogError as error:
        print(error)
    ballast.unlink(missing_ok=True)
    print(number(log) == acknowledged)
"""


def test_a_full_disk_is_told_and_passes(tmp_path: Path) -> None:
    if subprocess.run(["unshare", "-m", "true"], capture_output=True, check=False).returncode:
        pytest.skip("no small disk: this user may not mount one")
    mount = f"mount -t tmpfs -o size=900k none {tmp_path} && exec \"$@\""
    output = said(child(FULL, f"sqlite:///{tmp_path}/log.db", "unshare", "-m", "sh", "-c", mount, "sh"))
    assert len(output) == 4 and [line for line in output if line != "True"] == [output[0], output[2]]
    assert output[0].endswith("log.db: the disk is full. Free space on it.")


LIMITED = """
import resource
acknowledged = 0
for _ in range(2):
    resource.setrlimit(resource.RLIMIT_FSIZE, (300_000 + 3000 * acknowledged, resource.RLIM_INFINITY))
    try:
        while True:
            log.write(entries(50))
            acknowledged += 50
    except LogError as error:
        print(error.problem, acknowledged > 0)
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
log.write(entries(50))
print(number(log) == acknowledged + 50)
"""


def test_a_failing_storage_is_told_and_passes(tmp_path: Path) -> None:
    assert said(child(LIMITED, f"sqlite:///{tmp_path}/log.db")) == ["the storage of the prediction log fails True"] * 2 + ["True"]


def refused(write: Callable[[], object]) -> str:
    with pytest.raises(LogError) as caught:
        write()
    assert caught.value.where is not None and caught.value.remedy
    return str(caught.value)


def test_a_file_without_pages_left_is_full(tmp_path: Path) -> None:
    log = PredictionLog(f"sqlite:///{tmp_path}/log.db")
    log.write(entries(1))
    log.store.kept().execute("PRAGMA max_page_count = 20")
    assert "the disk is full" in refused(lambda: log.write(entries(1000)))
    assert number(log) == 1
    log.store.kept().execute("PRAGMA max_page_count = 100000")
    log.write(entries(1000))
    assert number(log) == 1001
    log.close()


def test_a_locked_file_is_told_and_passes(tmp_path: Path) -> None:
    log = PredictionLog(f"sqlite:///{tmp_path}/log.db", seconds=0.1)
    other = sqlite3.connect(tmp_path / "log.db", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    for count in (1, 1000):
        assert "another process holds" in refused(lambda count=count: log.write(entries(count)))  # type: ignore[misc]
    assert log.recent("eta", 5) == [], "readers do not wait for writers"
    other.execute("COMMIT")
    other.close()
    log.write(entries(1))
    assert number(log) == 1
    log.close()


READONLY = """
os.seteuid(65534)
for _ in range(2):
    try:
        log.write(entries(1))
    except LogError as error:
        print(error.problem)
os.seteuid(0)
log.write(entries(1))
print(number(log))
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="needs two users")
def test_a_file_that_may_not_be_written_is_told_and_passes(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/log.db"
    PredictionLog(url).close()
    for place in (tmp_path, *list(tmp_path.parents)[:2]):
        place.chmod(0o755)
    output = said(child(READONLY, url))
    assert len(output) == 3 and output[2] == "1" and set(output[:2]) <= {"the prediction log is read-only", "the prediction log cannot be opened"}


def test_a_folder_that_is_gone_is_told_and_passes(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    log = PredictionLog(f"sqlite:///{folder}/log.db")
    log.write(entries(1))
    folder.rename(tmp_path / "elsewhere")
    for _ in range(2):
        assert "is gone" in refused(lambda: log.write(entries(1)))
        assert "cannot be opened" in refused(lambda: log.recent("eta", 1))
    assert not folder.exists(), "nothing is begun anew"
    (tmp_path / "elsewhere").rename(folder)
    log.write(entries(1))
    assert number(log) == 2
    log.close()


def test_a_damaged_file_is_told(tmp_path: Path) -> None:
    log = PredictionLog(f"sqlite:///{tmp_path}/log.db")
    log.write(entries(300))
    log.close()
    content = (tmp_path / "log.db").read_bytes()
    (tmp_path / "log.db").write_bytes(content[:4096] + b"\xff" * (len(content) - 4096))
    assert "damaged" in refused(lambda: PredictionLog(f"sqlite:///{tmp_path}/log.db"))
    (tmp_path / "log.db").write_bytes(b"\xff" * 8192)
    assert "no database" in refused(lambda: PredictionLog(f"sqlite:///{tmp_path}/log.db"))


def test_a_path_that_cannot_be_made_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert "cannot be created" in refused(lambda: PredictionLog(f"sqlite:///{tmp_path}/file/log.db"))


def test_a_stopped_server_is_told_and_passes(server: Server, database: str) -> None:
    log = PredictionLog(database)
    log.write(entries(10))
    server.stop()
    try:
        for _ in range(2):
            message = refused(lambda: log.write(entries(10)))
            assert "cannot be reached" in message and "labline@127.0.0.1" in message
        assert "cannot be reached" in refused(lambda: PredictionLog(database))
    finally:
        server.start()
    assert number(log) == 10, "a server that ends at once has kept what it acknowledged"
    log.write(entries(10))
    assert number(log) == 20
    log.close()


def test_a_restarted_server_is_not_noticed(server: Server, database: str) -> None:
    log, other = PredictionLog(database), PredictionLog(database)
    log.write(entries(1))
    with other.reading() as connection:
        connection.exec_driver_sql("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid <> pg_backend_pid() AND datname = current_database()")
    log.write(entries(1))
    assert number(log) == number(other) == 2
    log.close()
    other.close()


def test_a_readonly_database_is_told_and_passes(database: str) -> None:
    log = PredictionLog(database, seconds=0.5)
    log.write(entries(1))
    log.store.kept().execute("SET default_transaction_read_only = on")
    assert "read-only" in refused(lambda: log.write(entries(1)))
    log.write(entries(1))
    other = log.store.engine.raw_connection()
    other.cursor().execute("LOCK TABLE predictions")
    assert "another transaction holds" in refused(lambda: log.write(entries(1)))
    other.rollback()
    other.close()
    log.write(entries(1))
    assert number(log) == 3
    log.close()


def test_a_server_refuses_what_is_not_there(server: Server, database: str) -> None:
    assert "does not exist" in refused(lambda: PredictionLog(server.url("nowhere")))
    first = PredictionLog(database)
    with first.writing() as connection:
        connection.exec_driver_sql("UPDATE labline_schema SET version = 99")
    assert "another version (found 99)" in refused(lambda: PredictionLog(database))
    first.close()


def test_a_password_is_not_told() -> None:
    message = refused(lambda: PredictionLog("postgresql+psycopg://labline:secret@127.0.0.1:1/log"))
    assert "cannot be reached" in message and "secret" not in message


def test_processes_share_a_new_database(database: str) -> None:
    writers = [child("for _ in range(5): log.write(entries(8))", database) for _ in range(2)]
    assert [said(writer) for writer in writers] == [[], []]
    log = PredictionLog(database)
    assert number(log) == 2 * 5 * 8
    log.close()
