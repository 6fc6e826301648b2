"""The tasks of `bodies`, in a process whose clock is wrong by `JOBHANDLE_TEST_CLOCK` seconds.

Wrong for all Python code of the process and its children; a worker reads the clock in Python only.
libfaketime would change C code too, but is not available everywhere.
"""

import os
import time
import types
from datetime import UTC, datetime, timedelta
from typing import Any

import time_machine

from tests import apps

_wrong = datetime.now(UTC) + timedelta(seconds=float(os.environ["JOBHANDLE_TEST_CLOCK"]))
time_machine.travel(_wrong, tick=True).start()

_right: Any = types.SimpleNamespace(**vars(time))
_right.time = time_machine.escape_hatch.time.time
apps.time = _right  # type: ignore[attr-defined]  # what the bodies write down is compared across workers

from jobhandle_celery import Job, current_job  # noqa: E402  # nothing before the clock
from tests.faults.bodies import app, run_body  # noqa: E402
from tests.worker.base_app import task  # noqa: E402

__all__ = ["app"]


@task()
def submit_later(path: str, seconds: float) -> str:
    """Submit jobs scheduled for later, and one that expires in half an hour; the message lists their ids."""
    run_body(path, 0)
    given: dict[str, Any] = {"task": "worker.work", "args": (path, 0)}
    later = app.signature(given["task"], given["args"]).set(countdown=seconds)
    ids = app.jobs.submit_many(  # type: ignore[attr-defined]  # it has jobs
        [
            later,
            Job(**given, scheduled_for=timedelta(seconds=seconds)),
            Job(**given, expires=timedelta(minutes=30)),
        ]
    )
    job = current_job()
    assert job is not None
    job.set_message(" ".join(map(str, ids)))
    return "submitted"
