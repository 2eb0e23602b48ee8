"""The release bundle: complete, proved by a fresh process, sealed, and honest about where it comes from."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
from judging import CONTRACT, Rule, after, parcels, shared_workspace

from labline.data.contract import Contract
from labline.errors import ModelError
from labline.models.bundle import Bundle
from labline.models.packaging import build_bundle, sample_requests
from labline.operations.lineage import git_state, lineage

PARTS = {"reference": {"rows": 0, "columns": {}}, "lineage": {"git": {"commit": None, "reason": "a test"}}, "card": "# Model card\n", "asof": {}}


@pytest.fixture(scope="module")
def bundle(run_stage: Callable[..., Path]) -> Path:
    """The folder that the stage made."""
    return after("package", run_stage) / "build/package/door/1"


def test_the_stage_makes_a_bundle_in_the_layout_of_tensorflow_serving(bundle: Path) -> None:
    """The model's files at the top, the evidence where a server ignores it."""
    names = {path.relative_to(bundle).as_posix() for path in bundle.rglob("*") if path.is_file()}
    model = {"saved_model.pb", "fingerprint.pb", "variables/variables.index", "variables/variables.data-00000-of-00001"}
    facts = ("reference.json", "samples.json", "proof.json", "verify.json", "lineage.json", "digests.json")
    evidence = (*facts, "contract.yaml", "card.md", "asof/usual.parquet", "held_out.parquet")
    assert names == model | {f"assets.extra/{name}" for name in evidence}
    assert not [path for path in bundle.parent.iterdir() if path.name != "1"]


def test_the_samples_are_answered_alike_by_a_process_without_this_package(bundle: Path) -> None:
    """Read back and compared here once more, by TensorFlow alone."""
    program = (
        "import json, sys; import tensorflow as tf; s = json.load(open(sys.argv[1] + '/assets.extra/samples.json'));"
        "f = tf.saved_model.load(sys.argv[1]).signatures['serving_default']; t = {n: v.dtype for n, v in f.structured_input_signature[1].items()};"
        "a = f(**{n: tf.constant([r[n] for r in s['instances']], t[n]) for n in t});"
        "assert [float(v) for v in a['hours'].numpy()] == [r['hours'] for r in s['predictions']]; assert 'labline' not in sys.modules;"
        "print(len(s['instances']))"
    )
    run = subprocess.run([sys.executable, "-I", "-c", program, str(bundle)], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    assert run.stdout.split()[-1] == "20"
    proof = json.loads((bundle / "assets.extra/proof.json").read_text())
    assert proof["equal"]
    assert proof["rows"] == proof["identical_rows"] == 20


def test_the_samples_hold_the_rows_that_servers_get_wrong(bundle: Path) -> None:
    """All missing, and all categories unseen."""
    samples = Bundle.load(bundle, draft=True).samples["instances"]
    assert samples[-2]["depot"] == ""
    assert samples[-2]["weight"] != samples[-2]["weight"]
    assert samples[-1]["depot"] not in ("D1", "D2", "D3", "")
    assert all(len(row["sent_at"]) == 19 for row in samples[:-2])


def test_a_bundle_is_opened_with_everything_in_it(bundle: Path) -> None:
    """Contract, as-of tables, lineage and card."""
    opened = Bundle.load(bundle, draft=True)
    assert opened.name == "door"
    assert list(opened.contract.row) == ["sent_at", "depot", "weight", "fragile", "usual_hours"]
    assert opened.asof()["usual"].num_rows == 3
    assert set(opened.lineage) == {"git", "data", "parameters", "libraries", "notebooks"}
    assert set(opened.lineage["notebooks"]) == {"validate", "prepare", "select", "evaluate", "train"}
    assert opened.lineage["parameters"]["evaluate"]["baseline"] == "usual_hours"
    assert opened.lineage["parameters"]["train"] == {"seed": 7}
    assert opened.card.startswith("# Model card: `door`")


def test_the_reference_says_what_the_training_rows_looked_like(bundle: Path) -> None:
    """Of the training rows alone, and of each column of the raw row."""
    seen = Bundle.load(bundle, draft=True).reference
    train = pd.read_parquet(bundle.parents[3] / "build/prepare/train.parquet")
    assert seen["rows"] == len(train)
    assert list(seen["columns"]) == ["sent_at", "depot", "weight", "fragile", "usual_hours"]
    assert seen["columns"]["sent_at"]["latest"] == train["sent_at"].max().isoformat()
    assert list(seen["columns"]["depot"]["categories"]) == ["D1", "D2", "D3"]
    assert seen["columns"]["weight"]["max"] == train["weight"].max()
    assert seen["columns"]["weight"]["missing"] == pytest.approx(train["weight"].isna().mean(), abs=1e-6)


def test_only_a_verified_bundle_is_a_release(tmp_path: Path) -> None:
    """A draft opens for those who ask for it; a verification that fails leaves nothing; one that passes is sealed in."""
    (tmp_path / "contract.yaml").write_text(CONTRACT)
    Rule(knows_depots=True).export(tmp_path / "model")
    samples = sample_requests(parcels(50), Contract.load(tmp_path / "contract.yaml"), 10)
    seen: list[Path] = []

    def verify(folder: Path) -> dict[str, object]:
        seen.append(folder)
        assert Bundle.load(folder, draft=True).verify is None
        return {"rows": 10}

    def refuse(folder: Path) -> dict[str, object]:
        raise ModelError("REST answers otherwise", remedy="Mend it")

    def build(**options: Callable[[Path], dict[str, object]]) -> Bundle:
        return build_bundle(tmp_path / "door/1", tmp_path / "model", tmp_path / "contract.yaml", samples, **PARTS, **options)

    assert build().verify is None
    with pytest.raises(ModelError, match="never verified.*`dvc repro package`"):
        Bundle.load(tmp_path / "door/1")
    assert build(verify=verify).verify == Bundle.load(tmp_path / "door/1").verify == {"rows": 10}
    assert seen[0].name == "1"
    with pytest.raises(ModelError, match="REST answers otherwise"):
        build(verify=refuse)
    assert Bundle.load(tmp_path / "door/1").verify == {"rows": 10}
    assert [path.name for path in (tmp_path / "door").iterdir()] == ["1"]


def test_a_bundle_without_repository_says_why_it_names_no_commit(bundle: Path) -> None:
    """And no data version."""
    origin = Bundle.load(bundle, draft=True).lineage
    assert origin["git"]["commit"] is None
    assert "repository" in origin["git"]["reason"]
    assert origin["data"]["md5"] is None


def test_packaged_twice_it_has_the_same_digest(bundle: Path, run_stage: Callable[..., Path]) -> None:
    """To the byte, in an ordinary kernel as in a warm one; the executed notebooks are the same, because only this stage runs again."""
    before = Bundle.load(bundle, draft=True).digest
    run_stage(bundle.parents[3], "package", kernel="python3", samples=20)
    assert Bundle.load(bundle, draft=True).digest == before


@pytest.mark.parametrize(
    ("damage", "expected"),
    [
        (lambda folder: (folder / "variables/variables.index").write_bytes(b""), "differ from what was packaged: `variables/variables.index`"),
        (lambda folder: (folder / "saved_model.pb").unlink(), "not complete: `saved_model.pb`"),
        (lambda folder: (folder / "words.txt").write_text("x"), "do not belong to the bundle: `words.txt`"),
        (lambda folder: (folder / "assets.extra/digests.json").write_text('{"format": 1'), "`digests.json` is damaged"),
        (lambda folder: shutil.rmtree(folder / "assets.extra"), "not a release bundle"),
    ],
)
def test_a_damaged_or_foreign_bundle_is_refused_by_name(bundle: Path, tmp_path: Path, damage: Callable[[Path], object], expected: str) -> None:
    """Before anything of it is loaded."""
    copy = tmp_path / "1"
    shutil.copytree(bundle, copy)
    damage(copy)
    with pytest.raises(ModelError, match="Copy|Take|Give") as caught:
        Bundle.load(copy, draft=True)
    assert expected in str(caught.value)


def test_a_model_that_answers_otherwise_elsewhere_leaves_no_bundle(tmp_path: Path) -> None:
    """Here one that draws lots."""
    (tmp_path / "contract.yaml").write_text(CONTRACT)
    Rule(knows_depots=True, random=True).export(tmp_path / "model")
    samples = sample_requests(parcels(50), Contract.load(tmp_path / "contract.yaml"), 10)
    with pytest.raises(ModelError, match="a fresh process answers otherwise"):
        build_bundle(tmp_path / "door/1", tmp_path / "model", tmp_path / "contract.yaml", samples, **PARTS)
    assert list((tmp_path / "door").iterdir()) == []


def test_a_full_disk_leaves_the_older_bundle(bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing half-written is taken for good."""
    destination = tmp_path / "door/1"
    shutil.copytree(bundle, destination)
    before = Bundle.load(destination, draft=True).digest

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("labline.models.packaging.write_digests", full)
    samples = Bundle.load(bundle, draft=True).samples["instances"]
    with pytest.raises(OSError, match="No space left"):
        build_bundle(destination, bundle.parents[3] / "build/train/tree/model", bundle.parents[3] / "contract.yaml", samples, **PARTS)
    assert [path.name for path in destination.parent.iterdir()] == ["1"]
    assert Bundle.load(destination, draft=True).digest == before


def test_the_commit_is_the_last_one_that_changed_what_the_line_reads(tmp_path: Path) -> None:
    """A result that is committed afterwards, such as `dvc.lock`, does not move it; an edit marks it as modified."""

    def git(*arguments: str) -> str:
        identity = ["-c", "user.name=A Person", "-c", "user.email=person@example.org", "-c", "commit.gpgsign=false"]
        return subprocess.run(["git", "-C", str(tmp_path), *identity, *arguments], check=True, capture_output=True, text=True).stdout.strip()

    (tmp_path / "pipelines").mkdir()
    shutil.copy(shared_workspace() / "build/validate/validate.ipynb", tmp_path / "pipelines/validate.ipynb")
    git("init", "--quiet")
    git("add", "--all")
    git("commit", "--quiet", "--message", "A stage")
    commit = git("rev-parse", "HEAD")
    (tmp_path / "dvc.lock").write_text("schema: '2.0'\n")
    git("add", "--all")
    git("commit", "--quiet", "--message", "Its results")
    assert git_state(tmp_path) == {"commit": commit, "modified": False}
    (tmp_path / "pipelines/new.ipynb").write_text("{}")
    assert git_state(tmp_path) == {"commit": commit, "modified": True}


def test_the_digest_of_a_notebook_follows_its_content(tmp_path: Path) -> None:
    """One byte more is another notebook."""
    shutil.copy(shared_workspace() / "build/validate/validate.ipynb", tmp_path / "a.ipynb")
    first = lineage(tmp_path, {"validate": "a.ipynb"})
    (tmp_path / "a.ipynb").write_text((tmp_path / "a.ipynb").read_text() + "\n")
    second = lineage(tmp_path, {"validate": "a.ipynb"})
    assert first["notebooks"] != second["notebooks"]
    assert first["parameters"] == second["parameters"]


def test_samples_are_repeated_where_there_are_too_few() -> None:
    """A bundle always has as many as were asked for."""
    contract = Contract.load(shared_workspace() / "contract.yaml")
    assert len(sample_requests(parcels(3), contract, 12)) == 12
    assert sample_requests(pd.DataFrame(parcels(3)), contract, 12)[0] == sample_requests(parcels(3), contract, 5)[0]
