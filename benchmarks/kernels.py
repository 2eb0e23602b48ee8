"""Benchmark of warm kernels: the time to the first cell, a whole `papermill` process, and the memory of ten kernels, against ordinary kernels.

Both sides have the same environment, the same variables and compiled bytecode, and take turns. The first cell imports tensorflow, keras, pandas
and seaborn. The fork server is started before the clock, as it is after the first kernel of a day; its start is printed beside.
"""

import argparse
import compileall
import importlib.util
import json
import os
import shutil
import statistics
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import nbformat
from jupyter_client.kernelspec import KernelSpecManager
from machine import machine, markdown
from nbclient import NotebookClient

from labline.notebooks.client import Client
from labline.notebooks.kernels.processes import memory_of
from labline.notebooks.kernels.servers import server_status, servers_below

CODE = "import tensorflow, keras, pandas, seaborn"
SIDES = ("ordinary", "labline")


@contextmanager
def workspace() -> Iterator[Path]:
    """A folder with two notebooks, and both kernels, which differ in nothing but the provisioner."""
    folder = Path(tempfile.mkdtemp(prefix="warm-", dir="/tmp")).resolve()
    (folder / "run").mkdir(mode=0o700)
    specification = folder / "share" / "jupyter" / "kernels" / "labline"
    shutil.copytree(KernelSpecManager().get_kernel_spec("labline").resource_dir, specification)
    content = json.loads((specification / "kernel.json").read_text())
    del content["metadata"]["kernel_provisioner"]
    specification.with_name("ordinary").mkdir()
    (specification.with_name("ordinary") / "kernel.json").write_text(json.dumps(content))
    own = {"XDG_RUNTIME_DIR": "run", "JUPYTER_PATH": "share/jupyter", "JUPYTER_RUNTIME_DIR": "jupyter", "IPYTHONDIR": "ipython"}
    os.environ.update({name: str(folder / path) for name, path in own.items()})
    for name, code in {"libraries": CODE, "empty": "pass"}.items():
        nbformat.write(nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(code)]), folder / f"{name}.ipynb")
    try:
        yield folder
    finally:
        for path in servers_below(folder / "run" / "labline"):
            server_status(path, "stop")
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def first_cell(folder: Path, kernel: str, client_class: type[NotebookClient] | None = None) -> Iterator[tuple[float, NotebookClient]]:
    """Seconds from the request for a kernel to the end of the first cell, as nbclient and papermill go about it; and the client, while the kernel runs.

    An ordinary kernel is asked by nbclient's client, a warm one by the engine's, unless a class is given.
    """
    notebook = nbformat.read(folder / "libraries.ipynb", as_version=4)
    chosen = client_class or {"ordinary": NotebookClient, "labline": Client}[kernel]
    begin = time.perf_counter()
    client = chosen(notebook, kernel_name=kernel, resources={"metadata": {"path": str(folder)}}, startup_timeout=120, timeout=120)
    with client.setup_kernel(stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL):
        client.execute_cell(notebook.cells[0], 0)
        yield time.perf_counter() - begin, client


def time_to_first_cell(folder: Path, kernel: str, client_class: type[NotebookClient] | None = None) -> float:
    """Seconds as `first_cell` counts them; the kernel is ended."""
    with first_cell(folder, kernel, client_class) as (seconds, _):
        return seconds


def time_of_papermill(folder: Path, kernel: str, notebook: str) -> float:
    """Seconds of a whole papermill process."""
    command = [str(Path(sys.executable).with_name("papermill")), "--no-progress-bar", "-k", kernel, f"{notebook}.ipynb", "out.ipynb"]
    begin = time.perf_counter()
    subprocess.run(command, cwd=folder, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return time.perf_counter() - begin


def memory_of_ten(folder: Path, kernel: str) -> float:
    """Megabytes of ten kernels at the same time after the first cell; the fork server counts too."""
    with ExitStack() as stack:
        clients = [stack.enter_context(first_cell(folder, kernel))[1] for _ in range(10)]
        processes = [client.km.provisioner.pid for client in clients]
        if kernel == "labline":
            processes += [status["process"] for status in map(server_status, servers_below(folder / "run" / "labline")) if status]
        return sum(map(memory_of, processes)) / 1e6


def taking_turns(measure: Callable[[str], float], runs: int) -> dict[str, list[float]]:
    """What was measured on both sides, one after the other in each run."""
    found: dict[str, list[float]] = {side: [] for side in SIDES}
    for number in range(runs):
        for side in SIDES:
            found[side].append(measure(side))
        print(f"run {number + 1} of {runs}: {', '.join(f'{side} {values[-1]:.2f}' for side, values in found.items())}", file=sys.stderr)
    return found


def row(what: str, found: dict[str, list[float]], digits: int, goal: str) -> tuple[str, ...]:
    """One line of the table: medians with the least and the most, and the ratio of the medians."""
    cells = [f"{statistics.median(values):.{digits}f} ({min(values):.{digits}f} to {max(values):.{digits}f})" for values in found.values()]
    return what, *cells, f"{statistics.median(found['ordinary']) / statistics.median(found['labline']):.1f}", goal


def compile_everything() -> None:
    """Compile the installed packages, as an installer does that is told to; fast where they are compiled already."""
    compileall.compile_dir(sysconfig.get_paths()["purelib"], quiet=2, workers=1)
    spec = importlib.util.find_spec("tensorflow")
    assert spec and spec.cached and Path(spec.cached).is_file(), "TensorFlow's bytecode is not compiled"


def main() -> None:
    """Measure both sides in turn and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--skip-memory", action="store_true", help="do not start ten kernels at once, which takes 4 GB")
    options = parser.parse_args()
    compile_everything()
    with workspace() as folder:
        begin = time.perf_counter()
        time_to_first_cell(folder, "labline")
        print(f"{machine('ipykernel', 'jupyter_client', 'papermill', 'tensorflow-cpu')}, {options.runs} runs each, in turn")
        print(f"The first kernel of all, which starts the fork server: {time.perf_counter() - begin:.1f} s\n")
        time_to_first_cell(folder, "ordinary")
        measured = {
            ("kernel requested to first cell done, s", 2, "12, under 0.35 s"): lambda side: time_to_first_cell(folder, side),
            ("the same with nbclient's own client on both sides, s", 2, ""): lambda side: time_to_first_cell(folder, side, NotebookClient),
            ("`papermill` with that cell, s", 2, "2.8"): lambda side: time_of_papermill(folder, side, "libraries"),
            ("`papermill` with an empty cell, s", 2, ""): lambda side: time_of_papermill(folder, side, "empty"),
            ("ten kernels and the server, proportional set size, MB", 0, "2"): lambda side: memory_of_ten(folder, side),
        }
        if options.skip_memory:
            measured.popitem()
        rows = [row(what, taking_turns(measure, options.runs), digits, goal) for (what, digits, goal), measure in measured.items()]
        print(markdown(["what", *SIDES, "ratio", "goal"], rows))


if __name__ == "__main__":
    main()
