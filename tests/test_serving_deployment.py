"""Releases that are opened, refused, promoted, taken back and followed, while requests are answered."""

import asyncio
import gc
import json
import logging
import os
import shutil
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import numpy as np
import psutil
import pytest

from labline.errors import ModelError, WorkspaceError
from labline.models.bundle import EVIDENCE, write_digests
from labline.models.example import example_bundle
from labline.serving import deployment as deployment_module
from labline.serving import state as state_module
from labline.serving.deployment import Deployment
from labline.serving.following import Follower, follow, restored
from labline.serving.hosting import Host, Hosted, Standing
from labline.serving.log import Entry, PredictionLog, new_ids
from labline.serving.problems import Problem
from labline.serving.release import Release, locate, open_release, rows_of
from labline.serving.settings import Settings
from labline.serving.state import Ledger, read_state
from labline.serving.trial import Report

PER_KM = {1: 2.0, 2: 3.0, 3: 4.0}
ROW = {"requested_at": "2026-03-02T08:30:00", "zone": "north", "vehicle": "car", "distance_km": 4.0, "speed_kmh": 30.0}


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Releases 1, 2 and 3 of `eta`, which need 2, 3 and 4 minutes for a kilometre, and one of `fare`."""
    folder = tmp_path_factory.mktemp("releases").resolve()
    for version, minutes in PER_KM.items():
        example_bundle(folder, minutes_per_km=minutes, version=version)
    example_bundle(folder, name="fare")
    return folder


@pytest.fixture
def settings(bundles: Path, tmp_path: Path) -> Settings:
    return Settings(folders=str(bundles), state=str(tmp_path / "state.json"), log="off", warmup_rows=8)


def serve(settings: Settings, version: int = 1, **named: Any) -> tuple[Hosted, Deployment]:
    """A process that serves one version of `eta`."""
    host = Host.of([open_release(f"eta@v{version}", settings=settings, allowed=settings.folders.split(":"))])
    return host.find(), Deployment(host, None, settings, **named)


@pytest.fixture
def served(settings: Settings) -> tuple[Hosted, Deployment]:
    hosted, deployment = serve(settings)
    deployment.adopt()
    return hosted, deployment


def deploy(deployment: Deployment, reference: str | Path, **named: Any) -> Report:
    return asyncio.run(deployment.deploy(reference, **named))


def minutes(release: Release, rows: int = 1) -> list[float]:
    return release.predict(rows_of([ROW] * rows, release.bundle.contract))["minutes"].tolist()


# Under load


def test_swaps_under_constant_calls_fail_none_and_mix_none(served: tuple[Hosted, Deployment]) -> None:
    hosted, deployment = served
    over, failures, answered = threading.Event(), [], [0] * 3
    seen: set[int] = set()

    def batches(worker: int) -> None:
        number = 0
        while not over.is_set():
            number += 1
            standing = hosted.standing
            release, _ = standing.choose(f"{worker} {number}")
            try:
                wrong = [value for value in minutes(release, rows=5) if value != 3 + 4 * PER_KM[release.version]]
                failures.extend(wrong)
            except Exception as problem:
                failures.append(problem)
            answered[worker] += 1
            seen.add(release.version)

    async def swaps() -> None:
        for version in (2, 3, 1, 2):
            await deployment.deploy(f"eta@v{version}")
            await deployment.rollback()
            await deployment.deploy(f"eta@v{version}", canary=0.5)
            await deployment.deploy(f"eta@v{version}")

    threads = [threading.Thread(target=batches, args=(worker,)) for worker in range(3)]
    for thread in threads:
        thread.start()
    try:
        asyncio.run(swaps())
    finally:
        over.set()
        for thread in threads:
            thread.join()
    assert failures == [] and seen == {1, 2, 3} and min(answered) > 10


def test_a_replaced_release_is_closed_when_its_last_batch_is_over(served: tuple[Hosted, Deployment]) -> None:
    hosted, deployment = served
    batch = hosted.standing
    gone, closed = weakref.ref(hosted.live), []
    end = hosted.live.predictor.close
    hosted.live._end.detach()
    weakref.finalize(hosted.live, lambda: closed.append(end()))
    deploy(deployment, "eta@v2")
    deploy(deployment, "eta@v3")
    assert sorted(hosted.versions) == [2, 3] and minutes(batch.live) == [11.0] and closed == []
    del batch
    gc.collect()
    assert gone() is None and len(closed) == 1


def test_memory_stays_flat_over_swaps(served: tuple[Hosted, Deployment]) -> None:
    hosted, deployment = served

    async def swaps(count: int) -> int:
        for number in range(count):
            await deployment.deploy(f"eta@v{number % 3 + 1}")
            assert len(hosted.versions) <= 2
        return psutil.Process().memory_info().rss

    before, after = asyncio.run(swaps(3)), asyncio.run(swaps(30))
    assert after - before < 40_000_000


# Rollback, canary, shadow


def test_a_rollback_returns_to_the_previous_release_and_a_second_one_undoes_it(served: tuple[Hosted, Deployment]) -> None:
    hosted, deployment = served
    first = hosted.live
    with pytest.raises(Problem, match="no previous release") as refused:
        asyncio.run(deployment.rollback())
    assert refused.value.status == 409
    promoted = deploy(deployment, "eta@v2")
    assert (promoted.release, promoted.before, promoted.role) == ("eta@v2", "eta@v1", "live")
    second = hosted.live
    assert asyncio.run(deployment.rollback("eta")).release == "eta@v1" and hosted.live is first
    assert asyncio.run(deployment.rollback()).release == "eta@v2" and hosted.live is second and hosted.previous is first


def test_a_rollback_ends_trials(served: tuple[Hosted, Deployment]) -> None:
    hosted, deployment = served
    deploy(deployment, "eta@v2")
    deploy(deployment, "eta@v3", canary=0.5)
    asyncio.run(deployment.rollback())
    assert (hosted.live.version, hosted.canary, sorted(hosted.versions)) == (1, None, [1, 2])


def test_a_canary_answers_its_share_and_always_the_same_requests(served: tuple[Hosted, Deployment]) -> None:
    hosted, deployment = served
    report = deploy(deployment, "eta@v2", canary=0.1)
    ids = [f"request-{number}" for number in range(10_000)]
    chosen = [hosted.choose(name)[1] for name in ids]
    assert report.role == "canary" and 850 < chosen.count("canary") < 1150 and chosen.count("live") == 10_000 - chosen.count("canary")
    assert [hosted.choose(name)[1] for name in ids] == chosen
    deploy(deployment, "eta@v2", canary=0.3)
    wider = [hosted.choose(name)[1] for name in ids]
    assert all(after == "canary" for before, after in zip(chosen, wider, strict=True) if before == "canary") and 2800 < wider.count("canary") < 3200
    assert dict(hosted.labels) == {"stable": 1, "canary": 2} and hosted.find(label="canary").version == 2
    asyncio.run(deployment.end())
    assert hosted.canary is None and hosted.choose(ids[0])[1] == "live" and sorted(hosted.versions) == [1]


def test_a_shadow_stands_beside_and_is_promoted_without_a_second_load(served: tuple[Hosted, Deployment]) -> None:
    hosted, deployment = served
    report = deploy(deployment, "eta@v2", shadow=True)
    shadow = hosted.shadow
    assert report.role == "shadow" and shadow is not None and shadow.version == 2
    assert {hosted.choose(str(number))[0].version for number in range(100)} == {1}
    deploy(deployment, "eta@v3", canary=0.2)
    assert hosted.shadow is shadow and hosted.canary is not None
    deploy(deployment, "eta@v2")
    assert hosted.live is shadow and hosted.shadow is None and hosted.canary[0].version == 3 and hosted.previous.version == 1  # type: ignore[index, union-attr]


def test_the_report_says_how_far_the_answers_are_apart(served: tuple[Hosted, Deployment], tmp_path: Path) -> None:
    _, deployment = served
    log = PredictionLog(f"sqlite:///{tmp_path}/predictions.db")
    rows = [ROW | {"distance_km": float(distance)} for distance in range(1, 8)]
    facts = {"request": "r", "at": time.time(), "model": "eta", "version": 1, "digest": "", "role": "live", "key": None, "answer": "{}"}
    log.write([Entry(id=name, row=msgspec.json.encode(row).decode(), **facts) for name, row in zip(new_ids(7), rows, strict=True)])
    deployment.log = log
    report = deploy(deployment, "eta@v2", shadow=True)
    log.close()
    assert (report.source, report.rows, report.median, report.largest, report.unit) == ("log", 7, 4.0, 7.0, "min")
    assert report.over_a_tenth == 1.0 and {"load", "compare", "swap"} == set(report.seconds) and report.warnings == []
    samples = deploy(Deployment(deployment.host, None, deployment.settings), "eta@v3", canary=0.1)
    assert samples.source == "samples" and samples.rows == 8


# Refusals


def resealed(change: Callable[[Path], None]) -> Callable[[Path], None]:
    def both(folder: Path) -> None:
        change(folder)
        write_digests(folder, "eta")

    return both


def flip_a_bit(folder: Path) -> None:
    content = bytearray((folder / "saved_model.pb").read_bytes())
    content[len(content) // 2] ^= 1
    (folder / "saved_model.pb").write_bytes(content)


def truncate(name: str) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        path = next(folder.glob(name))
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])

    return change


def replace_text(name: str, old: str, new: str) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        text = (folder / EVIDENCE / name).read_text()
        assert old in text
        (folder / EVIDENCE / name).write_text(text.replace(old, new))

    return change


def other_answers(folder: Path) -> None:
    path = folder / EVIDENCE / "samples.json"
    samples = json.loads(path.read_text())
    samples["predictions"][3]["minutes"] += 0.01
    path.write_text(json.dumps(samples))


def one_answer_less(folder: Path) -> None:
    path = folder / EVIDENCE / "samples.json"
    samples = json.loads(path.read_text())
    path.write_text(json.dumps(samples | {"predictions": samples["predictions"][1:]}))


REFUSED = {
    "a bit flipped": (flip_a_bit, "differ from what was packaged: `saved_model.pb`"),
    "truncated variables": (truncate("variables/variables.index"), "differ from what was packaged"),
    "an extra file": (lambda folder: (folder / "extra.py").touch(), "do not belong"),
    "a file lost": (lambda folder: (folder / EVIDENCE / "card.md").unlink(), "not complete"),
    "no digests": (lambda folder: (folder / EVIDENCE / "digests.json").unlink(), "not a release bundle"),
    "never verified": (resealed(lambda folder: (folder / EVIDENCE / "verify.json").unlink()), "never verified"),
    "a graph that does not load": (resealed(truncate("saved_model.pb")), ""),
    "another kind": (resealed(replace_text("contract.yaml", "type: integer", "type: category")), "another kind"),
    "another column": (resealed(replace_text("contract.yaml", "passengers:", "people:")), "`passengers`, `people` differ"),
    "another target": (resealed(replace_text("contract.yaml", "minutes:", "hours:")), "does not give the target `hours`"),
    "no contract": (resealed(replace_text("contract.yaml", "tables:", "tables: [")), "cannot be read"),
    "other answers": (resealed(other_answers), "instances[3]: the model does not give its recorded answers"),
    "an answer less": (resealed(one_answer_less), "no answer for each request"),
    "no samples": (resealed(replace_text("samples.json", "instances", "requests")), "`samples.json` is damaged"),
    "samples cut short": (resealed(truncate(f"{EVIDENCE}/samples.json")), "cannot be read"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_release_that_does_not_hold_is_refused_and_the_old_one_goes_on(name: str, bundles: Path, tmp_path: Path, served: tuple[Hosted, Deployment]) -> None:
    hosted, deployment = served
    change, message = REFUSED[name]
    copy = tmp_path / "eta" / "2"
    shutil.copytree(bundles / "eta" / "2", copy)
    change(copy)
    deployment.allowed.append(tmp_path)
    standing, state = hosted.standing, read_state(deployment.settings.state)
    with pytest.raises(ModelError) as refused:
        deploy(deployment, copy)
    assert message in str(refused.value) and refused.value.remedy
    assert hosted.standing is standing and read_state(deployment.settings.state) == state and minutes(hosted.live) == [11.0]
    assert deploy(deployment, "eta@v2").release == "eta@v2"


def test_a_foreign_release_is_refused(served: tuple[Hosted, Deployment], bundles: Path, tmp_path: Path) -> None:
    hosted, deployment = served
    with pytest.raises(ModelError, match="not served here.*`eta`"):
        deploy(deployment, "fare@v1")
    shutil.copytree(bundles / "fare" / "1", tmp_path / "eta" / "9")
    write_digests(tmp_path / "eta" / "9", "eta")
    deployment.allowed.append(tmp_path)
    with pytest.raises(ModelError, match="another model than `eta`"):
        deploy(deployment, tmp_path / "eta" / "9")
    assert hosted.live.version == 1


@pytest.mark.parametrize(
    "reference",
    ["../secret/1", "/etc", "eta/../../secret/1", "link/1", "eta/link", "secret@v../1", "..@v1", "eta@v1/../../../secret/1", "\0", "a" * 5000, "~/x"],
)
def test_no_name_leads_out_of_the_folders(reference: str, tmp_path: Path) -> None:
    outside = tmp_path / "secret" / "1" / EVIDENCE
    outside.mkdir(parents=True)
    (outside / "digests.json").touch()
    (tmp_path / "releases" / "eta").mkdir(parents=True)
    (tmp_path / "releases" / "link").symlink_to(tmp_path / "secret")
    (tmp_path / "releases" / "eta" / "link").symlink_to(tmp_path / "secret" / "1")
    with pytest.raises(ModelError, match="outside the folders|no such release") as refused:
        locate(reference, [tmp_path / "releases"])
    assert len(str(refused.value)) < 600 and "secret" not in str(refused.value).replace(repr(reference), "")


def test_a_link_within_the_folders_is_followed(bundles: Path, tmp_path: Path) -> None:
    (tmp_path / "latest").symlink_to(bundles / "eta" / "3")
    assert locate("latest", [tmp_path, bundles]) == bundles / "eta" / "3"
    assert open_release("latest", settings=Settings(), allowed=[tmp_path, bundles]).version == 3


# Several at once


def test_of_two_deployments_at_once_the_second_is_told_to_wait(served: tuple[Hosted, Deployment]) -> None:
    hosted, deployment = served

    async def both() -> list[Any]:
        return await asyncio.gather(deployment.deploy("eta@v2"), deployment.deploy("eta@v3"), return_exceptions=True)

    outcomes = asyncio.run(both())
    refused = [outcome for outcome in outcomes if isinstance(outcome, Problem)]
    assert len(refused) == 1 and refused[0].status == 409 and refused[0].retry_after
    assert f"eta@v{hosted.live.version}" in {outcome.release for outcome in outcomes if isinstance(outcome, Report)}


def test_of_two_processes_at_once_the_second_gives_up(settings: Settings) -> None:
    (one, first), (other, second) = serve(settings), serve(settings)
    first.adopt()
    second.ledger = Ledger(settings.state)

    async def both() -> list[Any]:
        return await asyncio.gather(first.deploy("eta@v2"), second.deploy("eta@v3"), return_exceptions=True)

    outcomes = asyncio.run(both())
    assert sorted(type(outcome).__name__ for outcome in outcomes) == ["Problem", "Report"]
    live = {hosted.live.version for hosted, outcome in zip((one, other), outcomes, strict=True) if isinstance(outcome, Report)}
    assert {read_state(settings.state).models["eta"].live.version} == live


def test_a_rollback_does_not_wait_for_a_deployment_which_then_gives_up(served: tuple[Hosted, Deployment]) -> None:
    hosted, deployment = served
    deploy(deployment, "eta@v2")

    async def both() -> None:
        slow = asyncio.create_task(deployment.deploy("eta@v3"))
        while not deployment.busy:
            await asyncio.sleep(0)
        await deployment.rollback()
        with pytest.raises(Problem, match="changed meanwhile"):
            await slow

    asyncio.run(both())
    assert (hosted.live.version, hosted.previous.version) == (1, 2)  # type: ignore[union-attr]


# Models that hang


@pytest.fixture
def waiting() -> Iterator[threading.Event]:
    event = threading.Event()
    yield event
    event.set()


def test_a_live_release_that_hangs_does_not_keep_its_successor_out(settings: Settings, waiting: threading.Event) -> None:
    hosted, deployment = serve(msgspec.structs.replace(settings, request_seconds=0.05))
    hosted.live.predictor = SimpleNamespace(predict=lambda rows: waiting.wait())  # type: ignore[assignment]
    report = deploy(deployment, "eta@v2")
    assert hosted.live.version == 2 and report.rows == 0 and "`eta@v1` gave no answers" in report.warnings[0]


def test_a_release_that_hangs_is_given_up(served: tuple[Hosted, Deployment], waiting: threading.Event, monkeypatch: pytest.MonkeyPatch) -> None:
    hosted, deployment = served
    deployment.seconds = 0.05
    with monkeypatch.context() as patch:
        patch.setattr("labline.serving.trial.open_bundle", lambda *arguments, **named: waiting.wait())
        with pytest.raises(ModelError, match="not done in 0.05 s"):
            deploy(deployment, "eta@v2")
    deployment.seconds = 60
    assert deploy(deployment, "eta@v2").release == "eta@v2" and hosted.live.version == 2


# The state file


def test_without_room_for_the_state_a_deployment_is_refused_and_a_rollback_done(served: tuple[Hosted, Deployment], monkeypatch: pytest.MonkeyPatch) -> None:
    hosted, deployment = served
    deploy(deployment, "eta@v2")

    def full(path: Path) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(state_module, "written_whole", full)
        with pytest.raises(WorkspaceError, match="No space left"):
            deploy(deployment, "eta@v3")
        assert hosted.live.version == 2
        report = asyncio.run(deployment.rollback())
    assert hosted.live.version == 1 and "No space left" in report.warnings[0]


def test_a_restart_finds_what_was_live(served: tuple[Hosted, Deployment], settings: Settings) -> None:
    _, deployment = served
    deploy(deployment, "eta@v2")
    deploy(deployment, "eta@v3", canary=0.25)
    again = restored(settings)[0]
    assert (again.live.version, again.previous.version, again.canary[0].version, again.canary[1]) == (2, 1, 3, 0.25)  # type: ignore[union-attr, index]
    next_one = Deployment(Host([again]), None, settings)
    assert deploy(next_one, "eta@v3").before == "eta@v2" and asyncio.run(next_one.rollback()).release == "eta@v2"


def copied(bundles: Path, tmp_path: Path) -> Settings:
    """Settings over a copy of the releases, which may be spoilt."""
    shutil.copytree(bundles / "eta", tmp_path / "copies" / "eta")
    return Settings(folders=str(tmp_path / "copies"), state=str(tmp_path / "state.json"), log="off", warmup_rows=8)


def test_a_restart_without_the_live_release_takes_the_previous_one_and_goes_on_trying(
    bundles: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    settings = copied(bundles, tmp_path)
    _, deployment = serve(settings)
    deployment.adopt()
    deploy(deployment, "eta@v2")
    (tmp_path / "copies" / "eta" / "2").rename(tmp_path / "away")
    again = restored(settings)[0]
    assert (again.live.version, again.previous) == (1, None) and "which was live, cannot be served" in caplog.text
    restarted = Deployment(Host([again]), None, settings)
    follower = Follower(restarted, pauses=(0.0, 0.0))
    assert not asyncio.run(follower.look()) and again.live.version == 1
    (tmp_path / "away").rename(tmp_path / "copies" / "eta" / "2")
    assert asyncio.run(follower.look()) and (again.live.version, again.previous.version) == (2, 1)  # type: ignore[union-attr]


def test_a_restart_without_any_release_asks_for_one_by_name(bundles: Path, tmp_path: Path) -> None:
    settings = copied(bundles, tmp_path)
    _, deployment = serve(settings)
    deployment.adopt()
    example_bundle(tmp_path / "other", minutes_per_km=9.0)
    shutil.rmtree(tmp_path / "copies" / "eta" / "1")
    shutil.move(tmp_path / "other" / "eta" / "1", tmp_path / "copies" / "eta" / "1")
    with pytest.raises(ModelError, match="no release of `eta`"):
        restored(settings)
    assert restored(msgspec.structs.replace(settings, state=str(tmp_path / "none.json"))) == []


def test_a_restart_with_named_releases_replaces_a_damaged_state(settings: Settings) -> None:
    Path(settings.state).write_text('{"serial": ')
    with pytest.raises(WorkspaceError, match="Name the releases"):
        restored(settings)
    _, deployment = serve(settings, version=3)
    deployment.adopt()
    assert read_state(settings.state).models["eta"].live.version == 3


def test_a_follower_does_what_another_process_did(served: tuple[Hosted, Deployment], settings: Settings) -> None:
    _, deployment = served
    hosted, other = serve(settings)
    told: list[Standing] = []
    hosted.watchers.append(told.append)

    async def story() -> None:
        task = asyncio.create_task(follow(other, seconds=0.01))

        async def until(true: Callable[[], Any]) -> None:
            while not true():
                await asyncio.sleep(0.005)

        await deployment.deploy("eta@v2", canary=0.5)
        await until(lambda: hosted.canary)
        await deployment.deploy("eta@v3", shadow=True)
        await until(lambda: hosted.shadow)
        await deployment.deploy("eta@v2")
        await until(lambda: hosted.live.version == 2)
        assert hosted.canary is None and hosted.previous.version == 1
        await deployment.rollback()
        await until(lambda: hosted.live.version == 1)
        assert hosted.shadow is None
        task.cancel()

    asyncio.run(asyncio.wait_for(story(), 240))
    assert [standing.live.version for standing in told] == [1, 1, 2, 1]


def test_what_one_process_has_promoted_another_takes_back_before_it_has_followed(served: tuple[Hosted, Deployment], settings: Settings) -> None:
    mine, deployment = served
    hosted, other = serve(settings)
    deploy(deployment, "eta@v2")
    assert asyncio.run(other.rollback()).release == "eta@v1" and hosted.live.version == 1
    assert asyncio.run(Follower(deployment).look()) and (mine.live.version, mine.previous.version) == (1, 2)  # type: ignore[union-attr]
    assert asyncio.run(Follower(other).look()) and hosted.previous.version == 2  # type: ignore[union-attr]


def test_a_follower_that_cannot_load_a_release_stays_and_tries_again(bundles: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    settings = copied(bundles, tmp_path)
    (_, deployment), (hosted, other) = serve(settings), serve(settings)
    deployment.adopt()
    deploy(deployment, "eta@v2")
    saved = (tmp_path / "copies" / "eta" / "2" / "saved_model.pb").read_bytes()
    flip_a_bit(tmp_path / "copies" / "eta" / "2")
    follower = Follower(other, pauses=(0.0, 0.0))
    assert not asyncio.run(follower.look()) and hosted.live.version == 1 and minutes(hosted.live) == [11.0]
    assert "cannot be served here" in caplog.text and "saved_model.pb" in caplog.text
    later = Follower(other, pauses=(1000.0, 1000.0))
    asyncio.run(later.look())
    errors = len(caplog.records)
    assert not asyncio.run(later.look()) and len(caplog.records) == errors
    (tmp_path / "copies" / "eta" / "2" / "saved_model.pb").write_bytes(saved)
    assert asyncio.run(follower.look()) and hosted.live.version == 2


def test_a_bundle_packaged_anew_in_its_folder_gets_the_next_number(bundles: Path, tmp_path: Path) -> None:
    settings = copied(bundles, tmp_path)
    hosted, deployment = serve(settings)
    deployment.adopt()
    shutil.rmtree(tmp_path / "copies" / "eta" / "1")
    example_bundle(tmp_path / "copies", minutes_per_km=9.0)
    report = deploy(deployment, "eta@v1")
    assert report.release == "eta@v2" and "served as version 2" in report.warnings[0] and minutes(hosted.live) == [39.0]
    assert asyncio.run(deployment.rollback()).release == "eta@v1" and minutes(hosted.live) == [11.0]


def test_clocks_play_no_part(served: tuple[Hosted, Deployment], settings: Settings) -> None:
    _, deployment = served
    hosted, other = serve(settings)
    follower = Follower(other)
    for version, when in ((2, 0.0), (3, 4e9), (2, 1.0)):
        deploy(deployment, f"eta@v{version}")
        os.utime(settings.state, (when, when))
        assert asyncio.run(follower.look()) and hosted.live.version == version


def test_a_watcher_that_fails_does_not_undo_a_change(served: tuple[Hosted, Deployment], caplog: pytest.LogCaptureFixture) -> None:
    hosted, deployment = served
    hosted.watchers.append(lambda standing: [][0])
    with caplog.at_level(logging.ERROR):
        deploy(deployment, "eta@v2")
    assert hosted.live.version == 2 and "a watcher of the releases failed" in caplog.text


def test_what_is_live_already_is_not_loaded_again(served: tuple[Hosted, Deployment], monkeypatch: pytest.MonkeyPatch) -> None:
    hosted, deployment = served
    monkeypatch.setattr(deployment_module, "try_release", None)
    standing = hosted.standing
    assert deploy(deployment, "eta@v1").warnings == ["`eta@v1` was live already"] and hosted.standing is standing
    with pytest.raises(Problem, match="live already"):
        deploy(deployment, "eta@v1", canary=0.5)


def test_samples_and_rows_of_the_log_become_rows_of_the_contract(served: tuple[Hosted, Deployment]) -> None:
    hosted, _ = served
    rows = rows_of([{"distance_km": "a hash", "zone": 3, "passengers": True}, {}], hosted.live.bundle.contract)
    assert np.isnan(rows.columns["distance_km"]).all() and rows.columns["zone"].tolist() == ["", ""] and rows.columns["passengers"][0] == 1
