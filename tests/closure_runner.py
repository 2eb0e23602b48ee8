"""Runs the programs of `closure_cases.py`, each in a process of its own, and prints what each of them printed: `python closure_runner.py FOLDER…`."""

import contextlib
import importlib
import io
import json
import os
import sys
import warnings


def run_cells(folder: str) -> str:
    """What the cells of a program print, or the kind of error that ends it."""
    os.chdir(folder)
    sys.path.insert(0, folder)
    sys.dont_write_bytecode = True
    warnings.simplefilter("ignore")
    importlib.invalidate_caches()
    with open("pipelines/case.ipynb", encoding="utf-8") as file:
        cells = json.load(file)["cells"]
    with open("pipelines/values.json", encoding="utf-8") as file:
        values = json.load(file)
    namespace: dict = {"__name__": "__main__"}
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        try:
            for cell in cells:
                exec(cell["source"], namespace)
                if "parameters" in cell["metadata"].get("tags", []):
                    namespace |= values
        except BaseException as problem:
            print(type(problem).__name__)
    return out.getvalue()


def main() -> None:
    results = []
    for folder in sys.argv[1:]:
        reader, writer = os.pipe()
        if os.fork() == 0:
            os.write(writer, run_cells(folder).encode())
            os._exit(0)
        os.close(writer)
        with os.fdopen(reader, "rb") as pipe:
            results.append(pipe.read().decode())
        os.wait()
    print(json.dumps(results))


if __name__ == "__main__":
    main()
