"""Kernels for tests: started with `labline` or as ordinary ones, in folders of their own."""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import nbformat
import pytest
from jupyter_client.kernelspec import KernelSpecManager
from jupyter_client.manager import KernelManager

from labline.notebooks.kernels import servers as finding
from labline.notebooks.kernels.handle import KernelProcess
from labline.notebooks.kernels.servers import find_servers, server_status


def install(prefix: Path, **options: float) -> Path:
    """Copy the kernel that `make setup` has installed below another prefix, with other options of its provisioner; returns its folder."""
    folder = prefix / "share" / "jupyter" / "kernels" / "labline"
    shutil.copytree(KernelSpecManager().get_kernel_spec("labline").resource_dir, folder)
    content = json.loads((folder / "kernel.json").read_text())
    content["metadata"]["kernel_provisioner"]["config"] = options
    (folder / "kernel.json").write_text(json.dumps(content))
    return folder


@pytest.fixture(scope="session", autouse=True)
def no_server_outlives_the_tests(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """The fork servers of all tests have a folder of their own; they are stopped when the tests are over, and no process is left."""
    if sys.platform != "linux":
        yield
        return
    base = Path(tempfile.mkdtemp(prefix="labline-tests-", dir="/tmp"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_RUNTIME_DIR", str(base))
        patch.setattr(finding, "private_folders", lambda: [base / "labline"])  # those of the person who runs the tests are left alone
        yield
        stop_servers()
    places = [str(base), str(tmp_path_factory.getbasetemp())]
    try:
        until(lambda: not server_processes(*places))
    finally:
        for process in server_processes(*places):
            os.kill(process, signal.SIGKILL)
        shutil.rmtree(base)


def server_processes(*places: str) -> list[int]:
    """Process numbers of the fork servers and forked kernels whose command line names one of some folders."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            command = path.read_bytes().decode(errors="replace")
            if "labline.notebooks.kernels.forkserver" in command and any(place in command for place in places) and is_alive(int(path.parent.name)):
                found.append(int(path.parent.name))
    return found


@pytest.fixture(scope="module")
def kernels_here(tmp_path_factory: pytest.TempPathFactory) -> Iterator[KernelSpecManager]:
    """The kernels `labline` and `plain`, with folders of their own for everything that Jupyter and Labline keep."""
    base = tmp_path_factory.mktemp("k")  # a short path, because sockets lie in it
    (base / "run").mkdir(mode=0o700)
    folder = install(base, linger_seconds=3)
    content = json.loads((folder / "kernel.json").read_text())
    del content["metadata"]["kernel_provisioner"]
    folder.with_name("plain").mkdir()
    (folder.with_name("plain") / "kernel.json").write_text(json.dumps(content))
    own = {
        "XDG_RUNTIME_DIR": base / "run",
        "JUPYTER_RUNTIME_DIR": base / "jupyter",
        "JUPYTER_PATH": base / "share" / "jupyter",
        "IPYTHONDIR": base / "ipython",
        "MPLCONFIGDIR": base / "matplotlib",
    }
    with pytest.MonkeyPatch.context() as patch:
        for name, path in own.items():
            patch.setenv(name, str(path))
        patch.setattr(finding, "private_folders", lambda: [base / "run" / "labline"])
        patch.delenv("JPY_PARENT_PID", raising=False)
        yield KernelSpecManager(kernel_dirs=[str(folder.parent)], ensure_native_kernel=False)
        stop_servers()


@pytest.fixture
def kernel_folder(tmp_path: Path) -> Path:
    """A folder with one notebook, which imports NumPy."""
    write_notebook(tmp_path / "notebook.ipynb", "import numpy")
    return tmp_path


@pytest.fixture
def start_kernel(kernels_here: KernelSpecManager, kernel_folder: Path) -> Iterator[Callable[..., "Kernel"]]:
    """Starts kernels that are shut down at the end: `start_kernel()`, `start_kernel("plain")`, `start_kernel(folder=…, env=…)`."""
    running: list[Kernel] = []

    def begin(name: str = "labline", folder: Path = kernel_folder, **options: Any) -> Kernel:
        running.append(Kernel(kernels_here, name, folder, **options))
        return running[-1]

    yield begin
    for kernel in running:
        kernel.close()
    stop_servers()


class Kernel:
    """A running kernel with a client."""

    def __init__(self, kernels_here: KernelSpecManager, name: str, folder: Path, encryption: str | None = None, **options: Any) -> None:
        self.manager = KernelManager(kernel_name=name, kernel_spec_manager=kernels_here)
        self.manager.start_kernel(cwd=str(folder), transport_encryption=encryption, **options)
        self.client = self.manager.blocking_client()
        self.client.start_channels()
        self.client.wait_for_ready(timeout=120)

    @property
    def process(self) -> Any:
        """What the provisioner holds: a `KernelProcess` or a `Popen`."""
        return self.manager.provisioner.process

    @property
    def is_fork(self) -> bool:
        """Whether the kernel came from a fork server."""
        return isinstance(self.process, KernelProcess)

    @property
    def pid(self) -> int:
        """The kernel's process number."""
        return self.manager.provisioner.pid

    @property
    def parent(self) -> int:
        """Process number of the kernel's parent: the fork server, or this process."""
        return int(Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()[1])

    def run(self, code: str, timeout: float = 120) -> str:
        """What a cell prints; an error raises."""
        heard: list[str] = []
        reply = self.client.execute_interactive(code, timeout=timeout, output_hook=lambda message: heard.append(message["content"].get("text", "")))
        if reply["content"]["status"] != "ok":
            raise RuntimeError(f"{reply['content'].get('ename')}: {reply['content'].get('evalue')}")
        return "".join(heard)

    def value(self, expression: str) -> Any:
        """The value of an expression, as JSON knows it."""
        return json.loads(self.run(f"import json; print(json.dumps({expression}, default=str))"))

    def close(self) -> None:
        """End the kernel."""
        self.client.stop_channels()
        self.manager.shutdown_kernel(now=True)


def write_notebook(path: Path, *cells: str) -> None:
    """Write a notebook for the kernel `labline`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells])
    notebook.metadata.kernelspec = {"name": "labline", "display_name": "Labline", "language": "python"}
    nbformat.write(notebook, path)


def is_alive(process: int) -> bool:
    """Whether a process runs; one that has ended and that nobody has taken note of does not."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def until(condition: Callable[[], Any], seconds: float = 30) -> None:
    """Wait for a condition."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.02)


def servers() -> list[dict[str, Any]]:
    """What each fork server of these tests says of itself."""
    return [status for status in map(server_status, find_servers()) if status]


def stop_servers() -> None:
    """Stop the fork servers of these tests and wait until they are gone."""
    for path in find_servers():
        status = server_status(path, "stop")
        if status:
            for kernel in status["kernels"]:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(kernel["process"], signal.SIGKILL)
            until(lambda process=status["process"]: not is_alive(process))


START = """
import subprocess, sys, time
from jupyter_client.kernelspec import KernelSpecManager
from jupyter_client.manager import KernelManager
manager = KernelManager(kernel_name="labline", kernel_spec_manager=KernelSpecManager(kernel_dirs=[sys.argv[1]], ensure_native_kernel=False))
manager.start_kernel(cwd=sys.argv[2], independent="independent" in sys.argv, stdout=subprocess.DEVNULL)
if "independent" not in sys.argv[3:]:
    client = manager.blocking_client()
    client.start_channels()
    client.wait_for_ready(timeout=60)
    client.execute(sys.argv[3])
    while client.get_iopub_msg(timeout=60)["content"].get("text") != "begun\\n":
        pass
print(manager.provisioner.pid, type(manager.provisioner.process).__name__, manager.ip, flush=True)
time.sleep(600)
"""


class Elsewhere:
    """A kernel that another process asks for; that process leads a session of its own, through a shell.

    Parameters
    ----------
    kernels_here : where the kernel `labline` is.
    kernel_folder : where it starts.
    code : what it runs, until it prints `begun`; or `independent`, for a kernel that outlives the process.
    env : its variables.
    """

    def __init__(
        self, kernels_here: KernelSpecManager, kernel_folder: Path, code: str = "print('begun', flush=True)", env: dict[str, str] | None = None
    ) -> None:
        command = ["sh", "-c", '"$@" & wait', "sh", sys.executable, "-c", START, kernels_here.kernel_dirs[0], str(kernel_folder), code]
        self.shell = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True, env=env)

    def wait(self) -> "Elsewhere":
        """Wait until the kernel runs; `pid` and `sockets` are known then."""
        assert self.shell.stdout is not None
        pid, kind, self.sockets = self.shell.stdout.readline().split()
        assert kind == "KernelProcess"
        self.pid = int(pid)
        return self

    def kill(self) -> None:
        """Kill the process that asked, and its shell."""
        with self.shell:
            os.killpg(self.shell.pid, signal.SIGKILL)
