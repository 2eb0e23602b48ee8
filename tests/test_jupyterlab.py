"""JupyterLab in a real browser: a notebook with the kernel `labline` is opened, run, interrupted, restarted, reconnected and shut down."""

import base64
import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nbformat
import pytest
from labline.notebooks.kernels import servers as finding
from warmkernels import install, is_alive, stop_servers

websocket = pytest.importorskip("websocket")
pytest.importorskip("jupyterlab")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
if CHROMIUM is None or sys.platform != "linux":
    pytest.skip("needs Chromium on Linux", allow_module_level=True)

FLAGS = "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking --disable-component-update --disable-sync"
STATUS = """(() => {
    const panel = [...(window.jupyterapp?.shell.widgets('main') ?? [])].find(widget => widget.sessionContext)
    const kernel = panel?.sessionContext.session?.kernel
    return panel?.sessionContext.isReady && kernel?.connectionStatus === 'connected' ? kernel.status : 'not connected'
})()"""
OUTPUTS = "[...document.querySelectorAll('.jp-Notebook .jp-CodeCell')].map(cell => cell.querySelector('.jp-OutputArea')?.innerText.trim() ?? '')"
ACCEPTED = """(() => {
    document.querySelector('.jp-Dialog .jp-mod-accept')?.click()
    return document.querySelector('.jp-Dialog') === null
})()"""


class Page:
    """A page of a browser, driven over its debugging connection.

    Parameters
    ----------
    address : of the page's debugging connection.
    picture : where a failure saves what was to be seen.
    """

    def __init__(self, address: str, picture: Path) -> None:
        self.picture = picture
        self.connection = websocket.create_connection(address, timeout=60, suppress_origin=True)
        self.number = 0

    def send(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Call one method of the DevTools protocol."""
        self.number += 1
        self.connection.send(json.dumps({"id": self.number, "method": method, "params": parameters}))
        while True:
            answer = json.loads(self.connection.recv())
            if answer.get("id") == self.number:
                return answer.get("result", {})

    def evaluate(self, expression: str) -> Any:
        """The value of a JavaScript expression; a promise is waited for."""
        answer = self.send("Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True)
        return answer.get("result", {}).get("value")

    def until(self, expression: str, wanted: Any = True, seconds: float = 60) -> None:
        """Wait until an expression has a value."""
        deadline = time.monotonic() + seconds
        while (value := self.evaluate(expression)) != wanted:
            assert time.monotonic() < deadline, f"{expression}: {value!r} and not {wanted!r}, see {self.photograph()}"
            time.sleep(0.05)

    def photograph(self) -> Path:
        """A picture of what a person would see, beside the other files of the test."""
        self.picture.write_bytes(base64.b64decode(self.send("Page.captureScreenshot")["data"]))
        return self.picture

    def press(self, key: str, code: int, modifiers: int = 0) -> None:
        """Press and release a key."""
        for kind in ("rawKeyDown", "keyUp"):
            self.send("Input.dispatchKeyEvent", type=kind, key=key, code=key, windowsVirtualKeyCode=code, modifiers=modifiers)

    def click(self, selector: str) -> None:
        """Click in the middle of an element, when it is there."""
        self.until(f"document.querySelector({selector!r}) !== null")
        place = self.evaluate(
            f"(() => {{ const box = document.querySelector({selector!r}).getBoundingClientRect(); return [box.x + box.width / 2, box.y + box.height / 2] }})()"
        )
        for kind in ("mousePressed", "mouseReleased"):
            self.send("Input.dispatchMouseEvent", type=kind, x=place[0], y=place[1], button="left", clickCount=1)

    def run_cell(self, number: int) -> None:
        """Click into a cell and press Shift and Enter."""
        self.click(f".jp-Notebook .jp-Cell[data-windowed-list-index='{number}'] .cm-content")
        self.press("Enter", 13, modifiers=8)

    def command(self, name: str) -> None:
        """Execute a command of JupyterLab, as its menus do; its promise is not waited for, because a dialog may be open until it is answered."""
        self.evaluate(f"void window.jupyterapp.commands.execute({name!r})")


def stop(process: subprocess.Popen) -> None:
    """End a process that a test has started, with its children."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGTERM)
    try:
        process.wait(20)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait(20)


@pytest.fixture
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a short path, because sockets lie in it."""
    return tmp_path_factory.mktemp("lab")


@pytest.fixture
def workspace(base: Path) -> Path:
    """A folder with a notebook of four cells."""
    folder = base / "work"
    folder.mkdir()
    sources = [
        "import os, sys, pandas\nprint('kernel', os.getpid(), 'parent', os.getppid())",
        "import time\nprint('sleeping', flush=True)\ntime.sleep(300)",
        "import seaborn, matplotlib.pyplot as plt\nplt.plot([1, 3, 2])\nplt.show()",
        "answer = 6 * 7\nprint('answer', answer)",
    ]
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source) for source in sources])
    notebook.metadata.kernelspec = {"name": "labline", "display_name": "Labline", "language": "python"}
    nbformat.write(notebook, folder / "notebook.ipynb")
    return folder


@pytest.fixture
def environment(base: Path) -> Iterator[dict[str, str]]:
    """Variables that give JupyterLab and Labline folders of their own."""
    (base / "run").mkdir(mode=0o700)
    install(base)
    own = {
        "XDG_RUNTIME_DIR": base / "run",
        "JUPYTER_RUNTIME_DIR": base / "jupyter",
        "JUPYTER_CONFIG_DIR": base / "config",
        "JUPYTER_PATH": base / "share" / "jupyter",
        "JUPYTERLAB_SETTINGS_DIR": base / "settings",
        "JUPYTERLAB_WORKSPACES_DIR": base / "workspaces",
        "IPYTHONDIR": base / "ipython",
    }
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("JPY_", "PYTEST_"))}
    yield {**kept, **{name: str(path) for name, path in own.items()}}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(finding, "private_folders", lambda: [base / "run" / "labline"])
        stop_servers()


@pytest.fixture
def lab(workspace: Path, environment: dict[str, str], base: Path) -> Iterator[str]:
    """A running JupyterLab; its address."""
    options = "--no-browser --allow-root --port=0 --IdentityProvider.token=secret --expose-app-in-browser --LabApp.news_url="
    options += " --LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate"
    with open(base / "lab.log", "w") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "jupyterlab", *options.split()], cwd=workspace, env=environment, stdout=log, stderr=log, start_new_session=True
        )
    deadline, address = time.monotonic() + 90, None
    while not (address := re.search(r"http://127\.0\.0\.1:\d+", (base / "lab.log").read_text())):
        assert process.poll() is None and time.monotonic() < deadline, (base / "lab.log").read_text()
        time.sleep(0.1)
    yield address[0]
    stop(process)


@pytest.fixture
def page(lab: str, base: Path) -> Iterator[Page]:
    """A browser that has opened the notebook."""
    profile = base / "profile"
    with open(base / "browser.log", "w") as log:
        command = [str(CHROMIUM), *FLAGS.split(), "--remote-debugging-port=0", "--window-size=1280,900", f"--user-data-dir={profile}", "about:blank"]
        process = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)
    deadline = time.monotonic() + 60
    while not (profile / "DevToolsActivePort").exists():
        assert process.poll() is None and time.monotonic() < deadline, (base / "browser.log").read_text()
        time.sleep(0.1)
    port = (profile / "DevToolsActivePort").read_text().splitlines()[0]
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/json/list") as answer:
        target = next(target for target in json.load(answer) if target["type"] == "page")
    page = Page(target["webSocketDebuggerUrl"], base / "page.png")
    page.send("Page.enable")
    page.send("Page.navigate", url=f"{lab}/lab/tree/notebook.ipynb?token=secret")
    yield page
    page.connection.close()
    stop(process)


def kernels(lab: str) -> list[dict[str, Any]]:
    """The kernels that JupyterLab knows."""
    with urllib.request.urlopen(f"{lab}/api/kernels?token=secret") as answer:
        return json.load(answer)


def numbers(page: Page) -> tuple[int, int]:
    """The process numbers of the kernel and of its parent, as the first cell prints them."""
    page.run_cell(0)
    page.until(f"/kernel \\d+/.test({OUTPUTS}[0])")
    page.until(STATUS, "idle")
    found = re.fullmatch(r"kernel (\d+) parent (\d+)", page.evaluate(f"{OUTPUTS}[0]"))
    assert found is not None
    return int(found[1]), int(found[2])


def test_open_run_interrupt_restart_reconnect_shut_down(page: Page, lab: str, base: Path) -> None:
    """Everything that a person does with a kernel in JupyterLab."""
    page.until(STATUS, "idle", seconds=120)
    page.until("document.querySelectorAll('.jp-Notebook .jp-CodeCell').length >= 4")
    kernel, server = numbers(page)
    assert "kernels.forkserver" in Path(f"/proc/{server}/cmdline").read_text()

    page.run_cell(2)
    page.until("document.querySelectorAll('.jp-OutputArea img').length", 1)
    page.until(STATUS, "idle")

    page.run_cell(1)
    page.until(f"{OUTPUTS}[1]", "sleeping")
    page.until(STATUS, "busy")
    page.click("[data-jp-item-name='interrupt'] jp-button")
    page.until(f"{OUTPUTS}[1].includes('KeyboardInterrupt')")
    page.until(STATUS, "idle")
    assert numbers(page) == (kernel, server)

    page.click("[data-jp-item-name='restart'] jp-button")
    page.click(".jp-Dialog .jp-mod-accept")
    page.until("document.querySelector('.jp-Dialog') === null")
    page.until(f"{STATUS} === 'idle'")
    page.evaluate("window.jupyterapp.commands.execute('notebook:clear-all-cell-outputs')")
    restarted, same = numbers(page)
    assert restarted != kernel and same == server and not is_alive(kernel)

    page.command("notebook:reconnect-to-kernel")
    page.until(STATUS, "idle")
    page.run_cell(3)
    page.until(f"{OUTPUTS}[3]", "answer 42")
    page.evaluate("window.jupyterapp.commands.execute('docmanager:save')")
    page.evaluate("window.left = true")
    page.send("Page.navigate", url=f"{lab}/lab/tree/notebook.ipynb?token=secret&reset")  # without a layout to restore, which would open the notebook once more
    page.until("window.left === undefined")
    page.until(STATUS, "idle", seconds=120)
    page.until("document.querySelectorAll('.jp-Notebook .jp-CodeCell').length >= 4")
    page.evaluate("window.jupyterapp.commands.execute('notebook:clear-all-cell-outputs')")
    assert numbers(page) == (restarted, server)

    os.kill(restarted, signal.SIGKILL)
    page.until("document.querySelector('.jp-Dialog') !== null || document.body.innerText.includes('restart')", seconds=30)
    page.until(ACCEPTED)
    page.until(STATUS, "idle")
    page.evaluate("window.jupyterapp.commands.execute('notebook:clear-all-cell-outputs')")
    revived, same = numbers(page)
    assert revived not in (kernel, restarted) and same == server

    assert len(kernels(lab)) == 1
    page.command("notebook:shutdown-kernel")
    deadline = time.monotonic() + 30
    while kernels(lab) or is_alive(revived):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    assert not list((base / "run" / "labline" / "kernels").iterdir())
