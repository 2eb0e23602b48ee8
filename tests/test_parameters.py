"""What notebooks take, what `params.yaml` gives, and what `dvc.yaml` hands over: in this workspace, and by the example of mistakes."""

from pathlib import Path

import pytest
import yaml
from small import two_stages, write_notebook
from workspaces import ROOT, run

from labline.errors import NotebookError, ParameterError, WorkspaceError
from labline.notebooks.parameters import load_notebook, read_parameters
from labline.notebooks.pipeline import OF_COMMANDS, check_parameters, read_commands

STAGES = sorted((ROOT / "pipelines").glob("*.ipynb"))


def test_this_workspace_agrees_with_itself() -> None:
    sections = yaml.safe_load((ROOT / "params.yaml").read_text())
    assert check_parameters(ROOT) == sum(len(values) for name, values in sections.items() if name not in OF_COMMANDS)


@pytest.mark.parametrize("path", STAGES, ids=lambda path: path.stem)
def test_every_parameter_of_a_stage_says_what_it_means(path: Path) -> None:
    declared = read_parameters(load_notebook(path), where=path.name)
    assert [parameter.name for parameter in declared.values() if not parameter.meaning] == []


def test_a_stage_has_the_name_of_its_notebook_its_section_and_its_folder() -> None:
    pipeline = yaml.safe_load((ROOT / "dvc.yaml").read_text())
    sections = yaml.safe_load((ROOT / "params.yaml").read_text())
    stages, notebooks = set(pipeline["stages"]) - {"export"}, {path.stem: read_parameters(load_notebook(path), path.name) for path in STAGES}
    assert stages <= set(sections) <= {*notebooks, *OF_COMMANDS}
    assert [name for name, declared in notebooks.items() if name not in stages and "output_folder" not in declared] == [], "what is no stage is a report"
    for name, stage in pipeline["stages"].items():
        if name != "export":
            assert f"pipelines/{name}.ipynb" in stage["cmd"] and all(str(out).startswith(f"build/{name}") for out in stage["outs"]), name


def test_text_is_handed_over_as_text() -> None:
    pipeline = yaml.safe_load((ROOT / "dvc.yaml").read_text())
    declared = {path.stem: read_parameters(load_notebook(path), path.name) for path in STAGES}
    guessed = [
        f"{argument.stage}: {argument.parameter}"
        for argument in read_commands(pipeline)
        if argument.option == "-p" and declared[argument.stage][argument.parameter].kind is str
    ]
    assert guessed == [], "papermill's -p reads 007 as a number; use -r"


def test_a_check_names_every_mistake_at_once(tmp_path: Path) -> None:
    workspace = two_stages(tmp_path / "a workspace")
    (workspace / "params.yaml").write_text("first: {rows: x, name: '007', extra: 1}\nsecond: {}\n")
    with pytest.raises(ParameterError) as error:
        check_parameters(workspace)
    for part in ("unknown key `first.extra`", "`rows` must be of type `int`", "second.factor: `dvc.yaml` hands it to", "3 mistakes"):
        assert part in str(error.value)


def test_text_that_would_lose_its_zeros_is_refused(tmp_path: Path) -> None:
    workspace = two_stages(tmp_path / "a workspace")
    (workspace / "params.yaml").write_text("first: {rows: 3, name: '007'}\nsecond: {factor: 1}\n")
    assert check_parameters(workspace) == 3
    (workspace / "dvc.yaml").write_text((workspace / "dvc.yaml").read_text().replace("-r name", "-p name"))
    with pytest.raises(ParameterError, match="Write `-r name` in dvc.yaml"):
        check_parameters(workspace)


def test_a_command_that_names_what_is_not_there(tmp_path: Path) -> None:
    workspace = two_stages(tmp_path / "a workspace")
    text = (workspace / "dvc.yaml").read_text()
    (workspace / "dvc.yaml").write_text(text.replace("-p rows", "-p row"))
    with pytest.raises(ParameterError, match=r"dvc.yaml: first: unknown parameter `row`. Did you mean `rows`\?"):
        check_parameters(workspace)
    (workspace / "dvc.yaml").write_text(text.replace("pipelines/second.ipynb build", "pipelines/secnd.ipynb build"))
    with pytest.raises(ParameterError, match="unknown notebook `pipelines/secnd.ipynb`"):
        check_parameters(workspace)


def test_a_stage_without_a_parameters_cell_is_found_before_it_runs(tmp_path: Path) -> None:
    workspace = two_stages(tmp_path / "a workspace")
    write_notebook(workspace / "pipelines" / "second.ipynb", "1", parameters=None)
    with pytest.raises(NotebookError, match="pipelines/second.ipynb: no cell is tagged `parameters`"):
        check_parameters(workspace)


def test_outside_a_workspace_the_command_says_so(tmp_path: Path) -> None:
    done = run("labline", "check", cwd=tmp_path, check=False)
    assert done.returncode == 1 and "no workspace here" in done.stderr and "Traceback" not in done.stderr
    with pytest.raises(WorkspaceError, match="no `dvc.yaml`"):
        check_parameters(tmp_path)
