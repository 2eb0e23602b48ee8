"""Warm kernels against ordinary ones: the same in everything but time."""

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nbformat
import pytest
from jupyter_client.kernelspec import KernelSpecManager
from training_rows import contract, write_rides
from warmkernels import Elsewhere, Kernel, is_alive, servers, until, write_notebook
from workspaces import run

if sys.platform != "linux":
    pytest.skip("forking is for Linux", allow_module_level=True)

SAME = {
    "path": "__import__('sys').path",
    "flags": "str(__import__('sys').flags)",
    "arguments": "[__import__('os').path.basename(word) for word in __import__('sys').argv[:2]]",
    "folder": "__import__('os').getcwd()",
    "umask": "(lambda os: [os.umask(0o22), os.umask(0o22)])(__import__('os'))[1]",
    "limits": "[__import__('resource').getrlimit(number) for number in range(16)]",
    "signals": "{str(number): str(__import__('signal').getsignal(number)).split(' at ')[0] for number in __import__('signal').valid_signals()}",
    "blocked": "sorted(__import__('signal').pthread_sigmask(0, []))",
    "leads its session": "__import__('os').getsid(0) == __import__('os').getpid() == __import__('os').getpgrp()",
    "standard input": "__import__('os').read(0, 1).decode()",
    "encodings": "[__import__('sys').getfilesystemencoding(), __import__('sys').__stdout__.encoding, __import__('sys').__stderr__.errors]",
    "main": "sorted(name for name in vars(__import__('sys').modules['__main__']) if not name.startswith('_i'))",
    "hash": "hash('labline')",
    "parent": "__import__('os').environ['JPY_PARENT_PID']",
    "displayhook": "str(type(__import__('sys').displayhook))",
    "application": "__import__('ipykernel.kernelapp').kernelapp.IPKernelApp.initialized() and 'IPKernelApp' in get_ipython().config",
    "backend": "__import__('matplotlib').get_backend()",
    "settings": "{name: str(value) for name, value in __import__('matplotlib').rcParams.items()}",
    "own modules": "[name for name in __import__('sys').modules if name.split('.')[0] == 'labline']",
    "environment": "{name: value for name, value in __import__('os').environ.items() if not name.startswith('KMP_')}",
    "child's environment": "len(__import__('subprocess').check_output(['env'], text=True).splitlines()) - len(__import__('os').environ)",
}
FOUND_OUT = {
    "pandas": "{name: str(pandas.get_option(name)).lower() for name in pandas._config.config._registered_options if name[:5] != 'mode.'}",
    "numpy": "[str(numpy.get_printoptions()), numpy.geterr()]",
    "matplotlib": "[{name: str(value) for name, value in matplotlib.rcParams.items()}, matplotlib.is_interactive()]",
    "rich": "rich.console.Console().is_jupyter",
    "duckdb": "str(duckdb.connect().sql(\"select current_setting('enable_progress_bar')\").fetchall())",
    "warnings": "sorted(str(entry) for entry in warnings.filters)",
    "loggers": "[item for item in sorted((name, getattr(logger, 'level', 0), len(getattr(logger, 'handlers', ())))"
    " for name, logger in logging.root.manager.loggerDict.items()) if any(item[1:]) and 'KernelApp' not in item[0]]",
    "prompts": "[sys.ps1, sys.ps2, sys.ps3]",
    "builtins": "sorted(vars(__import__('builtins')))",
    "finders": "[len(sys.meta_path), len(sys.path_hooks)]",
    "collector": "[__import__('gc').isenabled(), __import__('gc').get_threshold()]",
    "callbacks": "{name: len(callbacks) for name, callbacks in get_ipython().events.callbacks.items()}",
    "formatters": "{name: len(item.type_printers) + len(item.deferred_printers) for name, item in get_ipython().display_formatter.formatters.items()}",
}
EVERYTHING = (
    "import hashlib\nimport keras, numpy as np, pandas as pd, seaborn as sns, tensorflow as tf, matplotlib.pyplot as plt",
    """keras.utils.set_random_seed(7)
tf.config.experimental.enable_op_determinism()
rows = pd.read_parquet("rows/train.parquet")
x = rows[["distance_km", "rain_mm"]].fillna(0).to_numpy("float32")
model = keras.Sequential([keras.layers.Dense(8, activation="relu"), keras.layers.Dense(1)])
model.compile("adam", "mse")
model.fit(x, rows["minutes"].to_numpy("float32"), epochs=2, verbose=0)
digest = hashlib.sha256(b"".join(weight.tobytes() for weight in model.get_weights())).hexdigest()
import pathlib; pathlib.Path(folder, "weights.txt").write_text(digest)
digest""",
    """from labline.data.contract import Contract
from labline.models.candidates import Settings
from labline.models.networks import NetworkSettings
from labline.models.task import Task
from labline.models.training import train
settings = Settings(NetworkSettings(widths=(8, 8), epochs=2))
train("mlp", "rows", Contract.load("contract.yaml"), Task("minutes"), settings, f"{folder}/mlp", bar=False).metrics""",
    """sns.set_theme(rc={"svg.hashsalt": "labline"})
axes = sns.kdeplot(rows, x="minutes", hue="vehicle")
axes.figure.savefig(f"{folder}/figure.png")
axes.figure.savefig(f"{folder}/figure.svg", metadata={"Date": None})
plt.show()
print({name for name in rows.columns}, object().__class__)""",
)
THREADS = "sorted(thread.name.split('-')[0].rstrip('0123456789') for thread in __import__('threading').enumerate())"


def test_a_fork_is_like_an_ordinary_kernel(start_kernel: Callable[..., Kernel]) -> None:
    """What code in a cell can ask for is the same; only the watch for the client is another."""
    environment = {**os.environ, "CITY": "Kyoto", "TERM": "dumb"}
    warm, plain = start_kernel(env=environment), start_kernel("plain", env=environment)
    assert warm.is_fork and isinstance(plain.process, subprocess.Popen)
    answers = {name: (warm.value(question), plain.value(question)) for name, question in SAME.items()}
    assert not {name: both for name, both in answers.items() if both[0] != both[1]}
    assert sorted({*warm.value(THREADS)} ^ {*plain.value(THREADS)}) == ["ClientWatch", "Thread"]


def test_libraries_are_as_in_an_ordinary_kernel(start_kernel: Callable[..., Kernel], kernel_folder: Path) -> None:
    """What libraries have found out about their surroundings while they were imported is what they find out in an ordinary kernel."""
    imports = "import duckdb, logging, matplotlib, numpy, pandas, rich.console, seaborn, sklearn, sys, tqdm, warnings"
    write_notebook(kernel_folder / "notebook.ipynb", imports)
    warm, plain = start_kernel(), start_kernel("plain")
    (status,) = servers()
    assert warm.is_fork and status["skipped"] == {}
    for kernel in (warm, plain):
        kernel.run(imports)
    answers = {name: (warm.value(question), plain.value(question)) for name, question in FOUND_OUT.items()}
    assert not {name: both for name, both in answers.items() if both[0] != both[1]}
    assert answers["pandas"][0]["display.max_columns"] == "20"


def test_outputs_go_where_they_go_in_an_ordinary_kernel(start_kernel: Callable[..., Kernel], kernel_folder: Path) -> None:
    """What subprocesses, and loggers that were made on import, write is in the cell's output."""
    write_notebook(kernel_folder / "notebook.ipynb", "import absl.logging")
    code = """
import absl.logging, logging, os, subprocess, time
print('one')
os.system('echo two')
subprocess.run(['sh', '-c', 'echo three >&2'])
logging.warning('four')
absl.logging.warning('five')
time.sleep(0.3)"""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST")}
    for name in ("labline", "plain"):
        text = start_kernel(name, env=environment).run(code)
        assert all(word in text for word in ("one", "two", "three", "four", "five"))


def test_random_numbers_differ_between_forks(start_kernel: Callable[..., Kernel]) -> None:
    """Two forks of one server do not draw the same numbers; strings are hashed alike."""
    question = "[__import__('random').random(), __import__('numpy').random.rand(), __import__('numpy').random.default_rng().random()]"
    first, second = start_kernel(), start_kernel()
    assert first.parent == second.parent
    assert not set(first.value(question)) & set(second.value(question))
    assert first.value("hash('a')") == second.value("hash('a')")


def test_figures_and_widgets(start_kernel: Callable[..., Kernel], kernel_folder: Path) -> None:
    """A figure is shown inline, and widgets find their channel, with libraries that were imported before the kernel was there."""
    write_notebook(kernel_folder / "notebook.ipynb", "import seaborn, matplotlib.pyplot, ipywidgets")
    code = "import matplotlib.pyplot as plt, ipywidgets\nplt.plot([1, 2]);\nassert ipywidgets.IntSlider().comm is not None"
    seen = []
    for name in ("labline", "plain"):
        kernel, heard = start_kernel(name), list[dict[str, Any]]()
        kernel.client.execute_interactive(code, timeout=120, output_hook=heard.append)
        pictures = [message["content"]["data"]["image/png"] for message in heard if message["msg_type"] == "display_data"]
        seen.append((kernel.value("sorted(get_ipython().kernel.comm_manager.targets)"), pictures))
    assert seen[0] == seen[1] and len(seen[0][1]) == 1


def test_tensorflow_trains_alike(start_kernel: Callable[..., Kernel], kernel_folder: Path) -> None:
    """Training in a fork gives what it gives in an ordinary kernel, and uses as many threads as the kernel's variables say."""
    write_notebook(kernel_folder / "notebook.ipynb", "import tensorflow, keras")
    code = """
import keras, numpy as np, tensorflow as tf
keras.utils.set_random_seed(7)
tf.config.experimental.enable_op_determinism()
x = np.random.default_rng(1).normal(size=(256, 4)).astype("float32")
model = keras.Sequential([keras.layers.Dense(8, activation="relu"), keras.layers.Dense(1)])
model.compile("adam", "mse")
losses = model.fit(x, x[:, :1], epochs=3, verbose=0).history["loss"]"""
    warm, plain = start_kernel(), start_kernel("plain")
    assert warm.value("'tensorflow' in __import__('sys').modules")
    for kernel in (warm, plain):
        kernel.run(code)
    assert warm.value("losses") == plain.value("losses")
    threads = "sorted(path.read_text() for path in __import__('pathlib').Path('/proc/self/task').glob('*/comm') if path.read_text().startswith('tf_'))"
    assert warm.value(threads) == plain.value(threads) != []


def test_the_same_bytes_come_out(kernels_here: KernelSpecManager, kernel_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A trained model, a SavedModel, figures, and the executed notebook with its page are the same files from forks and from an ordinary kernel."""
    write_rides(kernel_folder / "rows", rows=600)
    (kernel_folder / "contract.yaml").write_text(contract().dump())
    write_notebook(kernel_folder / "everything.ipynb", "folder: str = ''", *EVERYTHING)
    notebook = nbformat.read(kernel_folder / "everything.ipynb", 4)
    notebook.cells[0].metadata["tags"] = ["parameters"]
    nbformat.write(notebook, kernel_folder / "everything.ipynb")
    warm, cold = Path(kernels_here.kernel_dirs[0]), kernel_folder / "cold" / "kernels"
    shutil.copytree(warm / "plain", cold / "labline")
    results = []
    for kernels in (cold, warm, warm):
        monkeypatch.setenv("JUPYTER_PATH", str(kernels.parent))
        run("papermill", "-k", "labline", "--engine", "labline", "everything.ipynb", "out/everything.ipynb", "-p", "folder", "out", cwd=kernel_folder)
        shutil.rmtree(kernel_folder / "out" / "runs")  # times
        results.append({str(path.relative_to(kernel_folder)): path.read_bytes() for path in (kernel_folder / "out").rglob("*") if path.is_file()})
        (kernel_folder / "out").rename(kernel_folder / f"out {len(results)}")
    names = ["everything.ipynb", "everything.html", "figure.png", "figure.svg", "mlp/model/saved_model.pb", "weights.txt"]
    assert {f"out/{name}" for name in names} <= results[0].keys()
    assert len(servers()) == 1
    for result in results[1:]:
        assert [name for name in results[0].keys() | result.keys() if results[0].get(name) != result.get(name)] == []


def test_the_engine_and_papermill(start_kernel: Callable[..., Kernel], kernel_folder: Path) -> None:
    """papermill uses the kernel unchanged, several at once too, and sees a killed kernel."""
    write_notebook(kernel_folder / "good.ipynb", "import numpy, sys\nassert 'numpy' in sys.modules\nprint(numpy.arange(3).sum())")
    write_notebook(kernel_folder / "bad.ipynb", "import os\nos.kill(os.getpid(), 9)")
    papermill = ["papermill", "-k", "labline", "--no-progress-bar"]
    running = [subprocess.Popen([*papermill, "good.ipynb", f"good-{number}.ipynb"], cwd=kernel_folder, stderr=subprocess.DEVNULL) for number in range(3)]
    assert [process.wait(300) for process in running] == [0, 0, 0]
    for number in range(3):
        assert "3\n" in [output.text for output in nbformat.read(kernel_folder / f"good-{number}.ipynb", 4).cells[-1].outputs]
    killed = subprocess.run([*papermill, "bad.ipynb", "out.ipynb"], cwd=kernel_folder, capture_output=True, text=True, timeout=300)
    assert killed.returncode != 0 and "died" in killed.stderr.lower()


def test_interrupt(start_kernel: Callable[..., Kernel]) -> None:
    """A running cell is interrupted, also in a subprocess, and the kernel goes on."""
    for code in ("import time; time.sleep(60)", "import subprocess; subprocess.run(['sleep', '60'])"):
        kernel = start_kernel()
        asked = kernel.client.execute(f"print('begun', flush=True)\n{code}")
        while kernel.client.get_iopub_msg(timeout=60)["content"].get("text") != "begun\n":
            pass
        kernel.manager.interrupt_kernel()
        while (reply := kernel.client.get_shell_msg(timeout=60))["parent_header"]["msg_id"] != asked:
            pass
        assert reply["content"]["ename"] == "KeyboardInterrupt" and kernel.value("1 + 1") == 2


def test_restart(start_kernel: Callable[..., Kernel]) -> None:
    """A restarted kernel is a new fork at the old addresses."""
    kernel = start_kernel()
    before = kernel.pid
    kernel.run("x = 1")
    for now in (False, True):
        kernel.manager.restart_kernel(now=now)
        kernel.client.wait_for_ready(timeout=60)
        assert kernel.is_fork and kernel.pid != before and kernel.value("'x' in globals()") is False
        before = kernel.pid


def test_shutdown_leaves_nothing(start_kernel: Callable[..., Kernel], kernel_folder: Path) -> None:
    """A kernel that is shut down runs its exit functions, writes its files, and leaves no process and no socket."""
    kernel = start_kernel()
    sockets = Path(kernel.manager.ip)
    assert kernel.manager.transport == "ipc" and len(list(sockets.parent.glob(f"{sockets.name}-*"))) == 5
    kernel.run("import atexit, pathlib; atexit.register(lambda: pathlib.Path('exited').write_text('yes'))")
    kernel.run("file = open('unclosed', 'w'); file.write('text')")
    process = kernel.process
    kernel.manager.shutdown_kernel()
    assert process.poll() == 0 and not is_alive(process.pid)
    assert (kernel_folder / "exited").read_text() == "yes" and (kernel_folder / "unclosed").read_text() == "text"
    assert not list(sockets.parent.glob(f"{sockets.name}-*")) and not Path(kernel.manager.connection_file).exists()


@pytest.mark.parametrize(("code", "expected"), [("import os; os._exit(7)", 7), ("import os; os.kill(os.getpid(), 9)", -9), ("import os; os.abort()", -6)])
def test_exit_codes(start_kernel: Callable[..., Kernel], code: str, expected: int) -> None:
    """How a kernel has ended is told as for a child."""
    kernel = start_kernel()
    kernel.client.execute(code)
    assert kernel.process.wait(30) == expected
    assert kernel.manager.is_alive() is False


def test_a_kernel_ends_with_its_client(start_kernel: Callable[..., Kernel], kernels_here: KernelSpecManager, kernel_folder: Path) -> None:
    """When the process that asked is killed, the kernel ends and its sockets go; an independent kernel stays."""
    client, other = Elsewhere(kernels_here, kernel_folder).wait(), Elsewhere(kernels_here, kernel_folder, "independent").wait()
    client.kill()
    other.kill()
    until(lambda: not is_alive(client.pid))
    until(lambda: not list(Path(client.sockets).parent.glob(f"{Path(client.sockets).name}-*")))
    assert is_alive(other.pid)
    os.kill(other.pid, signal.SIGKILL)


def test_a_kernel_that_does_not_listen_ends_with_its_client(start_kernel: Callable[..., Kernel], kernels_here: KernelSpecManager, kernel_folder: Path) -> None:
    """A cell in compiled code, which never gives the interpreter up, cannot see that its client is gone; the server kills its kernel, with what it started."""
    code = """
import ctypes, os, subprocess, time
subprocess.Popen(['sleep', '600'])
print('begun', flush=True)
while not os.path.exists('go on'):
    time.sleep(0.05)
os.mkdir('gone on')
ctypes.PyDLL(None).sleep(600)"""
    client = Elsewhere(kernels_here, kernel_folder, code=code).wait()
    (kernel_folder / "go on").touch()
    until((kernel_folder / "gone on").exists)
    group = [int(path.parent.name) for path in Path("/proc").glob("[0-9]*/stat") if group_of(path) == client.pid]
    assert len(group) == 2
    client.kill()
    until(lambda: not any(map(is_alive, group)))


def group_of(stat: Path) -> int | None:
    """Number of the process group of a process; `None` where it has ended."""
    try:
        return int(stat.read_text().rpartition(")")[2].split()[2])
    except OSError:
        return None


def test_encrypted_channels(start_kernel: Callable[..., Kernel]) -> None:
    """The keys of a manager that encrypts reach the fork."""
    kernel = start_kernel(encryption="required")
    assert kernel.is_fork and kernel.manager.curve_publickey and kernel.value("6 * 7") == 42


def test_debugger(start_kernel: Callable[..., Kernel]) -> None:
    """JupyterLab's debugger stops a fork at a breakpoint, shows a variable, and goes on."""
    client = start_kernel().client
    numbers = iter(range(1, 100))

    def debug(command: str, **arguments: Any) -> dict[str, Any]:
        content = {"type": "request", "command": command, "seq": next(numbers), "arguments": arguments}
        message = client.session.msg("debug_request", content)
        client.control_channel.send(message)
        while (reply := client.get_control_msg(timeout=60))["parent_header"].get("msg_id") != message["header"]["msg_id"]:
            pass
        return reply["content"]

    assert debug("initialize", clientID="test", adapterID="")["success"] and debug("attach")["success"]
    code = "x = 41\nx += 1\nprint(x)"
    source = {"path": debug("dumpCell", code=code)["body"]["sourcePath"]}
    assert debug("setBreakpoints", source=source, breakpoints=[{"line": 3}])["success"] and debug("configurationDone")["success"]
    asked = client.execute(code)
    while (message := client.get_iopub_msg(timeout=60))["msg_type"] != "debug_event" or message["content"]["event"] != "stopped":
        pass
    thread = message["content"]["body"]["threadId"]
    frame = debug("stackTrace", threadId=thread)["body"]["stackFrames"][0]
    scope = debug("scopes", frameId=frame["id"])["body"]["scopes"][0]
    variables = debug("variables", variablesReference=scope["variablesReference"])["body"]["variables"]
    assert next(variable["value"] for variable in variables if variable["name"] == "x") == "42"
    debug("continue", threadId=thread)
    while (reply := client.get_shell_msg(timeout=60))["parent_header"]["msg_id"] != asked:
        pass
    assert reply["content"]["status"] == "ok"
