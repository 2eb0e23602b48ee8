"""Environments of their own for peers, made from the package index where they are not there yet."""

import subprocess
import sys
import venv
from collections.abc import Sequence
from pathlib import Path

FOLDER = Path(__file__).parent / ".environments"


def environment(name: str, packages: Sequence[str]) -> Path | None:
    """The interpreter of an environment with some packages, bytecode compiled; `None`, and a line that says why, where they cannot be installed.

    Parameters
    ----------
    name : of the environment's folder.
    packages : as pip takes them.
    """
    folder = FOLDER / name
    python = folder / "bin" / "python"
    if not (folder / "complete").exists():
        if not python.exists():
            venv.create(folder, clear=True, with_pip=True)
        done = subprocess.run([str(python), "-m", "pip", "install", "--quiet", *packages], capture_output=True, text=True)
        if done.returncode:
            *_, reason = ["no message", *done.stderr.strip().splitlines()]
            print(f"Without {name}, which could not be installed: {reason}", file=sys.stderr)
            return None
        subprocess.run([str(python), "-m", "compileall", "-qq", "-j", "0", str(folder / "lib")], check=False)
        (folder / "complete").touch()
    return python
