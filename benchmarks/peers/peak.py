"""The peak memory of this process; not that of the process that started it, which `getrusage` counts until the new program runs."""

import resource
import sys
from pathlib import Path


def peak_gigabytes() -> float:
    """Resident memory at its highest, in 10^9 bytes."""
    status = Path("/proc/self/status")
    if status.exists():
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) * 1024 / 1e9
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024) / 1e9
