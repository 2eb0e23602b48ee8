"""Benchmark 10: from an alarm of the monitor to a release that answers, step by step, in a temporary clone of the repository.

The clone's line runs (what has run here before is taken from the cache), and its release goes live. For three months the simulator's dispatcher has
another fleet, on which loading takes much longer; the log holds what the live release answered to those legs, and their actual values. Then a service
that follows the stage answers a light load, and `labline monitor` and `labline retrain --if-due` do the rest: they are told nothing but where the
service is. What is committed is measured, with the policy of `params.yaml`, but that nobody is asked.
"""

import argparse
import json
import re
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC
from pathlib import Path

import httpx
import pandas as pd
from machine import machine, markdown

from labline.data.contract import Contract
from labline.data.incoming import RawTables
from labline.data.preparation import prepare
from labline.data.quality import validate
from labline.data.splits import SplitSettings
from labline.models.savedmodel import load
from labline.operations.git import git
from labline.operations.registry import Registry
from labline.operations.retrain.gathering import link_or_copy
from labline.operations.retrain.worktree import environment_of, hand_on_times
from labline.serving.actuals import Actuals
from labline.serving.log import PredictionLog
from labline.serving.store import Entry

ROOT = Path(__file__).parents[1]
CHANGE = ["--start", "2026-01", "--months", "3", "--legs", "14800", "--change", "new-fleet:month=2026-01,loading=2.5"]
DAYS, NOW = 90, "2026-04-01T03:00"
Told = list[tuple[float, str]]


def run(clone: Path, *words: str, hear: Callable[[str], None] = lambda line: None) -> str:
    """What a command prints in the clone; ends the benchmark if it fails."""
    process = subprocess.Popen(words, cwd=clone, env=environment_of(clone), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    told = []
    with process:
        for line in process.stdout or []:
            told.append(line)
            hear(line.rstrip("\n"))
    if process.returncode:
        sys.exit(f"{' '.join(words)} ended with {process.returncode}:\n{''.join(told)[-5000:]}")
    return "".join(told)


def first_release(clone: Path) -> Path:
    """Clone, run the line, and let its release go live; returns the release's bundle."""
    git(ROOT.parent, "clone", "--quiet", str(ROOT), str(clone))
    for name, value in {"user.name": "Benchmark", "user.email": "benchmark@localhost", "core.hooksPath": "", "commit.gpgsign": "false"}.items():
        git(clone, "config", name, value)
    if (ROOT / ".dvc" / "cache").is_dir():
        shutil.copytree(ROOT / ".dvc" / "cache", clone / ".dvc" / "cache", copy_function=link_or_copy)
    policy = (clone / "params.yaml").read_text()
    (clone / "params.yaml").write_text(policy.replace("decide: ask", "decide: auto").replace("worse_slice: ask", "worse_slice: refuse"))
    run(clone, "dvc", "pull", "--quiet", "data.dvc")
    run(clone, "labline", "repro")
    hand_on_times(ROOT, clone)  # a stage from the cache took none
    git(clone, "add", "--all")
    git(clone, "commit", "--quiet", "--message", "A run")
    run(clone, "labline", "release")
    run(clone, "labline", "promote", "eta@v1")
    return next((clone / "build" / "package" / "eta").iterdir())


def legs_of_the_change(clone: Path, folder: Path) -> pd.DataFrame:
    """The legs of three months with another fleet: raw rows with looked-up columns, ids and actual values. Their weather goes to the clone's service."""
    run(clone, "labline", "simulate", str(folder / "new"), *CHANGE)
    shutil.copytree(clone / "data", folder / "data")
    for path in (folder / "new" / "legs").iterdir():
        shutil.copy(path, folder / "data" / "legs")
    weather = [pd.read_parquet(place / "weather.parquet") for place in (clone / "data", folder / "new")]
    pd.concat(weather).to_parquet(folder / "data" / "weather.parquet", index=False)
    contract = Contract.load(clone / "contract.yaml")
    validate(contract, folder / "data", folder / "validate")
    prepare(contract, folder / "validate" / "tables", folder / "prepare", "labline.rides.features", split=SplitSettings(14, DAYS, 0))
    hours = pd.read_parquet(folder / "validate" / "tables" / "weather.parquet")
    hours = hours[hours["observed_at"] >= "2026-01-01"].astype(object)
    rows = [{name: None if pd.isna(value) else value for name, value in row.items()} for row in hours.to_dict("records")]
    came = RawTables(contract, clone / "runs" / "serving" / "tables", clone / "build" / "validate" / "tables")
    came.add("weather", [row | {"observed_at": row["observed_at"].isoformat(timespec="seconds")} for row in rows])
    return pd.read_parquet(folder / "prepare" / "test.parquet").sort_values("requested_at", ignore_index=True)


def answer(clone: Path, bundle: Path, legs: pd.DataFrame) -> None:
    """Leave in the service's log what the release answers to the legs, each at its own time, and the actual values week by week."""
    contract, digest = Contract.load(clone / "contract.yaml"), str(Registry.read(clone).find("eta@v1").digest)
    answers = load(bundle)(legs[list(contract.row)]).astype(float).round(3)
    log, entries = PredictionLog(f"sqlite:///{clone}/runs/serving/predictions.db"), []
    rows = legs[list(contract.row)].astype(object).where(legs[list(contract.row)].notna(), None)
    at = legs["requested_at"].dt.tz_localize(contract.timezone, ambiguous=True, nonexistent="shift_forward").dt.tz_convert(UTC)
    for key, moment, row, given in zip(legs["leg_id"], at, rows.to_dict("records"), answers.to_dict("records"), strict=True):
        sent = json.dumps(row | {"requested_at": row["requested_at"].isoformat(timespec="seconds")}, default=lambda value: value.item())
        entries.append(Entry(f"p-{key}", f"r-{key}", moment.timestamp(), "eta", 1, digest, "live", key, sent, json.dumps(given)))
    log.write(entries)
    actuals = Actuals(log, contract)
    for _, week in legs.assign(at=at).groupby(at.dt.dayofyear // 7):
        values = [{"key": key, "value": minutes} for key, minutes in zip(week["leg_id"], week["minutes"], strict=True)]
        actuals.add(values, now=week["at"].max().timestamp() + 7200)
    log.close()


@contextmanager
def service(clone: Path) -> Iterator[str]:
    """`labline serve --stage prod` in the clone, and its address."""
    words = ["labline", "serve", "--stage", "prod", "--port", "0", "--fetch-seconds", "0"]
    process = subprocess.Popen(words, cwd=clone, env=environment_of(clone), stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    reader = threading.Thread(target=lambda: [None for _ in process.stdout or []], daemon=True)
    try:
        first = str(process.stdout and process.stdout.readline())
        if "is served on " not in first:
            sys.exit(f"the service did not start: {first}")
        reader.start()
        yield first.partition("is served on ")[2].split()[0]
    finally:
        process.terminate()
        process.wait(60)


@contextmanager
def light_load(address: str, row: dict[str, object]) -> Iterator[list[tuple[float, float, int, str]]]:
    """Ask for one row twenty times a second; gives the moment, the seconds, the status and the release of each answer."""
    answers: list[tuple[float, float, int, str]] = []
    over = threading.Event()

    def ask() -> None:
        with httpx.Client(base_url=address, timeout=60) as client:
            while not over.is_set():
                began = time.monotonic()
                reply = client.post("/predict", json=row)
                ended = time.monotonic()
                answers.append((ended, ended - began, reply.status_code, str(reply.json().get("release"))))
                over.wait(0.05)

    thread = threading.Thread(target=ask)
    thread.start()
    try:
        yield answers
    finally:
        over.set()
        thread.join()


def between(told: Told, since: str, until: str) -> float:
    """The seconds from the first line that begins with a text to the first with another."""
    at = {text: next(moment for moment, line in told if line.startswith(text)) for text in (since, until)}
    return at[until] - at[since]


def stages(log: str) -> list[tuple[str, str]]:
    """Each stage that ran, and what `labline repro` says of its time, the longest first."""
    found = re.findall(r"^(\S+): done after (?:(\d+) min )?([\d.]+) s", log, re.MULTILINE)
    seconds = sorted(((60 * float(minutes or 0) + float(rest), name) for name, minutes, rest in found), reverse=True)
    return [(name, f"{taken:.0f}") for taken, name in seconds]


def measure(clone: Path, address: str, answers: list[tuple[float, float, int, str]]) -> tuple[list[tuple[str, str]], list[tuple[str, str]]]:
    """Look, retrain, and return both tables: the steps, and the stages of the line."""
    told: Told = [(time.monotonic(), "begin")]
    verdict = run(clone, "labline", "monitor", "--now", NOW)
    if "ALARM" not in verdict:
        sys.exit(f"there is no alarm:\n{verdict}")
    told.append((time.monotonic(), "alarm"))
    run(clone, "labline", "retrain", "--if-due", "--url", address, hear=lambda line: told.append((time.monotonic(), line)))
    told.append((time.monotonic(), "end"))
    if not any(line.startswith("[promote]") for _, line in told):
        sys.exit("it was not promoted:\n" + "\n".join(line for _, line in told))
    new = next(moment for moment, _, _, release in answers if release == "eta@v2")
    at = {name: next(moment for moment, line in told if line.startswith(name)) for name in ("begin", "alarm", "[promote]", "[merge]", "end")}
    steps = [("the look that finds the alarm", between(told, "begin", "alarm")), ("whether it is due", between(told, "alarm", "Retraining "))]
    for name, since, until in (("gather", "[open]", "[pin]"), ("pin", "[pin]", "[reproduce]"), ("reproduce", "[reproduce]", "[judge]"),
                               ("judge", "[judge]", "[refit]"), ("release", "[release]", "[promote]"), ("promote", "[promote]", "[merge]")):  # fmt: skip
        steps.append((name, between(told, since, until)))
    steps += [("the service answers with it, after the tag", max(0.0, new - at["[merge]"])), ("**from the alarm to the first answer**", new - at["alarm"])]
    steps += [("merge, close, and the old release as a shadow", at["end"] - max(new, at["[merge]"]))]
    bad = sum(status != 200 for _, _, status, _ in answers)
    around = [seconds for moment, seconds, _, _ in answers if at["[promote]"] - 1 <= moment <= new + 5]
    usual = sorted(seconds for moment, seconds, _, _ in answers if moment < at["[promote]"] - 1)
    print(f"{len(answers):,} requests, {bad} not answered with 200; the longest around the change {1000 * max(around):.0f} ms,")
    print(f"before it, while the line ran, {1000 * usual[-1]:.0f} ms (median {1000 * usual[len(usual) // 2]:.1f} ms)\n")
    log = next((clone / "runs" / "retrain").glob("*/log.txt")).read_text()
    return [(name, f"{seconds:.1f}") for name, seconds in steps], stages(log)


def main() -> None:
    """Make the clone, measure, and print the tables."""
    argparse.ArgumentParser(description=__doc__).parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        clone, folder = Path(scratch).resolve() / "clone", Path(scratch).resolve()
        bundle = first_release(clone)
        legs = legs_of_the_change(clone, folder)
        answer(clone, bundle, legs)
        row = json.loads(legs.tail(1)[list(Contract.load(clone / "contract.yaml").row)].to_json(orient="records", date_format="iso"))[0]
        row["requested_at"] = legs["requested_at"].iloc[-1].isoformat(timespec="seconds")
        print(f"{machine('dvc', 'tensorflow-cpu')}; {len(legs):,} legs answered and known since the change\n")
        with service(clone) as address, light_load(address, row) as answers:
            steps, ran = measure(clone, address, answers)
        print(markdown(["step", "seconds"], steps))
        print()
        print(markdown(["stage of the line", "seconds"], ran))


if __name__ == "__main__":
    main()
