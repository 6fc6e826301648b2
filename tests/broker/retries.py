"""Takes a message from its queue, and retries its job or its plain task, as a worker does."""

import uuid
from contextlib import contextmanager
from typing import Any

from jobhandle_celery.store import Run
from jobhandle_celery.worker.current_run import CurrentRun
from jobhandle_celery.worker.executor import conclude
from tests.broker.messages import received
from tests.broker.options import QUEUES

ARGS = (["a", {"b": [[1]]}], 2)


def taken(app: Any) -> Any:
    """The only message in the queues, which is taken out."""
    (message,) = received(app, *(queue.name for queue in QUEUES))
    return message


@contextmanager
def handled(task: Any, message: Any) -> Any:
    """Make a message the request of a task, as a worker does."""
    properties, info = message.properties, message.delivery_info
    context = {
        **message.headers,
        "args": list(ARGS),
        "kwargs": {},
        "called_directly": False,
        "reply_to": properties.get("reply_to"),
        "correlation_id": properties.get("correlation_id"),
        "delivery_info": {
            "exchange": info["exchange"],
            "routing_key": info["routing_key"],
            "priority": properties.get("priority"),
            "redelivered": False,
        },
    }
    task.push_request(**context)
    try:
        yield task.request
    finally:
        task.pop_request()


def retry_job(app: Any, message: Any, **given: Any) -> None:
    """Retry the job of a message as a worker does, which publishes the next one."""
    task, runtime = app.tasks["tests.add"], app.jobs._runtime
    header = message.headers["jobhandle"]
    run = Run(
        header["id"], message.headers["id"], header["attempt"], str(uuid.uuid4()), runtime.eager_worker()
    )
    runtime.store.runs.claim(run, task.name)
    with handled(task, message) as request:
        signature = task.signature_from_request(request, retries=1, **given)
        conclude(task, CurrentRun(run, request, retry=signature))


def retry_plain(app: Any, message: Any, **given: Any) -> None:
    task = app.tasks["tests.add"]
    with handled(task, message) as request:
        signature = task.signature_from_request(request, retries=1, **given)
    signature.apply_async()


def stored(app: Any, given: object) -> int:
    """Store a job as if its process had died before publishing it."""
    runtime = app.jobs._runtime
    prepared = runtime.submitter.preparer.prepare([given], None, None)
    (submitted,) = runtime.store.inserter.submit(prepared.jobs)
    job_id: int = submitted.job_id
    return job_id
