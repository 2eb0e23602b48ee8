"""Releases as people make them: in one clone, shared, served by another, promoted, taken back; and what may go wrong on the way."""

import errno
import json
import shutil
import sqlite3
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest
from releasing import commit, labline, make, named, releasable, repro, serving
from workspaces import run

from labline.errors import LablineError, ModelError, WorkspaceError
from labline.models.bundle import Bundle
from labline.operations import storage as storage_module
from labline.operations.fetching import bring
from labline.operations.git import git
from labline.operations.registry import Registry, promote
from labline.operations.releasing import release
from labline.operations.storage import StorageError

ROW = {"requested_at": "2026-03-02T08:30:00", "zone": "north", "vehicle": "car", "distance_km": 10.0, "speed_kmh": 30.0}


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A workspace whose line has run; tests take copies."""
    return releasable(tmp_path_factory.mktemp("line") / "work")


@pytest.fixture
def work(template: Path, tmp_path: Path) -> Path:
    """A copy to do with as one likes."""
    return Path(shutil.copytree(template, tmp_path / "work"))


def tags(clone: Path) -> list[str]:
    return git(clone, "tag").split()


# From one clone to another


def until(address: str, release: str, seconds: float = 60) -> float:
    """How long a service takes until it answers with a release."""
    begin = time.monotonic()
    while time.monotonic() < begin + seconds:
        if httpx.get(f"{address}/releases").json()["models"][0]["live"] == release:
            return time.monotonic() - begin
        time.sleep(0.05)
    raise AssertionError(f"{release} is not live after {seconds} s: {httpx.get(f'{address}/releases').json()}")


def test_a_release_of_one_clone_is_served_promoted_and_taken_back_in_another(work: Path, tmp_path: Path) -> None:
    shared, other = tmp_path / "shared.git", tmp_path / "other"
    git(tmp_path, "clone", "--quiet", "--bare", str(work), str(shared))
    git(work, "remote", "add", "origin", str(shared))
    assert "eta@v1 is released: git show eta@v1.0.0\nIt is pushed to origin" in labline(work, "release", "--push").stdout
    promote(work, "eta@v1", "prod", share=True)
    git(tmp_path, "clone", "--quiet", str(shared), str(other))
    named(other, "A Colleague")
    answers: list[tuple[int, str, float]] = []
    over = threading.Event()

    def ask(address: str) -> None:
        with httpx.Client(base_url=address) as client:
            while not over.is_set():
                answer = client.post("/predict", json=ROW)
                found = answer.json()
                answers.append((answer.status_code, found["release"], found["minutes"]))
                time.sleep(0.01)

    with serving(other, "--stage", "prod", "--fetch-seconds", "0.5") as address:
        thread = threading.Thread(target=ask, args=(address,))
        thread.start()
        try:
            make(work, 2.2)
            repro(work, "A better model")
            second = release(work, share=True)
            assert second.facts["live"]["release"] == "eta@v1" and "better than eta@v1; that one is in prod." in second.note.body
            promote(work, "eta@v2", "prod", reason="it is better", share=True)
            until(address, "eta@v2")
            back = labline(other, "rollback", "--reason", "a trial", "--url", address).stdout
            assert "eta@v1 is back in prod" in back and "The running service answers with eta@v1, after" in back
            shown = labline(other, "releases", "--url", address).stdout
        finally:
            over.set()
            thread.join()
    assert {status for status, *_ in answers} == {200} and {name for _, name, _ in answers} == {"eta@v1", "eta@v2"}
    assert {(name, minutes) for _, name, minutes in answers} == {("eta@v1", 23.0), ("eta@v2", 25.0)}
    assert [name for _, name, _ in answers][-1] == "eta@v1" and len(answers) > 50
    table = shown.splitlines()
    assert table[1].split()[:2] == ["eta@v2", "0.07"] and "-1." in table[1] and table[2].split()[:2] == ["eta@v1", "prod"] and "A Person" in table[2]
    assert "The running service follows prod:" in shown and "eta@v1  live" in shown
    gto = json.loads(run("gto", "show", "--json", cwd=other, ITERATIVE_DO_NOT_TRACK="1").stdout)
    assert gto["eta"]["version"] == "v2.0.0" and gto["eta"]["stage"] == {"prod": "v1.0.0"}
    assert not (other / "build").exists() and git(other, "log", "-1", "--format=%s") == "Artifacts of eta@v1"


@dataclass
class Answer:
    """One request under load, in order of its beginning: when it began and ended, what came back, and which release gave it."""

    began: float
    ended: float
    status: int
    release: str
    prediction: str


def ask_steadily(address: str, over: threading.Event, answers: list[Answer], broken: list[str]) -> None:
    """Ask one row after the other over one connection until it is over; a request without an answer is kept too."""
    with httpx.Client(base_url=address, timeout=60) as client:
        while not over.is_set():
            began = time.monotonic()
            try:
                reply = client.post("/predict", json=ROW)
            except httpx.HTTPError as problem:
                broken.append(repr(problem))
                continue
            found = reply.json()
            answers.append(Answer(began, time.monotonic(), reply.status_code, str(found.get("release")), str(found.get("prediction_id"))))
            over.wait(0.002)


def in_order(answers: list[Answer], old: str, new: str) -> None:
    """Fail if a request that began after the first answer of the new release got one of the old: only what was in flight may."""
    first = min(answer.ended for answer in answers if answer.release == new)
    late = [answer for answer in answers if answer.release == old and answer.began > first]
    assert late == [], f"{len(late)} answers of {old} were asked for after the first of {new}"


def test_promoting_and_taking_back_under_load_pauses_nobody(work: Path) -> None:
    """Four clients ask without end; each request is answered and logged, releases follow each other, and the change makes no answer stand out."""
    release(work)
    promote(work, "eta@v1", "prod")
    make(work, 2.2)
    repro(work, "A better model")
    release(work)
    answers: list[Answer] = []
    broken: list[str] = []
    over = threading.Event()
    with serving(work, "--stage", "prod", "--fetch-seconds", "0") as address:
        threads = [threading.Thread(target=ask_steadily, args=(address, over, answers, broken)) for _ in range(4)]
        for thread in threads:
            thread.start()
        try:
            assert "eta@v1  live" in labline(work, "releases", "--url", address).stdout  # a command that starts beside the service slows it, too
            time.sleep(1)
            moments = [time.monotonic()]
            for words in (("promote", "eta@v2"), ("rollback",)):
                assert "The running service answers with" in labline(work, *words, "--url", address).stdout
                time.sleep(1)
                moments.append(time.monotonic())
        finally:
            over.set()
            for thread in threads:
                thread.join()
    assert broken == [] and {answer.status for answer in answers} == {200} and len(answers) > 200
    with sqlite3.connect(work / "runs" / "serving" / "predictions.db") as log:
        logged = {name for (name,) in log.execute("select id from predictions where role = 'live'")}
    log.close()
    assert len({answer.prediction for answer in answers}) == len(answers) and {answer.prediction for answer in answers} == logged
    promoted = [answer for answer in answers if answer.began < moments[1]]
    taken_back = [answer for answer in answers if answer.began >= moments[1]]
    in_order(promoted, "eta@v1", "eta@v2")
    in_order(taken_back, "eta@v2", "eta@v1")
    assert {answer.release for answer in promoted} == {answer.release for answer in taken_back} == {"eta@v1", "eta@v2"}
    ordinary = [answer.ended - answer.began for answer in answers if answer.began < moments[0]]
    changing = [answer.ended - answer.began for answer in answers if answer.began >= moments[0]]
    slow = sum(seconds > 20 * max(ordinary) for seconds in changing)
    assert slow < len(threads), "a pause would have kept every client waiting"


# What is refused


def test_what_is_not_committed_is_named_and_nothing_is_released(work: Path) -> None:
    (work / "params.yaml").write_text("package: {samples: 30}\n")
    (work / "nbs").mkdir()
    (work / "nbs" / "new.ipynb").write_text("{}")
    (work / "notes.txt").write_text("not watched")
    refused = labline(work, "release", check=False)
    assert refused.returncode == 1 and "`nbs/new.ipynb`, `params.yaml`. Commit them" in refused.stderr and "notes.txt" not in refused.stderr
    assert tags(work) == [] and git(work, "log", "--format=%s") == "A run"


def test_a_record_that_does_not_agree_is_named(work: Path) -> None:
    make(work, 2.4)
    with pytest.raises(WorkspaceError, match="`dvc.lock` does not agree with the workspace .found '.*made/package is modified"):
        release(work)
    report = work / "build" / "report" / "report.html"
    report.unlink()
    report.write_text("All is better than it is.")
    with pytest.raises(WorkspaceError, match="build/report is modified"):
        release(work)
    assert tags(work) == []


def test_a_bundle_that_was_changed_on_disk_is_not_released(work: Path) -> None:
    card = work / "build" / "package" / "eta" / "1" / "assets.extra" / "card.md"
    card.unlink()
    card.write_text("Trust me.")
    with pytest.raises(ModelError, match="files differ from what was packaged"):
        release(work)


def test_the_same_bundle_is_released_once(work: Path) -> None:
    assert release(work).label == "eta@v1"
    with pytest.raises(ModelError, match="this bundle is `eta@v1` already"):
        release(work)
    assert tags(work) == ["eta@v1.0.0"]


def test_two_clones_release_at_once_and_one_of_them_is_told(work: Path, tmp_path: Path) -> None:
    shared = tmp_path / "shared.git"
    git(tmp_path, "clone", "--quiet", "--bare", str(work), str(shared))
    colleague = named(Path(shutil.copytree(work, tmp_path / "colleague")), "A Colleague")
    for clone in (work, colleague):
        git(clone, "remote", "add", "origin", str(shared))
    release(colleague)
    git(colleague, "push", "--quiet", "origin", "refs/tags/eta@v1.0.0")
    make(work, 2.3)
    repro(work)
    with pytest.raises(WorkspaceError, match="others have a tag `eta@v1.0.0` already .found 'origin'.. Run `git fetch --tags`"):
        release(work, share=True)
    assert tags(work) == []
    git(work, "fetch", "--quiet", "--tags", "origin")
    assert release(work, share=True).label == "eta@v2" and tags(shared) == ["eta@v1.0.0", "eta@v2.0.0"]
    git(colleague, "fetch", "--quiet", "--tags", "origin")
    promote(work, "eta@v1", "prod", share=True)
    with pytest.raises(WorkspaceError, match="others have a tag `eta#prod#1` already|failed to push|rejected"):
        promote(colleague, "eta@v2", "prod", share=True)
    assert "eta#prod#1" not in tags(colleague)


def test_without_a_repository_to_push_to_there_is_no_tag(work: Path) -> None:
    with pytest.raises(WorkspaceError, match="no repository to push to"):
        release(work, share=True)
    assert tags(work) == []


# The store


def remote(work: Path, url: str) -> None:
    (work / ".dvc" / "config").write_text(f"[core]\n    analytics = false\n    remote = store\n['remote \"store\"']\n    url = {url}\n")
    commit(work, "Another store")


def test_a_remote_that_cannot_be_reached_leaves_no_tag(work: Path) -> None:
    remote(work, "http://127.0.0.1:9/store")
    with pytest.raises(StorageError, match="the DVC remote `store` cannot be reached or written: Connect call failed"):
        release(work)
    assert tags(work) == [] and git(work, "log", "-1", "--format=%s") == "Another store"


def test_a_remote_of_its_own_gets_all_that_the_release_was_made_of(work: Path, tmp_path: Path) -> None:
    remote(work, str(tmp_path / "store"))
    first = release(work)
    assert git(work, "log", "-1", "--format=%s") == "Another store" and first.note.commit == git(work, "rev-parse", "HEAD")
    clone = tmp_path / "clone"
    git(tmp_path, "clone", "--quiet", str(work), str(clone))
    run("dvc", "pull", "--quiet", "build/evaluate", "build/report", cwd=clone)
    assert Bundle.load(bring(clone, Registry.read(clone).find("eta@v1"))).digest == first.digest
    shutil.rmtree(tmp_path / "store")
    shutil.rmtree(clone / ".dvc" / "cache")
    shutil.rmtree(clone / "runs")
    with pytest.raises(StorageError, match="store"):
        bring(clone, Registry.read(clone).find("eta@v1"))


def test_a_full_disk_while_artifacts_are_pushed_leaves_no_tag_and_the_next_try_goes_on(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from dvc_objects.fs import generic

    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        for name in ("_put", "_get", "_try_links", "copy"):
            if hasattr(generic, name):
                patch.setattr(generic, name, full)
        with pytest.raises(StorageError, match="cannot be reached or written: No space left on device"):
            release(work)
    assert tags(work) == [] and git(work, "log", "--format=%s") == "A run"
    assert release(work).label == "eta@v1"


FULL = """
import resource, signal, sys
from labline.operations.tags import Tag, write_tag
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
write_tag(sys.argv[1], Tag("eta", version=1), "HEAD", "a release")
"""


def test_a_disk_that_is_full_when_the_tag_is_written_leaves_no_tag(work: Path) -> None:
    done = subprocess.run([sys.executable, "-c", FULL, str(work)], capture_output=True, text=True)
    assert done.returncode == 1 and "GitError" in done.stderr and tags(work) == []
    assert release(work).label == "eta@v1"


def test_a_full_disk_while_a_release_is_brought_leaves_nothing_half_there(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = release(work)
    copied: list[object] = []

    def full(source: Path, destination: Path) -> None:
        copied.append(destination)
        if len(copied) > 3:
            raise OSError(errno.ENOSPC, "No space left on device")
        destination.write_bytes(source.read_bytes())

    with monkeypatch.context() as patch:
        patch.setattr(storage_module.shutil, "copyfile", full)
        with pytest.raises(StorageError, match="cannot be written: No space left on device"):
            bring(work, first)
    assert list((work / "runs" / "releases" / "eta").iterdir()) == []
    assert Bundle.load(bring(work, first)).digest == first.digest


@pytest.mark.parametrize("moment", ["new files are in the DVC remote", "committed as"])
def test_a_release_that_was_broken_off_goes_on(work: Path, moment: str) -> None:
    def kill(line: str) -> None:
        if moment in line:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        release(work, say=kill)
    assert tags(work) == []
    again = release(work)
    assert again.label == "eta@v1" and git(work, "status", "--porcelain") == ""


def test_the_commit_of_artifacts_takes_nothing_else_along(work: Path) -> None:
    (work / "notes.txt").write_text("for another commit")
    git(work, "add", "notes.txt")
    release(work)
    assert git(work, "status", "--porcelain") == "A  notes.txt"
    assert all(name.startswith(".dvc/remote/") for name in git(work, "show", "--format=", "--name-only", "HEAD").split())


def test_a_workspace_without_git_says_so(work: Path) -> None:
    shutil.rmtree(work / ".git")
    with pytest.raises(LablineError, match="not a git repository"):
        release(work)
