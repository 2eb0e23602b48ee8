"""Closures of this workspace: over a hundred and fifty edits, and the way from an edit to `labline why`."""

import ast
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from unittest.mock import patch

import pytest
from closure_corpus import ALL, CHANGES, HARMLESS, WIDER, Edit, make

from labline.notebooks.closure import libraries
from labline.notebooks.closure.export import drafts
from labline.notebooks.closure.libraries import Installation, read_installation
from labline.notebooks.closure.modules import Library
from labline.notebooks.closure.sources import Workspace, open_workspace, read_exports, read_module, split_dotted

ROOT = Path(__file__).parents[1]
FILES = ("settings.ini", "params.yaml", "dvc.yaml", "requirements.lock")
EDITED = ("nbs/*.ipynb", "pipelines/*.ipynb", "labline/**/__init__.py", "*.yaml")


@dataclass
class Copy:
    """A copy of this workspace that edits are made in, and its closures without any edit."""

    root: Path
    installation: Installation
    workspace: Workspace
    library: Library
    texts: dict[str, object]
    scripts: dict[str, str]


def copy_sources(folder: Path) -> Path:
    """Copy what closures are made from: notebooks, modules, and the pipeline, without the reports that are no stage of it."""
    for name in FILES:
        shutil.copy(ROOT / name, folder)
    for name in ("nbs", "pipelines", "labline"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns(".*", "__pycache__"))
    for path in (folder / "pipelines").glob("*.ipynb"):
        if path.stem not in ALL:
            path.unlink()
    return folder


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Copy:
    """The copy, read once."""
    root = copy_sources(tmp_path_factory.mktemp("workspace"))
    workspace, installation = open_workspace(root, exported=False), read_installation(root)
    library = Library(workspace)
    scripts = {draft.stage: draft.text for draft in drafts(workspace, installation, library)}
    texts = {name: source_of(workspace, name) for name in library.modules}
    return Copy(root, installation, workspace, library, texts, scripts)


def source_of(workspace: Workspace, name: str) -> object:
    """What a module or notebook is read from."""
    return (workspace.root / name).read_bytes() if name.endswith(".ipynb") else workspace.drafts.get(name) or read_module(workspace, name)


def untouched(copy: Copy, workspace: Workspace) -> set[str]:
    """The modules of the copy that an edit leaves as they were, together with all that they import: these need not be read again."""
    imported = {
        name: {split_dotted(copy.workspace, dotted)[0] for statement in module.statements for line in statement.imports for dotted in (line.loads, line.target)}
        for name, module in copy.library.modules.items()
    }
    touched = {name for name, text in copy.texts.items() if source_of(workspace, name) != text}
    while more := {name for name, loads in imported.items() if loads & touched} - touched:
        touched |= more
    return set(imported) - touched


def scripts_after(copy: Copy, paths: list[Path], installation: Installation) -> dict[str, str]:
    """The closures of the copy after some of its files were edited."""
    notebooks = {path for path in paths if path.parent.name == "nbs"}
    edited = {f"labline.{name}": cells for path in notebooks for name, cells in read_exports(path).items()}
    assert edited.keys() <= copy.workspace.drafts.keys()  # so names lead to the same modules, which need not be searched again
    workspace = replace(copy.workspace, drafts=copy.workspace.drafts | edited)
    library = Library(workspace)
    for name in untouched(copy, workspace):
        library.modules[name], library.normalisers[name] = copy.library.modules[name], copy.library.normalisers[name]
    return {draft.stage: draft.text for draft in drafts(workspace, installation, library)}


@contextmanager
def upgraded(installation: Installation, names: tuple[str, ...]) -> Iterator[Installation]:
    """The installation as it would be if some libraries were pinned and installed in another version."""
    if not names:
        yield installation
        return
    read_header = libraries.read_header

    def newer(info: Path) -> tuple[str, str]:
        name, version = read_header(info)
        return name, "999.0" if name in names else version

    with patch.object(libraries, "read_header", newer):
        yield replace(installation, pins={**installation.pins, **{name: ["999.0"] for name in names}}, provided={})


def stale_after(edit: Edit, copy: Copy, afresh: bool = False) -> frozenset[str]:
    """The stages whose closures an edit changes; the edit is taken back. With `afresh`, everything is read again."""
    before = {path: path.read_bytes() for name in EDITED for path in copy.root.glob(name)}
    try:
        make(edit, copy.root)
        paths = [path for path, content in before.items() if path.read_bytes() != content]
        with upgraded(copy.installation, edit.libraries) as installation:
            if afresh:
                after = {draft.stage: draft.text for draft in drafts(open_workspace(copy.root, exported=False), installation)}
            else:
                after = scripts_after(copy, paths, installation)
    finally:
        for path, content in before.items():
            if path.read_bytes() != content:
                path.write_bytes(content)
    return frozenset(stage for stage in copy.scripts if after.get(stage) != copy.scripts[stage])


def test_corpus_is_about_this_workspace(copy: Copy) -> None:
    assert set(copy.scripts) == ALL
    assert len(HARMLESS) >= 40 and len(CHANGES) >= 80
    titles = [edit.title for edit in (*HARMLESS, *CHANGES, *WIDER)]
    assert len(titles) == len(set(titles))


@pytest.mark.parametrize("edit", CHANGES, ids=lambda edit: edit.title)
def test_edit_of_what_runs(edit: Edit, copy: Copy) -> None:
    assert stale_after(edit, copy) == edit.stale


@pytest.mark.parametrize("edit", HARMLESS, ids=lambda edit: edit.title)
def test_edit_of_nothing_that_runs(edit: Edit, copy: Copy) -> None:
    assert stale_after(edit, copy) == frozenset()


def test_few_edits_of_nothing_that_runs_rerun_anything(copy: Copy) -> None:
    """The edits of `HARMLESS` rerun nothing, as tested above; the known exceptions are below 5 % of all such edits."""
    exceptions = [edit for edit in WIDER if stale_after(edit, copy)]
    assert len(exceptions) <= 0.05 * (len(HARMLESS) + len(WIDER))


@pytest.mark.parametrize("edit", [*CHANGES[::20], *HARMLESS[::20]], ids=lambda edit: edit.title)
def test_same_when_everything_is_read_again(edit: Edit, copy: Copy) -> None:
    assert stale_after(edit, copy, afresh=True) == edit.stale


def test_notebooks_and_exported_modules_give_the_same_closures(copy: Copy) -> None:
    exported = {draft.stage: draft.text for draft in drafts(open_workspace(copy.root), copy.installation)}
    assert exported == copy.scripts


def test_the_scripts_of_this_workspace_name_no_place_and_are_python() -> None:
    """So they are the same in every clone, and in every supported version of Python."""
    for draft in drafts(open_workspace(ROOT)):
        assert str(ROOT) not in draft.text and str(Path.home()) not in draft.text, draft.stage
        ast.parse(draft.text)
