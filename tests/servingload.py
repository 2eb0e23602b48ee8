"""A running `labline serve` for tests, and load on it that counts what was sent, answered and refused."""

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROW = {"requested_at": "2026-03-02T08:30:00", "zone": "north", "vehicle": "car", "distance_km": 4.0, "passengers": 1, "speed_kmh": 30.0}


def free_port() -> int:
    """A port of the loopback that nobody listens on."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


@dataclass
class Served:
    """A service in a process of its own.

    Parameters
    ----------
    process : of the server.
    port : where it listens.
    folder : with its log, state and keys.
    """

    process: subprocess.Popen[bytes]
    port: int
    folder: Path

    @property
    def log(self) -> Path:
        """The SQLite file of the prediction log."""
        return self.folder / "predictions.db"

    def ask(self, path: str, body: Any = None, method: str | None = None, headers: dict[str, str] | None = None) -> tuple[int, Any]:
        """Send one request; returns the status and the decoded body."""
        data = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
        request = urllib.request.Request(f"http://127.0.0.1:{self.port}{path}", data, {"Content-Type": "application/json", **(headers or {})}, method=method)
        try:
            with urllib.request.urlopen(request, timeout=120) as reply:
                return reply.status, read(reply.read())
        except urllib.error.HTTPError as problem:
            with problem:
                return problem.code, read(problem.read())

    def stop(self, sign: int = signal.SIGTERM, seconds: float = 30) -> int:
        """End the server; returns its exit code."""
        self.process.send_signal(sign)
        return self.process.wait(seconds)

    def said(self) -> str:
        """What the server wrote."""
        return (self.folder / "server.log").read_text(errors="replace")


def read(body: bytes) -> Any:
    """A body as JSON, or as text where it is none."""
    try:
        return json.loads(body)
    except ValueError:
        return body.decode(errors="replace")


@contextmanager
def served(folder: Path, *releases: Path, patience: float = 240, **settings: object) -> Iterator[Served]:
    """Serve releases until the block ends; the server is killed if it still runs then."""
    folder.mkdir(parents=True, exist_ok=True)
    port = free_port()
    values: dict[str, object] = {"log": f"sqlite:///{folder}/predictions.db", "state": f"{folder}/state.json", "keys": f"{folder}/keys.json", **settings}
    command = [str(Path(sys.executable).with_name("labline")), "serve", "--port", str(port)]
    command += [word for release in releases for word in ("--release", str(release))]
    command += [word for name, value in values.items() for word in ("--set", f"{name}={value}")]
    with open(folder / "server.log", "ab") as log:
        process = subprocess.Popen(command, cwd=folder, stdout=log, stderr=log, start_new_session=True, env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"})
    service = Served(process, port, folder)
    try:
        until(lambda: is_ready(service), patience, service)
        yield service
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.wait(10)


def is_ready(service: Served) -> bool:
    """Whether the server takes requests."""
    try:
        return service.ask("/readyz")[0] == 200
    except (urllib.error.URLError, ConnectionError, TimeoutError):
        return False


def until(true: Callable[[], bool], seconds: float = 20, service: Served | None = None) -> None:
    """Wait until something is true; fail when it is not in time, or when the server has ended."""
    end = time.monotonic() + seconds
    while not true():
        assert service is None or service.process.poll() is None, f"the server ended: {service.said()[-3000:]}"
        assert time.monotonic() < end, f"not in {seconds} s{': ' + service.said()[-3000:] if service else ''}"
        time.sleep(0.05)


@dataclass
class Counted:
    """What came of many requests.

    Parameters
    ----------
    sent : requests that were written whole.
    ids : of the predictions that were answered with 200.
    refused : status → how many.
    broken : requests whose connection ended before an answer.
    """

    sent: int = 0
    ids: list[str] = field(default_factory=list)
    refused: dict[int, int] = field(default_factory=dict)
    broken: int = 0


async def send(port: int, body: bytes, connections: int, most: int, seconds: float, counted: Counted, over: threading.Event) -> None:
    """Keep connections busy, each with one request under way, until `most` requests were sent, the time is up, or it is over."""
    end = time.monotonic() + seconds
    head = f"POST /predict HTTP/1.1\r\nHost: test\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n".encode()

    async def one() -> None:
        try:
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
        except OSError:
            return
        try:
            while counted.sent < most and time.monotonic() < end and not over.is_set():
                counted.sent += 1
                writer.write(head + body)
                lines = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
                size = next(int(line.split(":")[1]) for line in lines if line.lower().startswith("content-length:"))
                content, status = await reader.readexactly(size), int(lines[0].split()[1])
                if status == 200:
                    counted.ids.append(json.loads(content)["prediction_id"])
                else:
                    counted.refused[status] = counted.refused.get(status, 0) + 1
                if any(line.lower() == "connection: close" for line in lines):
                    await one()
                    return
        except (OSError, asyncio.IncompleteReadError):
            counted.broken += 1
        finally:
            writer.close()

    await asyncio.gather(*(one() for _ in range(connections)))


def load(
    service: Served, connections: int = 32, most: int = 1_000_000, seconds: float = 2.0, row: dict[str, Any] | None = None, over: threading.Event | None = None
) -> Counted:
    """Put load on a server and count; blocks until it is over."""
    counted = Counted()
    asyncio.run(send(service.port, json.dumps(row or ROW).encode(), connections, most, seconds, counted, over or threading.Event()))
    return counted


def difficult_bundle(folder: Path) -> Path:
    """The example's bundle with a model that raises in the zone `raise` and works for long seconds in the zone `hang`."""
    import shutil

    import tensorflow as tf

    from labline.models.bundle import write_digests
    from labline.models.example import example_bundle

    path = example_bundle(folder).path
    loaded = tf.saved_model.load(str(path))
    plain = loaded.signatures["serving_default"]

    def answer(**row: tf.Tensor) -> dict[str, tf.Tensor]:
        healthy = tf.debugging.assert_equal(tf.reduce_any(row["zone"] == "raise"), False, "a secret of the inside")
        with tf.control_dependencies([healthy]):
            steps = tf.where(tf.reduce_any(row["zone"] == "hang"), 80_000_000, 0)
            counted = tf.while_loop(lambda step: step < steps, lambda step: (step + 1,), (tf.constant(0),), parallel_iterations=1)[0]
            nothing = tf.cast(tf.minimum(counted, 0), tf.float32)  # needs the count, or TensorFlow would leave the loop out
            return {name: values + nothing for name, values in plain(**row).items()}

    specs = {name: tf.TensorSpec(spec.shape, spec.dtype, name) for name, spec in plain.structured_input_signature[1].items()}
    module = tf.Module()
    module.plain = loaded
    tf.saved_model.save(module, str(folder / "difficult"), signatures={"serving_default": tf.function(answer, autograph=False).get_concrete_function(**specs)})
    for name in ("saved_model.pb", "fingerprint.pb", "variables"):
        target = path / name
        shutil.rmtree(target) if target.is_dir() else target.unlink()
        shutil.move(folder / "difficult" / name, target)
    write_digests(path, "eta")
    return path
