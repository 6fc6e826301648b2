"""The tasks of this folder's workers: those of the tests with workers, and some more."""

import os
import time
from typing import Any

from jobhandle_celery import current_job
from tests.worker.base_app import task
from tests.worker.bodies import app

__all__ = ["app"]


@task()
def takes_anything(given: Any = None, job_id: Any = None) -> None:
    """Have a parameter that is called as that which Flower finds a job by."""


@task()
def says_how_far_it_is(sign: str) -> str:
    """Work until a file is there, or the job is cancelled."""
    job = current_job()
    assert job is not None
    job.set_message("reading")
    job.set_progress(1, 4)
    while not os.path.exists(sign):
        job.raise_if_cancelled()
        time.sleep(0.05)
    return "seen"
