"""Notebooks and workspaces of a few cells, for tests of what happens around notebooks."""

import subprocess
from pathlib import Path

import nbformat
import yaml
from workspaces import empty_repository, run

STAGE = """stages:
  first:
    cmd: papermill -k labline --engine labline pipelines/first.ipynb build/first/first.ipynb -p rows ${first.rows} -r name ${first.name}
    deps: [pipelines/first.ipynb]
    outs: [build/first]
  second:
    cmd: papermill -k labline --engine labline pipelines/second.ipynb build/second/second.ipynb -p factor ${second.factor}
    deps: [pipelines/second.ipynb, build/first/rows.json]
    outs: [build/second]
"""


def write_notebook(path: Path, *sources: str, parameters: str | None = "rows: int = 3", **metadata: object) -> Path:
    """A notebook of code cells; a source that begins with `#` and a space is Markdown. The second cell holds the parameters."""
    cells = [nbformat.v4.new_markdown_cell(f"# {path.stem.title()}", id="title")]
    if parameters is not None:
        cells.append(nbformat.v4.new_code_cell(parameters, id="parameters", metadata={"tags": ["parameters"]}))
    for number, source in enumerate(sources):
        new_cell = nbformat.v4.new_markdown_cell if source.startswith("# ") else nbformat.v4.new_code_cell
        cells.append(new_cell(source, id=f"cell-{number}", metadata=metadata))
    path.parent.mkdir(parents=True, exist_ok=True)
    kernel = {"name": "python3", "display_name": "python3", "language": "python"}
    nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata={"kernelspec": kernel}), path)
    return path


def papermill(workspace: Path, stage: str, *options: str, check: bool = True, **environment: str) -> subprocess.CompletedProcess[str]:
    """Execute `pipelines/<stage>.ipynb` to `build/<stage>/`, as a person types it."""
    command = ["papermill", "-k", "labline", "--engine", "labline", f"pipelines/{stage}.ipynb", f"build/{stage}/{stage}.ipynb"]
    return run(*command, *options, cwd=workspace, check=check, **environment)


def saved(workspace: Path, stage: str) -> nbformat.NotebookNode:
    """The notebook that a stage left."""
    return nbformat.read(workspace / "build" / stage / f"{stage}.ipynb", as_version=4)


def two_stages(workspace: Path) -> Path:
    """A workspace of two stages, ready for `dvc repro`; each waits in its second cell while a file `hold-<stage>` exists, at most a minute."""
    imports = "import json, time\nfrom pathlib import Path"
    wait = "until = time.monotonic() + 60\nwhile Path('hold-{}').exists() and time.monotonic() < until:\n    time.sleep(0.05)"
    first = imports, wait.format("first"), "Path('build/first/rows.json').write_text(json.dumps([name] * rows))"
    second = imports, wait.format("second"), "names = json.loads(Path('build/first/rows.json').read_text())\nlen(names) * factor"
    write_notebook(workspace / "pipelines" / "first.ipynb", *first, parameters="rows: int = 3  # how many\nname: str = 'a'  # of what")
    write_notebook(workspace / "pipelines" / "second.ipynb", *second, parameters="factor: float = 1.0  # of the count")
    (workspace / "dvc.yaml").write_text(STAGE)
    (workspace / "params.yaml").write_text(yaml.safe_dump({"first": {"rows": 4, "name": "b"}, "second": {"factor": 2.5}}))
    return empty_repository(workspace)
