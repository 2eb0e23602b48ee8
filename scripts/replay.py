"""The proof of the loop: a past lived through by the commands that run in production; `make replay`.

Without options: the staged changes of the simulator, one past for each, and a table of what was noticed; then New York taxi trips of 2020, where their
records are, with retraining, and the picture of the README. Everything lies in `runs/replay` afterwards.
"""

import argparse
import os
import shutil
from collections import Counter
from datetime import date
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")

from labline.data.contract import Contract
from labline.files import write_text
from labline.notebooks.runner.children import interrupted_by_sigterm
from labline.operations.replay.lateness import Lateness
from labline.operations.replay.measuring import over
from labline.operations.replay.running import Past, replay
from labline.operations.replay.story import Story
from labline.rides.dispatch import write_raw
from labline.rides.scenario import BridgeClosed, Change, HardWinter, MilesVendor, NewFleet, Scenario, SensorMissing
from labline.rides.taxi import import_taxi, taxi_contract

ROOT = Path(__file__).resolve().parents[1]
TAXI = ROOT.parent / "shared" / "data" / "nyc_taxi"
LIGHT = {
    "train.candidates": ["boosting"], "explore.sample_rows": 5000, "select.resamples": 500, "evaluate.resamples": 200,
    "package.verify_rows": 200}  # fmt: skip
MONTHLY = {
    "prepare.validation_days": 14, "prepare.test_days": 42, "retrain.parameters": {"prepare.validation_days": 7, "prepare.test_days": 14},
    "retrain.every_days": 28, "retrain.cooldown_hours": 14 * 24, "retrain.margin": 0.01, "retrain.slice_columns": ["requested_at", "distance_km"],
    "retrain.slice_margin": 0.25, "retrain.worse_slice": "refuse", "monitor.window_hours": 168, "monitor.step_hours": 24}  # fmt: skip
CHANGES: dict[str, tuple[Change, ...]] = {
    "nothing": (),
    "bridge closed": (BridgeClosed(month="2025-09"),),
    "new fleet": (NewFleet(month="2025-09"),),
    "miles for kilometres, not marked": (MilesVendor(month="2025-09", labelled=False),),
    "miles, marked as such": (MilesVendor(month="2025-09"),),
    "wind sensor missing": (SensorMissing(month="2025-09", sensor="wind_kmh"),),
    "thermometer missing": (SensorMissing(month="2025-09", sensor="temperature_c"),),
    "cold autumn": (HardWinter(month="2025-09"),),
}


def taxi(source: Path, folder: Path, given: argparse.Namespace) -> Story:
    """Live through 2020 with the taxi trips; see `Past`."""
    data = folder / "taxi.data"
    if not data.is_dir():
        print(import_taxi(source / "trips_2018_2020.parquet", source / "weather_hourly.parquet", source / "zones.csv", data).summary, flush=True)
        for path in sorted((data / "legs").iterdir()):
            if path.stem < given.since:
                path.unlink()
    contract = taxi_contract(Contract.load(ROOT / "contract.yaml"))
    parameters: dict[str, Any] = LIGHT | MONTHLY
    past = Past(data, contract, given.begin, given.until, Lateness(median_hours=24), given.step_days, 7.0, parameters=parameters)
    return replay(ROOT, folder / "taxi", past, compare=not given.quick, say=lambda line: print(line, flush=True))


def judge(story: Story, since: str = "2020-05", until: str = "2020-12") -> list[str]:
    """What the year was to show, each with what was seen."""
    figures = over(story.errors, since, until)
    if "monthly" not in figures:
        return []
    looped = figures["looped"]
    goals = [
        ("of the release left alone", looped / figures["left alone"], 0.88), ("of the release with fresh tables", looped / figures["frozen"], 0.88),
        ("of the model learned anew every month", looped / figures["monthly"], 1.02), ("minutes", looped, 3.14)]
    span = f"{since} to {until}: {looped:.3f} min"
    return [f"| {span}, {value:.3f} {what} | at most {goal:g} | {'reached' if value <= goal else 'missed'} |" for what, value, goal in goals]


def staged(folder: Path) -> list[str]:
    """Live through each staged change of the simulator, without retraining, and say what the monitor noticed."""
    lines = ["| change in 2025-09 | error before → after [min] | noticed | on |", "| --- | --- | --- | --- |"]
    for name, changes in CHANGES.items():
        place = folder / name.replace(" ", "_").replace(",", "")
        scenario = Scenario(legs=45_000, start=date(2025, 1, 1), months=9, seed=2025, changes=changes)
        if not place.with_name(f"{place.name}.data").is_dir():
            write_raw(scenario, place.with_name(f"{place.name}.data"))
        past = Past(place.with_name(f"{place.name}.data"), Contract.load(ROOT / "contract.yaml"), "2025-08", "2025-10", step_days=1.75, look_days=3.5,
                    retrain=False, parameters=LIGHT)  # fmt: skip
        story = replay(ROOT, place, past, compare=False, say=lambda line: None)
        lines.append(tell_change(name, story))
        print(lines[-1], flush=True)
    return lines


def tell_change(name: str, story: Story) -> str:
    """The line of a table for a staged change."""
    began = Past(Path(), story.contract, "2025-09", "2025-10").second("2025-09")
    before, after = (over(story.errors, *span).get("looped", float("nan")) for span in (("2025-08", "2025-08"), ("2025-09", "2025-09")))
    noticed = [look for look in story.lived.looks if look.at > began and (look.alarms or look.warnings)]
    early = sum(bool(look.alarms) for look in story.lived.looks if look.at <= began)
    ignored = sorted({cause for look in story.lived.looks if look.at > began for cause in look.ignored})
    firsts = [next((look for look in noticed if getattr(look, kind)), None) for kind in ("warnings", "alarms")]
    after_days = [f"{word} after {(look.at - began) / 86_400:.0f} days" for word, look in zip(("a warning", "an alarm"), firsts, strict=True) if look]
    named = Counter(cause for look in noticed for cause in (*look.alarms, *look.warnings))
    on = ", ".join(f"`{cause}`" for cause, _ in named.most_common(3)) or (f"ignored: {', '.join(ignored)}" if ignored else "nothing moved")
    what = ", ".join(after_days) or "no"
    return f"| {name} | {before:.2f} → {after:.2f} | {what}{f'; {early} false alarms before' if early else ''} | {on} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=TAXI, help="folder of the taxi records")
    parser.add_argument("--folder", type=Path, default=ROOT / "runs" / "replay", help="where everything goes; what is there of an earlier replay is removed")
    parser.add_argument("--only", choices=["staged", "taxi"], help="one of the two")
    parser.add_argument("--since", default="2019-01", help="first month of taxi trips that is known")
    parser.add_argument("--begin", default="2020-01", help="first month that is lived through")
    parser.add_argument("--until", default="2021-01", help="first month that is not")
    parser.add_argument("--step-days", type=float, default=1.0, help="days after which what has become known is told")
    parser.add_argument("--quick", action="store_true", help="without the model that learns anew every month")
    given = parser.parse_args()
    shutil.rmtree(given.folder, ignore_errors=True)
    given.folder.mkdir(parents=True)
    if given.only != "taxi":
        write_text(given.folder / "staged.md", "\n".join(staged(given.folder)) + "\n")
    if given.only != "staged" and given.data.is_dir():
        lines = judge(taxi(given.data, given.folder, given))
        print("\n".join(lines))
        write_text(given.folder / "taxi.md", "\n".join(lines) + "\n")
    elif given.only != "staged":
        print(f"Without taxi trips: there are no records at {given.data}; name their folder by --data.")


if __name__ == "__main__":
    with interrupted_by_sigterm():  # so that what was started ends, too
        main()
