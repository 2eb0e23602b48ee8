"""The notebooks as one reads them: their rhythm, their prose, and what may be committed with them."""

import ast
import json
import re
import statistics
from pathlib import Path
from typing import Any

import pytest
from IPython.core.inputtransformer2 import TransformerManager
from workspaces import ROOT

from labline.notebooks.sync import clean_text, out_of_sync, unclean

SOURCES = sorted((ROOT / "nbs").glob("[0-9]*.ipynb"))
STAGES = sorted((ROOT / "pipelines").glob("*.ipynb"))
ALL = [*SOURCES, ROOT / "nbs" / "index.ipynb", *STAGES]
ABBREVIATIONS = re.compile(r"\b(cfg|exts|params_dict|tmp_df|df\d?)\b")

Cell = dict[str, Any]


def cells(path: Path) -> list[Cell]:
    notebook = json.loads(path.read_text(encoding="utf-8"))
    return [{**cell, "source": "".join(cell["source"])} for cell in notebook["cells"]]


def code(path: Path) -> list[str]:
    return [cell["source"] for cell in cells(path) if cell["cell_type"] == "code"]


def lines(source: str) -> list[str]:
    """The lines of a cell that are code: no blank ones, no comments, no docstrings."""
    documented = set()
    for node in ast.walk(ast.parse(TransformerManager().transform_cell(source))):
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and ast.get_docstring(node) is not None:
            documented |= set(range(node.body[0].lineno, (node.body[0].end_lineno or 0) + 1))
    return [line for number, line in enumerate(source.splitlines(), start=1) if line.strip() and not line.strip().startswith("#") and number not in documented]


def is_exported(source: str) -> bool:
    return bool(re.match(r"#\|\s*export", source))


def name(path: Path) -> str:
    return path.stem


def test_notebooks_are_clean_and_the_package_is_in_sync() -> None:
    assert unclean(ROOT) == [] and out_of_sync(ROOT) == []


def test_cleaning_keeps_the_tags_that_papermill_needs() -> None:
    text = (ROOT / "pipelines" / "train.ipynb").read_text(encoding="utf-8")
    tagged = [cell["metadata"].get("tags") for cell in json.loads(clean_text(text, ROOT / "settings.ini"))["cells"]]
    assert ["parameters"] in tagged


@pytest.mark.parametrize("path", ALL, ids=name)
def test_outputs_are_small(path: Path) -> None:
    sizes = [len(json.dumps(output)) for cell in cells(path) for output in cell.get("outputs", [])]
    assert max(sizes, default=0) < 100_000
    assert path not in STAGES or sizes == []


@pytest.mark.parametrize("path", SOURCES, ids=name)
def test_a_source_notebook_opens_with_its_title_and_one_sentence(path: Path) -> None:
    first = cells(path)[0]
    assert first["cell_type"] == "markdown" and re.match(r"# .+\n\n> .+[.?!](\n|$)", first["source"].strip())
    assert re.match(r"#\|\s*default_exp " + re.escape(path.stem.partition("_")[2]), code(path)[0])


def body(path: Path) -> list[Cell]:
    """What a reader reads: the cells before the tests of edge cases, without the cells of imports and of what is hidden."""
    found = []
    for cell in cells(path):
        if cell["cell_type"] == "markdown" and re.match(r"## Tests\b", cell["source"]):
            break
        plumbing = cell["cell_type"] == "code" and (cell["source"].startswith(("#| default_exp", "#| hide")) or only_imports(cell["source"]))
        if not plumbing:
            found.append(cell)
    return found


def only_imports(source: str) -> bool:
    return all(isinstance(node, ast.Import | ast.ImportFrom) for node in ast.parse(TransformerManager().transform_cell(source)).body)


@pytest.mark.parametrize("path", SOURCES, ids=name)
def test_a_source_notebook_keeps_its_rhythm(path: Path) -> None:
    prose = sum(cell["cell_type"] == "markdown" for cell in body(path))
    other = len(body(path)) - prose
    assert len(cells(path)) <= 75, "at most 75 cells"
    assert prose >= other / 2, f"one cell of prose for two of code: {prose} for {other}"
    for source in code(path):
        most = 60 if re.search(r"^class ", source, flags=re.MULTILINE) else 45
        assert len(lines(source)) <= most, f"at most {most} lines a cell, not {len(lines(source))}: {lines(source)[0]}"
    assert statistics.median(len(lines(source)) for source in code(path)) <= 12


@pytest.mark.parametrize("path", SOURCES, ids=name)
def test_a_source_notebook_has_no_tricks(path: Path) -> None:
    text = "\n".join(code(path))
    assert not re.search(r"^\s*from \S+ import \*", text, flags=re.MULTILINE)
    assert not re.search(r"^\s*@patch\b|\bshow_doc\(|\bnbdev_export\(\)|eval:\s*false|\bTODO\b|\bFIXME\b", text, flags=re.MULTILINE)


@pytest.mark.parametrize("path", SOURCES, ids=name)
def test_every_public_function_has_its_example_and_everything_public_its_docstring(path: Path) -> None:
    examples = "\n".join(source for source in code(path) if not is_exported(source))
    public, undocumented = [], []
    for source in filter(is_exported, code(path)):
        for node in ast.parse(source).body:
            if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_"):
                if isinstance(node, ast.FunctionDef):
                    public.append(node.name)
                if ast.get_docstring(node) is None:
                    undocumented.append(node.name)
    assert undocumented == [], f"no docstring for {undocumented}"
    lacking = [item for item in public if not re.search(rf"\b{item}\b", examples)]
    assert lacking == [], f"no example for {lacking}"
    assert "assert" in examples


@pytest.mark.parametrize("path", STAGES, ids=name)
def test_a_stage_is_short_and_defines_no_functions(path: Path) -> None:
    text = "\n".join(code(path))
    assert 8 <= len(cells(path)) <= 14
    assert not re.search(r"^\s*(def|class) ", text, flags=re.MULTILINE)
    assert sum("parameters" in cell["metadata"].get("tags", []) for cell in cells(path)) == 1
    kernel = json.loads(path.read_text())["metadata"]["kernelspec"]
    assert cells(path)[0]["source"].startswith("# ") and (kernel["name"], kernel["language"]) == ("labline", "python")


@pytest.mark.parametrize("path", STAGES, ids=name)
def test_a_stage_knows_no_column_of_the_case(path: Path) -> None:
    text = "\n".join(cell["source"] for cell in cells(path) if cell["cell_type"] == "code" and "parameters" not in cell["metadata"].get("tags", []))
    columns = ["leg_id", "requested_at", "from_zone", "to_zone", "distance_km", "vehicle", "mobility_aid", "passengers", "driven_km"]
    columns += ["minutes", "weather", "zones"]
    assert [column for column in columns if re.search(rf"['\"\.]{column}\b", text)] == []


@pytest.mark.parametrize("path", ALL, ids=name)
def test_code_uses_full_words(path: Path) -> None:
    assert ABBREVIATIONS.findall("\n".join(code(path))) == []
