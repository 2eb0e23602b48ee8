"""Set the workspace up: environment, package, kernel, hooks. Run by `make setup` before the package exists, so it needs the standard library alone.

usage: python scripts/setup.py

Nothing is done when nothing has changed since the last time: the digest of everything that matters is kept in `.venv`.
"""

import hashlib
import json
import shutil
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv"
BIN = VENV / "bin"
STAMP = VENV / ".labline-setup"
LOG = VENV / "setup.log"

# What the kernel's processes find in their environment. The same numbers must come out in every run, so that nothing may depend on hash seeds, on
# the number of cores, on an accelerator or on the time zone of the machine.
KERNEL_ENVIRONMENT = {
    "PYTHONHASHSEED": "0",
    "TZ": "UTC",
    "CUDA_VISIBLE_DEVICES": "",
    "TF_ENABLE_ONEDNN_OPTS": "0",
    "TF_CPP_MIN_LOG_LEVEL": "2",
    "KERAS_BACKEND": "tensorflow",
    "OMP_NUM_THREADS": "2",
    "OPENBLAS_NUM_THREADS": "2",
    "TF_NUM_INTRAOP_THREADS": "2",  # left alone, one for each processor; with eight the same training gave other numbers
    "TF_NUM_INTEROP_THREADS": "2",
    "OMP_WAIT_POLICY": "PASSIVE",  # threads that wait must not spin: on a busy machine that made boosting fifty times slower
    "PYDEVD_DISABLE_FILE_VALIDATION": "1",
}

# JupyterLab asks for news and for its newest version unless it is told not to, and its extension manager lists a registry.
LAB_CONFIG = {
    "LabApp": {"news_url": None, "check_for_updates_class": "jupyterlab.NeverCheckForUpdate", "extension_manager": "readonly"},
    "MultiKernelManager": {"default_kernel_name": "labline"},
    "KernelManager": {"transport_encryption": "auto"},
}
LAB_SETTINGS = {"@jupyterlab/apputils-extension:notification": {"fetchNews": "false", "checkForUpdates": False}}


def digest() -> str:
    """A digest of everything that the set-up depends on."""
    parts = [str(ROOT).encode(), "{}.{}".format(*sys.version_info[:2]).encode()]
    parts += [(ROOT / name).read_bytes() for name in ("requirements.lock", "pyproject.toml", "scripts/setup.py")]
    return hashlib.sha256(b"\0".join(parts)).hexdigest()


def say(text: str) -> None:
    print(f"==> {text}", flush=True)


def run(*command: str, what: str) -> None:
    """Run a command with its output in the log; on failure show the log's end and exit."""
    begun, packages, terminal = time.monotonic(), 0, sys.stdout.isatty()
    with LOG.open("a", encoding="utf-8") as log:
        process = subprocess.Popen(command, cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL)
        for line in process.stdout or ():
            log.write(line)
            packages += line.startswith("Collecting ")
            if terminal and packages:
                print(f"\r    {packages} packages, {time.monotonic() - begun:.0f} s ", end="", flush=True)
    if terminal and packages:
        print()
    if process.wait():
        tail = [line for line in LOG.read_text(encoding="utf-8").splitlines() if not line.startswith("WARNING")][-15:]
        sys.exit("\n".join(tail) + f"\n\nSet-up stopped: {what} failed (everything it printed is in {LOG}). Mend the cause above and run `make` again.")


def is_foreign(known: Path) -> bool:
    """Whether `.venv` was made by another version of Python, or in a folder that has since been moved."""
    if not known.exists():
        return False
    settings = dict(line.split(" = ", 1) for line in known.read_text(encoding="utf-8").splitlines() if " = " in line)
    version = settings.get("version") or settings.get("version_info", "")
    moved = "command" in settings and not settings["command"].endswith(str(VENV))
    return moved or not version.startswith("{}.{}.".format(*sys.version_info[:2]))


def make_environment() -> None:
    """`.venv` with exactly the pinned packages, their bytecode compiled, and this package on top, importable from where it lies."""
    python, clear = str(BIN / "python"), is_foreign(VENV / "pyvenv.cfg")
    VENV.mkdir(exist_ok=True)
    subprocess.run([sys.executable, "-m", "venv", *(["--clear"] if clear else []), str(VENV)], check=True)
    LOG.unlink(missing_ok=True)
    pip = [python, "-m", "pip", "install", "--disable-pip-version-check", "--no-input", "--no-deps"]
    say("Installing the packages of requirements.lock (one to four minutes the first time)")
    run(*pip, "--require-hashes", "--no-compile", "-r", "requirements.lock", what="installing requirements.lock")
    run(*pip, "--no-build-isolation", "--editable", ".", what="installing the package itself")
    say("Compiling bytecode")
    subprocess.run([python, "-W", "ignore", "-m", "compileall", "-qq", "-j", "0", str(next(VENV.glob("lib/python*/site-packages")))], check=False)


def write_json(path: Path, content: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def install_kernel() -> None:
    """The Jupyter kernel `labline`, which the package's provisioner starts, and JupyterLab's settings, both inside `.venv`."""
    kernel = {
        "argv": ["python", "-m", "ipykernel_launcher", "-f", "{connection_file}"],
        "display_name": "Labline",
        "language": "python",
        "env": KERNEL_ENVIRONMENT,
        "metadata": {"debugger": True, "supported_encryption": ["curve"], "kernel_provisioner": {"provisioner_name": "labline", "config": {}}},
        "kernel_protocol_version": "5.5",
    }
    folder = VENV / "share" / "jupyter" / "kernels" / "labline"
    write_json(folder / "kernel.json", kernel)
    for logo in folder.parent.glob("python3/logo-*"):
        shutil.copy(logo, folder)
    write_json(VENV / "etc" / "jupyter" / "jupyter_lab_config.json", LAB_CONFIG)
    write_json(VENV / "share" / "jupyter" / "lab" / "settings" / "overrides.json", LAB_SETTINGS)


def git(*arguments: str) -> str:
    return subprocess.run(["git", *arguments], cwd=ROOT, text=True, capture_output=True, check=False).stdout.strip()


def install_hooks() -> None:
    """The hook before a commit and the notebook diff and merge drivers, for this clone alone."""
    if shutil.which("git") is None or git("rev-parse", "--show-prefix") or not git("rev-parse", "--git-dir"):
        say("Not a git repository of its own: no hooks")
        return
    hooks = git("config", "core.hooksPath")
    if hooks in ("", ".githooks"):
        git("config", "--local", "core.hooksPath", ".githooks")
    else:
        say(f"git's core.hooksPath is {hooks} and stays so; call .githooks/pre-commit from there")
    drivers = {
        "diff.jupyternotebook.command": f'"{BIN}/git-nbdiffdriver" diff',
        "merge.jupyternotebook.driver": f'"{BIN}/git-nbmergedriver" merge %O %A %B %L %P',
        "merge.jupyternotebook.name": "jupyter notebook merge driver",
    }
    for key, value in drivers.items():
        git("config", "--local", key, value)


def main() -> None:
    wanted = digest()
    if STAMP.exists() and STAMP.read_text(encoding="utf-8") == wanted and (BIN / "python").exists():
        return
    say("Setting up .venv with Python {}.{}.{}".format(*sys.version_info[:3]))
    STAMP.unlink(missing_ok=True)
    make_environment()
    install_kernel()
    install_hooks()
    STAMP.write_text(wanted, encoding="utf-8")
    say("Set-up is done")


if __name__ == "__main__":
    try:
        main()
    except (OSError, subprocess.CalledProcessError) as problem:
        sys.exit(f"Set-up stopped: {problem}. Mend it and run `make` again; nothing that is half done counts as done.")
    except KeyboardInterrupt:
        sys.exit("\nSet-up was interrupted; `make` takes it up again.")
