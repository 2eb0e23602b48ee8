"""A past lived through in short: a fleet changes, the loop notices, learns, and what it releases errs less; no request fails meanwhile."""

from datetime import date
from pathlib import Path

import pytest
from workspaces import QUICK, small_workspace

from labline.data.contract import Contract
from labline.operations.replay.lateness import Lateness
from labline.operations.replay.running import Past, replay
from labline.operations.replay.story import Story
from labline.operations.retrain.state import FOLDER, history
from labline.rides.dispatch import write_raw
from labline.rides.scenario import NewFleet, Scenario

PARAMETERS = {
    "train.candidates": ["tree"], "train.max_rows": 6000, "prepare.validation_days": 7, "prepare.test_days": 21,
    "retrain.parameters": {"prepare.validation_days": 3, "prepare.test_days": 7}, "retrain.least_rows": 100, "retrain.slice_rows": 5000,
    "retrain.margin": 0.05,
    "retrain.cooldown_hours": 24 * 60}  # fmt: skip


@pytest.fixture(scope="module")
def lived(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Story]:
    """Two months in which loading suddenly takes four times as long."""
    folder = tmp_path_factory.mktemp("replay")
    workspace = small_workspace(folder / "workspace", legs=200, months=1, changes=QUICK)
    scenario = Scenario(legs=7200, start=date(2025, 1, 1), months=6, seed=3, changes=(NewFleet(month="2025-05", loading=4.0),))
    write_raw(scenario, folder / "data")
    late = Lateness(median_hours=12)
    past = Past(folder / "data", Contract.load(workspace / "contract.yaml"), "2025-05", "2025-07", late, step_days=3.5, look_days=10.5, parameters=PARAMETERS)
    said: list[str] = []
    story = replay(workspace, folder / "lived", past, say=said.append)
    assert any("is served on" in line for line in said)
    return folder / "lived", story


def test_no_request_fails_and_every_answer_is_in_the_log(lived: tuple[Path, Story]) -> None:
    counts, logged = lived[1].counts, lived[1].logged
    assert counts.failed == 0 and counts.refused == 0, counts.problems
    assert counts.answered >= sum(counts.releases.values()) == logged > 2000
    assert counts.unmatched == 0 and 0.8 * logged < counts.told < logged


def test_the_alarm_comes_with_the_change_and_leads_to_a_release(lived: tuple[Path, Story]) -> None:
    place, story = lived
    alarmed = [look for look in story.lived.looks if look.alarms]
    assert alarmed and "error" in {cause for look in alarmed for cause in look.alarms}
    labels = [label for _, label in story.lived.promotions]
    assert labels[0] == "eta@v1" and len(labels) >= 2 and set(story.counts.releases) >= {"eta@v1", labels[1]}
    assert story.lived.promotions[1][0] >= alarmed[0].at
    ended = history(place / FOLDER)
    assert ended[0]["ending"] == "promoted" and "alarm" in ended[0]["because"]


def test_what_the_loop_answers_errs_less_than_what_nobody_touched(lived: tuple[Path, Story]) -> None:
    last = lived[1].errors.loc["2025-06"]
    assert last["looped"] < 0.8 * last["left alone"] and last["looped"] < 0.97 * last["frozen"] and last["looped"] < 1.1 * last["monthly"]


def test_every_promotion_has_its_evidence_and_the_story_its_picture(lived: tuple[Path, Story]) -> None:
    place, story = lived
    assert len(list((place / "retrainings").glob("*.md"))) >= sum(ending == "promoted" for _, ending in story.lived.endings) >= 1
    told = (place / "runs" / "replay" / "replay.md").read_text()
    assert (place / "runs" / "replay" / "replay.png").stat().st_size > 20_000 and "First alarm on" in told and "0 requests failed" in told
