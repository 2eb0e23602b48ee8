"""Processes that are forked from one that has imported everything already: starting Python anew would take most of the time."""

import multiprocessing

PROCESSES = multiprocessing.get_context("forkserver")
PRELOADED: list[str] = []


def preload(*modules: str) -> None:
    """Have modules imported before the first process is forked; there is one server for the whole test run, and it gets what all test modules ask for."""
    PRELOADED.extend(modules)
    PROCESSES.set_forkserver_preload(PRELOADED)
