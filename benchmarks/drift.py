"""Benchmark: the drift of all columns of a window, beside Evidently and NannyML on the same rows; and whether their figures are still those of the tests.

`figures`: `peers/figures.json`, with which tests/test_monitor_peers.py holds the monitor, is asked of both anew; `--write-figures` writes it.
`speed`: a log of thirty columns against the 20,000 rows that a release carries, at 1 million rows all sides in turn, each run a fresh process. Labline does
what the monitor does: it counts the reference, reads the log, counts all columns in the database, and gives five distances and a corrected test for each.
Seconds leave imports out and count reading on every side; processor seconds are those of all threads, and hardly depend on what else the machine does;
memory is the peak that the operating system reports, imports included.
`large`: more rows than fit into memory, by Labline; and the double of a million over and over by Evidently, until it would take more than it may.
"""

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import psutil
from environments import environment
from machine import machine, markdown
from peers import figures, trips
from peers.peak import peak_gigabytes

ROOT = Path(__file__).parents[1]
HOURS = 24 * trips.DAYS
END = trips.START.timestamp() + HOURS * 3600
REFERENCE = 20_000


def labline(step: str, log: str, reference: Path) -> dict[str, float]:
    """Seconds of the drift of all columns, or of a whole look, in this process; and its peak memory."""
    import pandas as pd

    from labline.data.contract import Contract
    from labline.models.reference import reference as describe
    from labline.operations.monitor.drift import drift
    from labline.operations.monitor.log import open_log
    from labline.operations.monitor.look import Options, look
    from labline.operations.monitor.reference import Reference
    from labline.operations.monitor.window import Choice, Window, put_aside, with_actuals

    contract, choice = Contract.load(ROOT / "contract.yaml"), Choice("eta")
    held_out = pd.read_parquet(reference)
    learned = describe(held_out, contract) | {"importance": dict.fromkeys(contract.row, 1.0)}
    begin, worked = time.perf_counter(), time.process_time()
    known = Reference.of_rows(held_out, contract, learned)
    with open_log(log, contract) as opened:
        if step == "drift":
            window = Window(trips.START.timestamp(), END)
            with put_aside(opened, with_actuals(opened, choice.of(opened.predictions, window), choice.model, END)) as rows:
                judged = len(drift(rows, known, HOURS))
        else:
            judged = len(look(opened, known, choice, END, Options(window_hours=HOURS, windows=2)).moved)
    seconds, processor = time.perf_counter() - begin, time.process_time() - worked
    return {"seconds": seconds, "processor": processor, "columns": judged, "gigabytes": peak_gigabytes()}


def run(command: Sequence[str], limit_gigabytes: float, limit_seconds: float) -> dict[str, float] | str:
    """What a process prints last, or why it was ended."""
    with tempfile.TemporaryFile("w+") as said, tempfile.TemporaryFile("w+") as problems:
        process, begin = psutil.Popen(command, stdout=said, stderr=problems, cwd=ROOT), time.perf_counter()
        while process.poll() is None:
            used = process.memory_info().rss / 1e9 if process.status() != psutil.STATUS_ZOMBIE else 0.0
            if used > limit_gigabytes or time.perf_counter() - begin > limit_seconds:
                process.kill()
                process.wait()
                return f"more than {limit_gigabytes:g} GB" if used > limit_gigabytes else f"more than {limit_seconds:g} s"
            time.sleep(0.2)
        said.seek(0)
        problems.seek(0)
        if process.returncode:
            raise SystemExit(f"{' '.join(map(str, command))[:200]} ended with {process.returncode}\n{problems.read()[-3000:]}")
        found: dict[str, float] = json.loads(said.read().splitlines()[-1])
        return found


def sides(log: Path, reference: Path, asked: str, peers: dict[str, Path]) -> dict[str, list[str]]:
    """Name of each side → its command."""
    here, files = Path(__file__).parent / "peers", (str(reference), str(log), asked)
    found = {f"Labline, {what}": [sys.executable, __file__, "--step", step, "--log", str(log), "--reference", str(reference)]
             for what, step in (("drift of all columns", "drift"), ("the whole look", "look"))}  # fmt: skip
    if "evidently" in peers:
        found["Evidently, `DataDriftPreset`"] = [str(peers["evidently"]), str(here / "evidently_speed.py"), *files]
    if "nannyml" in peers:
        found["NannyML, univariate"] = [str(peers["nannyml"]), str(here / "nannyml_speed.py"), *files]
    return found


def speed(commands: dict[str, list[str]], runs: int, limits: tuple[float, float]) -> list[list[str]]:
    """One line for each side, all sides once in each round."""
    found: dict[str, list[dict[str, float] | str]] = {name: [] for name in commands}
    for number in range(runs):
        for name, command in commands.items():
            found[name].append(run(command, *limits))
            print(f"  run {number + 1} of {runs}: {name}: {found[name][-1]}", file=sys.stderr, flush=True)
    lines, ours = list[list[str]](), list[float]()
    for name, measured in found.items():
        good = [one for one in measured if isinstance(one, dict)]
        if len(good) < len(measured):
            lines.append([name, next(one for one in measured if isinstance(one, str)), "", "", "", "", ""])
            continue
        seconds = [one.get("seconds", one.get("read", 0.0) + one.get("drift", 0.0)) for one in good]
        middle = [statistics.median(seconds), statistics.median(one["processor"] for one in good)]
        ours = ours or middle
        shown = f"{middle[0]:.1f} ({min(seconds):.1f} to {max(seconds):.1f})"
        times = [f"{one / own:.1f}" for one, own in zip(middle, ours, strict=True)]
        peak = f"{max(one['gigabytes'] for one in good):.2f}"
        lines.append([name, shown, times[0], f"{middle[1]:.1f}", times[1], peak, f"{good[0]['columns']:.0f}"])
    return lines


def large(
    sizes: list[int], reference: Path, write: Callable[[int], Path], asked: str, peers: dict[str, Path], limits: tuple[float, float]
) -> list[list[str]]:
    """One run for each size by Labline, and by Evidently as far as it gets."""
    lines = []
    for size in sizes:
        command = sides(write(size), reference, asked, {})["Labline, drift of all columns"]
        found = run(command, 64.0, 3600.0)
        assert isinstance(found, dict), found
        lines.append(["Labline, drift of all columns", f"{size:,}", f"{found['seconds']:.1f}", f"{found['gigabytes']:.2f}"])
    size = 2_000_000
    while "evidently" in peers and size <= 10_000_000:
        held = run(sides(write(size), reference, asked, peers)["Evidently, `DataDriftPreset`"], *limits)
        if isinstance(held, str):
            lines.append(["Evidently, `DataDriftPreset`", f"{size:,}", held, ""])
            break
        lines.append(["Evidently, `DataDriftPreset`", f"{size:,}", f"{held['read'] + held['drift']:.1f}", f"{held['gigabytes']:.2f}"])
        size *= 2
    return lines


def asked_columns() -> dict[str, Any]:
    """The columns of the rides case by their kind, and the prediction."""
    from labline.data.contract import Contract

    row = Contract.load(ROOT / "contract.yaml").row
    return {
        "numbers": [*(name for name, column in row.items() if column.numeric), "prediction"],
        "categories": [name for name, column in row.items() if not column.numeric and column.type != "timestamp"],
    }


def figures_hold(peers: dict[str, Path], write: bool) -> None:
    """Say whether the file of the tests still holds, or write it anew."""
    if set(peers) != {"evidently", "nannyml"}:
        print("\nWhether peers/figures.json holds was not asked, since a peer is not there.")
        return
    live = figures.ask(peers["evidently"], peers["nannyml"])
    if write:
        figures.FILE.write_text(json.dumps(live, indent=1) + "\n")
    odd = figures.differences(json.loads(figures.FILE.read_text()), live)
    print("\npeers/figures.json holds: " + ("yes" if not odd else "no\n" + "\n".join(odd)), flush=True)


def main() -> None:
    """Ask, measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="*", default=["figures", "speed", "large"], choices=["figures", "speed", "large"])
    parser.add_argument("--write-figures", action="store_true", help="write peers/figures.json anew")
    parser.add_argument("--rows", type=int, default=1_000_000, help="of the log that all sides get")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--sizes", type=int, nargs="*", default=[10_000_000, 50_000_000], help="rows for Labline alone")
    parser.add_argument("--limit-gigabytes", type=float, default=8.0, help="that a peer may take")
    parser.add_argument("--limit-seconds", type=float, default=400.0, help="that one run of a peer may take")
    parser.add_argument("--folder", type=Path, help="keep the logs here")
    for name in ("--step", "--log", "--reference"):
        parser.add_argument(name, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.step:
        print(json.dumps(labline(given.step, given.log, Path(given.reference))))
        return
    wanted = {"evidently": figures.EVIDENTLY, "nannyml": figures.NANNYML}
    peers = {name: python for name, packages in wanted.items() if (python := environment(name, packages))}
    print(f"{machine('duckdb', 'ibis-framework', 'scipy')}; {', '.join(packages[0].replace('==', ' ') for packages in wanted.values())}")
    if "figures" in given.only:
        figures_hold(peers, given.write_figures)
    limits = (given.limit_gigabytes, given.limit_seconds)
    with tempfile.TemporaryDirectory(prefix="labline-benchmark-") as place:
        from labline.data.contract import Contract

        contract, folder, asked = Contract.load(ROOT / "contract.yaml"), given.folder or Path(place), json.dumps(asked_columns())
        folder.mkdir(exist_ok=True)
        reference = folder / "reference.parquet"
        trips.trips(REFERENCE, contract, seed=2).to_parquet(reference, index=False)

        def write(count: int) -> Path:
            return trips.write_log(folder, count, contract, seed=1)

        if "speed" in given.only:
            lines = speed(sides(write(given.rows), reference, asked, peers), given.runs, limits)
            print(f"\n{given.rows:,} rows against {REFERENCE:,}, medians of {given.runs} runs with the least and the most\n")
            print(markdown(["side", "seconds", "times Labline", "processor seconds", "times Labline", "peak memory, GB", "judged"], lines), flush=True)
        if "large" in given.only:
            print(f"\nMore rows, one run each; a peer may take {limits[0]:g} GB and {limits[1]:g} s\n")
            print(markdown(["side", "rows", "seconds", "peak memory, GB"], large(given.sizes, reference, write, asked, peers, limits)), flush=True)


if __name__ == "__main__":
    main()
