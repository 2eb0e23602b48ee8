"""Load on a server of this machine: how many requests it answers, how fast, and with how much processor and memory."""

import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil

SCRIPT = """
wrk.method = "POST"
wrk.headers["Content-Type"] = "application/json"
local file = io.open(os.getenv("WRK_BODY"), "rb")
wrk.body = file:read("*a")
file:close()
function done(summary, latency, requests)
  local errors = summary.errors
  local shape = '\\nRESULT {"requests": %d, "microseconds": %d, "p50": %d, "p99": %d, "max": %d, "failed": [%d, %d, %d, %d, %d]}\\n'
  io.write(string.format(shape, summary.requests, summary.duration, latency:percentile(50), latency:percentile(99), latency.max,
    errors.status, errors.connect, errors.read, errors.write, errors.timeout))
end
"""


@dataclass(frozen=True)
class Load:
    """What a load generator saw.

    Parameters
    ----------
    rate : answered requests in a second.
    p50, p99, slowest : milliseconds.
    failed : requests that were not answered with 200.
    cores : processor seconds of the server in a second.
    own : processor seconds of the load generator in a second.
    megabytes : resident memory of the server at the end.
    """

    rate: float
    p50: float
    p99: float
    slowest: float
    failed: int
    cores: float
    own: float
    megabytes: float


def tree(process: int) -> list[psutil.Process]:
    """A process with all that it started."""
    root = psutil.Process(process)
    return [root, *root.children(recursive=True)]


def processor_seconds(process: int) -> float:
    """Processor time of a process and of all that it started."""
    return sum(sum(one.cpu_times()[:2]) for one in tree(process))


def children_seconds() -> float:
    """Processor time of this process's children that have ended."""
    found = resource.getrusage(resource.RUSAGE_CHILDREN)
    return found.ru_utime + found.ru_stime


def wrk(server: int, url: str, body: bytes, connections: int, seconds: float) -> Load:
    """Put load on a server.

    Parameters
    ----------
    server : id of its process.
    url, body : of the one request that is repeated.
    connections : how many are open; each has one request under way.
    seconds : for how long.
    """
    if shutil.which("wrk") is None:
        sys.exit("The load generator `wrk` is missing. Install the package `wrk` of your distribution.")
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "post.lua").write_text(SCRIPT)
        Path(folder, "body").write_bytes(body)
        command = ["wrk", "-t1", f"-c{connections}", f"-d{seconds:g}s", "--timeout", "30s", "-s", f"{folder}/post.lua", url]
        before, mine, begin = processor_seconds(server), children_seconds(), time.perf_counter()
        done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "WRK_BODY": f"{folder}/body"}, check=True)
        passed, used, own = time.perf_counter() - begin, processor_seconds(server) - before, children_seconds() - mine
    found = json.loads(next(line for line in done.stdout.splitlines() if line.startswith("RESULT ")).removeprefix("RESULT "))
    failed = sum(found["failed"])
    rate = (found["requests"] - found["failed"][0]) / (found["microseconds"] / 1e6)
    memory = sum(one.memory_info().rss for one in tree(server)) / 1e6
    return Load(rate, found["p50"] / 1e3, found["p99"] / 1e3, found["max"] / 1e3, failed, used / passed, own / passed, memory)


@contextmanager
def running(command: Sequence[str], url: str, body: bytes, folder: Path, variables: Mapping[str, str], patience: float = 120) -> Iterator[tuple[int, float]]:
    """A server in a process of its own, from its first good answer on; it is ended after the block.

    Parameters
    ----------
    command, folder, variables : of the process.
    url, body : of the request that it must answer.
    patience : seconds to wait for that.

    Returns
    -------
    The id of the process, and the seconds from its start to the first good answer.
    """
    begin = time.perf_counter()
    with open(folder / "server.log", "ab") as log:
        process = subprocess.Popen(command, cwd=folder, env={**os.environ, **variables}, stdout=log, stderr=log, start_new_session=True)
    try:
        while not answers(url, body):
            if process.poll() is not None or time.perf_counter() - begin > patience:
                raise RuntimeError(f"{command[0]} does not answer: {(folder / 'server.log').read_text(errors='replace')[-2000:]}")
            time.sleep(0.02)
        yield process.pid, time.perf_counter() - begin
    finally:
        everyone = tree(process.pid) if process.poll() is None else []
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
        for one in everyone:
            if one.is_running():
                one.kill()


def answers(url: str, body: bytes) -> bool:
    """Whether a request is answered with 200."""
    request = urllib.request.Request(url, body, {"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=30) as reply:
            return reply.status == 200
    except (urllib.error.URLError, ConnectionError, TimeoutError):
        return False
