"""Lower layers never import higher ones, nobody imports a case, and importing a module does nothing."""

import ast
import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from workspaces import ROOT, run

LAYERS = ["errors", "settings", "files", "clock", "data", "models", "notebooks", "serving", "operations", "shells"]
CASES = {"rides"}
MODULES = sorted(path for path in (ROOT / "labline").rglob("*.py") if path.name not in ("__init__.py", "_modidx.py"))
NOTEBOOKS = sorted((ROOT / "nbs").glob("[0-9]*.ipynb"))


def dotted(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts)


def layer(module: str) -> str:
    first = module.split(".")[1]
    return first if first in LAYERS or first in CASES else "shells"


def imports(path: Path) -> Iterator[str]:
    """The modules of the package that a module imports, by their full names."""
    package = dotted(path).split(".")[:-1]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            name = ".".join([*base, *([node.module] if node.module else [])])
            if name.startswith("labline"):
                yield from ([name] if node.module else [f"{name}.{alias.name}" for alias in node.names])
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name.startswith("labline."))


@pytest.mark.parametrize("path", MODULES, ids=dotted)
def test_a_layer_imports_only_what_is_below_it(path: Path) -> None:
    own = layer(dotted(path))
    for imported in imports(path):
        if imported == "labline":
            continue
        other = layer(imported)
        if own in CASES:
            assert other == own or LAYERS.index(other) <= LAYERS.index("models"), f"{dotted(path)} imports {imported}"
        else:
            assert other not in CASES, f"{dotted(path)} imports {imported}: a case is found by its dotted name"
            assert LAYERS.index(other) <= LAYERS.index(own), f"{dotted(path)} imports {imported}"


def test_notebooks_are_numbered_in_reading_order() -> None:
    numbers = {}
    for path in NOTEBOOKS:
        number, _, name = path.stem.partition("_")
        assert number.isdigit() and len(number) == 3, path.name
        source = ROOT / "labline" / (name.replace(".", "/") + ".py")
        assert source.is_file(), f"{path.name} exports to labline/{name.replace('.', '/')}.py"
        numbers[f"labline.{name}"] = int(number)
    assert len(set(numbers.values())) == len(numbers), "a number is used once"
    wrong = [
        f"{module} ({number}) imports {imported} ({numbers[imported]})"
        for module, number in numbers.items()
        for imported in imports(ROOT / (module.replace(".", "/") + ".py"))
        if numbers.get(imported, 0) > number
    ]
    assert wrong == []


def test_every_module_has_its_notebook() -> None:
    exported = {f"labline.{path.stem.partition('_')[2]}" for path in NOTEBOOKS}
    assert {dotted(path) for path in MODULES} == {name for name in exported if not name.endswith(".__init__")}


LOOK = """
import importlib, json, logging, os, sys
before = dict(os.environ)
for name in json.loads(sys.argv[1]):
    importlib.import_module(name)
changed = sorted(name for name in before.keys() | os.environ.keys() if before.get(name) != os.environ.get(name))
print(json.dumps({"changed": changed, "handlers": len(logging.getLogger().handlers), "loaded": sorted(sys.modules)}))
"""
OF_LIBRARIES = re.compile(r"TF|TPU|KERAS|GRPC|KMP|OMP|_|PYDEVD|JUPYTER|SPARK|PYARROW|ENABLE_RUNTIME|MPL|HDF5")


def look(folder: Path, *modules: str) -> dict:
    return json.loads(run("python", "-c", LOOK, json.dumps(modules), cwd=folder).stdout.splitlines()[-1])


def test_importing_modules_writes_nothing_and_changes_nothing(tmp_path: Path) -> None:
    seen = look(tmp_path, *map(dotted, MODULES))
    assert [name for name in seen["changed"] if not OF_LIBRARIES.match(name)] == [] and seen["handlers"] == 0
    assert list(tmp_path.iterdir()) == []


def test_the_command_line_starts_without_the_heavy_libraries(tmp_path: Path) -> None:
    heavy = {"tensorflow", "keras", "sklearn", "pandas", "numpy", "duckdb", "ibis", "papermill", "nbconvert", "nbformat", "nbdev", "dvc", "matplotlib"}
    assert heavy & set(look(tmp_path, "labline.cli")["loaded"]) == set()


@pytest.mark.parametrize("module", ["labline.notebooks.engine", "labline.notebooks.pipeline", "labline.data.contract"])
def test_only_models_bring_tensorflow(tmp_path: Path, module: str) -> None:
    assert {"tensorflow", "keras"} & set(look(tmp_path, module)["loaded"]) == set()
