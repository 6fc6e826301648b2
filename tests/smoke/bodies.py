"""The tasks of the worker container, which has only this file: it imports nothing of the tests."""

import time

from celery import shared_task

from jobhandle_celery import current_job


@shared_task(name="smoke.add")
def add(x: int, y: int) -> int:
    return x + y


@shared_task(name="smoke.wait_for_go")
def wait_for_go() -> str:
    """Run until the job's message is `go`."""
    job = current_job()
    assert job is not None
    while job.job_message() != "go":
        job.raise_if_cancelled()
        time.sleep(0.1)
    return f"attempt {job.get_job().attempt}"
