"""Benchmark: independent stages, and many reports from one notebook, side by side.

Stages: four independent ones of ten seconds, by `dvc repro` and by `labline repro`, once with stages that wait and once with stages that compute.
Reports: forty from one notebook (pandas and seaborn, one figure), by `labline run`, by a loop over the program papermill, by nbclient with as many
notebooks at once as there are processors, and by Ploomber's parallel executor. Ploomber and its papermill live in an environment of their own.
All sides take turns, so that whatever else the machine does meets all of them. Every run of the loop executes some of the reports (`--loop`) and its time
is multiplied, since one is as long as the other; all other sides execute all of them.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import venv
from collections.abc import Callable
from pathlib import Path

from machine import machine, markdown

BIN = Path(sys.executable).parent
ENVIRONMENT = {**os.environ, "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}", "PYTHONHASHSEED": "0", "DVC_NO_ANALYTICS": "1"}
PROCESSORS = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
PLOOMBER = ["ploomber==0.23.3", "papermill==2.7.0", "nbclient==0.11.0", "ipykernel==7.4.0", "pandas==2.3.3", "seaborn==0.13.2", "setuptools<81"]

COMPUTE = "import sys, hashlib; data = b'x' * 1_000_000; [hashlib.sha256(data).digest() for _ in range(int(sys.argv[1]))]"

CELLS = [
    "# One region\n\nHow the minutes of one region are spread.",
    'region: str = "north"  # region to report on\nseed: int = 1  # of the sample',
    "import numpy as np\nimport pandas as pd\nimport seaborn as sns",
    'generator = np.random.default_rng(seed)\nrows = pd.DataFrame({"minutes": generator.gamma(4, 5, 2000), "vehicle": generator.choice(["van", "car"], 2000)})',
    'rows.groupby("vehicle")["minutes"].describe()',
    'sns.histplot(rows, x="minutes", hue="vehicle");',
    'print(f"{region}: {rows.minutes.median():.1f} minutes")',
]

NBCLIENT = """
import asyncio, json, sys
from pathlib import Path
import nbformat
from nbclient import NotebookClient

async def execute(name, seed, turn):
    notebook = nbformat.read("report.ipynb", as_version=4)
    notebook.cells[2].source = f'region = "{name}"\\nseed = {seed}\\n' + notebook.cells[2].source
    async with turn:
        await NotebookClient(notebook, kernel_name="python3").async_execute()
    nbformat.write(notebook, f"nbclient/{name}.ipynb")

async def main():
    turn = asyncio.Semaphore(int(sys.argv[1]))
    Path("nbclient").mkdir()
    await asyncio.gather(*(execute(name, seed, turn) for name, seed in json.loads(Path("reports.json").read_text())))

asyncio.run(main())
"""

PLOOMBER_SCRIPT = """
import json, sys
from pathlib import Path
from ploomber import DAG
from ploomber.executors import Parallel
from ploomber.products import File
from ploomber.tasks import NotebookRunner

if __name__ == "__main__":
    dag = DAG(executor=Parallel(processes=int(sys.argv[1]), print_progress=False))
    for name, seed in json.loads(Path("reports.json").read_text()):
        NotebookRunner(
            Path("ploomber.ipynb"), File(f"ploomber/{name}.ipynb"), dag, name=name, params={"region": name, "seed": seed},
            kernelspec_name="python3", static_analysis="disable",
        )
    dag.build(force=True)
"""


def timed(command: list[str], folder: Path, environment: dict[str, str] = ENVIRONMENT) -> float:
    """Seconds that a command takes; the script ends with what it wrote if it fails."""
    begin = time.perf_counter()
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, env=environment)
    seconds = time.perf_counter() - begin
    if done.returncode:
        sys.exit(f"{' '.join(command[:4])} failed:\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}")
    return seconds


def table(times: dict[str, list[float]], ours: str) -> str:
    """The table of one comparison, with how many times longer each side takes than ours."""
    middle = {name: statistics.median(values) for name, values in times.items()}
    rows = [[name, *(f"{pick(values):.1f}" for pick in (min, statistics.median, max)), f"{middle[name] / middle[ours]:.2f}"] for name, values in times.items()]
    return markdown(["seconds", "least", "median", "most", f"times `{ours}`"], rows)


def in_turn(sides: dict[str, Callable[[], float]], runs: int) -> dict[str, list[float]]:
    """Times of each side, all sides once in each round."""
    times: dict[str, list[float]] = {name: [] for name in sides}
    for number in range(runs):
        for name, side in sides.items():
            times[name].append(side())
            print(f"  run {number + 1} of {runs}: {name} took {times[name][-1]:.1f} s", file=sys.stderr, flush=True)
    return times


def amount(seconds: float) -> int:
    """How many digests one processor makes in so many seconds."""
    begin = time.perf_counter()
    subprocess.run([sys.executable, "-c", COMPUTE, "1000"], check=True)
    return max(int(1000 * seconds / (time.perf_counter() - begin)), 1)


def stages(runs: int, seconds: float) -> None:
    """Four independent stages."""
    commands = {"wait": f"sleep {seconds}", "compute": f'python -c "{COMPUTE}" {amount(seconds)}'}
    for kind, command in commands.items():
        with tempfile.TemporaryDirectory() as place:

            def fresh(command: str = command, place: str = place) -> Path:
                folder = Path(tempfile.mkdtemp(dir=place))
                stages = "".join(f"  stage{number}:\n    cmd: {command}; echo {number} > {number}.txt\n    outs: [{number}.txt]\n" for number in range(4))
                (folder / "dvc.yaml").write_text(f"stages:\n{stages}")
                for words in (["git", "init", "-q"], ["dvc", "init", "-q"]):
                    subprocess.run(words, cwd=folder, check=True, env=ENVIRONMENT)
                return folder

            sides = {
                "labline repro": lambda: timed(["labline", "repro", "--jobs", str(PROCESSORS)], fresh()),
                "dvc repro": lambda: timed(["dvc", "repro"], fresh()),
            }
            print(f"\nFour independent stages of {seconds:g} s that {kind}, {PROCESSORS} at once, {runs} runs each, in turn\n", flush=True)
            print(table(in_turn(sides, runs), "labline repro"), flush=True)


def write_notebook(path: Path, parameters: str) -> None:
    """The notebook of the reports, with the given lines more in its parameters cell."""
    cells = []
    for number, source in enumerate(CELLS):
        cell = {"cell_type": "code" if number else "markdown", "id": f"cell-{number}", "metadata": {"tags": ["parameters"]} if number == 1 else {}}
        cells.append({**cell, "source": source + parameters * (number == 1), **({"outputs": [], "execution_count": None} if number else {})})
    metadata = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}, "language_info": {"name": "python"}}
    path.write_text(json.dumps({"cells": cells, "metadata": metadata, "nbformat": 4, "nbformat_minor": 5}))


def ploomber_environment(folder: Path) -> Path | None:
    """The interpreter of an environment with Ploomber, made where it is not there yet, with its bytecode compiled; `None` where it cannot be installed."""
    python = folder / "ploomber" / "bin" / "python"
    if not (folder / "ploomber" / "complete").exists():
        venv.create(folder / "ploomber", clear=True, with_pip=True)
        done = subprocess.run([str(python), "-m", "pip", "install", "--quiet", *PLOOMBER], capture_output=True, text=True)
        if done.returncode:
            *_, reason = ["no message", *done.stderr.strip().splitlines()]
            print(f"\nWithout Ploomber, which could not be installed: {reason}", flush=True)
            return None
        subprocess.run([str(python), "-m", "compileall", "-qq", "-j", "0", str(folder / "ploomber" / "lib")], check=False)
        (folder / "ploomber" / "complete").touch()
    return python


def reports(runs: int, number: int, environments: Path, jobs: int, looped: int) -> None:
    """Many reports from one notebook."""
    python = ploomber_environment(environments)
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        names = [(f"region{number:02}", number) for number in range(number)]
        (folder / "reports.json").write_text(json.dumps(names))
        (folder / "reports.csv").write_text("region,seed\n" + "".join(f"{name},{seed}\n" for name, seed in names))
        (folder / "by_nbclient.py").write_text(NBCLIENT)
        (folder / "by_ploomber.py").write_text(PLOOMBER_SCRIPT)
        write_notebook(folder / "report.ipynb", "")
        write_notebook(folder / "ploomber.ipynb", "\nupstream = None\nproduct = None")

        def clean(name: str, measure: Callable[[], float], wanted: int = number) -> float:
            shutil.rmtree(folder / name, ignore_errors=True)
            seconds = measure()
            made = list((folder / name).glob("*.ipynb"))
            if len(made) != wanted or not all("image/png" in path.read_text() for path in made):
                sys.exit(f"{name} made {len(made)} of {wanted} reports, or some without a figure")
            return seconds

        def loop() -> float:
            (folder / "papermill").mkdir()
            words = ["papermill", "--no-progress-bar", "-k", "python3", "report.ipynb"]
            values = [(f"papermill/{name}.ipynb", "-p", "region", name, "-p", "seed", str(seed)) for name, seed in names[:looped]]
            return sum(timed([*words, *value], folder) for value in values) * number / looped

        def by_ploomber(python: Path) -> float:
            environment = {**ENVIRONMENT, "PATH": f"{python.parent}{os.pathsep}{os.environ['PATH']}", "PLOOMBER_STATS_ENABLED": "false"}
            return timed([str(python), "by_ploomber.py", str(jobs)], folder, environment)

        ours = ["labline", "run", "report.ipynb", "labline/{region}.ipynb", "--grid", "reports.csv", "--jobs", str(jobs)]
        sides = {
            "labline run": lambda: clean("labline", lambda: timed(ours, folder)),
            "nbclient": lambda: clean("nbclient", lambda: timed([sys.executable, "by_nbclient.py", str(jobs)], folder)),
            **({"Ploomber": lambda: clean("ploomber", lambda: by_ploomber(python))} if python else {}),
            "papermill in a loop": lambda: clean("papermill", loop, looped),
        }
        share = f" (of {looped}, times {number / looped:g})" if looped < number else ""
        print(f"\n{number} reports from one notebook, {jobs} at once but for the loop{share}, {runs} runs each, in turn\n", flush=True)
        print(table(in_turn(sides, runs), "labline run"), flush=True)


def main() -> None:
    """Run what is asked for and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", nargs="*", choices=["stages", "reports", []], help="default: both")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=10, help="of one stage")
    parser.add_argument("--reports", type=int, default=40)
    parser.add_argument("--loop", type=int, default=8, help="reports in each run of the loop")
    parser.add_argument("--jobs", type=int, default=PROCESSORS, help="reports at once")
    parser.add_argument("--environments", type=Path, default=Path(__file__).parent / ".environments", help="folder for the environments of peers")
    options = parser.parse_args()
    print(machine("dvc", "papermill", "nbclient", "ipykernel", "pandas", "seaborn"))
    if "stages" in (options.what or ["stages"]):
        stages(options.runs, options.seconds)
    if "reports" in (options.what or ["reports"]):
        reports(options.runs, options.reports, options.environments.resolve(), options.jobs, min(options.loop, options.reports))


if __name__ == "__main__":
    main()
