"""Setting up: which Python, a folder with spaces, twice in a row, and after an interruption."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from workspaces import ROOT, run

FIND = str(ROOT / "scripts" / "find_python.sh")


def pretend(folder: Path, name: str, version: tuple[int, int, int]) -> Path:
    """A program that behaves like a Python of another version."""
    path = folder / name
    patch = f"import sys; sys.version_info = {(*version, 'final', 0)}; sys.argv[1:2] = []"
    path.write_text(f"#!/bin/sh\nshift\nexec '{sys.executable}' -c \"{patch}; exec(sys.argv[-1])\" -- \"$@\"\n")
    path.chmod(0o755)
    return path


@pytest.mark.parametrize("version", [(3, 10, 14), (3, 14, 0), (2, 7, 18)])
def test_python_too_old_or_too_new(tmp_path: Path, version: tuple[int, int, int]) -> None:
    python = pretend(tmp_path, "python", version)
    done = run(FIND, str(python), cwd=tmp_path, check=False)
    assert done.returncode == 1 and done.stdout == ""
    assert "needs Python 3.11, 3.12 or 3.13" in done.stderr and "{}.{}.{}".format(*version) in done.stderr and "make PYTHON=" in done.stderr


@pytest.mark.parametrize("minor", [11, 12, 13])
def test_python_that_fits(tmp_path: Path, minor: int) -> None:
    python = pretend(tmp_path, "python", (3, minor, 1))
    assert run(FIND, str(python), cwd=tmp_path).stdout.strip() == sys.executable


def test_another_python_is_taken_when_the_usual_one_does_not_fit(tmp_path: Path) -> None:
    pretend(tmp_path, "python3", (3, 9, 1))
    pretend(tmp_path, "python3.12", (3, 12, 1))
    environment = {"PATH": f"{tmp_path}{os.pathsep}/usr/bin{os.pathsep}/bin"}
    done = subprocess.run(["sh", FIND], env=environment, capture_output=True, text=True, check=False)
    assert done.stdout.strip() == sys.executable, done.stderr


def test_make_stops_with_the_message(tmp_path: Path) -> None:
    python = pretend(tmp_path, "old python", (3, 8, 2))
    done = run("make", "setup", f"PYTHON={python}", cwd=ROOT, check=False)
    assert done.returncode != 0 and "needs Python 3.11" in done.stderr and "3.8.2" in done.stderr and "Traceback" not in done.stderr


def pinned(name: str) -> str:
    """The lines of one package in `requirements.lock`, with its hashes."""
    found = re.search(rf"^{name}==.*?(?=^\S)", (ROOT / "requirements.lock").read_text(), flags=re.MULTILINE | re.DOTALL)
    assert found, name
    return found[0]


@pytest.fixture
def small_clone(tmp_path: Path) -> Path:
    """A repository in a folder with spaces, whose lock file holds just what the package is built with."""
    folder = tmp_path / "a folder with spaces"
    (folder / "labline").mkdir(parents=True)
    shutil.copytree(ROOT / "scripts", folder / "scripts", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "Makefile", "LICENSE"):
        shutil.copy(ROOT / name, folder)
    (folder / "README.md").write_text("# Labline\n")
    (folder / "labline" / "__init__.py").write_text('__version__ = "0.1.0"\n')
    (folder / "requirements.lock").write_text(pinned("setuptools"))
    run("git", "init", "--quiet", cwd=folder)
    return folder


def set_up(folder: Path) -> subprocess.CompletedProcess[str]:
    """Run `make setup`; skips where no package index can be reached."""
    done = run("make", "setup", f"PYTHON={sys.executable}", cwd=folder, check=False)
    log = folder / ".venv" / "setup.log"
    if done.returncode and log.exists() and re.search("No matching distribution|Failed to establish|Connection", log.read_text()):
        pytest.skip("the package index cannot be reached")
    assert done.returncode == 0, done.stdout + done.stderr
    return done


def test_set_up_in_a_folder_with_spaces_is_done_once(small_clone: Path) -> None:
    assert "Set-up is done" in set_up(small_clone).stdout
    assert set_up(small_clone).stdout == "", "nothing changed, so nothing is said and done"
    assert run(str(small_clone / ".venv/bin/python"), "-c", "import labline; print(labline.__file__)", cwd=Path("/")).stdout.strip() == str(
        small_clone / "labline" / "__init__.py"
    )
    kernel = json.loads((small_clone / ".venv/share/jupyter/kernels/labline/kernel.json").read_text())
    assert kernel["env"]["PYTHONHASHSEED"] == "0" and kernel["env"]["CUDA_VISIBLE_DEVICES"] == ""
    assert kernel["env"]["OMP_NUM_THREADS"] == kernel["env"]["TF_NUM_INTRAOP_THREADS"] == "2", "a notebook takes two threads, whatever the machine"
    assert run("git", "config", "core.hooksPath", cwd=small_clone).stdout.strip() == ".githooks"
    assert "nbdiffdriver" in run("git", "config", "diff.jupyternotebook.command", cwd=small_clone).stdout

    (small_clone / ".venv" / ".labline-setup").unlink()
    assert "Set-up is done" in set_up(small_clone).stdout, "what was interrupted is taken up again"
    (small_clone / "requirements.lock").write_text(pinned("setuptools") + "# another line\n")
    assert "Installing" in set_up(small_clone).stdout, "a changed lock file is installed"


def test_a_package_with_another_hash_is_refused(small_clone: Path) -> None:
    text = re.sub(r"sha256:[0-9a-f]{64}", "sha256:" + "0" * 64, pinned("setuptools"))
    (small_clone / "requirements.lock").write_text(text)
    done = run("make", "setup", f"PYTHON={sys.executable}", cwd=small_clone, check=False)
    assert done.returncode != 0 and "Set-up stopped" in done.stderr and not (small_clone / ".venv" / ".labline-setup").exists()


def test_the_lock_file_names_no_host_and_pins_hashes() -> None:
    lines = (ROOT / "requirements.lock").read_text().splitlines()
    assert not [line for line in lines if "://" in line or line.startswith(("--index", "--find", "--extra"))]
    pins = [line for line in lines if re.match(r"[a-z0-9]", line)]
    assert len(pins) > 150 and all("==" in line and line.endswith("\\") for line in pins)


def test_jupyterlab_calls_nobody() -> None:
    sys.path.insert(0, str(ROOT / "scripts"))
    try:
        import setup as set_up_script
    finally:
        sys.path.pop(0)
    assert set_up_script.LAB_CONFIG["LabApp"] == {
        "news_url": None, "check_for_updates_class": "jupyterlab.NeverCheckForUpdate", "extension_manager": "readonly"
    }
    assert set_up_script.LAB_SETTINGS["@jupyterlab/apputils-extension:notification"] == {"fetchNews": "false", "checkForUpdates": False}


def test_dvc_calls_nobody() -> None:
    settings = run("dvc", "config", "--list", "--project", cwd=ROOT).stdout
    assert "core.analytics=false" in settings and "core.check_update=false" in settings


def test_the_hook_refuses_a_notebook_that_is_not_clean(tmp_path: Path) -> None:
    folder = tmp_path / "a clone"
    run("git", "clone", "--quiet", "--no-hardlinks", str(ROOT), str(folder), cwd=tmp_path)
    (folder / ".venv" / "bin").mkdir(parents=True)
    (folder / ".venv" / "bin" / "labline").symlink_to(Path(sys.executable).parent / "labline")
    shutil.copytree(ROOT / ".githooks", folder / ".githooks", dirs_exist_ok=True)
    for key, value in {"core.hooksPath": ".githooks", "user.name": "Ann", "user.email": "ann@example.org"}.items():
        run("git", "config", key, value, cwd=folder)
    notebook = json.loads((folder / "nbs" / "000_errors.ipynb").read_text())
    notebook["cells"][2]["execution_count"] = 3
    (folder / "nbs" / "000_errors.ipynb").write_text(json.dumps(notebook, indent=1))
    run("git", "add", "nbs", cwd=folder)
    done = run("git", "commit", "--message", "dirty", cwd=folder, check=False)
    assert done.returncode != 0 and "not clean: `nbs/000_errors.ipynb`" in done.stderr and "The commit was stopped" in done.stderr
    run("git", "commit", "--quiet", "--allow-empty", "--message", "nothing of it", "--only", cwd=folder)
