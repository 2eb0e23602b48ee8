"""Closures in `dvc repro`: what runs after an edit, in a small workspace; and that a real run calls nothing that is outside its closure."""

import ast
import json
import re
import shutil
from pathlib import Path

import nbformat
import pytest
from workspaces import ROOT, empty_repository, run, small_workspace

from labline.notebooks.closure.export import handed_values
from labline.notebooks.closure.find import find_closure
from labline.notebooks.closure.modules import Library
from labline.notebooks.closure.sources import open_workspace

TRACER = ROOT / "tests" / "closure_tracer.py"
PIPELINE = """
stages:
  export:
    cmd: [nbdev_export, labline export]
    deps: [nbs, pipelines, params.yaml, settings.ini, requirements.lock]
    outs:
      - trips: {cache: false, persist: true}
      - code: {cache: false, persist: true}
  first: {cmd: cp code/first.py first.txt, deps: [code/first.py], outs: [first.txt]}
  second: {cmd: cp code/second.py second.txt, deps: [code/second.py, first.txt], outs: [second.txt]}
"""
UNITS = "def hours(minutes):\n    '''In hours.'''\n    return minutes / 60"
SPEED = "from trips.units import hours\n\n\ndef speed(distance, minutes):\n    return distance / hours(minutes)"
IGNORED = "first.txt\nsecond.txt\nruns/\n__pycache__/\n"


def write_notebook(path: Path, *sources: str) -> None:
    """A notebook with a title, and a parameters cell where it is one of a stage; the rest are cells of code."""
    cells = [nbformat.v4.new_markdown_cell("# Trips\n\n> Of trips.", id="title")]
    if path.parent.name == "pipelines":
        cells.append(nbformat.v4.new_code_cell("rows: int = 3", id="parameters", metadata={"tags": ["parameters"]}))
    cells += [nbformat.v4.new_code_cell(source, id=f"cell-{number}") for number, source in enumerate(sources)]
    path.parent.mkdir(parents=True, exist_ok=True)
    nbformat.write(nbformat.v4.new_notebook(cells=cells), path)


def edit(path: Path, old: str, new: str) -> None:
    """Put one text in place of another, which must be there."""
    text = path.read_text(encoding="utf-8")
    assert old in text
    path.write_text(text.replace(old, new), encoding="utf-8")


def repro(workspace: Path) -> list[str]:
    """The stages that `dvc repro` runs; afterwards `dvc status` says that there is nothing to do."""
    said = run("dvc", "repro", cwd=workspace).stdout
    assert "up to date" in run("dvc", "status", cwd=workspace).stdout
    return re.findall(r"Running stage '(\w+)'", said)


@pytest.fixture(scope="module")
def workspace_to_copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A workspace of two modules and two stages that ran: `first` uses `hours`, `second` uses `speed`, which uses `hours`."""
    folder = tmp_path_factory.mktemp("one") / "trips of May"
    write_notebook(folder / "nbs" / "00_units.ipynb", "#| default_exp units", f"#| export\n{UNITS}")
    write_notebook(folder / "nbs" / "01_speed.ipynb", "#| default_exp speed", f"#| export\n{SPEED}")
    write_notebook(folder / "pipelines" / "first.ipynb", "from trips.units import hours\nhours(60)")
    write_notebook(folder / "pipelines" / "second.ipynb", "from trips.speed import speed\nspeed(1, 60)")
    settings = (ROOT / "settings.ini").read_text(encoding="utf-8").replace("labline", "trips")
    files = {"dvc.yaml": PIPELINE, "params.yaml": "{}\n", "requirements.lock": "numpy==0.1\n", "settings.ini": settings}
    for name, text in {**files, ".gitignore": IGNORED, ".dvcignore": "__pycache__/\n", "trips/__init__.py": '__version__ = "0.1.0"\n'}.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(text, encoding="utf-8")
    run("dvc", "remote", "add", "--default", "--quiet", "here", str(folder.with_name("remote")), cwd=empty_repository(folder))
    assert repro(folder) == ["export", "first", "second"]
    run("git", "add", "--all", cwd=folder)
    run("git", "-c", "user.name=Test", "-c", "user.email=test@example.org", "commit", "--quiet", "--message", "A workspace", cwd=folder)
    return folder


@pytest.fixture
def workspace(workspace_to_copy: Path, tmp_path: Path) -> Path:
    """A copy of that workspace, in which nothing is to be done."""
    return Path(shutil.copytree(workspace_to_copy, tmp_path / workspace_to_copy.name))


def test_a_stage_runs_again_when_its_code_changed_and_only_then(workspace: Path) -> None:
    assert repro(workspace) == []
    edit(workspace / "pipelines" / "first.ipynb", "# Trips", "# Trips of May")
    edit(workspace / "nbs" / "00_units.ipynb", "In hours.", "Minutes in hours.")
    assert repro(workspace) == ["export"]
    edit(workspace / "nbs" / "01_speed.ipynb", "distance / hours", "1 * distance / hours")
    assert repro(workspace) == ["export", "second"]
    edit(workspace / "nbs" / "00_units.ipynb", "minutes / 60", "minutes / 60.0")
    assert repro(workspace) == ["export", "first", "second"]


def test_why_says_what_was_edited_before_and_after_it_is_exported(workspace: Path) -> None:
    edit(workspace / "nbs" / "01_speed.ipynb", "distance / hours", "1 * distance / hours")
    expected = "function `speed` of trips.speed: changed"
    first = run("labline", "why", "first", "second", cwd=workspace).stdout
    assert "first: up to date" in first and expected in first and "+    return 1 * distance / hours(minutes)" in first
    run("dvc", "repro", "export", cwd=workspace)
    edit(workspace / "nbs" / "00_units.ipynb", "minutes / 60", "minutes / 60.0")
    run("dvc", "repro", "export", cwd=workspace)
    [second] = json.loads(run("labline", "why", "second", "--json", cwd=workspace).stdout)
    found = [(change["kind"], change["name"]) for change in second["changes"] if change["kind"] == "function"]
    assert second["stale"] and found == [("function", "speed"), ("function", "hours")]


def test_a_clone_elsewhere_runs_nothing_and_writes_the_same_closures(workspace: Path, tmp_path: Path) -> None:
    run("dvc", "push", "--quiet", cwd=workspace)
    clone = tmp_path / "elsewhere" / "clone"
    run("git", "clone", "--quiet", str(workspace), str(clone), cwd=tmp_path)
    run("dvc", "pull", "--quiet", cwd=clone)
    assert repro(clone) == []
    scripts = {path.name: path.read_bytes() for path in (clone / "code").iterdir()}
    run("dvc", "repro", "--force", "--single-item", "export", cwd=clone)
    assert {path.name: path.read_bytes() for path in (clone / "code").iterdir()} == scripts
    assert run("git", "status", "--porcelain", cwd=clone).stdout == ""


def test_another_version_than_the_pinned_one_stops_the_export(workspace: Path) -> None:
    before = (workspace / "dvc.lock").read_bytes()
    edit(workspace / "nbs" / "00_units.ipynb", "#| export\\n", "#| export\\nimport numpy\\nNONE = numpy.zeros(0)\\n")
    failed = run("dvc", "repro", cwd=workspace, check=False)
    assert failed.returncode and "`numpy`" in failed.stderr and "instead of 0.1" in failed.stderr and "make setup" in failed.stderr
    assert (workspace / "dvc.lock").read_bytes() == before


# real runs; each stage needs what the one before it made


@pytest.fixture(scope="module")
def rides(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The rides case with few legs, and its closures."""
    folder = small_workspace(tmp_path_factory.mktemp("rides") / "workspace")
    run("labline", "export", cwd=folder)
    return folder


STAGES = {
    "validate": {},
    "prepare": {"builder": "labline.rides.features"},
    "train": {"candidate": "mlp", "output_folder": "build/train/mlp", "epochs": 1, "max_rows": 1500},
}


@pytest.mark.parametrize("stage", STAGES)
def test_a_run_calls_nothing_outside_its_closure(rides: Path, stage: str) -> None:
    name = f"pipelines/{stage}.ipynb"
    (rides / str(STAGES[stage].get("output_folder", f"build/{stage}"))).mkdir(parents=True)
    said = run("python", str(TRACER), name, json.dumps(STAGES[stage]), cwd=rides).stdout
    called = {tuple(item) for item in json.loads(said.rpartition("TRACED ")[2])}
    closure = find_closure(Library(open_workspace(rides)), name, handed_values(rides)[name])
    modules = {module: closure.library.module(module) for module in closure.loaded if module != name}
    inside = {
        (module.replace(".", "/") + ".py", binding)
        for module, found in modules.items()
        for statement in found.statements
        if statement in closure.reached
        for binding in statement.binds
    }
    named = {(path, binding.split(".")[0]) for path, binding in called if not binding.startswith("<")}
    assert len(named) > 20 and named - inside == set()
    script = ast.parse((rides / "code" / f"{stage}.py").read_text(encoding="utf-8"))
    assert {binding for _, binding in named} <= {node.name for node in script.body if isinstance(node, ast.FunctionDef | ast.ClassDef)}
