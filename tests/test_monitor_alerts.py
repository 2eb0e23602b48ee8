"""Alerts as they arrive: at a webhook, in a mailbox, at a command; once per cause, over restarts, and for a monitor that fails."""

import json
import socketserver
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from labline.cli import app
from labline.errors import NotebookError
from labline.operations.monitor import commands
from labline.operations.monitor.alerts import AlertError, Channels, tell

Said = dict[str, Any]


def said(*checks: tuple[str, str]) -> Said:
    """What a look may have left."""
    window = {"since": "2026-03-01T00:00:00Z", "until": "2026-03-08T00:00:00Z", "rows": 5000, "labelled": 4000}
    listed = [{"cause": cause, "status": status, "reason": f"Reason of {cause}.", "figures": {}} for cause, status in checks]
    return {"format": 1, "model": "eta", "release": "eta@v3", "digest": "d", "status": checks[0][1] if checks else "ok", "window": window, "checks": listed}


@contextmanager
def serving(server: socketserver.BaseServer) -> Iterator[int]:
    """A server in a thread until the block ends; gives its port."""
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield server.server_address[1]
    finally:
        server.shutdown()
        server.server_close()
        thread.join(10)


@pytest.fixture
def webhook() -> Iterator[tuple[str, list[Said], list[int]]]:
    """An address, what was posted to it, and the statuses with which the next requests are answered."""
    posted: list[Said] = []
    statuses: list[int] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            status = statuses.pop(0) if statuses else 200
            if status == 200:
                posted.append(body)
            self.send_response(status)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *arguments: Any) -> None:
            pass

    with serving(HTTPServer(("127.0.0.1", 0), Handler)) as port:
        yield f"http://127.0.0.1:{port}/hook/secret", posted, statuses


@pytest.fixture
def mailbox() -> Iterator[tuple[str, list[str]]]:
    """The address of a mail server, and the messages that came."""
    mails: list[str] = []

    class Handler(socketserver.StreamRequestHandler):
        def handle(self) -> None:
            self.wfile.write(b"220 test\r\n")
            while line := self.rfile.readline().decode().strip():
                word = line.split()[0].upper()
                if word == "DATA":
                    self.wfile.write(b"354 go on\r\n")
                    lines: list[str] = []
                    while (text := self.rfile.readline().decode()) != ".\r\n":
                        lines.append(text)
                    mails.append("".join(lines))
                self.wfile.write(b"221 bye\r\n" if word == "QUIT" else b"250 ok\r\n")
                if word == "QUIT":
                    return

    class Server(socketserver.ThreadingTCPServer):
        daemon_threads = True

    with serving(Server(("127.0.0.1", 0), Handler)) as port:
        yield f"smtp://127.0.0.1:{port}", mails


def test_a_webhook_and_a_mailbox_hear_once_and_once_more_when_it_is_over(
    webhook: tuple[str, list[Said], list[int]], mailbox: tuple[str, list[str]], tmp_path: Path
) -> None:
    channels = Channels(webhook=webhook[0], smtp=mailbox[0], mail_to="on.call@example.org, lead@example.org", mail_from="labline@example.org")
    alarm, well = said(("error", "alarm"), ("drift:zone", "ignored"), ("range", "warn")), said()
    for _ in range(3):  # each as after a restart: only the file remembers
        sent, failed = tell(alarm, tmp_path / "alerts.json", channels, "runs/monitor/monitor.html")
        assert failed == []
    assert [message["begun"] for message in webhook[1]] == [["error"]] and len(mailbox[1]) == 1
    assert "Subject: eta@v3 needs attention: error" in mailbox[1][0] and "To: on.call@example.org, lead@example.org" in mailbox[1][0]
    assert "ALARM  Reason of error." in mailbox[1][0] and "Report: runs/monitor/monitor.html" in mailbox[1][0]
    assert "ALARM  Reason of error." in webhook[1][0]["text"]
    tell(well, tmp_path / "alerts.json", channels)
    tell(well, tmp_path / "alerts.json", channels)
    assert [message["over"] for message in webhook[1]] == [[], ["error"]] and "is as before: error" in mailbox[1][1] and len(mailbox[1]) == 2
    sent, _ = tell(said(("error", "alarm"), ("failures", "alarm")), tmp_path / "alerts.json", channels)
    assert sent == ["webhook: error, failures", "mail: error, failures"]


def test_a_webhook_that_fails_is_told_the_next_time(webhook: tuple[str, list[Said], list[int]], mailbox: tuple[str, list[str]], tmp_path: Path) -> None:
    channels = Channels(webhook=webhook[0], smtp=mailbox[0], mail_to="on.call@example.org")
    webhook[2][:] = [500, 404]
    for expected in ("500", "404"):
        _, failed = tell(said(("error", "alarm")), tmp_path / "alerts.json", channels)
        assert len(failed) == 1 and f"status {expected}" in str(failed[0]) and "secret" not in str(failed[0])
    sent, failed = tell(said(("error", "alarm")), tmp_path / "alerts.json", channels)
    assert (sent, failed) == (["webhook: error"], []) and len(mailbox[1]) == 1 and len(webhook[1]) == 1


def test_a_mail_server_that_is_away_is_named_without_its_password(tmp_path: Path) -> None:
    channels = Channels(smtp="smtp://me:secret@127.0.0.1:1", mail_to="on.call@example.org")
    sent, failed = tell(said(("error", "alarm")), tmp_path / "alerts.json", channels)
    assert sent == [] and isinstance(failed[0], AlertError) and "secret" not in str(failed[0]) and "LABLINE_ALERT_SMTP" in str(failed[0])


@pytest.fixture
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "pipelines").mkdir()
    for name in ("dvc.yaml", "pipelines/monitor.ipynb"):
        (tmp_path / name).touch()
    (tmp_path / "params.yaml").write_text("train: {within: 4.0}\nmonitor: {windows: 3}\n")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def looks(monkeypatch: pytest.MonkeyPatch, *results: Said | Exception) -> list[dict[str, Any]]:
    """Have the next looks find this; returns the parameters that they were given."""
    given: list[dict[str, Any]] = []
    left = list(results)

    def look_once(values: dict[str, Any], kernel: str) -> Said:
        given.append(dict(values))
        found = left.pop(0)
        if isinstance(found, Exception):
            raise found
        Path("runs/monitor").mkdir(parents=True, exist_ok=True)
        Path("runs/monitor/status.json").write_text(json.dumps(found))
        return found

    monkeypatch.setattr(commands, "_look_once", look_once)
    return given


def test_watching_goes_on_when_a_look_fails_and_tells_that_too(
    webhook: tuple[str, list[Said], list[int]], workspace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gone = NotebookError("the server is gone", remedy="Start it")
    given = looks(monkeypatch, said(("error", "alarm")), gone, gone, said(("error", "alarm")))
    monkeypatch.setenv("LABLINE_ALERT_WEBHOOK", webhook[0])
    answer = CliRunner().invoke(app, ["monitor", "--watch", "--every", "0.01", "--times", "4", "-p", "windows=5", "--exit-code"])
    assert answer.exit_code == 3 and "ALARM  Reason of error." in answer.output and "Error: the server is gone. Start it." in answer.stderr
    assert given[0] == {"within": 4.0, "windows": "5"}
    assert [(message["begun"], message["over"]) for message in webhook[1]] == [(["error"], []), (["monitor"], []), ([], ["monitor"])]


def test_one_look_that_fails_ends_with_an_error(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    looks(monkeypatch, NotebookError("the server is gone", remedy="Start it"))
    answer = CliRunner().invoke(app, ["monitor"])
    assert answer.exit_code == 1 and answer.stderr.strip() == "Error: the server is gone. Start it."


@pytest.mark.parametrize(("checks", "code"), [((), 0), ((("range", "warn"),), 0), ((("error", "alarm"),), 3)])
def test_the_exit_code_is_for_schedulers(checks: tuple[tuple[str, str], ...], code: int, workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    looks(monkeypatch, said(*checks), said(*checks))
    assert CliRunner().invoke(app, ["monitor", "--exit-code"]).exit_code == code
    assert CliRunner().invoke(app, ["monitor"]).exit_code == 0


def test_ctrl_c_ends_watching(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    interrupted: Callable[..., Said] = lambda values, kernel: (_ for _ in ()).throw(KeyboardInterrupt)  # noqa: E731
    monkeypatch.setattr(commands, "_look_once", interrupted)
    assert CliRunner().invoke(app, ["monitor", "--watch"]).exit_code == 130
