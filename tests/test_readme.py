"""The README is made from its notebook, and what it says can be typed: commands exist, paths exist."""

import itertools
import re
import shutil
import sys
from pathlib import Path

import pytest
import yaml
from workspaces import ROOT, run

from labline.notebooks.parameters import load_notebook
from labline.notebooks.readme import make_readme, readme_text

README = (ROOT / "README.md").read_text(encoding="utf-8") if (ROOT / "README.md").is_file() else ""
DOCUMENTS = [path for name in ("README.md", "CONTRIBUTING.md") if (path := ROOT / name).is_file()]


def commands(text: str) -> list[list[str]]:
    """The words of every line of the shell blocks of a document."""
    blocks = re.findall(r"^```(?:sh|bash|shell)\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL)
    lines = [line.partition("  #")[0].strip() for block in blocks for line in block.splitlines()]
    return [line.split() for line in lines if line and not line.startswith("#")]


def test_the_readme_is_what_its_notebook_gives() -> None:
    assert make_readme(ROOT, check=True) is False
    notebook = load_notebook(ROOT / "nbs" / "index.ipynb")
    assert readme_text(notebook) == readme_text(notebook) == README


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_every_linked_file_is_there(path: Path) -> None:
    links = re.findall(r"\]\(([^)#\s]+)\)", path.read_text(encoding="utf-8"))
    missing = [link for link in links if not link.startswith(("http:", "https:", "mailto:")) and not (ROOT / link).exists()]
    assert missing == []


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_every_path_that_is_named_is_there_or_is_made_by_a_stage(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    trees = "".join(re.findall(r"^```text\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL))
    named = set(re.findall(r"`([\w.-]+/[\w./-]*)`", text)) | set(re.findall(r"^([\w.-]+/?)\s{2,}\S", trees, flags=re.MULTILINE))
    stages = set(yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"])
    missing = []
    for name in sorted(named):
        first, _, rest = name.partition("/")
        made = first in ("data", "runs", "code") or (first == "build" and rest.split("/")[0] in {*stages, ""})
        if not made and not (ROOT / name).exists():
            missing.append(name)
    assert missing == []


def targets() -> set[str]:
    return set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))


@pytest.mark.parametrize("words", commands(README), ids=" ".join)
def test_every_command_can_be_typed(words: list[str]) -> None:
    program = words[0]
    if program == "make":
        assert set(words[1:]) <= targets()
    elif program == "source":
        assert words[1] == ".venv/bin/activate"
    elif program == "labline":
        names = [word for word in words[1:] if re.fullmatch(r"[a-z]+", word)]
        run("labline", *names[: 2 if names[:1] == ["import"] else 1], "--help", cwd=ROOT)
    elif program == "papermill":
        assert all((ROOT / word).is_file() for word in words if word.startswith("pipelines/"))
    else:
        assert shutil.which(program) or (Path(sys.executable).parent / program).is_file()


def test_parameters_that_commands_set_are_there() -> None:
    sections = yaml.safe_load((ROOT / "params.yaml").read_text())
    for words in commands(README):
        for option, value in itertools.pairwise(words):
            if option in ("-S", "--set-param"):
                section, _, key = value.partition("=")[0].partition(".")
                assert key in sections[section], value


def test_the_makefile_explains_each_target() -> None:
    shown = run("make", "help", cwd=ROOT).stdout
    assert all(f"make {target}" in shown for target in ("setup", "test", "lab", "bench", "readme"))
