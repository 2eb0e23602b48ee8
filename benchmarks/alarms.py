"""Benchmark: how often quiet weeks raise an alarm, and how soon a change of the world is seen.

Everything is as in life. Worlds are simulated for fourteen months, exported dirty, validated, and completed from what was known at the moment of each leg; the
champion of the line (`make`) answers. Its actual values come a day later. Each look is the monitor's whole look at the last seven days.

`quiet`: in each of 25 worlds, which differ in weather, traffic and requests, the model is judged on November and December as a release is, and the eight weeks
behind are looked at one by one; nothing changes in them but the winter. A world of its own for each release, since windows of one world share its weather.
`changes`: on 1 February something happens, and each morning is a look, until 28 days later. Beside it the same world without the change, so that the growth of
the error is the change's alone. Detected is a change that made the model err by a tenth more and was told; ignored is one that did not, and raised no alarm.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import date
from pathlib import Path
from typing import Any

import pandas as pd
from machine import machine, markdown

ROOT = Path(__file__).parents[1]
BUNDLE = ROOT / "build" / "package" / "eta" / "1"
WEEKS, DAYS, GROWTH = 8, 28, 0.1
JUDGED, RELEASED, CHANGED = pd.Timestamp("2025-11-01"), pd.Timestamp("2026-01-01"), pd.Timestamp("2026-02-01")
CHANGES = ("nothing", "bridge closed", "new fleet", "miles for kilometres, unmarked", "miles for kilometres, marked", "wind sensor missing", "hard winter")


def change(name: str) -> tuple[Any, ...]:
    """The changes of a scenario by the name of this benchmark."""
    from labline.rides.scenario import BridgeClosed, HardWinter, MilesVendor, NewFleet, SensorMissing

    month = f"{CHANGED:%Y-%m}"
    known = dict(zip(CHANGES, ((), (BridgeClosed(month=month),), (NewFleet(month=month),), (MilesVendor(month=month, labelled=False),),
                               (MilesVendor(month=month),), (SensorMissing(month=month),), (HardWinter(month=month),)), strict=True))  # fmt: skip
    return known[name]


def answered(seed: int, name: str, folder: Path) -> pd.DataFrame:
    """The legs since November of a simulated world, in the order of their time: the raw row, `actual`, `prediction`, `low`, `high`, `at` and `received_at`."""
    from labline.data.contract import Contract
    from labline.data.features import find_builder
    from labline.data.preparation import complete_rows
    from labline.data.quality import validate
    from labline.data.tables import connect, open_parquet
    from labline.models.savedmodel import load
    from labline.rides.dispatch import write_raw
    from labline.rides.scenario import Scenario

    contract = Contract.load(ROOT / "contract.yaml")
    write_raw(Scenario(legs=60_000, start=date(2025, 1, 1), months=12, seed=seed, changes=change(name)), folder / "data", months=14)
    validate(contract, folder / "data", folder / "validate", memory_limit="1GB")
    (folder / "scratch").mkdir()
    with connect("1GB") as connection:
        tables = {table: open_parquet(connection, folder / "validate" / "tables" / f"{table}.parquet", "validate") for table in contract.tables}
        main = tables[contract.main]
        requests = main.filter(main["requested_at"] >= JUDGED.to_pydatetime())
        rows = complete_rows(connection, find_builder("labline.rides.features"), tables, contract, requests, {}, folder / "scratch").to_pandas()
    rows = rows.sort_values([contract.time, contract.id], ignore_index=True)
    answers = load(BUNDLE)(rows[list(contract.row)]).astype("float64")
    names = dict(zip((contract.target, f"{contract.target}_low", f"{contract.target}_high"), ("prediction", "low", "high"), strict=True))
    rows = rows.rename(columns={contract.target: "actual", contract.id: "id"}).assign(**{new: answers[old] for old, new in names.items()})
    local = rows["requested_at"].dt.tz_localize(contract.timezone, ambiguous=True, nonexistent="shift_forward")
    at = (local - pd.Timestamp(0, tz="UTC")).dt.total_seconds()
    return rows.assign(at=at, received_at=at + 86400.0, model=contract.model, role="live")


def looks(log: Path, reference: Any, ends: Sequence[pd.Timestamp], until_alarm: bool) -> list[dict[str, Any]]:
    """What the monitor says in the mornings at which windows end."""
    from labline.operations.monitor.log import open_log
    from labline.operations.monitor.look import Options, look
    from labline.operations.monitor.window import Choice

    found = []
    with open_log(str(log), reference.contract) as opened:
        for end in ends:
            now = end.tz_localize(reference.contract.timezone).timestamp() + 3600
            seen = look(opened, reference, Choice(reference.contract.model), now, Options(windows=3))
            causes = {check.cause: check.status for check in seen.checks if check.status in ("warn", "alarm")}
            error = next(check.figures.get("mae", seen.released.error) for check in seen.checks if check.cause == "error")
            grown = error / seen.released.error - 1
            found.append({"end": str(end.date()), "status": seen.status, "causes": causes, "psi": float(seen.moved["psi"].max()), "grown": grown})
            if until_alarm and seen.status == "alarm":
                break
    return found


def world(what: str, seed: int, name: str) -> dict[str, Any]:
    """One world and its looks, in this process."""
    from labline.models.bundle import Bundle
    from labline.operations.monitor.reference import Reference

    bundle = Bundle.load(BUNDLE)
    with tempfile.TemporaryDirectory(prefix="labline-benchmark-") as place:
        rows = answered(seed, name, Path(place))
        judged, later = rows[rows["requested_at"] < RELEASED], rows[rows["requested_at"] >= RELEASED]
        later.to_parquet(Path(place) / "log.parquet", index=False)
        kept = judged[[*bundle.contract.row, "actual", "prediction", "low", "high"]].reset_index(drop=True)
        reference = Reference.of_rows(kept, bundle.contract, bundle.reference, bundle.name, bundle.digest)
        if what == "quiet":
            ends = [RELEASED + pd.Timedelta(weeks=week) for week in range(1, WEEKS + 1)]
        else:
            ends = [CHANGED + pd.Timedelta(days=day) for day in range(1, DAYS + 1)]
        found = looks(Path(place) / "log.parquet", reference, ends, until_alarm=what != "quiet" and name != "nothing")
    size = (later["prediction"] - later["actual"]).abs()
    days = (later["requested_at"] - CHANGED).dt.days
    weeks = [float(size[(days >= 7 * week) & (days < 7 * week + 7)].mean()) for week in range(-4, 4)]
    return {"looks": found, "released": reference.error, "error": float(size[days >= 0].mean()), "before": float(size[days < 0].mean()), "weeks": weeks}


def worlds(asked: list[tuple[str, int, str]], jobs: int, kept: Path) -> list[dict[str, Any]]:
    """Worlds side by side, each in a process of its own; those that a folder has from an earlier run are taken from there."""

    def one(what: str, seed: int, name: str) -> dict[str, Any]:
        path = kept / f"{what} {seed} {name}.json"
        if path.is_file():
            earlier: dict[str, Any] = json.loads(path.read_text())
            return earlier
        command = [sys.executable, __file__, "--world", json.dumps([what, seed, name])]
        done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
        if done.returncode:
            raise SystemExit(f"{what} {seed} {name} ended with {done.returncode}\n{done.stderr[-3000:]}")
        found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
        path.write_text(json.dumps(found))
        print(f"  {what}, world {seed}, {name}: {len(found['looks'])} looks", file=sys.stderr, flush=True)
        return found

    with ThreadPoolExecutor(jobs) as pool:
        return list(pool.map(lambda wanted: one(*wanted), asked))


def quiet_table(found: list[dict[str, Any]]) -> str:
    """How many of the quiet windows raise what."""
    every = [seen for one in found for seen in one["looks"]]
    causes: dict[str, dict[str, int]] = {}
    for seen in every:
        for cause, status in seen["causes"].items():
            counts = causes.setdefault(cause, {"warn": 0, "alarm": 0})
            counts[status] += 1
    alarms = [seen for seen in every if seen["status"] == "alarm"]
    lines = [
        ("an alarm", len(alarms)),
        ("an alarm though the model erred at most a tenth more than at the release", sum(seen["grown"] < GROWTH for seen in alarms)),
        ("at most a warning", sum(seen["status"] == "warn" for seen in every)),
        ("a column with a stability index of 0.25 or more, the usual bound", sum(seen["psi"] >= 0.25 for seen in every)),
    ]
    table = markdown(["windows with", "number", "share"], [(name, count, f"{count / len(every):.1%}") for name, count in lines])
    reasons = ", ".join(f"`{cause}` {counts['alarm']} alarms and {counts['warn']} warnings" for cause, counts in sorted(causes.items()))
    return f"{len(every)} windows in {len(found)} worlds\n\n{table}\n\nCauses: {reasons or 'none'}."


def first(found: dict[str, Any], statuses: Sequence[str], quiet: set[str]) -> tuple[int, str]:
    """The number of the first morning with a finding of some status that the quiet world does not have on that morning, and what it names."""
    for day, seen in enumerate(found["looks"], start=1):
        named = [cause for cause, status in seen["causes"].items() if status in statuses and f"{seen['end']} {cause} {status}" not in quiet]
        if named:
            return day, ", ".join(f"`{cause}`" for cause in named)
    return 0, ""


def changes_table(found: dict[str, list[dict[str, Any]]]) -> str:
    """For each change the days until it was told in each world, and the growth of the error that it brought."""
    lines = []
    for name in CHANGES[1:]:
        warned, alarmed, named, growth, causes = [], [], "", [], set()
        for one, still in zip(found[name], found["nothing"], strict=True):
            quiet = {f"{seen['end']} {cause} {status}" for seen in still["looks"] for cause, status in seen["causes"].items()}
            told, rang = first(one, ("warn", "alarm"), quiet), first(one, ("alarm",), quiet)
            warned.append(str(told[0] or "–"))
            alarmed.append(str(rang[0] or "–"))
            named = named or rang[1] or told[1]
            causes |= {cause for seen in one["looks"] for cause in seen["causes"]}
            growth.append(one["error"] / still["error"] - 1)
        hurt = sum(growth) / len(growth) >= GROWTH
        told_all = all(day != "–" for day in warned)
        verdict = ("detected" if told_all else "missed") if hurt else ("ignored" if all(day == "–" for day in alarmed) else "false alarm")
        grown = f"{100 * min(growth):+.0f} to {100 * max(growth):+.0f} %"
        lines.append([name, grown, ", ".join(warned), ", ".join(alarmed), named or "nothing", verdict])
    return markdown(["from 1 February", "error against the same world without it", "days to a warning", "days to an alarm", "named first", "verdict"], lines)


def main() -> None:
    """Look and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="*", default=["quiet", "changes"], choices=["quiet", "changes"])
    parser.add_argument("--worlds", type=int, default=25, help="quiet worlds of eight windows each")
    parser.add_argument("--seeds", type=int, default=2, help="worlds for each change")
    parser.add_argument("--jobs", type=int, default=2, help="worlds at once")
    parser.add_argument("--folder", type=Path, help="keep what was seen of each world here, and go on from there")
    parser.add_argument("--world", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.world:
        print(json.dumps(world(*json.loads(given.world))))
        return
    if not (BUNDLE / "saved_model.pb").is_file():
        print("There is no champion yet: run `make` first.")
        return
    print(machine("duckdb", "scikit-learn", "tensorflow-cpu"))
    with tempfile.TemporaryDirectory(prefix="labline-benchmark-") as place:
        kept = given.folder or Path(place)
        kept.mkdir(exist_ok=True)
        if "quiet" in given.only:
            print(f"\n{quiet_table(worlds([('quiet', 100 + seed, 'nothing') for seed in range(given.worlds)], given.jobs, kept))}", flush=True)
        if "changes" in given.only:
            asked = [("changes", 300 + seed, name) for name in CHANGES for seed in range(given.seeds)]
            answers = worlds(asked, given.jobs, kept)
            found = {name: [one for one, (_, _, about) in zip(answers, asked, strict=True) if about == name] for name in CHANGES}
            released = [one["released"] for one in found["nothing"]]
            print(f"\nA look each morning; {given.seeds} worlds, error at the release {min(released):.2f} to {max(released):.2f} min\n")
            print(changes_table(found), flush=True)
            quiet = [seen for one in found["nothing"] for seen in one["looks"]]
            alarms = sum(seen["status"] == "alarm" for seen in quiet)
            print(f"\nWithout a change: {alarms} alarms and {sum(seen['status'] == 'warn' for seen in quiet)} warnings on {len(quiet)} mornings.")


if __name__ == "__main__":
    main()
