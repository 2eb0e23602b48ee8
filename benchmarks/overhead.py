"""Benchmark 4: a full `dvc repro` against the same code run as one plain Python script.

Both sides run in a copy of the workspace with the same data and nothing in `build/` or the cache. The script is made from the code cells of
the same notebooks in the order of the stages, with the parameters of the same commands, each in a namespace of its own, in one process.
What the line costs is then kernels, papermill, saved pages, hashing and the cache.
"""

import argparse
import json
import os
import shlex
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from machine import machine, markdown

from labline.notebooks.parameters import check_values, load_notebook, read_parameters

ROOT = Path(__file__).parents[1]
COMMITTER = ("-c", "user.name=Benchmark", "-c", "user.email=benchmark@localhost", "-c", "core.hooksPath=")
PREAMBLE = """import os, shutil
os.environ.setdefault("MPLBACKEND", "Agg")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
from IPython.display import display
"""


def copy_workspace(folder: Path) -> None:
    """The tracked files and the data, as a git repository with one commit and an empty cache."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for name in filter(None, listed.split("\0")):
        if not name.startswith(".dvc/remote/") and (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, folder / name)
    shutil.copytree(ROOT / "data", folder / "data")
    (folder / "dvc.lock").unlink(missing_ok=True)
    commit = ["git", *COMMITTER, "commit", "--quiet", "--message", "A copy"]
    for command in (["git", "init", "--quiet"], ["dvc", "add", "--quiet", "data"], ["git", "add", "--all"], commit):
        subprocess.run(command, cwd=folder, check=True)


def commands(folder: Path) -> list[str]:
    """The papermill commands of the line in the order in which DVC runs them, parameters filled in."""
    from dvc.repo import Repo

    with Repo(str(folder)) as repo:
        from networkx import lexicographical_topological_sort

        graph = repo.index.graph.reverse()
        ordered = list(lexicographical_topological_sort(graph, key=lambda stage: stage.addressing))
        return [stage.cmd for stage in ordered if isinstance(stage.cmd, str) and stage.cmd.startswith("papermill")]


def script(lines: list[str], folder: Path) -> str:
    """One plain Python script that does what the commands do; it leaves the sources where `package` looks for executed notebooks."""
    parts = [PREAMBLE]
    for line in lines:
        words = shlex.split(line)
        source, output = (word for word in words if word.endswith(".ipynb"))
        given = {words[at + 1]: words[at + 2] for at, word in enumerate(words) if word in ("-p", "-r")}
        values = check_values(read_parameters(load_notebook(folder / source), source), given, source)
        cells = [cell for cell in json.loads((folder / source).read_text())["cells"] if cell["cell_type"] == "code"]
        body = ""
        for cell in cells:
            body += "".join(cell["source"]) + "\n"
            if "parameters" in cell["metadata"].get("tags", []):
                body += "".join(f"{name} = {value!r}\n" for name, value in values.items())
        parts.append(f"os.makedirs({str(Path(output).parent)!r}, exist_ok=True)\nexec(compile({body!r}, {source!r}, 'exec'), {{'display': display}})")
        parts.append(f"shutil.copy({source!r}, {output!r})\n")
    return "\n".join(parts)


def timed(command: list[str], folder: Path) -> float:
    """Seconds that a command takes, with what it printed if it fails."""
    begin = time.perf_counter()
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, env={**os.environ, "PYTHONHASHSEED": "0"})
    seconds = time.perf_counter() - begin
    if done.returncode:
        sys.exit(f"{' '.join(command)} failed:\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}")
    return seconds


def main() -> None:
    """Run both sides in turn and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=3)
    runs = parser.parse_args().runs
    line, plain = [], []
    for _ in range(runs):
        with tempfile.TemporaryDirectory() as folder:
            workspace = Path(folder)
            copy_workspace(workspace)
            line.append(timed(["dvc", "repro", "--quiet"], workspace))
        with tempfile.TemporaryDirectory() as folder:
            workspace = Path(folder)
            copy_workspace(workspace)
            (workspace / "plain.py").write_text(script(commands(workspace), workspace))
            plain.append(timed([sys.executable, "plain.py"], workspace))
    rows = [
        ("dvc repro", *(f"{pick(line):.1f}" for pick in (min, statistics.median, max))),
        ("one plain script", *(f"{pick(plain):.1f}" for pick in (min, statistics.median, max))),
    ]
    print(f"{machine('dvc', 'papermill', 'tensorflow-cpu')}, {runs} runs each, in turn\n")
    print(markdown(["seconds", "least", "median", "most"], rows))
    print(f"\nRatio of the medians: {statistics.median(line) / statistics.median(plain):.2f}")


if __name__ == "__main__":
    main()
