"""Tasks of trees: each body writes marks to a file, and returns a number made of its arguments."""

import os
import signal
import time
from pathlib import Path
from typing import Any

from jobhandle_celery.runtime import runtime_of
from tests.apps import append_line, lines_of
from tests.faults.bodies import TICK, mark
from tests.worker.base_app import app, task

__all__ = ["app"]


def number(*args: Any, **_: Any) -> int:
    """Return one more than the sum of the numbers in the arguments."""
    return 1 + sum(_sum(value) for value in args)


def _sum(value: Any) -> int:
    return sum(map(_sum, value)) if isinstance(value, list) else int(value)


def _run(path: str, seconds: float, *args: Any) -> int:
    mark(path, "begun")
    time.sleep(seconds)
    mark(path, "ended")
    return number(*args)


@task()
def step(*args: Any, path: str, seconds: float = 0) -> int:
    return _run(path, seconds, *args)


@task(acks_late=True)
def late_step(*args: Any, path: str, seconds: float = 0) -> int:
    """As `step`, with a late acknowledgement."""
    return _run(path, seconds, *args)


@task()
def held_step(*args: Any, path: str, sign: str) -> int:
    """Run until that file exists."""
    mark(path, "begun")
    while not os.path.exists(sign):
        time.sleep(TICK)
    mark(path, "ended")
    return number(*args)


@task()
def failing_step(*args: Any, path: str, sign: str) -> int:
    """Fail, unless that file exists."""
    mark(path, "begun")
    mark(path, "ended")
    if not os.path.exists(sign):
        raise ValueError("raised on request")
    return number(*args)


@task()
def killed_step(*args: Any, path: str, sign: str) -> int:
    """Kill the process, unless that file exists; make it."""
    mark(path, "begun")
    if not os.path.exists(sign):
        Path(sign).touch()
        os.kill(os.getpid(), signal.SIGKILL)
    mark(path, "ended")
    return number(*args)


@task()
def meeting_step(*args: Any, path: str, sign: str) -> int:
    """End together with another one: neither is settled before the ends of both are committed."""
    database = runtime_of(app).store.database
    settle = database.on_unsettled
    assert settle is not None

    def meet(job_ids: list[int]) -> None:
        database.on_unsettled = settle
        append_line(sign, "ended")
        until = time.monotonic() + 60
        while len(lines_of(Path(sign))) < 2 and time.monotonic() < until:
            time.sleep(0.001)
        append_line(sign, "met" if time.monotonic() < until else "alone")
        settle(job_ids)

    database.on_unsettled = meet
    return _run(path, 0, *args)
