"""The figures of Evidently and NannyML for the windows of `peers.windows`: asked of them live, and kept in `figures.json` for the tests.

`benchmarks/drift.py` says whether the file still holds, and writes it anew with `--write-figures`.
"""

import json
import math
import os
import subprocess
import tempfile
from pathlib import Path
from typing import Any

from peers import windows

EVIDENTLY = ("evidently==0.7.23", "pandas==2.3.3", "numpy==2.4.6", "scipy==1.17.1", "pyarrow==26.0.1")
NANNYML = ("nannyml==0.13.1", "lightgbm==4.5.0", "pandas==2.3.3", "numpy==2.4.6", "scipy==1.17.1", "statsmodels==0.15.0", "pyarrow==26.0.1")
HERE = Path(__file__).parent
FILE = HERE / "figures.json"
ASKED = {
    "windows": ["quiet", "moved"],
    "numbers": list(windows.NUMBERS),
    "categories": [*windows.CATEGORIES, *(column + windows.IN_TENTHS for column in windows.NUMBERS)],
    "features": ["zone", "vehicle", "distance_km", "passengers", "speed_kmh", "low", "high"],
}


def answer(python: Path, script: str, *arguments: str) -> dict[str, Any]:
    """What a script says in the environment of a peer.

    Raises
    ------
    subprocess.CalledProcessError : it failed; `stderr` says why.
    """
    quiet = {**os.environ, "NML_DISABLE_USAGE_LOGGING": "1"}
    done = subprocess.run([str(python), str(HERE / script), *arguments], capture_output=True, text=True, check=True, env=quiet)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def ask(evidently: Path, nannyml: Path) -> dict[str, Any]:
    """The figures of both peers, with their versions and the digest of the rows.

    Parameters
    ----------
    evidently, nannyml : the interpreters of their environments.
    """
    with tempfile.TemporaryDirectory() as folder:
        rows = windows.digest(windows.write(Path(folder)))
        asked = (folder, json.dumps(ASKED))
        return {"rows": rows, "evidently": answer(evidently, "by_evidently.py", *asked), "nannyml": answer(nannyml, "by_nannyml.py", *asked)}


def differences(kept: Any, live: Any, where: str = "", relative: float = 1e-6) -> list[str]:
    """What differs between the file and a live answer, one line each.

    Parameters
    ----------
    kept, live : from the file and from `ask`.
    where : the path so far.
    relative : numbers that differ by less are the same.
    """
    if isinstance(kept, dict) and isinstance(live, dict):
        keys = [*kept, *(key for key in live if key not in kept)]
        return [line for key in keys for line in differences(kept.get(key), live.get(key), f"{where}/{key}", relative)]
    if isinstance(kept, float) and isinstance(live, float):
        return [] if math.isclose(kept, live, rel_tol=relative, abs_tol=1e-12) else [f"{where}: {kept} in the file, {live} now"]
    return [] if kept == live else [f"{where}: {kept} in the file, {live} now"]
