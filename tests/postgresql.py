"""A server of PostgreSQL of a test's own: in a temporary folder, on a free port of the loopback, run by a user without rights."""

import os
import pwd
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest


def programs() -> Path:
    """The folder of the server's programs; skips the test where there are none."""
    found = shutil.which("initdb")
    folders = [Path(found).parent] if found else sorted(Path("/usr/lib/postgresql").glob("*/bin"))
    if not folders:
        pytest.skip("no PostgreSQL server: install the package `postgresql` to run this test")
    return folders[-1]


class Server:
    """A server that can be stopped and started again.

    Parameters
    ----------
    folder : where its data lie; belongs to the user that runs it.
    user : who runs it; None for the one who runs the tests.
    """

    def __init__(self, folder: Path, user: str | None) -> None:
        self.programs, self.folder, self.user = programs(), folder, user
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.run("initdb", "--auth=trust", "--username=labline", "--encoding=UTF8", "--locale=C", "--no-sync")

    def url(self, database: str = "postgres") -> str:
        return f"postgresql+psycopg://labline@127.0.0.1:{self.port}/{database}"

    def run(self, program: str, *words: str) -> None:
        command: Sequence[str] = [str(self.programs / program), "-D", str(self.folder / "data"), *words]
        rights = {"user": self.user, "group": pwd.getpwnam(self.user).pw_gid, "extra_groups": []} if self.user else {}
        output = self.folder / f"{program}.txt"
        with output.open("wb") as file:  # a file, since a server that holds on to a pipe would keep it open
            done = subprocess.run(command, cwd=self.folder, stdout=file, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, timeout=60, **rights)
        assert done.returncode == 0, output.read_text(errors="replace")

    def start(self) -> None:
        # without fsync: what a server that ends at once has written is still with the operating system, and a test cuts no power
        options = f"-p {self.port} -h 127.0.0.1 -k '' -c fsync=off -c shared_buffers=16MB -c max_connections=30"
        self.run("pg_ctl", "start", "-w", "-t", "30", "-l", str(self.folder / "server.txt"), "-o", options)

    def stop(self, mode: str = "immediate") -> None:
        self.run("pg_ctl", "stop", "-w", "-m", mode)


@contextmanager
def running_server() -> Iterator[Server]:
    """A server that runs until the block ends; where root runs the tests, `postgres` or `nobody` runs the server."""
    programs()
    names = {entry.pw_name for entry in pwd.getpwall()}
    user = next(name for name in ("postgres", "nobody") if name in names) if os.geteuid() == 0 else None
    folder = Path(tempfile.mkdtemp(prefix="labline-postgresql-"))
    try:
        if user:
            shutil.chown(folder, user)
        server = Server(folder, user)
        server.start()
        try:
            yield server
        finally:
            if (folder / "data" / "postmaster.pid").exists():
                server.stop()
    finally:
        shutil.rmtree(folder)
