"""A service without TensorFlow, for tests of the HTTP shell: requests are really checked, and answered by arithmetic."""

import asyncio
import contextlib
import itertools
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import numpy as np
import uvloop

from labline.data.contract import Contract
from labline.errors import ModelError
from labline.serving.answering import Answers, Question
from labline.serving.hosting import Host, Hosted
from labline.serving.http import Application
from labline.serving.keys import Keys
from labline.serving.listening import listen
from labline.serving.messages import CLASSES
from labline.serving.problems import Problem
from labline.serving.requests import Checked, Checker
from labline.serving.server import Server, configuration
from labline.serving.settings import Settings

CONTRACT = """
name: trips
model: eta
main: trips
tables:
  trips:
    path: trips.parquet
    columns:
      trip_id: {type: text, role: id, meaning: one trip}
      requested_at: {type: timestamp, role: time, meaning: when the vehicle was asked for}
      zone: {type: category, meaning: zone in which the customer waits}
      vehicle: {type: category, categories: [car, van], meaning: kind of vehicle}
      distance_km: {type: number, unit: km, min: 0, max: 150, nullable: true, meaning: planned road distance}
      passengers: {type: integer, min: 1, max: 8, nullable: true, meaning: customers and companions}
      returning: {type: boolean, nullable: true, meaning: the customer is driven back}
      minutes: {type: number, role: target, unit: min, min: 0, max: 600, meaning: minutes until the vehicle is there}
lookups:
  speed_kmh: {type: number, unit: km/h, nullable: true, meaning: usual speed on these roads}
"""
ROW = {"requested_at": "2026-03-02T08:30:00", "zone": "north", "vehicle": "car", "distance_km": 4.0}


def contract_of(name: str = "eta") -> Contract:
    """The contract of the stand-in."""
    return msgspec.structs.replace(msgspec.yaml.decode(CONTRACT, type=Contract), model=name)


def release(settings: Settings, name: str = "eta", version: int = 1) -> Any:
    """A release that has all that the shell looks at, and of a model only its signature."""
    contract, path = contract_of(name), Path(settings.keys).parent / name
    path.mkdir(parents=True, exist_ok=True)
    signature = {"inputs": {"distance_km": {"dtype": 1}}, "outputs": {"minutes": {"dtype": 1}}, "method_name": "tensorflow/serving/predict"}
    saved = CLASSES["SavedModel"](meta_graphs=[{"signature_def": {"serving_default": signature}}])
    (path / "saved_model.pb").write_bytes(saved.SerializeToString())
    samples = {"instances": [{**ROW, "passengers": 2.0}, {**ROW, "zone": "south"}]}
    bundle = SimpleNamespace(contract=contract, path=path, samples=samples)
    predictor = SimpleNamespace(outputs=("minutes", "minutes_low", "minutes_high"))
    checker, label = Checker(contract, None, settings.most_rows), f"{name}@v{version}"
    parts = {"bundle": bundle, "predictor": predictor, "checker": checker, "completer": None}
    return SimpleNamespace(name=name, version=version, digest=f"{version:064x}", label=label, **parts)


class Answering:
    """Answers three minutes and two more for each kilometre, after a while if there is one."""

    def __init__(self, hosted: Hosted, seconds: float = 0.0) -> None:
        self.hosted, self.seconds, self.numbers, self.answered = hosted, seconds, itertools.count(1), 0
        self.before: Callable[[Checked], None] = lambda checked: None
        self.tasks = set[asyncio.Task[None]]()

    def put(self, question: Question, tell: Callable[[Any], object]) -> None:
        """Tell the answers to the good rows, or what was raised in their place."""
        task = asyncio.get_running_loop().create_task(self._tell(question, tell))
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)

    async def _tell(self, question: Question, tell: Callable[[Any], object]) -> None:
        try:
            result: Any = await self.answer(question)
        except Exception as problem:
            result = problem
        tell(result)

    async def answer(self, question: Question) -> Answers:
        """The answers to the good rows."""
        found, checked = self.hosted.find(question.version, question.label), question.checked
        self.before(checked)
        if self.seconds:
            await asyncio.sleep(self.seconds)
        distance = checked.rows.columns["distance_km"]
        minutes = (3 + 2 * np.where(np.isnan(distance), 5, distance)).astype(np.float32)
        values = {"minutes": minutes, "minutes_low": minutes * np.float32(0.75), "minutes_high": minutes * np.float32(1.5)}
        self.answered += len(minutes)
        ids = [f"p{next(self.numbers)}" for _ in minutes]
        return Answers(found.label, ids, values, checked.warnings, {"roads": 60.0})

    async def drain(self) -> None:
        """Nothing waits."""


class Metrics:
    """Remembers what was observed."""

    def __init__(self) -> None:
        self.requests: list[tuple[str, str, int]] = []

    def observe_request(self, path: str, method: str, status: int, seconds: float) -> None:
        """A request was answered."""
        self.requests.append((path, method, status))
        assert seconds >= 0

    def name_paths(self, paths: Sequence[str]) -> None:
        """The routes that there are."""
        assert "/predict" in paths

    def observe_error(self, kind: str) -> None:
        """A request was refused."""

    def observe_rows(self, model: str, release: str, good: int, bad: int) -> None:
        """Rows were answered or refused."""

    def render(self, others: object = ()) -> bytes:
        """The text for Prometheus."""
        return b"# HELP labline_requests_total requests\n"


class Deployment:
    """Changes nothing, and refuses folders."""

    ledger = SimpleNamespace(path=None, seen={})

    async def deploy(self, reference: str, *, canary: float | None = None, shadow: bool = False) -> dict[str, Any]:
        """Pretend to deploy."""
        if "/" in reference:
            raise ModelError("there is no release here", remedy="Name one that there is", where=reference)
        return {"release": reference, "role": "canary" if canary else "shadow" if shadow else "live"}

    async def rollback(self, model: str | None = None) -> dict[str, Any]:
        """Refuse, since there is nothing before."""
        raise Problem(409, "there is no previous release to go back to")

    async def end(self, model: str | None = None) -> dict[str, Any]:
        """Pretend to end a canary."""
        return {"release": model or "eta"}


class Service:
    """What the shell holds, in the shape of `labline.serving.service.Service`."""

    def __init__(self, settings: Settings, names: Sequence[str] = ("eta",), seconds: float = 0.0) -> None:
        self.settings, self.metrics, self.deployment, self.keys = settings, Metrics(), Deployment(), Keys(settings.keys)
        self.host = Host([Hosted.of(release(settings, name)) for name in names])
        self.answerings = {name: Answering(hosted, seconds) for name, hosted in self.host.models.items()}
        self.ready, self.log, self.closed = True, None, False
        self.taken: list[Any] = []

    def answering(self, name: str | None = None) -> Answering:
        """How a model answers."""
        hosted = self.host.find(name)
        return self.answerings[hosted.name]

    def take_actuals(self, items: Sequence[Mapping[str, Any]], model: str | None = None) -> dict[str, int]:
        """Remember actuals."""
        self.taken += items
        return {"new": len(items), "corrected": 0, "repeated": 0, "unmatched": 0}

    def take_rows(self, name: str, rows: Sequence[Mapping[str, Any]], model: str | None = None) -> dict[str, int]:
        """Remember rows of a raw table."""
        if name != "weather":
            raise Problem(404, f"there is no table `{name[:50]}`")
        return {"rows": len(rows)}

    def start(self) -> None:
        """Welcome requests."""
        self.ready = True

    async def close(self) -> None:
        """Say that it was closed."""
        self.ready, self.closed = False, True


@contextlib.contextmanager
def served(service: Service, idle_seconds: float = 75.0) -> Iterator[tuple[Server, int]]:
    """The stand-in on a port of its own, in a thread."""
    bound = listen("127.0.0.1", 0)[0]
    application, started = Application(service), threading.Event()
    server = Server(configuration(application, service.settings), application, started.set, idle_seconds)
    thread = threading.Thread(target=lambda: uvloop.run(server.serve([bound])))
    port = bound.getsockname()[1]
    thread.start()
    try:
        assert started.wait(90)
        yield server, port
    finally:
        server.stop()
        thread.join(90)
        assert not thread.is_alive()
