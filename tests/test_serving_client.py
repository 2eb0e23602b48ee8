"""The client against servers that answer, refuse, hang, break off, and are not there."""

import asyncio
import json
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pandas as pd
import pytest
import uvicorn
from certificates import self_signed
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from labline.errors import LablineError
from labline.serving.client import AsyncClient, Client, ClientError, Delivery, Patience, Prediction, Receipt, Refusal

QUICK = Patience(attempts=4, seconds=5.0, first_pause=0.01, longest_pause=0.05)
Answer = Callable[["Service", Any], Response | None]


def predictions(service: "Service", body: Any) -> Response:
    """Three minutes and two for each kilometre; below 0 is refused."""
    if "rows" not in body:
        return JSONResponse({"release": "eta@v1"} | predicted(body, 0))
    return JSONResponse({"release": "eta@v1", "predictions": [predicted(row, place) for place, row in enumerate(body["rows"])]})


def predicted(row: dict[str, Any], place: int) -> dict[str, Any]:
    if row["distance_km"] < 0:
        return {"error": [{"path": f"rows[{place}].distance_km", "message": "below 0"}]}
    return {"prediction_id": f"p{row['distance_km']:g}", "minutes": 3 + 2 * row["distance_km"], "warnings": ["far"] if row["distance_km"] > 100 else []}


class Service:
    """A server of the friendly API whose next answers a test can script."""

    def __init__(self, *script: Answer) -> None:
        self.script, self.requests, self.active, self.most_active = list(script), [], 0, 0
        self.url = ""
        self.app = Starlette(routes=[Route("/{path:path}", self.answer, methods=["GET", "POST"])])

    async def answer(self, request: Request) -> Response:
        self.active += 1
        self.most_active = max(self.active, self.most_active)
        try:
            body = json.loads(await request.body() or b"null")
            self.requests.append((request.url.path, dict(request.headers), body))
            await asyncio.sleep(0.005)
            answer = self.script.pop(0) if self.script else predictions
            return answer(self, body) or await asyncio.sleep(0.25, Response(status_code=500))
        finally:
            self.active -= 1


@contextmanager
def run(service: Service, **options: Any) -> Iterator[Service]:
    """The service on a free port, in a thread."""
    server = uvicorn.Server(uvicorn.Config(service.app, log_level="warning", lifespan="off", **options))
    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=server.run, args=([listener],))
        thread.start()
        service.url = f"{'https' if options else 'http'}://127.0.0.1:{listener.getsockname()[1]}"
        try:
            yield service
        finally:
            server.should_exit = True
            thread.join()


def status(code: int, message: str = "not now", **headers: str) -> Answer:
    body = {"error": {"status": code, "message": message, "details": []}, "request_id": "r7"}
    return lambda service, _: JSONResponse(body, status_code=code, headers={name.replace("_", "-"): value for name, value in headers.items()})


def never(service: Service, body: Any) -> None:
    """An answer that takes too long."""


@pytest.fixture(scope="module")
def steady() -> Iterator[Service]:
    with run(Service()) as service:
        yield service


def test_one_row_many_rows_and_a_table(steady: Service) -> None:
    with Client(steady.url) as client:
        assert client.predict({"distance_km": 4.0}) == Prediction(11.0, None, None, "p4", "eta@v1", [])
        one, bad, far = client.predict([{"distance_km": 1}, {"distance_km": -1}, {"distance_km": 120}])
        table = client.predict(pd.DataFrame({"distance_km": [1.0, -1.0]}, index=["a", "b"]))
    assert isinstance(one, Prediction) and isinstance(far, Prediction)
    assert (one.value, far.warnings, bad) == (5.0, ["far"], Refusal(1, [{"path": "rows[1].distance_km", "message": "below 0"}]))
    assert table["value"].tolist()[0] == 5.0 and pd.isna(table.loc["b", "value"]) and table.loc["b", "error"] == "rows[1].distance_km: below 0"
    assert table.columns.tolist() == ["value", "low", "high", "id", "release", "warnings", "error"]


def test_no_rows_ask_nothing(steady: Service) -> None:
    before = len(steady.requests)
    with Client(steady.url) as client:
        assert client.predict([]) == [] and client.predict(pd.DataFrame({"distance_km": []})).empty
    assert len(steady.requests) == before


def test_refused_rows_can_be_errors(steady: Service) -> None:
    rows = [{"distance_km": float(place % 3 - 1)} for place in range(10)]
    with Client(steady.url, batch_rows=4) as client, pytest.raises(ClientError, match=r"4 of 10 rows were refused, the first with rows\[0\]") as caught:
        client.predict(rows, raise_errors=True)
    assert [detail["path"] for detail in caught.value.details] == [f"rows[{place}].distance_km" for place in (0, 3, 6, 9)]


@pytest.mark.parametrize("kind", [Client, AsyncClient])
def test_big_inputs_go_in_batches_some_at_once(kind: type) -> None:
    rows = [{"distance_km": float(place)} for place in range(95)]
    with run(Service()) as service:
        if kind is Client:
            with Client(service.url, batch_rows=10, concurrency=3) as client:
                answers = client.predict(rows)
        else:
            answers = asyncio.run(asked(service.url, rows))
    assert [answer.id for answer in answers] == [f"p{place}" for place in range(95)]
    assert sorted(len(body["rows"]) for _, _, body in service.requests) == [5] + [10] * 9
    assert 2 <= service.most_active <= 3


async def asked(url: str, rows: Any) -> Any:
    async with AsyncClient(url, batch_rows=10, concurrency=3, patience=QUICK) as client:
        return await client.predict(rows)


@pytest.mark.parametrize("code", [429, 502, 503, 504])
def test_not_now_is_asked_again_with_the_same_request_id(code: int) -> None:
    with run(Service(status(code), status(code))) as service, Client(service.url, patience=QUICK) as client:
        assert client.predict({"distance_km": 4.0}).value == 11.0
    ids = {headers["x-request-id"] for _, headers, _ in service.requests}
    assert len(service.requests) == 3 and len(ids) == 1


def test_two_questions_have_two_request_ids(steady: Service) -> None:
    with Client(steady.url) as client:
        client.predict({"distance_km": 1.0})
        client.predict({"distance_km": 1.0})
    first, second = (headers["x-request-id"] for _, headers, _ in steady.requests[-2:])
    assert first != second


@pytest.mark.parametrize("code", [400, 401, 403, 404, 413, 422, 500])
def test_other_refusals_are_told_at_once(code: int) -> None:
    with run(Service(status(code, "for a reason"))) as service, Client(service.url) as client, pytest.raises(ClientError, match="for a reason") as caught:
        client.predict({"distance_km": 4.0})
    assert len(service.requests) == 1 and (caught.value.status, caught.value.request_id) == (code, "r7")
    assert isinstance(caught.value, LablineError) and caught.value.remedy


def test_patience_ends_after_so_many_attempts() -> None:
    with run(Service(*[status(503)] * 9)) as service, Client(service.url, patience=QUICK) as client, pytest.raises(ClientError, match="not now") as caught:
        client.predict({"distance_km": 4.0})
    assert len(service.requests) == 4 and caught.value.status == 503


def test_patience_ends_before_a_pause_that_is_too_long() -> None:
    with run(Service(status(429, retry_after="60"))) as service, Client(service.url) as client:
        began = time.monotonic()
        with pytest.raises(ClientError, match="not now"):
            client.predict({"distance_km": 4.0})
    assert len(service.requests) == 1 and time.monotonic() - began < 30


def test_a_wanted_pause_is_kept() -> None:
    with run(Service(status(429, retry_after="0.2"))) as service, Client(service.url, patience=QUICK) as client:
        began = time.monotonic()
        assert client.predict({"distance_km": 4.0}).value == 11.0
    assert time.monotonic() - began >= 0.2


def test_an_answer_that_takes_too_long_is_asked_for_again() -> None:
    with run(Service(never)) as service, Client(service.url, timeout=0.1, patience=QUICK) as client:
        assert client.predict({"distance_km": 4.0}).value == 11.0
    assert len({headers["x-request-id"] for _, headers, _ in service.requests}) == 1 and len(service.requests) == 2


def breaking(listener: socket.socket, connections: int) -> None:
    """Take connections, read a little, and break them off: the first before a word, the others amid the answer."""
    for number in range(connections):
        connection, _ = listener.accept()
        with connection:
            connection.recv(65536)
            if number:
                connection.sendall(b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\n{")


def test_broken_connections_are_tried_again_and_then_told() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=breaking, args=(listener, QUICK.attempts))
        thread.start()
        with Client(f"http://127.0.0.1:{listener.getsockname()[1]}", patience=QUICK) as client, pytest.raises(ClientError, match="cannot be reached") as caught:
            client.predict({"distance_km": 4.0})
        thread.join()
    assert caught.value.status is None and caught.value.request_id


def test_a_service_that_comes_back_is_found() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    answers: list[Any] = []
    patience = Patience(attempts=40, seconds=20.0, first_pause=0.05, longest_pause=0.1)
    with Client(f"http://127.0.0.1:{port}", patience=patience) as client:
        thread = threading.Thread(target=lambda: answers.append(client.predict({"distance_km": 4.0})))
        thread.start()
        server = uvicorn.Server(uvicorn.Config(Service().app, port=port, log_level="warning", lifespan="off"))
        serving = threading.Thread(target=server.run)
        serving.start()
        thread.join()
    server.should_exit = True
    serving.join()
    assert answers == [Prediction(11.0, None, None, "p4", "eta@v1", [])]


def test_the_asynchronous_client_does_the_same() -> None:
    with run(Service(status(503), status(429, retry_after="0.01"))) as service:
        answers = asyncio.run(asked(service.url, [{"distance_km": 4.0}]))
        service.script.append(status(403, "not for you"))
        with pytest.raises(ClientError, match="not for you"):
            asyncio.run(asked(service.url, [{"distance_km": 4.0}] * 50))
    assert answers[0].value == 11.0


def test_actuals_and_releases() -> None:
    def count(service: Service, body: Any) -> Response:
        errors = [{"path": f"actuals[{place}].value", "message": "is no number"} for place, item in enumerate(body["actuals"]) if item["value"] is None]
        return JSONResponse({"new": len(body["actuals"]) - len(errors), "corrected": 0, "repeated": 0, "unmatched": 1, "errors": errors})

    live = {"models": {"eta": {"live": "eta@v1"}}}
    actuals = [{"prediction_id": "p1", "value": 9.0}, {"prediction_id": "p2", "value": 4.5}, {"key": "leg 7", "value": None}]
    with run(Service(count, count, lambda service, _: JSONResponse(live))) as service, Client(service.url, batch_rows=2, concurrency=1, key="a-key") as client:
        report = client.send_actuals(actuals)
        assert client.releases() == live
    assert report == Delivery(2, 0, 0, 2, [{"path": "actuals[2].value", "message": "is no number"}])
    assert {headers["authorization"] for _, headers, _ in service.requests} == {"Bearer a-key"}
    assert [path for path, *_ in service.requests] == ["/actuals", "/actuals", "/releases"]


def test_rows_of_a_raw_table() -> None:
    """In batches; what was refused is told by its place among all rows."""

    def count(service: Service, body: Any) -> Response:
        errors = [{"path": f"rows[{place}].rain_mm", "message": "-1 is below 0"} for place, row in enumerate(body["rows"]) if row["rain_mm"] < 0]
        return JSONResponse({"new": len(body["rows"]) - len(errors), "replaced": 0, "repeated": 0, "errors": errors})

    rows = pd.DataFrame({"observed_at": pd.date_range("2025-03-03", periods=3, freq="h"), "rain_mm": [0.0, 0.4, -1.0]})
    with run(Service(count, count)) as service, Client(service.url, model="eta", batch_rows=2, concurrency=1) as client:
        receipt = client.send_rows("weather", rows)
    assert receipt == Receipt(2, 0, 0, [{"path": "rows[2].rain_mm", "message": "-1 is below 0"}])
    assert [path for path, *_ in service.requests] == ["/tables/weather"] * 2


def test_an_odd_answer_to_rows_is_an_error() -> None:
    """Also on an event loop."""

    async def send(url: str) -> None:
        async with AsyncClient(url) as client:
            await client.send_rows("weather", [{"rain_mm": 0.0}])

    with run(Service(lambda service, body: JSONResponse({"hello": 1}))) as service, pytest.raises(ClientError, match="not that of a labline service"):
        asyncio.run(send(service.url))


def test_a_model_is_named_in_the_path(steady: Service) -> None:
    with Client(steady.url, model="a/b c") as client:
        client.predict({"distance_km": 1.0})
    assert steady.requests[-1][0] == "/models/a/b c/predict"


def test_a_certificate_must_hold(tmp_path: Path) -> None:
    certificate, key = self_signed(tmp_path)
    with run(Service(), ssl_certfile=certificate, ssl_keyfile=key) as service:
        with Client(service.url, patience=QUICK) as client, pytest.raises(ClientError, match="certificate does not hold") as caught:
            client.predict({"distance_km": 4.0})
        assert service.requests == [] and "verify" in caught.value.remedy
        for trust in (certificate, ssl.create_default_context(cafile=certificate), False):
            with Client(service.url, verify=trust) as client:
                assert client.predict({"distance_km": 4.0}).value == 11.0


def test_the_key_does_not_follow_a_redirect(steady: Service) -> None:
    redirect = Service(lambda service, _: Response(status_code=307, headers={"location": f"{steady.url}/predict"}))
    before = len(steady.requests)
    with run(redirect), Client(redirect.url, key="a-key") as client, pytest.raises(ClientError, match="status 307"):
        client.predict({"distance_km": 4.0})
    assert len(steady.requests) == before


def test_threads_may_share_a_client(steady: Service) -> None:
    found: list[float] = []
    with Client(steady.url) as client:
        threads = [threading.Thread(target=lambda distance=distance: found.append(client.predict({"distance_km": distance}).value)) for distance in range(12)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert sorted(found) == [3.0 + 2 * distance for distance in range(12)]


def test_an_odd_number_of_answers_is_an_error() -> None:
    short = httpx.MockTransport(lambda request: httpx.Response(200, json={"release": "eta@v1", "predictions": []}))
    with Client(transport=short) as client, pytest.raises(ClientError, match="not that of a labline service"):
        client.predict([{"distance_km": 4.0}])


def test_the_client_needs_neither_tensorflow_nor_pandas() -> None:
    program = (
        "import sys; from labline.serving import Client, AsyncClient; import labline.serving as s; assert 'Client' in dir(s);"
        "print(sorted({'tensorflow', 'pandas', 'numpy', 'starlette', 'sqlalchemy'} & set(sys.modules)), Client.__module__)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[] labline.serving.client"
