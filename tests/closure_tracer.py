"""Runs the cells of a notebook and prints the functions of the workspace that were called: `python closure_tracer.py NOTEBOOK PARAMETERS`, in the workspace."""

import json
import os
import sys
import threading
from inspect import CO_OPTIMIZED
from pathlib import Path
from types import CodeType, FrameType
from typing import Any


def main() -> None:
    root, seen = os.getcwd() + os.sep, set[CodeType]()

    def trace(frame: FrameType, event: str, argument: Any) -> None:
        if event == "call" and frame.f_code.co_flags & CO_OPTIMIZED:
            seen.add(frame.f_code)

    os.environ.setdefault("MPLBACKEND", "agg")
    sys.path.insert(0, os.getcwd())
    from IPython.display import display

    from labline.notebooks.closure.sources import read_cells

    namespace: dict[str, Any] = {"__name__": "__main__", "display": display}
    cells = read_cells(Path(sys.argv[1]))
    threading.setprofile(trace)
    sys.setprofile(trace)
    for cell in cells:
        exec(compile(cell.text, f"cell {cell.number}", "exec"), namespace)
        if cell.parameters:
            namespace |= json.loads(sys.argv[2])
    sys.setprofile(None)
    found = {(code.co_filename.removeprefix(root), code.co_qualname) for code in seen if code.co_filename.startswith(root)}
    print("TRACED " + json.dumps(sorted(found)))


if __name__ == "__main__":
    main()
