"""Benchmark of code closures: what the export stage costs, what it costs when nothing changed, and what it spares.

1. The export stage in a copy of this workspace: nbdev's export alone, and with the closures after it.
2. `dvc repro` with nothing changed, on a graph of quick stages: with the export stage, and the same graph without it.
3. The rides line after an edit of one heading, and of one function that only `evaluate` uses: `dvc repro` with closures as dependencies, and with
   notebooks and package folders as dependencies. Few legs and short training by default; `--full` takes the data and parameters as they are.
4. Which of four quick notebooks run again: the same two ways, and calkit, if `--calkit` names its program in an environment of its own. calkit takes the
   notebook without its outputs as a dependency, and the package as a named input.
"""

import argparse
import json
import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml
from machine import machine, markdown

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests"))

from closure_corpus import Edit, insert, make  # noqa: E402
from workspaces import QUICK, copy_sources, small_workspace  # noqa: E402

STAGES = ("first", "second", "third", "fourth")
FOLDERS = {
    "validate": ["labline/data"],
    "prepare": ["labline/data", "labline/rides"],
    "explore": ["labline/data"],
    "train": ["labline/data", "labline/models"],
    "select": ["labline/data", "labline/models"],
    "evaluate": ["labline/data", "labline/models"],
    "package": ["labline/data", "labline/models", "labline/operations"],
    "report": ["labline/data", "labline/models", "labline/operations"],
}


def say(text: str) -> None:
    """Progress, on the error stream."""
    print(text, file=sys.stderr, flush=True)


def run(command: list[str], folder: Path, path: str = "") -> tuple[float, str]:
    """Seconds that a command takes, and what it printed; with what it said if it fails."""
    places = os.pathsep.join(filter(None, [path, str(Path(sys.executable).parent), os.environ["PATH"]]))
    environment = os.environ | {"PATH": places, "PYTHONHASHSEED": "0", "DVC_NO_ANALYTICS": "1"}
    start = time.perf_counter()
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    seconds = time.perf_counter() - start
    if done.returncode:
        sys.exit(f"{' '.join(command)} failed:\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}")
    return seconds, done.stdout


def compare(runs: int, **sides: Callable[[], float]) -> dict[str, float]:
    """The median times of several sides, in turns, after one round that does not count."""
    times: dict[str, list[float]] = {name: [] for name in sides}
    for number in range(runs + 1):
        for name, side in sides.items():
            taken = side()
            if number:
                times[name].append(taken)
    return {name: statistics.median(taken) for name, taken in times.items()}


def export_cost(runs: int) -> str:
    """What closures add to nbdev's export."""
    with tempfile.TemporaryDirectory() as name:
        folder = copy_sources(Path(name) / "workspace")
        nbdev, closures = ["nbdev_export"], ["labline", "export"]
        times = compare(runs, nbdev=lambda: run(nbdev, folder)[0], both=lambda: run(nbdev, folder)[0] + run(closures, folder)[0])
        scripts = list((folder / "code").iterdir())
        lines = sum(len(path.read_text(encoding="utf-8").splitlines()) for path in scripts)
    rows = [
        ("`nbdev_export`", f"{times['nbdev']:.2f} s", ""),
        (f"`nbdev_export`, `labline export`: {len(scripts)} closures, {lines:,} lines", f"{times['both']:.2f} s", f"+{times['both'] - times['nbdev']:.2f} s"),
    ]
    return markdown(("export stage", "median", "more"), rows)


def write_quick_notebooks(folder: Path) -> None:
    """A package of ten modules, four notebooks that use one module each, and what nbdev and DVC need."""
    cell = {"cell_type": "code", "execution_count": None, "id": "code", "metadata": {}, "outputs": []}
    title = {"cell_type": "markdown", "id": "title", "metadata": {}, "source": "# Quick"}
    kernel = {"kernelspec": {"display_name": "python3", "language": "python", "name": "python3"}}
    notebooks = {f"nbs/{number:02}_module.ipynb": [f"#| default_exp module_{number}", f"#| export\ndef value():\n    return {number}"] for number in range(10)}
    for number, stage in enumerate(STAGES):
        code = f"from pathlib import Path\nfrom quick.module_{number} import value\nPath('{stage}.txt').write_text(str(value()))"
        notebooks[f"pipelines/{stage}.ipynb"] = [code]
    parameters = cell | {"id": "parameters", "metadata": {"tags": ["parameters"]}, "source": "rows: int = 3"}
    for name, sources in notebooks.items():
        first = [title, parameters] if name.startswith("pipelines") else [title]
        cells = [*first, *(cell | {"id": f"code-{number}", "source": source} for number, source in enumerate(sources))]
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(json.dumps({"cells": cells, "metadata": kernel, "nbformat": 4, "nbformat_minor": 5}))
    settings = (ROOT / "settings.ini").read_text().replace("labline", "quick")
    files = {"settings.ini": settings, "params.yaml": "{}\n", ".dvcignore": "__pycache__/\n", "requirements.lock": (ROOT / "requirements.lock").read_text()}
    for name, text in {**files, "quick/__init__.py": '__version__ = "0.1.0"\n'}.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(text)
    run(["nbdev_export"], folder)
    run(["git", "init", "--quiet"], folder)


def write_graph(folder: Path, exporting: bool) -> Path:
    """Four stages, each after the one before, that copy their closures, and ran; with the export stage before them, or without it."""
    write_quick_notebooks(folder)
    stages: dict[str, object] = {}
    for before, stage in zip((None, *STAGES), STAGES, strict=False):
        dependencies = [f"code/{stage}.py", *([f"{before}.txt"] if before else [])]
        stages[stage] = {"cmd": f"cp code/{stage}.py {stage}.txt", "deps": dependencies, "outs": [f"{stage}.txt"]}
    export = yaml.safe_load((ROOT / "dvc.yaml").read_text(encoding="utf-8"))["stages"]["export"]
    export["outs"] = [{"quick": {"cache": False, "persist": True}}, {"code": {"cache": False, "persist": True}}]
    (folder / "dvc.yaml").write_text(yaml.safe_dump({"stages": ({"export": export} if exporting else {}) | stages}, sort_keys=False))
    for words in ("dvc init --quiet", "dvc config core.analytics false", "labline export", "dvc repro"):
        run(words.split(), folder)
    return folder


def idle_cost(runs: int) -> str:
    """What the export stage adds to `dvc repro` when nothing changed."""
    with tempfile.TemporaryDirectory() as name:
        without, exporting = (write_graph(Path(name, side), exporting=side == "with") for side in ("without", "with"))
        repro = ["dvc", "repro"]
        times = compare(runs, without=lambda: run(repro, without)[0], exporting=lambda: run(repro, exporting)[0])
    ratio = f"{times['exporting'] / times['without']:.2f} ×"
    rows = [("without the export stage", f"{times['without']:.2f} s", ""), ("with it", f"{times['exporting']:.2f} s", ratio)]
    return markdown((f"`dvc repro`, {len(STAGES)} stages, nothing changed", "median", "goal 1.3 ×"), rows)


def depend_on_files(folder: Path) -> None:
    """Let the stages of a workspace depend on notebooks and package folders, and take what lies there as their last run."""
    pipeline: dict[str, Any] = yaml.safe_load((folder / "dvc.yaml").read_text(encoding="utf-8"))
    for stage, description in pipeline["stages"].items():
        others = [dependency for dependency in description["deps"] if dependency != f"code/{stage}.py"]
        description["deps"] = [*others, *([f"pipelines/{stage}.ipynb", *FOLDERS[stage]] if stage in FOLDERS else [])]
    (folder / "dvc.yaml").write_text(yaml.safe_dump(pipeline, sort_keys=False), encoding="utf-8")
    run(["dvc", "commit", "--force", "--quiet"], folder)


def edit_heading(folder: Path, number: int) -> None:
    """Another heading in the notebook of the stage `train`."""
    path = folder / "pipelines" / "train.ipynb"
    notebook = json.loads(path.read_text(encoding="utf-8"))
    notebook["cells"][0]["source"] = f"# Training, edition {number}"
    path.write_text(json.dumps(notebook), encoding="utf-8")


def edit_function(folder: Path, number: int) -> None:
    """Another statement in a function that only `evaluate` uses."""
    make(Edit("", "models.robustness", insert("probe", f"edition = {number}")), folder)


def whole_line(runs: int, peer_runs: int, full: bool) -> str:
    """Seconds of `dvc repro` after two edits, by closures and by files."""
    rows = []
    edits = {"one heading of pipelines/train.ipynb": edit_heading, "one function that only `evaluate` uses": edit_function}
    with tempfile.TemporaryDirectory() as name:
        ours, peer = Path(name, "closures"), Path(name, "files")
        small_workspace(ours, **({"legs": 60000, "months": 12, "changes": {}} if full else {"changes": QUICK}))
        say("rides line: first run")
        first, _ = run(["dvc", "repro"], ours)
        shutil.copytree(ours, peer)
        depend_on_files(peer)
        sides = {"code closures": (ours, runs), "notebook and package": (peer, peer_runs)}
        for title, change in edits.items():
            for side, (folder, times) in sides.items():
                taken, ran = [], ""
                for number in range(times):
                    change(folder, number)
                    seconds, said = run(["dvc", "repro"], folder)
                    taken.append(seconds)
                    ran = ", ".join(re.findall(r"Running stage '(.+)'", said))
                    say(f"rides line: {title}, {side}, {seconds:.1f} s")
                rows.append((title, side, f"{statistics.median(taken):.1f} s", times, ran))
    size = "as it is" if full else "6,000 legs, short training"
    return markdown((f"rides line ({size}; all of it {first:.0f} s) after an edit of", "depends on", "median", "runs", "ran again"), rows)


def write_pipeline(folder: Path, by_closure: bool) -> None:
    """Stages that execute the quick notebooks by papermill, and depend on closures, or on notebooks and the package."""
    kept = {"cache": False, "persist": True}
    export: dict[str, Any] = {"cmd": ["nbdev_export"], "deps": ["nbs"], "outs": [{"quick": kept}]}
    if by_closure:
        export = {"cmd": ["nbdev_export", "labline export"], "deps": ["nbs", "pipelines"], "outs": [{"quick": kept}, {"code": kept}]}
    stages: dict[str, Any] = {"export": export}
    for stage in STAGES:
        needs = [f"code/{stage}.py"] if by_closure else [f"pipelines/{stage}.ipynb", "quick"]
        stages[stage] = {"cmd": f"papermill pipelines/{stage}.ipynb {stage}.ipynb", "deps": needs, "outs": [f"{stage}.txt", f"{stage}.ipynb"]}
    (folder / "dvc.yaml").write_text(yaml.safe_dump({"stages": stages}, sort_keys=False))
    run(["dvc", "init", "--quiet"], folder)
    run(["dvc", "config", "core.analytics", "false"], folder)


def write_calkit(folder: Path) -> None:
    """The same for calkit, which executes a notebook in its own folder."""
    place = {"environment": "_system"}
    export = {"kind": "shell-command", "command": "nbdev_export", "inputs": ["nbs"], "outputs": [{"path": "quick", "storage": "git"}]}
    stages = {"export": export | place}
    for stage in STAGES:
        shutil.move(folder / "pipelines" / f"{stage}.ipynb", folder / f"{stage}.ipynb")
        own = {"kind": "jupyter-notebook", "notebook_path": f"{stage}.ipynb", "inputs": ["quick"], "outputs": [f"{stage}.txt"]}
        stages[stage] = own | place
    lab = {"kind": "venv", "path": "requirements.txt", "prefix": ".venv"}  # the environment of this process, with nothing to install
    (folder / "calkit.yaml").write_text(yaml.safe_dump({"environments": {"lab": lab}, "pipeline": {"stages": stages}}, sort_keys=False))
    (folder / "requirements.txt").write_text("")
    (folder / ".venv").symlink_to(Path(sys.prefix), target_is_directory=True)
    (folder / ".gitignore").write_text("/.venv\n")


def edit_quick(folder: Path, runner: Callable[[], str]) -> list[str]:
    """The stages that run again after a heading and after a function was edited."""
    found = []
    for name, old, new in (("second.ipynb", "# Quick", "# Slow"), ("03_module.ipynb", "return 3", "return 3.0")):
        notebook = next(path for path in (folder / "pipelines" / name, folder / "nbs" / name, folder / name) if path.exists())
        assert old in notebook.read_text()
        notebook.write_text(notebook.read_text().replace(old, new))
        start = time.perf_counter()
        ran = [stage for stage in re.findall(r"Running stage '(.+)'", runner()) if stage != "export"]
        found.append(f"{', '.join(ran) or 'none'} ({time.perf_counter() - start:.1f} s)")
    return found


def quick_line(calkit: str) -> str:
    """What runs again after two edits of quick notebooks."""
    rows = []
    with tempfile.TemporaryDirectory() as name:
        for side in ("code closures", "notebook and package", *(["calkit"] if calkit else [])):
            say(f"quick notebooks: {side}")
            folder = Path(name, side.replace(" ", "-"))
            write_quick_notebooks(folder)
            if side == "calkit":
                write_calkit(folder)
            else:
                write_pipeline(folder, by_closure=side == "code closures")
            command, place = ([calkit, "run"], str(Path(calkit).parent)) if side == "calkit" else (["dvc", "repro"], "")

            def runner(command: list[str] = command, folder: Path = folder, place: str = place) -> str:
                return run(command, folder, place)[1]

            runner()
            rows.append((side, *edit_quick(folder, runner)))
    table = markdown(("four quick notebooks, depending on", "run after an edit of a heading of `second`", "… of a function that only `fourth` uses"), rows)
    return table if calkit else f"{table}\n\ncalkit was not measured: `--calkit` names its program, installed in an environment of its own."


def main() -> None:
    """Run the parts one after the other and print their tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=5, help="measured rounds (default 5)")
    parser.add_argument("--peer-runs", type=int, default=1, help="rounds of the line by notebook and package, which takes minutes each (default 1)")
    parser.add_argument("--full", action="store_true", help="the rides line with all its data and parameters")
    parser.add_argument("--calkit", default=shutil.which("calkit") or "", help="path of the program `calkit`, in an environment of its own")
    parser.add_argument("--parts", default="1234", help="which parts to run (default 1234)")
    options = parser.parse_args()
    parts: dict[str, Callable[[], str]] = {
        "1": lambda: export_cost(options.runs),
        "2": lambda: idle_cost(options.runs),
        "3": lambda: whole_line(options.runs, options.peer_runs, options.full),
        "4": lambda: quick_line(options.calkit),
    }
    print(machine("nbdev", "dvc", "papermill"))
    for number in options.parts:
        say(f"part {number}")
        print(f"\n{parts[number]()}", flush=True)


if __name__ == "__main__":
    main()
