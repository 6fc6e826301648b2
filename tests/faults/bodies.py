"""Tasks of a workload: each body writes marks to a file that the library does not know."""

import os
import signal
import time
from typing import Any

from celery import current_task

from jobhandle_celery import current_job
from jobhandle_celery.broker.headers import headers_of, job_of
from tests.apps import append_line
from tests.worker.base_app import app, task

__all__ = ["app"]

TICK = 0.05
"""Seconds between two marks of a living body."""


def mark(path: str, what: str) -> tuple[int, int]:
    """Write `what job attempt` into the file; return job and attempt."""
    context: Any = current_task.request
    job = job_of(headers_of(context))
    assert job is not None, "the crowd's tasks are run as jobs"
    append_line(path, f"{what} {job[0]} {job[1]}")
    return job


def run_body(path: str, seconds: float, *, listen: bool = False) -> None:
    """Run for `seconds`, with a mark every tick; with `listen`, check for a stop request as often."""
    job = current_job()
    assert job is not None
    mark(path, "begun")
    until = time.monotonic() + seconds
    while (left := until - time.monotonic()) > 0:
        time.sleep(min(left, TICK))
        mark(path, "alive")
        if listen:
            job.raise_if_cancelled()
    mark(path, "ended")


@task()
def work(path: str, seconds: float) -> str:
    run_body(path, seconds)
    return "worked"


@task(acks_late=True)
def work_late(path: str, seconds: float) -> str:
    """As `work`, with a late acknowledgement."""
    run_body(path, seconds)
    return "worked"


def run_until_file(path: str, sign: str) -> str:
    mark(path, "begun")
    while not os.path.exists(sign):
        time.sleep(TICK)
        mark(path, "alive")
    mark(path, "ended")
    return "stayed"


@task()
def stay(path: str, sign: str) -> str:
    """Run until that file exists."""
    return run_until_file(path, sign)


@task(acks_late=True)
def stay_late(path: str, sign: str) -> str:
    """As `stay`, with a late acknowledgement."""
    return run_until_file(path, sign)


@task()
def listen(path: str, seconds: float) -> str:
    run_body(path, seconds, listen=True)
    return "listened"


@task(terminate_on_cancel=True)
def may_be_killed(path: str, seconds: float) -> str:
    run_body(path, seconds)
    return "worked"


@task()
def fail(path: str, seconds: float) -> None:
    run_body(path, seconds)
    raise ValueError("raised on request")


@task(bind=True)
def again(self: Any, path: str, seconds: float, times: int, countdown: float) -> str:
    """Ask for a retry `times` times, then return."""
    run_body(path, seconds)
    if self.request.retries < times:
        raise self.retry(countdown=countdown, max_retries=times)
    return "at last"


@task()
def deadly(path: str) -> None:
    """Kill the process that runs it, each time."""
    mark(path, "begun")
    os.kill(os.getpid(), signal.SIGKILL)


@task()
def plain(path: str) -> None:
    """A plain task, called by `delay`."""
    append_line(path, "plain")
