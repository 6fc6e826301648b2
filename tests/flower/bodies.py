"""Tasks of the workers: those of tests/worker, and more."""

import os
import time
from typing import Any

from jobhandle_celery import current_job
from tests.worker.base_app import task
from tests.worker.bodies import app

__all__ = ["app"]


@task()
def takes_anything(given: Any = None, job_id: Any = None) -> None:
    """A task with a parameter of the name by which Flower finds a job."""


@task()
def report_progress(sign: str) -> str:
    """Run until a file exists or the job is cancelled."""
    job = current_job()
    assert job is not None
    job.set_message("reading")
    job.set_progress(1, 4)
    while not os.path.exists(sign):
        job.raise_if_cancelled()
        time.sleep(0.05)
    return "seen"
