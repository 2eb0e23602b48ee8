"""Fork servers: which one makes a kernel, when it is replaced or ends, and what accidents do to it."""

import json
import logging
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import warmkernels
from jupyter_client.kernelspec import KernelSpecManager
from typer.testing import CliRunner
from jupyter_core.utils import ensure_event_loop
from warmkernels import Elsewhere, Kernel, is_alive, server_processes, servers, until, write_notebook

from labline.notebooks.kernels import provisioner
from labline.notebooks.kernels import servers as finding
from labline.cli import app
from labline.notebooks.kernels.processes import ask, private_folder
from labline.notebooks.kernels.request import KernelRequest, ServerSettings
from labline.notebooks.kernels.servers import find_servers
from labline.notebooks.kernels.starting import MOST_IDLE, obtain_kernel

if sys.platform != "linux":
    pytest.skip("forking is for Linux", allow_module_level=True)


def test_first_requests_at_once(start_kernel: Callable[..., Kernel]) -> None:
    """Of many first requests one starts the server, and no two kernels get the same addresses."""
    running: list[Kernel] = []

    def start() -> None:
        running.append(start_kernel())
        ensure_event_loop().close()

    threads = [threading.Thread(target=start) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({kernel.parent for kernel in running}) == 1 and all(kernel.is_fork for kernel in running)
    assert len({kernel.manager.ip for kernel in running}) == 6


def test_other_variables_need_another_server(start_kernel: Callable[..., Kernel]) -> None:
    """A variable that imports depend on is never wrong; one that they do not read needs no other server."""
    first, same = start_kernel(), start_kernel(env={**os.environ, "CITY": "Kyoto"})
    other = start_kernel(env={**os.environ, "MKL_NUM_THREADS": "1"})
    assert first.parent == same.parent != other.parent
    assert other.value("__import__('os').environ['MKL_NUM_THREADS']") == "1"
    assert len(servers()) == 2 and start_kernel().parent == first.parent


def test_the_kernel_settles_the_hash_seed(start_kernel: Callable[..., Kernel], kernels_here: KernelSpecManager) -> None:
    """`kernel.json` says how strings are hashed; a kernel with another seed has another server and hashes otherwise."""
    first = start_kernel()
    folder = Path(kernels_here.kernel_dirs[0])
    content = json.loads((folder / "labline" / "kernel.json").read_text())
    content["env"]["PYTHONHASHSEED"] = "5"
    (folder / "other").mkdir()
    (folder / "other" / "kernel.json").write_text(json.dumps(content))
    other = start_kernel("other")
    assert other.is_fork and first.parent != other.parent and first.value("hash('a')") != other.value("hash('a')")


def test_workspaces_never_share(start_kernel: Callable[..., Kernel], kernel_folder: Path) -> None:
    """Another workspace has another server; a folder of the same workspace has not."""
    (kernel_folder / "dvc.yaml").write_text("stages: {}")
    for name in ("own", "other"):
        (kernel_folder / name).mkdir()
    (kernel_folder / "other" / "dvc.yaml").write_text("stages: {}")
    first, same, other = start_kernel(), start_kernel(folder=kernel_folder / "own"), start_kernel(folder=kernel_folder / "other")
    assert first.parent == same.parent != other.parent and all(kernel.is_fork for kernel in (first, same, other))
    assert same.value("__import__('os').getcwd()") == str(kernel_folder / "own")


def test_a_server_is_replaced(start_kernel: Callable[..., Kernel], kernel_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A new import, one that is gone, and a new package each replace the server; kernels of the old one go on and end as they should."""
    first = start_kernel()
    write_notebook(kernel_folder / "more.ipynb", "import msgspec")
    second = start_kernel()
    assert second.value("'msgspec' in __import__('sys').modules") and first.parent != second.parent
    (kernel_folder / "more.ipynb").unlink()
    third = start_kernel()
    assert third.value("'msgspec' in __import__('sys').modules") is False
    monkeypatch.setattr(finding, "installed_packages", lambda: [("pandas-9.dist-info", 1)])
    fourth = start_kernel()
    assert len({kernel.parent for kernel in (first, second, third, fourth)}) == 4 and len(servers()) == 1
    old = first.parent
    first.client.execute("import os; os._exit(5)")
    assert first.process.wait(30) == 5
    until(lambda: not is_alive(old))


def test_settings_that_were_read_are_watched(start_kernel: Callable[..., Kernel], kernel_folder: Path) -> None:
    """When a file that an import has read changes, the server is replaced."""
    write_notebook(kernel_folder / "notebook.ipynb", "import matplotlib")
    settings = Path(os.environ["MPLCONFIGDIR"]) / "matplotlibrc"
    settings.parent.mkdir(exist_ok=True)
    widths = []
    for width in (3, 42):
        settings.write_text(f"lines.linewidth: {width}\n")
        kernel = start_kernel()
        widths.append(kernel.value("__import__('matplotlib').rcParams['lines.linewidth']"))
        assert kernel.is_fork
    settings.unlink()
    assert widths == [3, 42]


def test_an_ordinary_kernel_says_why_once(start_kernel: Callable[..., Kernel], kernel_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where forking is not possible, ordinary kernels start, and the log tells it once."""
    told: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: told.append(record.getMessage())  # type: ignore[method-assign]
    logging.getLogger("traitlets").addHandler(handler)
    monkeypatch.setitem(provisioner.CANNOT_FORK, "linux", "this Linux is said to be macOS")
    for _ in range(2):
        kernel = start_kernel()
        assert not kernel.is_fork and kernel.manager.transport == "ipc" and kernel.value("1 + 1") == 2
    logging.getLogger("traitlets").removeHandler(handler)
    assert [text for text in told if "said to be macOS" in text] == ["An ordinary kernel starts, and not a fork: this Linux is said to be macOS."]


def test_a_shadowed_library_is_not_forked(start_kernel: Callable[..., Kernel], kernel_folder: Path) -> None:
    """A file that an ordinary kernel would import in the place of a library is imported."""
    (kernel_folder / "dvc.yaml").write_text("stages: {}")
    (kernel_folder / "deep").mkdir()
    (kernel_folder / "deep" / "numpy.py").write_text("version = 'mine'")
    kernel = start_kernel(folder=kernel_folder / "deep")
    assert not kernel.is_fork and kernel.value("__import__('numpy').version") == "mine"
    assert start_kernel().is_fork


def test_a_server_goes_with_its_users(start_kernel: Callable[..., Kernel], kernels_here: KernelSpecManager, kernel_folder: Path) -> None:
    """A server stays for the session that used it, and ends soon after that session, but not before its kernels."""
    client = Elsewhere(kernels_here, kernel_folder, "independent").wait()
    (status,) = servers()
    assert client.shell.pid in status["users"] and [kernel["process"] for kernel in status["kernels"]] == [client.pid]
    client.kill()
    until(lambda: not servers()[0]["users"])
    assert is_alive(status["process"]) and is_alive(client.pid)
    os.kill(client.pid, signal.SIGKILL)
    until(lambda: not is_alive(status["process"]))
    assert not find_servers()


def test_a_server_ends_when_it_is_idle(start_kernel: Callable[..., Kernel], kernels_here: KernelSpecManager) -> None:
    """A server without kernels ends after the time that `kernel.json` says, also while its users live."""
    folder = Path(kernels_here.kernel_dirs[0])
    content = json.loads((folder / "labline" / "kernel.json").read_text())
    content["metadata"]["kernel_provisioner"]["config"] = {"idle_minutes": 0.03}
    (folder / "brief").mkdir()
    (folder / "brief" / "kernel.json").write_text(json.dumps(content))
    kernel = start_kernel("brief")
    server = kernel.parent
    kernel.close()
    until(lambda: not is_alive(server))


def test_a_killed_server(start_kernel: Callable[..., Kernel]) -> None:
    """Kernels outlive their server, their end is still seen, its socket is cleared away, and the next kernel has a new server."""
    kernel = start_kernel()
    (path,) = find_servers()
    server = kernel.parent
    os.kill(server, signal.SIGKILL)
    until(lambda: not is_alive(server))
    assert kernel.manager.is_alive() and kernel.value("1 + 1") == 2 and path.exists()
    later = start_kernel()
    assert later.is_fork and later.parent != server and not path.exists()
    assert kernel.value("2 + 2") == 4
    os.kill(kernel.pid, signal.SIGKILL)
    assert kernel.process.wait(30) in (-9, 1)


def test_a_server_that_dies_while_starting(start_kernel: Callable[..., Kernel], kernels_here: KernelSpecManager, kernel_folder: Path) -> None:
    """Neither a half-started server nor the death of its starter blocks the next start."""
    write_notebook(kernel_folder / "notebook.ipynb", "import sleeping")
    packages, environment = pretend_to_install(kernel_folder)
    (packages / "sleeping.py").write_text("import time; time.sleep(600)")
    starter = Elsewhere(kernels_here, kernel_folder, env=environment)
    until(lambda: [path for path in private_folder().glob("*/importing") if path.read_text() == "sleeping"])
    starter.kill()
    half = server_processes(str(kernel_folder))
    assert half
    for process in half:
        os.kill(process, signal.SIGKILL)
    write_notebook(kernel_folder / "notebook.ipynb", "import numpy")
    assert start_kernel(env=environment).is_fork


def test_libraries_that_cannot_be_shared(start_kernel: Callable[..., Kernel], kernel_folder: Path) -> None:
    """A library that raises, one that kills its process, one with a thread and one that is not installed are left out, and the rest is shared."""
    lib, environment = pretend_to_install(kernel_folder)
    (lib / "raising.py").write_text("raise ValueError('no licence')")
    (lib / "killing.py").write_text("import os; os.abort()")
    (kernel_folder / "lib").mkdir()
    (kernel_folder / "lib" / "own.py").write_text("import pathlib\npathlib.Path(__file__ + '.imported').touch()")
    (lib / "threading_library.py").write_text("import threading; threading.Thread(target=threading.Event().wait, daemon=True).start()")
    write_notebook(kernel_folder / "notebook.ipynb", "import killing, numpy, own, raising, threading_library")
    assert not start_kernel(env=environment).is_fork
    kernel = start_kernel(env=environment)
    (status,) = servers()
    assert kernel.is_fork and status["loaded"] == ["numpy"]
    assert {name: reason.split(" `")[0] for name, reason in status["skipped"].items()} == {
        "killing": "its import ended the server or took too long",
        "own": "it is not an installed package, but lies in",
        "raising": "its import raised",
        "threading_library": "its import started the thread",
    }
    assert not (kernel_folder / "lib" / "own.py.imported").exists(), "code that is not installed never runs in a server"
    kernel.run("import own, numpy")
    assert "1 kernel" in CliRunner().invoke(app, ["kernel", "stop", "--all"]).output
    assert not start_kernel(env=environment).is_fork, "after `labline kernel stop` everything is tried again"


def pretend_to_install(folder: Path) -> tuple[Path, dict[str, str]]:
    """A folder whose modules count as installed, and variables with which Python finds it, and `lib` behind it."""
    prefix = folder / "prefix"
    packages = prefix / "lib" / f"python{sys.version_info[0]}.{sys.version_info[1]}" / "site-packages"
    packages.mkdir(parents=True)
    (packages / "sitecustomize.py").write_text(f"import site\nsite.PREFIXES.append({str(prefix)!r})")
    return packages, {**os.environ, "PYTHONPATH": f"{packages}{os.pathsep}{folder / 'lib'}"}


def test_nobody_else_gets_a_kernel(start_kernel: Callable[..., Kernel]) -> None:
    """Folder and socket are closed to others, and a user who gets at the socket nevertheless is not answered."""
    start_kernel()
    (path,) = find_servers()
    assert path.stat().st_mode & 0o777 == 0o600 and path.parent.stat().st_mode & 0o777 == path.parent.parent.stat().st_mode & 0o777 == 0o700
    if os.getuid() != 0:
        pytest.skip("only root can become somebody else")
    assert as_nobody(path) == "PermissionError"
    opened = [place for place in (path, *path.parents) if place not in (Path("/tmp"), Path("/"))]
    modes = [place.stat().st_mode for place in opened]
    for place in opened:
        place.chmod(0o777)
    assert as_nobody(path) == "no answer"
    for place, mode in zip(opened, modes, strict=True):
        place.chmod(mode & 0o7777)


def as_nobody(path: Path) -> str:
    """What a process of another user meets at a server's socket."""
    here, there = socket.socketpair()
    with here, there, socket.socket(socket.AF_UNIX) as connection:
        child = os.fork()
        if child == 0:
            os.setgroups([])
            os.setuid(65534)
            try:
                connection.connect(str(path))
                connection.sendall(b'\0\0\0\x15{"command": "status"}')
                there.sendall(b"an answer" if connection.recv(4) else b"no answer")
            except OSError as problem:
                there.sendall(type(problem).__name__.encode())
            os._exit(0)
        os.waitpid(child, 0)
        return here.recv(100).decode()


def test_long_paths(start_kernel: Callable[..., Kernel], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the session's folder has too long a path for a socket, another is taken."""
    deep = tmp_path / ("d" * 80)
    deep.mkdir(mode=0o700)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(deep))
    kernel = start_kernel()
    assert kernel.is_fork and str(deep) not in kernel.manager.ip and len(kernel.manager.ip) < 100
    os.kill(kernel.parent, signal.SIGTERM)


def test_a_server_goes_with_its_workspace(start_kernel: Callable[..., Kernel], tmp_path: Path) -> None:
    """When the workspace is removed, its server takes no more requests and ends with its last kernel, and nothing of it is left."""
    workspace = tmp_path / "for a while"
    write_notebook(workspace / "notebook.ipynb", "import numpy")
    kernel = start_kernel(folder=workspace)
    server, (path,) = kernel.parent, find_servers()
    shutil.rmtree(workspace)
    until(lambda: not path.exists())
    assert is_alive(server) and kernel.value("1 + 1") == 2
    kernel.close()
    until(lambda: not is_alive(server) and not path.parent.exists())


def test_a_server_goes_with_its_environment(start_kernel: Callable[..., Kernel], kernel_folder: Path, tmp_path: Path) -> None:
    """When the interpreter is removed, as `make distclean` does, the server ends."""
    (tmp_path / "environment").symlink_to(sys.prefix)
    code = "import sys\nsys.executable = sys.argv[-2]\nfrom labline.notebooks.kernels.forkserver import serve; serve()"
    reading, writing = os.pipe()
    settings = ServerSettings(str(kernel_folder), str(kernel_folder), [], ready=writing, lock=os.dup(writing), starter=os.getpid())
    python = tmp_path / "environment" / "bin" / "python"
    subprocess.run([sys.executable, "-c", code, python, json.dumps(asdict(settings))], check=True, pass_fds=(writing, settings.lock))
    os.close(writing)
    os.close(settings.lock)
    assert os.read(reading, 10) == b"ready"
    os.close(reading)
    (path,) = kernel_folder.glob("server-*.sock")
    server = ask(path, {"command": "status"})["process"]
    (tmp_path / "environment").unlink()
    until(lambda: not is_alive(server))


def test_few_servers_are_idle(start_kernel: Callable[..., Kernel], tmp_path: Path) -> None:
    """Those that have been idle for longest are stopped; those with kernels never."""
    busy = start_kernel()
    for number in range(MOST_IDLE + 2):
        write_notebook(tmp_path / str(number) / "notebook.ipynb", "pass")
        start_kernel(folder=tmp_path / str(number)).close()
    workspaces = {Path(status["workspace"]).name for status in servers()}
    assert workspaces == {str(number) for number in range(2, MOST_IDLE + 2)} | {tmp_path.name} and busy.value("1 + 1") == 2


def test_a_slow_server_holds_nobody_up(kernels_here: KernelSpecManager, start_kernel: Callable[..., Kernel], kernel_folder: Path) -> None:
    """When a server takes too long to start, an ordinary kernel starts; the server goes on, and the next kernel is its fork."""
    packages, environment = pretend_to_install(kernel_folder)
    (packages / "slow.py").write_text(f"import os, time\nwhile os.path.exists({str(kernel_folder / 'hold')!r}): time.sleep(0.05)")
    (kernel_folder / "hold").touch()
    write_notebook(kernel_folder / "notebook.ipynb", "import slow")
    folder = Path(kernels_here.kernel_dirs[0])
    content = json.loads((folder / "labline" / "kernel.json").read_text())
    content["metadata"]["kernel_provisioner"]["config"] = {"start_seconds": 5}
    (folder / "hasty").mkdir()
    (folder / "hasty" / "kernel.json").write_text(json.dumps(content))
    assert not start_kernel("hasty", env=environment).is_fork
    (kernel_folder / "hold").unlink()
    until(lambda: servers())
    assert start_kernel("hasty", env=environment).is_fork


def test_a_fork_that_hangs_is_ended(start_kernel: Callable[..., Kernel], kernel_folder: Path) -> None:
    """A fork that never becomes a kernel is ended by its alarm clock, and an ordinary kernel starts."""
    first = start_kernel()
    (path,) = find_servers()
    place = replace(finding.find_place([sys.executable], kernel_folder), folder=path.parent)
    (kernel_folder / "profile_default").mkdir()
    (kernel_folder / "profile_default" / "ipython_kernel_config.py").write_text("import time; time.sleep(600)")
    environment = {**os.environ, **first.manager.kernel_spec.env, "IPYTHONDIR": str(kernel_folder)}
    request = KernelRequest(["-f", str(kernel_folder / "kernel.json")], environment, str(kernel_folder))
    with open(os.devnull, "r+") as nothing:
        answer = obtain_kernel(request, place, [nothing.fileno()] * 3, seconds=3)
    assert isinstance(answer, finding.Refusal) and f"ended with {-signal.SIGALRM} before it was a kernel" in answer.reason
    assert start_kernel().parent == first.parent


def test_the_commands(start_kernel: Callable[..., Kernel], kernel_folder: Path) -> None:
    """`labline kernel status` shows servers, kernels and memory; after `stop` the kernels go on, and a new one has a new server."""
    assert "No fork server" in CliRunner().invoke(app, ["kernel", "status"]).output
    kernel = start_kernel()
    shown = CliRunner().invoke(app, ["kernel", "status"]).output
    assert str(kernel_folder) in shown and f"kernel {kernel.pid}:" in shown and "MB" in shown
    (status,) = json.loads(CliRunner().invoke(app, ["kernel", "status", "--json"]).output)
    assert status["process"] == kernel.parent and status["memory"] > 10_000_000 and status["kernels"][0]["memory"] > 1_000_000
    assert "of this workspace" in CliRunner().invoke(app, ["kernel", "stop"]).output and servers() != []
    assert "ends with its 1 kernel" in CliRunner().invoke(app, ["kernel", "stop", "--all"]).output
    assert kernel.value("1 + 1") == 2 and start_kernel().parent != kernel.parent


def test_nothing_is_left(start_kernel: Callable[..., Kernel]) -> None:
    """After the tests above no server of theirs is alive."""
    assert warmkernels.servers() == []
