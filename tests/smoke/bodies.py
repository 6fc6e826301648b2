"""The tasks of the worker container. It gets this file alone, which so imports nothing of the tests."""

import time

from celery import shared_task

from jobhandle_celery import current_job


@shared_task(name="smoke.add")
def add(x: int, y: int) -> int:
    return x + y


@shared_task(name="smoke.until_told")
def until_told() -> str:
    """Work until somebody gives the job the message `go on`."""
    job = current_job()
    assert job is not None
    while job.job_message() != "go on":
        job.raise_if_cancelled()
        time.sleep(0.1)
    return f"attempt {job.get_job().attempt} was told"
