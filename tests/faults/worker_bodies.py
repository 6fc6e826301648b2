"""Further tasks of workloads: they exhaust memory, kill their worker, write to their row, or run long."""

import os
import signal
import time

from jobhandle_celery import current_job
from tests.faults.bodies import TICK, app, mark, run_body
from tests.worker.base_app import task

__all__ = ["app"]

ENOUGH = 600 * 2**20
"""Bytes at which `swell` stops: the kernel has not killed it."""


@task()
def hog(path: str) -> None:
    """Ask for more memory than any process may have: a MemoryError."""
    mark(path, "begun")
    bytearray(2**60)


@task()
def swell(path: str) -> None:
    """Take memory until the kernel kills this process."""
    mark(path, "begun")
    eaten = bytearray()
    while len(eaten) < ENOUGH:
        eaten += os.urandom(4096) * 1024


@task()
def kill_worker(path: str) -> None:
    """Kill the main process of its worker, each time."""
    mark(path, "begun")
    os.kill(os.getppid(), signal.SIGKILL)
    time.sleep(60)  # it ends this process too


@task()
def speak(path: str, seconds: float) -> int:
    """Write all columns that a body can write, repeatedly, with its attempt."""
    job = current_job()
    assert job is not None
    _, attempt = mark(path, "begun")
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        time.sleep(TICK)
        mark(path, "alive")
        job.set_message(f"attempt {attempt}")
        job.set_progress(attempt, 100)
    mark(path, "ended")
    return attempt


@task()
def long_at_first(path: str, seconds: float) -> str:
    """Run for `seconds` in the first attempt, briefly in the others; ignore a cancel."""
    job = current_job()
    assert job is not None
    run_body(path, seconds if job.get_job().attempt == 1 else 0)
    return "worked"


@task()
def listen_at_first(path: str, seconds: float) -> str:
    """As `long_at_first`, with checks for a stop request."""
    job = current_job()
    assert job is not None
    run_body(path, seconds if job.get_job().attempt == 1 else 0, listen=True)
    return "listened"


if os.environ.get("KNOWS_MORE"):

    @task()
    def known_to_few(path: str, seconds: float) -> str:
        run_body(path, seconds)
        return "known"
