"""The service over HTTP: what clients may send, what they are told, and what happens when they are slow, rude or gone."""

import asyncio
import contextlib
import http.client
import json
import logging
import os
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, seed
from hypothesis import settings as bounds
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import content_type_conformance, response_schema_conformance, status_code_conformance
from serving_standin import ROW, Service, served
from workspaces import ROOT

from labline.serving.http import Application
from labline.serving.settings import Settings

BODY = json.dumps(ROW).encode()
Ask = Callable[..., httpx.Response]


@pytest.fixture
def service(tmp_path: Path) -> Service:
    return Service(Settings(keys=str(tmp_path / "keys.json"), most_rows=100, most_body_mb=0.1, body_seconds=0.3, drain_seconds=2))


@pytest.fixture
def ask(service: Service) -> Ask:
    application = Application(service)

    def send(method: str, path: str, app: Application = application, **rest: Any) -> httpx.Response:
        async def once() -> httpx.Response:
            async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://127.0.0.1:8501") as client:
                return await client.request(method, path, **rest)

        return asyncio.run(once())

    return send


# Predictions


def test_one_row(ask: Ask) -> None:
    answer = ask("POST", "/predict", json=ROW)
    assert answer.status_code == 200 and answer.headers["content-type"] == "application/json"
    expected = {"prediction_id": "p1", "release": "eta@v1", "minutes": 11.0, "interval": {"low": 8.25, "high": 16.5}, "warnings": []}
    assert answer.json() == {**expected, "tables_age_seconds": {"roads": 60.0}}


def test_good_rows_are_answered_beside_bad_ones(ask: Ask) -> None:
    answer = ask("POST", "/models/eta/predict", json={"rows": [ROW, ROW | {"distance_km": -4}, ROW | {"distance_km": 5}]})
    first, second, third = answer.json()["predictions"]
    assert answer.status_code == 200 and (first["minutes"], third["minutes"]) == (11.0, 13.0)
    assert second == {"error": [{"path": "rows[1].distance_km", "message": "-4 is below 0"}]}


def test_a_single_bad_row_is_refused_with_its_places(ask: Ask, service: Service) -> None:
    answer = ask("POST", "/predict", json=ROW | {"distance_km": -4, "vehicle": "bus"}, headers={"x-request-id": "r7"})
    problem = answer.json()
    assert answer.status_code == 422 and problem["request_id"] == "r7" == answer.headers["x-request-id"]
    assert {detail["path"] for detail in problem["error"]["details"]} == {"distance_km", "vehicle"}
    assert service.metrics.requests == [("/predict", "POST", 422)]


@pytest.mark.parametrize("given", ["order-17", "a" * 64])
def test_a_sane_request_id_is_kept(ask: Ask, given: str) -> None:
    assert ask("POST", "/predict", json=ROW, headers={"x-request-id": given}).headers["x-request-id"] == given


@pytest.mark.parametrize("given", ["", "a" * 65, "two words", "a\tb", 'x"y'])
def test_another_request_id_is_replaced(ask: Ask, given: str) -> None:
    first, second = (ask("POST", "/predict", json=ROW, headers={"x-request-id": given}).headers["x-request-id"] for _ in range(2))
    assert given not in (first, second) and first != second


# What is refused


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"content-type": "application/json"}, 200),
        ({"content-type": "application/json; charset=UTF-8"}, 200),
        ({}, 200),
        ({"content-type": "application/x-www-form-urlencoded"}, 415),
        ({"content-type": "text/plain"}, 415),
        ({"content-type": "application/json", "content-encoding": "gzip"}, 415),
    ],
)
def test_bodies_are_json(ask: Ask, headers: dict[str, str], status: int) -> None:
    assert ask("POST", "/predict", content=BODY, headers=headers).status_code == status


def test_tensorflow_clients_may_claim_any_type(ask: Ask) -> None:
    body = json.dumps({"instances": [ROW]})
    assert ask("POST", "/v1/models/eta:predict", content=body, headers={"content-type": "application/x-www-form-urlencoded"}).status_code == 200


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"5", b"null", b'"\xff"', b"{}", b'{"rows": []}', b'{"rows": 5}', b"[" * 50_000, b"\x00", b'{"a": NaN}'])
@pytest.mark.parametrize("path", ["/predict", "/v1/models/eta:predict", "/actuals", "/tables/weather", "/releases"])
def test_broken_bodies_are_refused(ask: Ask, path: str, body: bytes) -> None:
    answer = ask("POST", path, content=body)
    nothing_is_fine = (path, body) in {("/tables/weather", b'{"rows": []}'), ("/actuals", b"[]")}
    assert answer.status_code == 200 if nothing_is_fine else 400 <= answer.status_code < 500
    assert answer.json()


def test_large_bodies_are_refused(ask: Ask) -> None:
    async def pieces() -> Any:
        for _ in range(5):
            yield b" " * 30_000

    assert ask("POST", "/predict", content=b" " * 100_001).status_code == 413
    assert ask("POST", "/predict", content=pieces()).status_code == 413
    assert ask("POST", "/predict", json={"rows": [ROW] * 101}).status_code == 413


def test_what_is_not_there_is_told(ask: Ask) -> None:
    answer = ask("GET", "/prediction")
    assert answer.status_code == 404 and "`/predict`" in answer.json()["error"]["message"]
    assert ask("POST", "/models/fare/predict", json=ROW).json()["error"]["message"].endswith("there are `eta`")
    answer = ask("PUT", "/releases")
    assert answer.status_code == 405 and answer.headers["allow"] == "GET, HEAD, POST"


def test_head_is_get_without_the_body(ask: Ask) -> None:
    for path in ("/healthz", "/", "/openapi.json"):
        head, get = ask("HEAD", path), ask("GET", path)
        assert head.status_code == 200 and head.content == b"" and head.headers["content-length"] == str(len(get.content))


def test_a_failure_inside_is_logged_and_not_told(ask: Ask, service: Service, caplog: pytest.LogCaptureFixture) -> None:
    def fail(checked: object) -> None:
        raise RuntimeError("the password is 1234")

    service.answerings["eta"].before = fail
    with caplog.at_level(logging.INFO, logger="labline"):
        answer = ask("POST", "/predict", json=ROW, headers={"x-request-id": "r9"})
    assert answer.status_code == 500 and "1234" not in answer.text and answer.json()["request_id"] == "r9"
    failed, line = caplog.records
    assert failed.exc_info and failed.request == "r9" and "1234" in caplog.text
    assert (line.name, line.levelname, line.status, line.path) == ("labline.serving.access", "WARNING", 500, "/predict")


def test_answered_requests_are_logged_when_asked_for(ask: Ask, caplog: pytest.LogCaptureFixture) -> None:
    ask("GET", "/healthz")
    assert caplog.records == []
    with caplog.at_level(logging.DEBUG, logger="labline.serving.access"):
        ask("GET", "/healthz")
    assert [(line.status, line.method) for line in caplog.records] == [(200, "GET")]


# Keys and other sites


def test_keys_and_their_roles(service: Service, ask: Ask) -> None:
    reader, promoter = service.keys.add("application", ["read"]), service.keys.add("engineer", ["read", "promote"])
    secured = Application(service, secured=True)

    def status(method: str, path: str, key: str | None = None, **rest: Any) -> int:
        return ask(method, path, secured, headers={"authorization": f"Bearer {key}"} if key else {}, **rest).status_code

    assert status("POST", "/predict", json=ROW) == 401 == status("POST", "/predict", "wrong", json=ROW)
    assert status("POST", "/predict", reader, json=ROW) == 200 == status("GET", "/metrics", reader)
    assert status("POST", "/rollback", reader) == 403 and status("POST", "/rollback", promoter) == 409
    assert status("POST", "/actuals", promoter, json={"actuals": []}) == 403
    assert [status("GET", path) for path in ("/", "/healthz", "/readyz", "/openapi.json")] == [200] * 4
    assert status("GET", "/metrics") == status("GET", "/releases") == status("GET", "/v1/models/eta") == 401
    answer = ask("POST", "/v1/models/eta:predict", secured, json={"instances": [ROW]})
    assert answer.headers["www-authenticate"] == "Bearer" and isinstance(answer.json()["error"], str)


def test_without_keys_other_sites_may_not_ask(ask: Ask) -> None:
    assert ask("POST", "/predict", json=ROW, headers={"sec-fetch-site": "cross-site"}).status_code == 403
    assert ask("POST", "/predict", json=ROW, headers={"sec-fetch-site": "same-origin"}).status_code == 200
    assert ask("POST", "/rollback", headers={"host": "rebound.example:8501"}).status_code == 403
    assert ask("POST", "/rollback", headers={"host": "localhost:8501"}).status_code == 409


# Everything else that can be asked


def test_the_page_comes_with_its_policy(ask: Ask) -> None:
    answer = ask("GET", "/?model=eta")
    assert answer.headers["content-type"] == "text/html; charset=utf-8" and "default-src 'none'" in answer.headers["content-security-policy"]
    assert answer.headers["x-content-type-options"] == "nosniff" and answer.headers["referrer-policy"] == "no-referrer"
    assert ask("GET", "/?model=fare").status_code == 404
    assert ask("GET", "/healthz").headers["x-content-type-options"] == "nosniff"


def test_actuals_and_tables(ask: Ask, service: Service) -> None:
    item = {"prediction_id": "p1", "value": 12.5}
    assert ask("POST", "/actuals", json={"actuals": [item]}).json()["new"] == 1 and service.taken == [item]
    assert ask("POST", "/tables/weather", json={"rows": [{"rain_mm": 1}]}).json() == {"rows": 1}
    assert ask("POST", "/tables/roads", json={"rows": []}).status_code == 404
    assert ask("POST", "/actuals", json=[item]).json()["new"] == 1
    assert ask("POST", "/actuals", json={"actual": []}).status_code == 400


def test_releases(ask: Ask) -> None:
    shown = ask("GET", "/releases").json()["models"][0]
    assert shown["live"] == "eta@v1" and shown["releases"][0]["labels"] == ["stable"]
    assert ask("POST", "/releases", json={"release": "eta@v2", "canary": 0.1}).json() == {"release": "eta@v2", "role": "canary"}
    refused = ask("POST", "/releases", json={"folder": "/no/release"})
    assert refused.status_code == 422 and "there is no release here" in refused.json()["error"]["message"]
    assert ask("POST", "/releases", json={"release": "eta@v2", "folder": "/x"}).status_code == 400
    assert ask("DELETE", "/releases/candidate?model=eta").json() == {"release": "eta"}


def test_ready_while_it_is(ask: Ask, service: Service) -> None:
    assert ask("GET", "/readyz").json() == {"status": "ready", "releases": ["eta@v1"]}
    service.ready = False
    answer = ask("GET", "/readyz")
    assert answer.status_code == 503 and answer.headers["retry-after"] == "1" and ask("GET", "/healthz").status_code == 200


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_requests_made_from_the_document_are_answered_as_it_says(service: Service) -> None:
    schema = schemathesis.openapi.from_asgi("/openapi.json", Application(service))
    rules = {"phases": [Phase.explicit, Phase.generate], "database": None, "deadline": None, "suppress_health_check": list(HealthCheck)}

    def check(case: Any) -> None:
        answer = case.call()
        assert answer.headers["x-request-id"]
        case.validate_response(answer, checks=[not_a_server_error, status_code_conformance, content_type_conformance, response_schema_conformance])

    operations = [result.ok() for result in schema.get_all_operations()]
    for operation in operations:
        seed(7)(bounds(max_examples=8, **rules)(given(case=operation.as_strategy())(check)))()  # type: ignore[arg-type]
    assert len(operations) >= 20


def test_the_examples_of_the_document_are_accepted(ask: Ask) -> None:
    tried = 0
    for path, operations in ask("GET", "/openapi.json").json()["paths"].items():
        body = operations.get("post", {}).get("requestBody")
        for example in body["content"]["application/json"]["schema"].get("examples", []) if body else []:
            assert ask("POST", path.replace("{version}", "1").replace("{label}", "stable"), json=example).status_code == 200, (path, example)
            tried += 1
    assert tried >= 5


# A real server


@pytest.fixture
def port(service: Service) -> Iterator[int]:
    with served(service) as (_, port):
        yield port


def request(body: bytes = BODY, path: str = "/predict", *headers: str) -> bytes:
    lines = [f"POST {path} HTTP/1.1", "host: 127.0.0.1", f"content-length: {len(body)}", *headers]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


class Answer(NamedTuple):
    """An answer as it came over the wire."""

    status: int
    headers: dict[str, str]
    content: bytes


def receive(connection: socket.socket, count: int = 1) -> list[Answer]:
    """The next answers on a connection; nothing may come behind them."""
    answers, data = [], b""
    while len(answers) < count:
        head, found, rest = data.partition(b"\r\n\r\n")
        first, *lines = head.decode("latin-1").split("\r\n")
        headers = dict(line.split(": ", 1) for line in lines)
        length = int(headers.get("content-length", 0))
        if found and len(rest) >= length:
            answers.append(Answer(int(first.split()[1]), headers, rest[:length]))
            data = rest[length:]
        else:
            piece = connection.recv(65_536)
            assert piece, data
            data += piece
    assert data == b""
    return answers


@contextlib.contextmanager
def connected(port: int) -> Iterator[socket.socket]:
    with socket.create_connection(("127.0.0.1", port), timeout=60) as connection:
        yield connection


def test_a_connection_is_used_again(port: int) -> None:
    with connected(port) as connection:
        for place in range(3):
            connection.sendall(request(BODY, "/predict", f"x-request-id: r{place}"))
            (answer,) = receive(connection)
            assert (answer.status, answer.headers["x-request-id"]) == (200, f"r{place}") and answer.headers["date"]
            assert "connection" not in answer.headers and "server" not in answer.headers
        connection.sendall(b"HEAD /healthz HTTP/1.1\r\nhost: x\r\n\r\n" + request())
        head = connection.recv(4096)
        assert head.startswith(b"HTTP/1.1 200") and b'{"status"' not in head


def test_requests_in_a_row_are_answered_in_their_order(port: int) -> None:
    with connected(port) as connection:
        paths = ["/predict", "/models/eta/predict", "/nowhere", "/predict", "/v1/models/eta:predict"]
        connection.sendall(b"".join(request(BODY, path, f"x-request-id: r{place}") for place, path in enumerate(paths)))
        answers = receive(connection, len(paths))
        assert [answer.headers["x-request-id"] for answer in answers] == [f"r{place}" for place in range(len(paths))]
        assert [answer.status for answer in answers] == [200, 200, 404, 200, 400]


def test_bodies_in_pieces(port: int) -> None:
    message = request(BODY)
    with connected(port) as connection:
        for start in range(0, len(message), 40):
            connection.sendall(message[start : start + 40])
            time.sleep(0.005)
        assert receive(connection)[0].status == 200
        chunks = b"%x\r\n%b\r\n%x\r\n%b\r\n0\r\n\r\n" % (10, BODY[:10], len(BODY) - 10, BODY[10:])
        connection.sendall(b"POST /predict HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n" + chunks)
        assert receive(connection)[0].status == 200


def test_a_client_that_asks_first_is_told_to_go_on(port: int) -> None:
    head, _, body = request(BODY, "/predict", "expect: 100-continue").partition(b"\r\n\r\n")
    with connected(port) as connection:
        connection.sendall(head + b"\r\n\r\n")
        assert connection.recv(100).startswith(b"HTTP/1.1 100 Continue")
        connection.sendall(body)
        assert receive(connection)[0].status == 200


def test_an_old_client_is_answered_and_left(port: int) -> None:
    with connected(port) as connection:
        connection.sendall(request().replace(b"HTTP/1.1", b"HTTP/1.0"))
        assert receive(connection)[0].status == 200 and connection.recv(10) == b""


def test_slow_clients_do_not_keep_the_service(port: int) -> None:
    with connected(port) as body, connected(port) as headers, connected(port) as other:
        body.sendall(request()[:-10])
        headers.sendall(b"POST /predict HTTP/1.1\r\nhost: ")
        other.sendall(request())
        assert receive(other)[0].status == 200
        assert receive(body)[0].status == 408
        assert headers.recv(100) == b""


def test_idle_connections_are_closed(service: Service) -> None:
    with served(service, idle_seconds=0.1) as (server, port), connected(port) as connection:
        connection.sendall(request())
        assert receive(connection)[0].status == 200 and connection.recv(10) == b""
        assert server.server_state.connections == set()


def test_clients_that_vanish_leave_nothing(service: Service) -> None:
    service.answerings["eta"].seconds = 0.05
    with served(service) as (server, port):
        for message in (request()[:-10], request(), request(BODY, "/nowhere")[:-10], b"POST /pre"):
            with connected(port) as connection:
                connection.sendall(message)
        with connected(port) as connection:
            connection.sendall(request())
            assert receive(connection)[0].status == 200
        until = time.monotonic() + 60
        while (server.server_state.connections or server.server_state.tasks) and time.monotonic() < until:
            time.sleep(0.01)
        assert server.server_state.connections == set() == server.server_state.tasks


def test_a_refused_sender_can_still_read_the_answer(port: int) -> None:
    with connected(port) as connection:
        connection.sendall(b"POST /predict HTTP/1.1\r\nhost: x\r\ncontent-length: 90000000\r\n\r\n" + b" " * 200_000)
        (answer,) = receive(connection)
        assert answer.status == 413 and answer.headers["connection"] == "close"


def test_what_is_no_http_is_refused(port: int) -> None:
    for message in (b"\x16\x03\x01\x02\x00\x01\x00", b"GET / HTTP/1.1\r\nhost x\r\n\r\n", b"POST /predict HTTP/1.1\r\ncontent-length: -4\r\n\r\n"):
        with connected(port) as connection:
            connection.sendall(message)
            assert connection.recv(100).startswith(b"HTTP/1.1 400")


def test_many_connections(port: int) -> None:
    with contextlib.ExitStack() as stack:
        connections = [stack.enter_context(connected(port)) for _ in range(300)]
        for connection in connections:
            connection.sendall(request())
        assert {receive(connection)[0].status for connection in connections} == {200}


def test_tls(tmp_path: Path) -> None:
    certificate, key = tmp_path / "certificate.pem", tmp_path / "key.pem"
    command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2"]
    command += ["-subj", "/CN=localhost", "-addext", "subjectAltName=IP:127.0.0.1", "-keyout", str(key), "-out", str(certificate)]
    subprocess.run(command, check=True, capture_output=True)
    settings = Settings(certificate=str(certificate), private_key=str(key), keys=str(tmp_path / "keys.json"))
    with served(Service(settings)) as (_, port):
        trusted = ssl.create_default_context(cafile=str(certificate))
        answer = httpx.post(f"https://127.0.0.1:{port}/predict", json=ROW, verify=trusted)
        assert answer.status_code == 200 and answer.json()["minutes"] == 11.0
        with connected(port) as plain:
            plain.sendall(request())
            assert not plain.recv(100).startswith(b"HTTP/1.1 200")


PROGRAM = """
import sys, uvloop
sys.path.insert(0, sys.argv[1])
from serving_standin import Service
from labline.serving.listening import listen
from labline.serving.server import answer_until_stopped
from labline.serving.settings import Settings
service, bound = Service(Settings(keys=sys.argv[2]), seconds=0.01), listen("127.0.0.1", 0)[0]
uvloop.run(answer_until_stopped(service, bound, lambda grpc: print(bound.getsockname()[1], flush=True)))
print(service.answerings["eta"].answered, service.closed)
"""


def test_nothing_is_lost_at_the_end(tmp_path: Path) -> None:
    command = [sys.executable, "-c", PROGRAM, str(ROOT / "tests"), str(tmp_path / "keys.json")]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=os.environ | {"PYTHONPATH": str(ROOT), "TF_CPP_MIN_LOG_LEVEL": "3"})
    assert process.stdout is not None
    port, counts, lost = int(process.stdout.readline()), [0] * 8, []

    def load(place: int) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
        while not lost:
            try:
                if connection.sock is None:
                    connection.connect()
            except ConnectionRefusedError:
                return
            try:
                connection.request("POST", "/predict", BODY)
                counts[place] += connection.getresponse().read().startswith(b'{"prediction_id"')
            except (OSError, http.client.HTTPException) as problem:
                lost.append(problem)

    threads = [threading.Thread(target=load, args=(place,)) for place in range(len(counts))]
    for thread in threads:
        thread.start()
    time.sleep(0.3)
    process.send_signal(signal.SIGTERM)
    for thread in threads:
        thread.join(120)
    answered, closed = process.communicate(timeout=180)[0].split()
    assert (lost, process.returncode, closed) == ([], 0, "True")
    assert sum(counts) == int(answered) > 0
