"""Tasks that write during an outage; and a worker whose claims retry for one second, not thirty."""

import os
import time

from jobhandle_celery import DatabaseUnavailableError, current_job
from jobhandle_celery.worker import claim
from tests.apps import append_line
from tests.worker.base_app import app, task
from tests.worker.bodies import append

__all__ = ["app", "append"]

claim.CLAIM_TIMEOUT = 1.0


@task()
def speaking(path: str, sign: str, catches: bool) -> str:
    """Set progress once a file exists, then make a call that needs the database's answer."""
    append_line(path, "begun")
    while not os.path.exists(sign):
        time.sleep(0.02)
    job = current_job()
    assert job is not None
    job.set_progress(1, 2)
    job.raise_if_cancelled()
    append_line(path, "left out")
    try:
        job.set_message("half done")
    except DatabaseUnavailableError:
        append_line(path, "not answered")
        if not catches:
            raise
    append_line(path, "went on")
    return "ended"
