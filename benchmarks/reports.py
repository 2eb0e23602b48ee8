"""Benchmark: about two hundred area reports from one notebook, by `labline reports` and by a plain loop over the program papermill.

The reports are those of pipelines/report.ipynb about the months and parts of the rides case, one `labline reports` for each column that parts them. `labline
reports` makes pages and a front page. The loop makes notebooks with the same parameters and ordinary kernels, and `jupyter nbconvert` a page of each; it makes
some of the reports (`--loop`), spread evenly over all of them, and its time is multiplied, since one is as long as the other. Its share is made in several
parts between the commands of Labline, so that whatever else the machine does meets both. Labline begins cold, without a fork server.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from machine import machine, markdown

ROOT = Path(__file__).parents[1]
BIN = Path(sys.executable).parent
ENVIRONMENT = {**os.environ, "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}", "PYTHONHASHSEED": "0"}
PROCESSORS = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
NOTEBOOK, KIND = "pipelines/report.ipynb", "report"
COLUMNS = ("to_zone", "from_zone", "to_zone.area", "mobility_aid", "vehicle")


def wanted(column: str) -> list[dict[str, Any]]:
    """The parameters of the reports that `labline reports` makes with a column."""
    from labline.data.contract import Contract
    from labline.operations.choices import choices, chosen
    from labline.operations.reports import find_kind, plan

    found = choices("build/evaluate/predictions.parquet", Contract.load(), "build/validate/tables", column)
    sets = [{**one, "segment_column": column} for one in chosen(found)]
    return [{name: value for name, value in one.values.items() if name != "output_folder"} for one in plan(find_kind(KIND), sets)]


def finish(process: subprocess.Popen[str]) -> None:
    """Wait for a process; the script ends with what it wrote if it failed."""
    said, problems = process.communicate()
    if process.returncode:
        sys.exit(f"{process.args} failed:\n{said[-2000:]}\n{problems[-3000:]}")


def by_labline(column: str, folder: Path, number: int, jobs: int) -> tuple[float, float]:
    """Seconds until all reports of a column are there, and until the first page is."""
    command = [str(BIN / "labline"), "reports", KIND, "-p", f"segment_column={column}", "--output", str(folder), "--jobs", str(jobs)]
    begin, first = time.perf_counter(), 0.0
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=ENVIRONMENT)
    while process.poll() is None and not first:
        first = time.perf_counter() - begin if any(folder.glob(f"*/{KIND}.html")) else 0.0
        time.sleep(0.05)
    finish(process)
    seconds, made = time.perf_counter() - begin, len(list(folder.glob(f"*/{KIND}.html")))
    if made != number:
        sys.exit(f"labline reports made {made} of {number} pages about {column}")
    return seconds, first or seconds


def by_loop(values: dict[str, Any], folder: Path) -> tuple[float, float]:
    """Seconds of papermill for one report, and of nbconvert for its page."""
    folder.mkdir(parents=True)
    all_values = {**values, "output_folder": str(folder)}
    given = [word for name, value in all_values.items() for word in ("-r" if isinstance(value, str) else "-p", name, str(value))]
    times = []
    for command in (
        [str(BIN / "papermill"), "--no-progress-bar", "-k", "python3", NOTEBOOK, str(folder / "report.ipynb"), *given],
        [str(BIN / "jupyter"), "nbconvert", "--to", "html", "--no-input", str(folder / "report.ipynb")],
    ):
        begin = time.perf_counter()
        finish(subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=ENVIRONMENT))
        times.append(time.perf_counter() - begin)
    if "image/png" not in (folder / "report.ipynb").read_text():
        sys.exit("papermill made a report without a figure")
    return times[0], times[1]


def measure(columns: list[str], looped: int, jobs: int, folder: Path) -> list[list[str]]:
    """The lines of the table: all reports by Labline, some by the loop in between."""
    every = {column: wanted(column) for column in columns}
    total = sum(map(len, every.values()))
    flat = [one for column in columns for one in every[column]]
    drawn = [flat[place * total // looped] for place in range(looped)]
    ours, firsts, loop = 0.0, list[float](), list[tuple[float, float]]()
    subprocess.run([str(BIN / "labline"), "kernel", "stop"], cwd=ROOT, capture_output=True, env=ENVIRONMENT)
    for number, column in enumerate(columns):
        seconds, first = by_labline(column, folder / f"labline{number}", len(every[column]), jobs)
        ours += seconds
        firsts.append(first)
        print(f"  labline reports about {column}: {len(every[column])} in {seconds:.1f} s, the first page after {first:.1f} s", file=sys.stderr, flush=True)
        for place in range(looped * number // len(columns), looped * (number + 1) // len(columns)):
            loop.append(by_loop(drawn[place], folder / f"loop{place}"))
            print(f"  papermill {loop[-1][0]:.1f} s, nbconvert {loop[-1][1]:.1f} s", file=sys.stderr, flush=True)
    alone, pages = (statistics.mean(one[0] for one in loop), statistics.mean(one[1] for one in loop))
    middle = statistics.median(one[0] for one in loop)
    share = f"{looped} of {total}, times {total / looped:.1f}"
    return [
        [f"`labline reports`, {jobs} at once, pages and front pages", f"{total}", f"{ours:.0f}", f"{ours / total:.2f}", f"{firsts[0]:.1f}", ""],
        [f"papermill in a loop ({share})", f"{total}", f"{alone * total:.0f}", f"{alone:.2f} (median {middle:.2f})", "", f"{alone * total / ours:.1f}"],
        ["the same, with `jupyter nbconvert` for the page", f"{total}", f"{(alone + pages) * total:.0f}", f"{alone + pages:.2f}", f"{sum(loop[0]):.1f}",
         f"{(alone + pages) * total / ours:.1f}"],
        ["`labline reports`, where a fork server runs: first page", "", "", "", f"{statistics.median(firsts[1:]):.1f}" if firsts[1:] else "", ""],
    ]  # fmt: skip


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--columns", nargs="+", default=list(COLUMNS), help="that part the reports")
    parser.add_argument("--loop", type=int, default=12, help="reports in the loop")
    parser.add_argument("--jobs", type=int, default=PROCESSORS, help="reports at once")
    given = parser.parse_args()
    if not (ROOT / "build" / "evaluate" / "predictions.parquet").is_file():
        print("There is nothing to report about yet: run `make` first.")
        return
    os.chdir(ROOT)
    print(machine("papermill", "nbclient", "ipykernel", "nbconvert", "pandas", "seaborn"), flush=True)
    with tempfile.TemporaryDirectory(prefix="labline-benchmark-") as place:
        lines = measure(given.columns, given.loop, given.jobs, Path(place))
    print("\n" + markdown(["way", "reports", "seconds", "each", "first page", "times `labline reports`"], lines))


if __name__ == "__main__":
    main()
