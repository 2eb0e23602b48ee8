"""Edits of this workspace, each with the stages that must run again.

An edit is made in a copy: of a notebook that exports a module (`models.metrics`), of a stage's notebook (`pipelines/train`), or of a file. Where it is made is
found by the names of functions and by text that must be there exactly once, so that an edit which no longer applies fails and is not passed over.
"""

import ast
import json
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Cells = list[dict[str, Any]]
Change = Callable[[Cells], None]

ALL = frozenset({"validate", "prepare", "explore", "train", "select", "evaluate", "package", "report"})
DRAWING = ALL - {"package"}
TABLES = frozenset({"validate", "prepare", "explore"})
MODELS = frozenset({"train", "select"})
FEATURES = frozenset({"prepare", "report"})
ERRORS = frozenset({"select", "evaluate", "report"})
NONE: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Edit:
    """One edit.

    Parameters
    ----------
    title : what a person would say was done.
    place : name of a module below the package, `pipelines/<stage>`, or path of a file.
    change : how, given the cells of the notebook, or one cell with the text of the file.
    stale : the stages whose code it changes.
    libraries : libraries that are upgraded.
    """

    title: str
    place: str = ""
    change: Change | None = None
    stale: frozenset[str] = NONE
    libraries: tuple[str, ...] = ()


# where to edit


def code_cells(cells: Cells) -> Cells:
    """The code cells, their sources as one text."""
    found = [cell for cell in cells if cell["cell_type"] == "code"]
    for cell in found:
        cell["source"] = "".join(cell["source"])
    return found


def only(found: list[Any], what: str) -> Any:
    """The one thing that was looked for; an error where there is none, or more than one."""
    assert len(found) == 1, f"{what} is there {len(found)} times: this edit must be written anew"
    return found[0]


def find_definition(cells: Cells, name: str) -> tuple[dict[str, Any], Any]:
    """The exported cell that defines a function, class or method, and its syntax tree."""
    found = []
    for cell in code_cells(cells):
        if re.match(r"#\|\s*export", cell["source"]):
            nodes: list[Any] = ast.parse(cell["source"]).body
            for part in name.split("."):
                nodes = [node for node in nodes if getattr(node, "name", None) == part]
                found += [(cell, node) for node in nodes if part == name.split(".")[-1]]
                nodes = [child for node in nodes for child in node.body]
    return only(found, f"`{name}`")


# what to do there


def replace(old: str, new: str) -> Change:
    """Put one text in place of another in the only code cell that holds it."""

    def change(cells: Cells) -> None:
        cell = only([cell for cell in code_cells(cells) if old in cell["source"]], repr(old))
        cell["source"] = cell["source"].replace(old, new)

    return change


def substitute(pattern: str, new: str) -> Change:
    """Put a text in place of every match of a pattern in all code cells; there must be one."""

    def change(cells: Cells) -> None:
        counts = []
        for cell in code_cells(cells):
            cell["source"], count = re.subn(pattern, new, cell["source"])
            counts.append(count)
        assert sum(counts), f"nothing matches {pattern!r}: this edit must be written anew"

    return change


def insert(name: str, line: str = "print('edited')", docstring: bool = False) -> Change:
    """Put a line at the beginning of a function's or class's body, or in place of its docstring."""

    def change(cells: Cells) -> None:
        cell, node = find_definition(cells, name)
        first = node.body[0]
        documented = isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant)
        assert documented or not docstring, f"`{name}` has no docstring: this edit must be written anew"
        lines = cell["source"].splitlines()
        start = first.lineno - 1 if docstring or not documented else first.end_lineno
        lines[start : first.end_lineno if docstring else start] = [" " * first.col_offset + line]
        cell["source"] = "\n".join(lines)

    return change


def decorate(name: str, decorator: str) -> Change:
    """Put a decorator on a function."""

    def change(cells: Cells) -> None:
        cell, node = find_definition(cells, name)
        lines = cell["source"].splitlines()
        lines.insert(node.lineno - 1, decorator)
        cell["source"] = "\n".join(lines)

    return change


def within(name: str, old: str, new: str) -> Change:
    """Put one text in place of another, by words, inside a function."""

    def change(cells: Cells) -> None:
        cell, node = find_definition(cells, name)
        lines = cell["source"].splitlines()
        start = min([node.lineno, *(item.lineno for item in node.decorator_list)]) - 1
        body = "\n".join(lines[start : node.end_lineno])
        pattern = rf"(?<!\w){re.escape(old)}(?!\w)"
        assert re.search(pattern, body), f"`{name}` has no {old!r}: this edit must be written anew"
        lines[start : node.end_lineno] = [re.sub(pattern, lambda match: new, body)]
        cell["source"] = "\n".join(lines)

    return change


def add(text: str, kind: str = "code", at: int | None = None, tags: Iterable[str] = ()) -> Change:
    """A new cell, by default at the end."""

    def change(cells: Cells) -> None:
        cell = {"cell_type": kind, "metadata": {"tags": list(tags)}, "source": text} | ({"outputs": [], "execution_count": None} if kind == "code" else {})
        cells.insert(len(cells) if at is None else at, cell)

    return change


def export(text: str, directive: str = "export") -> Change:
    """A new exported cell at the end of a module."""
    return add(f"#| {directive}\n{text}")


def drop(text: str) -> Change:
    """Remove the only code cell that holds a text."""
    return lambda cells: cells.remove(only([cell for cell in code_cells(cells) if text in cell["source"]], repr(text)))


def split(text: str) -> Change:
    """Split the only code cell that holds a line into two, before that line."""

    def change(cells: Cells) -> None:
        cell = only([cell for cell in code_cells(cells) if f"\n{text}" in cell["source"]], repr(text))
        head, tail = cell["source"].split(f"\n{text}")
        place = next(number for number, other in enumerate(cells) if other is cell)
        cells[place : place + 1] = [cell | {"source": head}, cell | {"source": text + tail}]

    return change


def swap(first: str, second: str) -> Change:
    """Let the only code cells that hold two texts change places."""

    def change(cells: Cells) -> None:
        code = code_cells(cells)
        one, other = (only([cell for cell in code if text in cell["source"]], repr(text)) for text in (first, second))
        one["source"], other["source"] = other["source"], one["source"]

    return change


def move_first(text: str) -> Change:
    """Make the exported cell that holds a text the first one after the imports."""

    def change(cells: Cells) -> None:
        exported = [cell for cell in code_cells(cells) if cell["source"].startswith("#| export")]
        cell = only([cell for cell in exported if text in cell["source"]], repr(text))
        cells.remove(cell)
        cells.insert(next(number for number, other in enumerate(cells) if other is exported[0]) + 1, cell)

    return change


def each(**fields: Any) -> Change:
    """Set fields of every code cell, as JupyterLab does when it runs them."""

    def change(cells: Cells) -> None:
        for cell in code_cells(cells):
            cell.update(fields)

    return change


def untag(cells: Cells) -> None:
    """Take the tags off every cell."""
    assert any(cell["metadata"].pop("tags", None) for cell in cells)


def retitle(cells: Cells) -> None:
    """Another heading."""
    cells[0]["source"] = "# Another heading\n\n> Another sentence."


def together(*changes: Change) -> Change:
    """Several changes."""

    def change(cells: Cells) -> None:
        for one in changes:
            one(cells)

    return change


OUTPUT = [{"output_type": "stream", "name": "stdout", "text": "done\n"}]
UNUSED_CLASS = "@dataclass(frozen=True)\nclass Unused:\n    value: float = 1.0\n\n    def twice(self) -> float:\n        return 2 * self.value"

HARMLESS = [
    Edit("heading of a stage's notebook", "pipelines/train", retitle),
    Edit("prose added to a stage's notebook", "pipelines/evaluate", add("Some more words.", "markdown", 3)),
    Edit("outputs kept in a stage's notebook", "pipelines/select", each(outputs=OUTPUT, execution_count=7)),
    Edit("other cell ids", "pipelines/report", each(id="other")),
    Edit("metadata of cells", "pipelines/prepare", each(metadata_of_another_tool={"collapsed": True})),
    Edit("comment in a cell", "pipelines/train", replace("trained = train(", "# this takes a while\ntrained = train(")),
    Edit("comment beside a parameter", "pipelines/train", substitute(r"(epochs: int = \d+)  #.*", r"\1  # passes")),
    Edit("empty cell", "pipelines/package", add("")),
    Edit("cell of comments", "pipelines/package", add("# nothing to do here")),
    Edit("number written in groups", "pipelines/evaluate", replace("sample_rows: int = 5000", "sample_rows: int = 5_000")),
    Edit("unused import in a cell", "pipelines/explore", add("import os")),
    Edit(
        "order of imports in a cell", "pipelines/evaluate",
        together(substitute(r"(?m)^import json\n", ""), substitute(r"(?m)^(import pandas as pd\n)", r"\1import json\n")),
    ),
    Edit("import moved to a cell of its own", "pipelines/report", together(substitute(r"(?m)^import json\n", ""), add("import json", at=2))),
    Edit(
        "import alias in a stage's notebook", "pipelines/evaluate",
        together(substitute(r"import pandas as pd", "import pandas as frames"), substitute(r"\bpd\.", "frames.")),
    ),
    Edit("quotes in a cell", "pipelines/select", replace('Path("runs/select").mkdir', "Path('runs/select').mkdir")),
    Edit("line broken in a cell", "pipelines/validate", replace("require(quality, max_rejected_share)", "require(\n    quality,\n    max_rejected_share,\n)")),
    Edit("comment in a function", "models.metrics", insert("regression_metrics", "# as in every textbook")),
    Edit("docstring of a function", "models.metrics", insert("regression_metrics", '"""The metrics."""', docstring=True)),
    Edit("docstring of a class", "data.contract", insert("Contract", '"""What the data mean."""', docstring=True)),
    Edit("docstring of a method", "data.contract", insert("Contract.load", '"""Read it."""', docstring=True)),
    Edit("heading of a module's notebook, its docstring", "models.metrics", retitle),
    Edit("prose in a module's notebook", "data.contract", add("Some more words.", "markdown", 4)),
    Edit("example in a module's notebook", "models.metrics", add("assert regression_metrics([1.0], [1.0])['mae'] == 0")),
    Edit("outputs in a module's notebook", "models.networks", each(outputs=OUTPUT)),
    Edit("unused function", "models.metrics", export("def unused(values: list[float]) -> float:\n    return sum(values)")),
    Edit("unused private function", "data.figures", export("def _unused():\n    return 1", "exporti")),
    Edit("unused function with a decorator of Python's", "errors", export("import functools\n\n\n@functools.cache\ndef unused(number):\n    return number")),
    Edit("unused class", "models.task", export(UNUSED_CLASS)),
    Edit("unused subclass", "errors", export("class UnusedError(LablineError):\n    pass")),
    Edit("unused constant", "data.figures", export('UNUSED = {"blue": "#0000ff", "red": "#ff0000"}')),
    Edit("unused constants at once", "data.tables", export("FIRST, SECOND = 1, 2")),
    Edit("unused alias of a type", "data.contract", export("Unused = dict[str, list[int]]")),
    Edit("unused import in a module", "models.metrics", export("import itertools")),
    Edit(
        "import for type checkers", "models.metrics",
        export("from typing import TYPE_CHECKING\n\nif TYPE_CHECKING:\n    from labline.models.task import Task"),
    ),
    Edit("program at the end of a module", "models.metrics", export("if __name__ == '__main__':\n    print('metrics')")),
    Edit("order of two definitions", "models.metrics", swap("def interval_metrics(", "def metric_label(")),
    Edit("function moved to the front", "data.charts", move_first("def shorten(")),
    Edit(
        "import alias in a module", "models.metrics",
        together(substitute(r"import numpy as np", "import numpy as numeric"), substitute(r"\bnp\.", "numeric.")),
    ),
    Edit("import of one name in a statement of its own", "data.quality", export("from labline.errors import DataError")),
    Edit("annotation of an argument", "models.metrics", within("metric_names", "within: float = 5.0", "within: int = 5.0")),
    Edit("annotation of a result", "models.metrics", within("metric_names", "list[str]", "list")),
    Edit("annotation of a local variable", "models.metrics", within("_errors", "error = prediction - actual", "error: NDArray = prediction - actual")),
    Edit("layout of a function", "models.metrics", within("_errors", "error = prediction - actual", "error = (\n        prediction\n        - actual\n    )")),
    Edit("function that no stage uses", "rides.simulate", insert("simulate")),
    Edit("function of an importer that no stage uses", "rides.taxi", export("print('taxi')")),
    Edit("command line", "cli", insert("champion")),
    Edit("the engine that executes notebooks", "notebooks.engine", export("def unused():\n    return 1")),
    Edit("the closures themselves", "notebooks.closure.find", insert("find_closure")),
    Edit("checks of parameters", "notebooks.pipeline", insert("check_parameters")),
    Edit("function used by another function that no stage uses", "doctor", insert("examine")),
    Edit("value in params.yaml, which DVC sees in the command", "params.yaml", replace("epochs: ", "epochs: 1")),
    Edit("reading page", "index", add("More to read.", "markdown")),
    Edit("number of an unused default", "data.figures", export("def unused(size=(3, 4), name='figure'):\n    return size, name")),
]

CHANGES = [
    # cells
    Edit("default of a parameter", "pipelines/train", substitute(r"epochs: int = \d+", "epochs: int = 99"), frozenset({"train"})),
    Edit("new parameter", "pipelines/evaluate", replace("seed: int = 0", "seed: int = 0\nmore: int = 1"), frozenset({"evaluate"})),
    Edit("parameter gone", "pipelines/explore", substitute(r"(?m)^threads: int = .*$", ""), frozenset({"explore"})),
    Edit("type of a parameter", "pipelines/train", replace("patience: int", "patience: float"), frozenset({"train"})),
    Edit("parameters no longer tagged", "pipelines/select", untag, frozenset({"select"})),
    Edit(
        "statement in a cell", "pipelines/report",
        replace("advice = recommend(findings, builder)", "advice = recommend(findings, builder)[:2]"),
        frozenset({"report"}),
    ),
    Edit("value that is shown", "pipelines/explore", replace("found.overview", "found.overview.head(3)"), frozenset({"explore"})),
    Edit("semicolon", "pipelines/validate", replace('missing.png");', 'missing.png")'), frozenset({"validate"})),
    Edit("cell removed", "pipelines/prepare", drop("prepared.missing"), frozenset({"prepare"})),
    Edit("cell added", "pipelines/package", add("print(champion)"), frozenset({"package"})),
    Edit("order of two cells", "pipelines/validate", swap("draw_missing(quality", "draw_rejections(quality"), frozenset({"validate"})),
    Edit("magic", "pipelines/explore", add("%matplotlib inline"), frozenset({"explore"})),
    Edit("shell line", "pipelines/package", add("!ls build"), frozenset({"package"})),
    Edit("library's attribute patched in a cell", "pipelines/train", add("import numpy as np\nnp.sum = max", at=3), frozenset({"train"})),
    Edit("name shadowed in a cell", "pipelines/explore", add("save_figure = print", at=4), frozenset({"explore"})),
    # functions
    Edit("function in a cell's sight", "data.preparation", insert("prepare"), frozenset({"prepare"})),
    Edit("function three calls deep", "models.metrics", insert("_errors"), frozenset({"train", "evaluate"})),
    Edit("local variable renamed", "data.preparation", within("describe_part", "rows", "lines"), frozenset({"prepare"})),
    Edit("private helper of a check that every stage makes", "data.contract", insert("_check_column"), ALL),
    Edit("function of the ground", "errors", insert("unknown"), ALL),
    Edit("reader of timestamps", "data.cleaning", insert("read_timestamp"), frozenset({"validate"})),
    Edit("connection to the database", "data.tables", insert("connect"), TABLES),
    Edit("reader of parquet", "data.tables", insert("open_parquet"), frozenset({"prepare", "explore"})),
    Edit("writer of parquet", "data.tables", insert("write_parquet"), frozenset({"validate", "prepare"})),
    Edit("helper of two charts in two stages", "data.charts", insert("shorten"), frozenset({"validate", "explore"})),
    Edit("helper of two other stages", "data.charts", insert("label"), frozenset({"prepare", "explore"})),
    Edit("style of figures", "data.figures", insert("set_style"), DRAWING),
    Edit("saving of figures", "data.figures", insert("save_figure"), DRAWING),
    Edit("grid of panels", "data.figures", insert("panels"), frozenset({"explore", "train", "evaluate"})),
    Edit("version of the data", "data.version", insert("check_version"), frozenset({"validate"})),
    Edit("split by time", "data.splits", insert("split_by_time"), frozenset({"prepare"})),
    Edit("sampling for exploration", "data.profile", insert("draw_sample"), frozenset({"explore"})),
    Edit("training", "models.training", insert("train"), frozenset({"train"})),
    Edit("fit of a network, in a table of functions", "models.candidates", insert("fit_mlp"), MODELS),
    Edit("building of trees, two modules away", "models.trees", insert("ensemble_from_tree"), MODELS),
    Edit("curves", "models.curves", insert("draw_curves"), frozenset({"train"})),
    Edit("export of a model", "models.savedmodel", insert("export_model"), frozenset({"train"})),
    Edit("loading of a model", "models.savedmodel", insert("load"), frozenset({"evaluate"})),
    Edit("rows as a model takes them", "models.preprocessing", insert("model_inputs"), frozenset({"train", "select", "evaluate"})),
    Edit("vocabulary", "models.preprocessing", insert("_vocabulary"), frozenset({"train"})),
    Edit("comparison of candidates", "models.selection", insert("select"), frozenset({"select"})),
    Edit("overall errors", "models.evaluation", insert("overall"), frozenset({"evaluate", "report"})),
    Edit("sample of predictions", "models.evaluation", insert("sample"), frozenset({"evaluate", "package"})),
    Edit("reader of predictions", "models.evaluation", insert("open_predictions"), frozenset({"evaluate", "package", "report"})),
    Edit("resampling", "models.metrics", insert("resampling_weights"), ERRORS),
    Edit("slices", "models.slices", insert("judge"), frozenset({"evaluate", "report"})),
    Edit("robustness", "models.robustness", insert("probe"), frozenset({"evaluate"})),
    Edit("model card", "models.card", insert("model_card"), frozenset({"evaluate"})),
    Edit("pictures of the evaluation", "models.pictures", insert("point_ranges"), frozenset({"evaluate"})),
    Edit("proof of the bundle", "models.packaging", insert("prove"), frozenset({"package"})),
    Edit("digests of the bundle", "models.bundle", insert("file_digest"), frozenset({"package"})),
    Edit("lineage", "operations.lineage", insert("lineage"), frozenset({"package"})),
    Edit("recommendation in a table of rules", "operations.advice", insert("odd_week"), frozenset({"report"})),
    Edit("page for managers", "operations.pages", insert("glance"), frozenset({"report"})),
    # modules that are opened by name
    Edit("feature builder that a parameter names", "rides.features", insert("complete"), FEATURES),
    Edit("history of legs, used by that builder", "rides.history", insert("shrink"), FEATURES),
    Edit("constant of that builder", "rides.features", substitute(r"(?m)^WEATHER = \(", 'WEATHER = ("cloud", '), FEATURES),
    Edit("general builder, the parameter's default", "data.features", insert("complete"), FEATURES),
    Edit("function that opens builders", "settings", insert("resolve"), FEATURES),
    Edit("another builder in params.yaml", "params.yaml", replace("builder: labline.rides.features", "builder: labline.data.features"), FEATURES),
    # values, defaults, classes
    Edit("default argument", "models.metrics", within("regression_metrics", "within: float = 5.0", "within: float = 6.0"), frozenset({"train"})),
    Edit("default argument of a figure", "data.figures", within("panels", "columns: int = 3", "columns: int = 2"), frozenset({"explore", "train", "evaluate"})),
    Edit("constant", "models.metrics", substitute(r"(?m)^LEAST_CLUSTERS = ", "LEAST_CLUSTERS = 1 + "), ERRORS),
    Edit(
        "constant in a table", "models.metrics",
        replace('QUANTILES = {"median_ae": 0.5', 'QUANTILES = {"median_ae": 0.4'),
        frozenset({"train", "select", "evaluate", "report"}),
    ),
    Edit(
        "constant computed when the module is loaded", "models.metrics",
        replace("RESOLUTION = 700, 1.02, 500", "RESOLUTION = 700, 1.02, 400"),
        frozenset({"train", "select", "evaluate", "package", "report"}),
    ),
    Edit("colour", "data.figures", replace('PALETTE = ("#1f5a89"', 'PALETTE = ("#1f5a88"'), DRAWING),
    Edit(
        "text of a program that runs in a process of its own", "models.packaging",
        replace("import json, sys\n", "import sys, json\n"),
        frozenset({"package"}),
    ),
    Edit(
        "names of libraries whose versions are noted", "operations.lineage",
        substitute(r'LIBRARIES = \("labline", ', 'LIBRARIES = ("dvc", "labline", '),
        frozenset({"package"}),
    ),
    Edit("entry of a table of candidates", "models.candidates", replace('"one decision tree"', '"a decision tree"'), MODELS),
    Edit("lambda in a table", "models.task", replace("space.maximum(space.exp(score) - 1.0, 0.0)", "space.exp(score) - 1.0"), MODELS),
    Edit("class attribute, a field's default", "models.candidates", insert("TreeSettings", "minimum: int = 3"), MODELS),
    Edit("field of a class that reads YAML", "data.contract", insert("Column", "digits: int = 3"), ALL),
    Edit("class method", "data.contract", insert("Contract.load"), ALL),
    Edit("property", "data.contract", insert("Contract.row"), ALL),
    Edit("inherited method", "errors", insert("LablineError.__str__"), ALL),
    Edit("base of a class", "errors", replace("class DataError(LablineError)", "class DataError(LablineError, ValueError)"), ALL - {"explore"}),
    Edit("method of a Keras model", "models.networks", insert("Network.call"), MODELS),
    Edit("method reached through an instance", "models.metrics", insert("Interval.text"), ERRORS),
    Edit("method of a protocol's implementation", "models.training", insert("LiveProgress", "kind = 'live'"), frozenset({"train"})),
    # what happens when modules are loaded
    Edit("decorator", "data.charts", decorate("label", "@(lambda function: function)"), frozenset({"validate", "prepare", "explore"})),
    Edit("argument of a decorator that registers", "data.cleaning", replace('builtin(name="try_strptime")', 'builtin(name="strptime")'), TABLES),
    Edit("call when a module is loaded", "data.cleaning", replace("dt.Timestamp(scale=6)", "dt.Timestamp(scale=3)"), TABLES),
    Edit("statement when a module is loaded", "data.figures", export("print('loaded')"), DRAWING),
    Edit("statement when the ground is loaded", "errors", export("print('loaded')"), ALL),
    Edit("statement in a package", "labline/models/__init__.py", add("print('loaded')"), ALL - TABLES),
    Edit("statement in the package", "labline/__init__.py", add("print('loaded')"), ALL),
    Edit(
        "monkey patch in a module", "models.metrics",
        export("pd.DataFrame.head = lambda self: self"),
        frozenset({"train", "select", "evaluate", "package", "report"}),
    ),
    Edit("environment variable set when a module is loaded", "models.networks", export("import os\n\nos.environ['TF_DETERMINISTIC_OPS'] = '1'"), MODELS),
    Edit(
        "conditional import",
        "data.charts",
        export("try:\n    import seaborn as sns\nexcept ImportError:\n    sns = None"),
        frozenset({"validate", "explore"}),
    ),
    Edit("name bound again at the end of its module", "data.charts", export("shorten = str"), frozenset({"validate", "explore"})),
    Edit("star import", "pipelines/train", add("from labline.data.charts import *", at=3), frozenset({"train"})),
    Edit("star import in a module", "data.charts", export("from labline.data.figures import *"), TABLES),
    Edit("getattr by variable", "pipelines/train", add("import labline.data.charts as charts\ngetattr(charts, 'la' + 'bel')", at=3), frozenset({"train"})),
    Edit("import by a computed name", "pipelines/select", add("import importlib\nimportlib.import_module('labline.' + metric)"), frozenset({"select"})),
    Edit("hook for subclasses", "errors", insert("LablineError", "def __init_subclass__(cls): print(cls)"), ALL),
    Edit("import that fails", "data.charts", export("from labline.data.figures import nothing_of_this_name"), TABLES),
    Edit("name that is not there", "data.charts", export("def unused(size=UNKNOWN):\n    return size"), TABLES),
    Edit("mistake in the syntax", "data.charts", export("def unused(:"), TABLES),
    # libraries
    Edit("upgrade of Keras, whose version the package notes too", libraries=("keras",), stale=MODELS | {"package"}),
    Edit("upgrade of seaborn", libraries=("seaborn",), stale=DRAWING),
    Edit("upgrade of DuckDB", libraries=("duckdb",), stale=frozenset({"validate", "prepare", "explore", "package"})),
    Edit("upgrade of dvclive", libraries=("dvclive",), stale=frozenset({"train"})),
    Edit("upgrade of msgspec", libraries=("msgspec",), stale=ALL),
    Edit("upgrade of a library that no stage imports", libraries=("typer",), stale=NONE),
]

# Nothing that is computed changes, but what the executed notebook shows may: each cell shows its last value.
WIDER = [Edit("cell split in two", "pipelines/evaluate", split("rows = open_predictions("), NONE)]


def make(edit: Edit, root: Path) -> None:
    """Make an edit in a copy of the workspace."""
    if edit.change is None:
        return
    path = root / edit.place
    if "." in edit.place and path.suffix in (".py", ".yaml"):
        cells: Cells = [{"cell_type": "code", "metadata": {}, "source": path.read_text(encoding="utf-8")}]
        edit.change(cells)
        path.write_text("\n".join(cell["source"] for cell in cells), encoding="utf-8")
        return
    path = root / f"{edit.place}.ipynb" if "/" in edit.place else find_notebook(root, edit.place)
    notebook = json.loads(path.read_text(encoding="utf-8"))
    edit.change(notebook["cells"])
    path.write_text(json.dumps(notebook), encoding="utf-8")


def find_notebook(root: Path, module: str) -> Path:
    """The notebook that exports a module, whatever its number."""
    pattern = re.compile(rf"#\|\s*default_exp {re.escape(module)}(?![\w.])")
    paths = sorted(root.glob("nbs/*.ipynb"))
    return only([path for path in paths if path.stem == module or pattern.search(path.read_text(encoding="utf-8"))], f"notebook of `{module}`")
