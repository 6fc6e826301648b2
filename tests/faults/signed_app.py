"""An app whose messages are signed, for workers and, as a program, for a client in a process of its own.

Celery's `auth` serializer is set up for a whole process, so the tests use processes of their own.
`python -m tests.faults.signed_app` submits jobs and prints their outcomes as JSON.
"""

import json
import os
import sys
from datetime import timedelta
from pathlib import Path
from typing import Any

from celery import Celery, Task

from jobhandle_celery import Job, Jobs, current_job
from tests.apps import append_line

KEYS = Path(os.environ["SIGNED_KEYS"])

app = Celery("signed", broker=os.environ["JOBHANDLE_TEST_BROKER_URL"], set_as_current=False)
app.conf.update(
    json.loads(os.environ["JOBHANDLE_TEST_SETTINGS"]),
    task_serializer="auth",
    event_serializer="auth",
    accept_content=["auth"],
    result_accept_content=["json"],
    security_key=str(KEYS / "key.pem"),
    security_certificate=str(KEYS / "certificate.pem"),
    security_cert_store=str(KEYS / "*.pem.trusted"),
)
app.setup_security()
jobs = Jobs(app, os.environ["JOBHANDLE_TEST_DATABASE_URL"])


@app.task(name="signed.greet", bind=True)
def greet(self: "Task[..., Any]", path: str, name: str, retries: int) -> dict[str, Any]:
    """Retry `retries` times, then set a message, which only a job can."""
    append_line(path, f"{name}-{self.request.retries}")
    job = current_job()
    assert job is not None
    job.set_message(f"greeting {name}")
    if self.request.retries < retries:
        raise self.retry(countdown=0 if self.request.retries else 0.1, max_retries=retries)
    return {"greeted": name, "retries": self.request.retries}


def main(path: str) -> None:
    """Submit in every way, wait for the outcomes, and print them."""
    handle = jobs.handle(username="ann")
    ids = [
        handle.submit(Job(task="signed.greet", args=[path, "job", 2])),
        handle.submit(greet.s(path, "signature", 0)),
        handle.submit(
            Job(task="signed.greet", args=[path, "later", 0], scheduled_for=timedelta(milliseconds=300))
        ),
    ]
    ends = []
    for job_id in ids:
        handle.attach(job_id)
        ends.append(
            {"status": handle.wait(40), "result": handle.get_job().result, "message": handle.job_message()}
        )
    handle.resubmit_job()
    ends.append({"status": handle.wait(40), "result": handle.result(), "message": handle.job_message()})
    # One more, whose message the test takes from its queue, which no worker consumes.
    parked = handle.submit(Job(task="signed.greet", args=[path, "parked", 0], queue="parked"))
    json.dump({"ends": ends, "parked": parked}, sys.stdout)
    jobs.close()


if __name__ == "__main__":
    main(sys.argv[1])
