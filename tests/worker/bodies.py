"""The tasks of this folder's workers: long bodies, and bodies with results of all kinds."""

import datetime
import decimal
import os
import signal
import time
import uuid
from typing import Any

from jobhandle_celery import current_job
from jobhandle_celery.runtime import runtime_of
from jobhandle_celery.worker import unacked
from tests.apps import append_line
from tests.worker import failing, retrying
from tests.worker.base_app import app, task

__all__ = ["app", "failing", "retrying"]


@task()
def add(x: int, y: int) -> int:
    return x + y


@task()
def append(path: str, text: str) -> str:
    append_line(path, text)
    return text


# Long bodies.


@task()
def deaf(path: str, seconds: float) -> str:
    """Mark the beginning and the end, without checks for a stop request in between."""
    append_line(path, "begun")
    time.sleep(seconds)
    append_line(path, "ended")
    return "slept"


@task(acks_late=True)
def deaf_late(path: str, seconds: float) -> str:
    return str(deaf(path, seconds))


@task()
def attentive(path: str, seconds: float) -> str:
    """Check for a stop request now and then."""
    append_line(path, "begun")
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        job = current_job()
        if job is not None:
            job.raise_if_cancelled()
        time.sleep(0.02)
    append_line(path, "ended")
    return "slept"


@task()
def until_there(path: str, sign: str) -> str:
    """Run until a file exists."""
    append_line(path, "begun")
    while not os.path.exists(sign):
        time.sleep(0.02)
    append_line(path, "ended")
    return "seen"


@task(acks_late=True)
def until_there_late(path: str, sign: str) -> str:
    return str(until_there(path, sign))


@task()
def report_and_wait(path: str, sign: str) -> str:
    """Report progress, then run until the file `sign` exists."""
    job = current_job()
    assert job is not None
    job.set_message("reading")
    job.set_progress(1, 4)
    return str(until_there(path, sign))


@task()
def killed_once(path: str) -> str:
    if os.path.exists(path):
        return "alive"
    append_line(path, "begun")
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError("it lives on")


@task()
def ticking(path: str, first: float, later: float) -> str:
    """Write frequent marks, which show whether two bodies overlap; the first run takes `seconds`."""
    seconds = later if os.path.exists(path) else first
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        append_line(path, "tick")
        time.sleep(0.02)
    return "ticked"


@task(acks_late=True)
def ticking_late(path: str, first: float, later: float) -> str:
    return str(ticking(path, first, later))


@task()
def attempt_until_there(path: str, sign: str) -> str:
    """Wait for the file of this attempt, then write all columns that a body can write, and return."""
    job = current_job()
    assert job is not None
    attempt = job.get_job().attempt
    append_line(path, f"begun {attempt}")
    while not os.path.exists(f"{sign}-{attempt}"):
        time.sleep(0.02)
    job.set_message(f"written by {attempt}")
    job.set_progress(attempt, 100)
    append_line(path, f"{attempt} is asked to stop: {job.cancel_requested()}")
    return f"returned by {attempt}"


# Results.


@task()
def rich_result() -> dict[str, Any]:
    return {
        "moment": datetime.datetime(2024, 2, 29, 12, 30, 15, 250000, tzinfo=datetime.UTC),
        "day": datetime.date(2024, 2, 29),
        "uuid": uuid.UUID(int=7),
        "decimal": decimal.Decimal("3.1400"),
        "bytes": b"\x00\xff",
        "nested": [{"list": [1, 2.5, None, True, "ünï€"]}],
    }


@task(track_started=True, bind=True)
def tracked(self: Any) -> str:
    return str(self.backend.get_task_meta(self.request.id)["status"])


@task()
def same(given: Any) -> Any:
    return given


@task()
def length_of(given: str) -> int:
    return len(given)


@task()
def result_of_length(length: int) -> str:
    return "x" * length


@task()
def unserialisable_result() -> Any:
    return object()


@task()
def result_holding_itself() -> Any:
    ring: list[Any] = []
    ring.append(ring)
    return ring


@task()
def nul_everywhere(fail: bool) -> str:
    job = current_job()
    assert job is not None
    job.set_message("a\0b")
    if fail:
        raise ValueError("c\0d")
    return "e\0f"


# Arguments that are results of other jobs.


@task(bind=True)
def taking(self: Any, *args: Any) -> dict[str, Any]:
    """Return the arguments, and what Celery's canvas would have set, after one retry."""
    if not self.request.retries:
        raise self.retry(countdown=0)
    canvas = {
        name: getattr(self.request, name) for name in ("group", "root_id", "parent_id", "chord", "chain")
    }
    return {"args": args, **canvas}


@task()
def total(numbers: list[int]) -> int:
    return sum(numbers)


@task(bind=True)
def add_after_retry(self: Any, x: int, y: int) -> int:
    if not self.request.retries:
        raise self.retry(countdown=0)
    return x + y


@task()
def results_of_needs(*args: Any) -> list[Any]:
    job = current_job()
    assert job is not None
    return [record.result for record in job.needs()]


@task()
def killed_before_settle(path: str) -> str:
    """Return, and have the process killed between the commit of the end and what follows from it."""
    settling: Any = runtime_of(app).store.settling
    settling.settle = lambda _: os.kill(os.getpid(), signal.SIGKILL)
    append_line(path, "begun")
    return "returned"


@task()
def killed_once_with(given: Any, path: str) -> Any:
    killed_once(path)
    return given


if os.environ.get("KNOWS_MORE"):

    @task()
    def known_to_few() -> str:
        return "known"


if os.environ.get("NOTES_LATE"):
    unacked.INTERVAL = 3600
