"""Programs for `tasks.run_script`, and a check that all of their processes have ended."""

from pathlib import Path

import psutil

from tests.support import eventually

BRANCHES = """
(sleep 300 & echo $! > {0}/1.pid; wait) &
echo $! > {0}/2.pid
until [ -s {0}/1.pid ]; do sleep 0.01; done
"""
"""Starts a child and a grandchild."""


def program(folder: Path, text: str, name: str = "program") -> str:
    """Write a program, and return the name by which it is run."""
    path = folder / name
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return name


def assert_all_gone(folder: Path, processes: int) -> None:
    pids = [int(path.read_text()) for path in folder.glob("*.pid")]
    assert len(pids) == processes
    eventually(lambda: not any(is_alive(pid) for pid in pids), message="processes of the program")


def is_alive(pid: int) -> bool:
    try:
        return bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False
