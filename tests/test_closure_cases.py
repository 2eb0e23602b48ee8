"""Small programs with one edit each: a closure notices every edit that changes what runs."""

import ast
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from labline.notebooks.closure.export import drafts
from labline.notebooks.closure.sources import open_workspace

HERE = Path(__file__).parent
CASES = yaml.safe_load((HERE / "closure_cases.yaml").read_text(encoding="utf-8"))
SETTINGS = "[DEFAULT]\nlib_path = pkg\nnbs_path = nbs\n"
NOTEBOOK = "from pkg.a import f\n# %%\nprint(f(1))"

Case = dict[str, Any]


def write_notebook(text: str, folder: Path) -> None:
    """Write a notebook from text whose cells are separated by `# %%`; a cell that begins with `# parameters` is tagged so."""
    cells = []
    for part in text.split("# %%\n"):
        tags = ["parameters"] if part.startswith("# parameters") else []
        cells.append({"cell_type": "code", "metadata": {"tags": tags}, "source": part.removeprefix("# parameters\n"), "outputs": []})
    notebook = {"cells": cells, "metadata": {}, "nbformat": 4, "nbformat_minor": 5}
    (folder / "pipelines" / "case.ipynb").write_text(json.dumps(notebook), encoding="utf-8")


def write_program(case: Case, folder: Path, edited: bool = False) -> None:
    """Write the modules, the notebook and the pipeline of a case; fails where the text that the edit replaces is not there."""
    options = "".join(f" -r {name} {value}" for name, value in case.get("parameters", {}).items())
    files = {
        "../settings.ini": SETTINGS,
        "../dvc.yaml": f"stages:\n  case:\n    cmd: papermill pipelines/case.ipynb out.ipynb{options}\n",
        "../params.yaml": "{}\n",
        "../pipelines/values.json": json.dumps(case.get("parameters", {})),
        "__init__.py": "",
        **case.get("files", {}),
        "notebook": case.get("notebook", NOTEBOOK),
    }
    if edited:
        edit = case["edit"]
        assert edit.get("old", "") in files.get(edit["path"], ""), f"the edit of {case['title']!r} does not apply"
        files[edit["path"]] = files[edit["path"]].replace(edit["old"], edit["new"]) if "old" in edit else edit["new"]
    notebook = files.pop("notebook")
    for name, text in files.items():
        path = Path(os.path.normpath(folder / "pkg" / name))
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    write_notebook(notebook, folder)


def closure_of(folder: Path) -> str:
    """The closure of a program's notebook."""
    [draft] = drafts(open_workspace(folder))
    return draft.text


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["title"])
def test_edit(case: Case, tmp_path: Path) -> None:
    write_program(case, tmp_path / "before")
    write_program(case, tmp_path / "after", edited=True)
    before, after = closure_of(tmp_path / "before"), closure_of(tmp_path / "after")
    assert (before == after) is case.get("harmless", False)
    assert ast.parse(after)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the programs run in forks of one process")
def test_expectations_are_those_of_runs(tmp_path: Path) -> None:
    """The edits said to be harmless change nothing that is printed; the others do, where Python alone can run the program."""
    cases = [case for case in CASES if not {"%", "!"} & set(case.get("notebook", "").replace("# %%", ""))]
    folders = [tmp_path / f"{number}-{state}" for number in range(len(cases)) for state in ("before", "after")]
    for number, folder in enumerate(folders):
        write_program(cases[number // 2], folder, edited=number % 2 == 1)
    command = [sys.executable, str(HERE / "closure_runner.py"), *map(str, folders)]
    results = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    for case, before, after in zip(cases, results[::2], results[1::2], strict=True):
        assert (before == after) is case.get("harmless", False), f"{case['title']}: printed {before!r}, then {after!r}"
