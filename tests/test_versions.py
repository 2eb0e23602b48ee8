"""Data versions: what git records in `data.dvc` comes back from the remote inside the clone, and from S3."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[1]


def run(*command: str, cwd: Path, **environment: str) -> str:
    """Run a command of this environment and return what it printed; fail with all it said."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(command, cwd=cwd, env={**os.environ, "PATH": path, **environment}, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, f"{' '.join(command)}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def pinned(text: str) -> dict:
    """The output that a `.dvc` file pins: md5, size, nfiles, path."""
    return yaml.safe_load(text)["outs"][0]


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """A fresh clone of this repository, without cache and without data."""
    if not (ROOT / ".git").exists():
        pytest.skip("not a git checkout, so there is no history to clone")
    run("git", "clone", "--quiet", str(ROOT), str(tmp_path / "clone of it"), cwd=tmp_path)
    return tmp_path / "clone of it"


def versions(clone: Path) -> list[str]:
    """The commits that changed `data.dvc`, newest first."""
    return run("git", "log", "--format=%H", "--", "data.dvc", cwd=clone).split()


def test_an_older_data_version_comes_back_from_the_remote_in_the_clone(clone: Path) -> None:
    commits = versions(clone)
    assert len(commits) >= 2, "the history holds at least two data versions"
    pins = [pinned(run("git", "show", f"{commit}:data.dvc", cwd=clone)) for commit in commits]
    assert pins[0]["md5"] != pins[-1]["md5"]

    run("dvc", "pull", "--quiet", "data.dvc", cwd=clone)
    newest = sorted(path.name for path in (clone / "data" / "legs").iterdir())
    run("git", "checkout", "--quiet", commits[-1], "--", "data.dvc", cwd=clone)
    run("dvc", "fetch", "--quiet", "data.dvc", cwd=clone)
    run("dvc", "checkout", "--quiet", "data.dvc", cwd=clone)
    oldest = sorted(path.name for path in (clone / "data" / "legs").iterdir())

    assert len(oldest) < len(newest) and set(oldest) < set(newest)
    files = [path for path in (clone / "data").rglob("*") if path.is_file()]
    assert len(files) == pins[-1]["nfiles"]
    assert sum(path.stat().st_size for path in files) == pins[-1]["size"]


def test_the_embedded_data_are_small(clone: Path) -> None:
    pin = pinned((clone / "data.dvc").read_text())
    assert pin["size"] < 5_000_000
    assert pin["nfiles"] == 14, "twelve months of legs, the weather and the zones"


def test_data_go_to_s3_and_come_back(clone: Path, tmp_path: Path) -> None:
    boto3 = pytest.importorskip("boto3", reason="the extra `test` brings moto and boto3")
    from moto.server import ThreadedMotoServer

    keys = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test", "AWS_DEFAULT_REGION": "us-east-1"}
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    try:
        host, port = server.get_host_and_port()
        endpoint = f"http://{host}:{port}"
        store = boto3.client(
            "s3", endpoint_url=endpoint, aws_access_key_id="test", aws_secret_access_key="test", region_name="us-east-1"
        )
        store.create_bucket(Bucket="labline-test")

        run("dvc", "pull", "--quiet", "data.dvc", cwd=clone)
        run("dvc", "remote", "add", "--default", "storage", "s3://labline-test/data", cwd=clone)
        run("dvc", "remote", "modify", "storage", "endpointurl", endpoint, cwd=clone)
        run("dvc", "push", "--quiet", "data.dvc", cwd=clone, **keys)
        objects = store.list_objects_v2(Bucket="labline-test")["KeyCount"]
        assert objects == pinned((clone / "data.dvc").read_text())["nfiles"] + 1, "each file, and the folder's list"

        shutil.rmtree(clone / "data")
        shutil.rmtree(clone / ".dvc" / "cache")
        shutil.rmtree(clone / ".dvc" / "remote")
        run("dvc", "pull", "--quiet", "data.dvc", cwd=clone, **keys)
        assert (clone / "data" / "weather.parquet").is_file()
        store.close()
    finally:
        server.stop()
