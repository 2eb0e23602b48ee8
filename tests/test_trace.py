"""The way back from an answer, a figure, a metric and a release, through real tags, a real log and a real record."""

import json
import shutil
import time
from pathlib import Path
from typing import Any

import pytest
import yaml
from releasing import commit, labline, releasable
from workspaces import run

from labline.data.contract import Contract
from labline.errors import ParameterError
from labline.operations.cells import find_cell
from labline.operations.git import git
from labline.operations.registry import promote
from labline.operations.releasing import release
from labline.operations.trace import trace
from labline.operations.trace_page import cards, trace_page
from labline.operations.way import Step
from labline.serving.actuals import Actuals
from labline.serving.log import PredictionLog, new_ids
from labline.serving.store import Entry

ROOT = Path(__file__).parents[1]


def notebook(*sources: str) -> str:
    cells: list[dict[str, Any]] = [{"cell_type": "markdown", "id": "title", "metadata": {}, "source": "# Evaluate"}]
    for number, source in enumerate(sources):
        tags = {"tags": ["parameters"]} if number == 0 else {}
        cells.append({"cell_type": "code", "id": f"c{number}", "metadata": tags, "source": source, "outputs": [], "execution_count": None})
    return json.dumps({"cells": cells, "metadata": {}, "nbformat": 4, "nbformat_minor": 5})


@pytest.fixture(scope="module")
def released(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A workspace with a release in prod, whose stage `evaluate` is said to have run a notebook."""
    work = releasable(tmp_path_factory.mktemp("traced") / "work")
    papermill = "true papermill pipelines/evaluate.ipynb build/evaluate/evaluate.ipynb -p within 5.0 -r baseline usual"
    pipeline = yaml.safe_load((work / "dvc.yaml").read_text())
    pipeline["stages"]["evaluate"]["cmd"] = ["cp -R made/evaluate build/", papermill]
    (work / "dvc.yaml").write_text(yaml.safe_dump(pipeline, sort_keys=False))
    source = notebook("within: float = 3.0", "judged = overall(rows)", 'Path("build/evaluate/metrics.json").write_text(json.dumps(judged))')
    for place in ("pipelines", "made/evaluate"):
        (work / place).mkdir(exist_ok=True)
        (work / place / "evaluate.ipynb").write_text(source)
    run("dvc", "repro", "--quiet", cwd=work)
    commit(work, "A run with a notebook")
    release(work)
    promote(work, "eta@v1", "prod")
    return work


def test_a_prediction_leads_to_its_request_its_release_the_cell_and_the_commit(released: Path) -> None:
    digest = trace(released, "eta@v1").facts["digest"]
    (released / "runs" / "serving").mkdir(parents=True, exist_ok=True)
    url = f"sqlite:///{released}/runs/serving/predictions.db"
    log, identity = PredictionLog(url), new_ids(1)[0]
    row = {"zone": "north", "distance_km": 10.0}
    facts = {"request": "call-7", "at": time.time(), "model": "eta", "version": 1, "digest": digest, "role": "live", "key": "leg-7"}
    log.write([Entry(id=identity, row=json.dumps(row), answer='{"minutes": 23.0}', **facts)])
    Actuals(log, Contract.load(released / "contract.yaml"), "eta").add([{"prediction_id": identity, "value": 25.5}])
    log.close()
    found = trace(released, identity, url)
    request, answered = found.behind
    assert (found.kind, found.facts["answer"], found.facts["actual"]["value"]) == ("prediction", {"minutes": 23.0}, 25.5)
    assert (request.title, request.facts["key"], request.facts["row"]) == ("call-7", "leg-7", row)
    assert (answered.title, answered.facts["stages"], answered.facts["tag"]) == ("eta@v1", ["prod"], "eta@v1.0.0")
    commit_steps = [step for step in answered.behind if step.kind == "commit"]
    assert commit_steps[0].title == git(released, "rev-parse", "eta@v1.0.0^{commit}")
    typed = json.loads(labline(released, "trace", identity, "--json").stdout)
    assert typed["behind"][1]["title"] == "eta@v1" and typed["actual"]["value"] == 25.5


def test_a_metric_leads_to_the_cell_that_wrote_it_and_its_parameters(released: Path) -> None:
    found = trace(released, "mae")
    evaluate = found.behind[0]
    cell, parameters = evaluate.behind[:2]
    assert found.title == "evaluate.model.mae" and found.facts["file"] == "build/evaluate/metrics.json"
    assert (cell.facts["id"], cell.facts["way"]) == ("c2", "names it") and "json.dumps(judged)" in cell.facts["source"]
    assert parameters.facts == {"within": 3.0} and evaluate.facts["notebook"] == "build/evaluate/evaluate.ipynb"


def test_a_release_leads_back_where_its_files_no_longer_lie(released: Path, tmp_path: Path) -> None:
    clone = tmp_path / "clone"
    git(tmp_path, "clone", "--quiet", str(released), str(clone))
    found = trace(clone, "eta@v1")
    stages = [step for step in found.behind if step.kind == "stage"]
    assert [step.title for step in stages] == ["package", "evaluate", "select"] and stages[1].facts["here"] is False
    assert stages[1].behind[0].facts == {"within": 5.0, "baseline": "usual"} and "metrics" in found.facts
    assert trace(clone, found.facts["digest"][:12]).title == trace(clone, "eta@v1.0.0").title == "eta@v1"


def test_an_answer_of_a_bundle_that_nobody_released_is_said_to_be_one(released: Path) -> None:
    url = f"sqlite:///{released}/runs/other.db"
    log, identity = PredictionLog(url), new_ids(1)[0]
    log.write([Entry(identity, "r", 0.0, "eta", 9, "9" * 64, "live", None, "{}", "{}")])
    log.close()
    found = trace(released, identity, url)
    assert found.behind[1].title == "eta, served as version 9" and "was not released" in found.behind[1].facts["note"]


def test_what_is_unknown_says_what_there_is(released: Path) -> None:
    with pytest.raises(ParameterError, match="neither a prediction nor a release of this id"):
        trace(released, "0" * 32)
    with pytest.raises(ParameterError, match="unknown release `eta@v2`. Did you mean `eta@v1`"):
        trace(released, "eta@v2")
    refused = labline(released, "trace", "build/none/x.png", check=False)
    assert refused.returncode == 1 and "no stage made this file" in refused.stderr
    assert not (released / "runs" / "none.db").exists()
    with pytest.raises(ParameterError):
        trace(released, "1" * 32, f"sqlite:///{released}/runs/none.db")
    assert not (released / "runs" / "none.db").exists()


def test_the_page_draws_each_step_and_needs_no_network(released: Path) -> None:
    labline(released, "trace", "eta@v1", "--html", "runs/way.html")
    text = (released / "runs" / "way.html").read_text()
    found = trace(released, "eta@v1")
    assert text.count("<article") == len(list(cards(found))) and text.count("<rect") == 4
    assert "src=" not in text and "url(" not in text and "<link" not in text and "<script" not in text
    hostile = trace_page(Step("prediction", "p", {"answer": {"minutes": 1.0}}, (Step("request", "r", {"row": {"zone": "<script>alert(1)</script>"}}),)))
    assert "<script" not in hostile


def test_the_cells_of_our_own_notebooks_are_found() -> None:
    """The files that the stages of this repository leave, without running any of them."""
    wanted = {
        "evaluate": {"card.md": "names it", **dict.fromkeys(("metrics.json", "hours.png", "slices.csv"), "puts its name together")},
        "select": {"champion.json": ""},
        "validate": {"quality.json": "puts its name together"},
        "package": {"eta/1/saved_model.pb": ""},
    }
    for stage, files in wanted.items():
        source = json.loads((ROOT / "pipelines" / f"{stage}.ipynb").read_text())
        for file, way in files.items():
            made = find_cell(source, f"build/{stage}/{file}", f"build/{stage}")
            assert made is not None and (not way or made.way == way), (stage, file, made)


def test_a_workspace_without_git_still_traces_files(released: Path, tmp_path: Path) -> None:
    plain = Path(shutil.copytree(released, tmp_path / "plain", ignore=shutil.ignore_patterns(".git")))
    found = trace(plain, "build/evaluate/metrics.json")
    assert found.behind[0].title == "evaluate" and [step.title for step in found.behind if step.kind == "commit"] == ["none"]
