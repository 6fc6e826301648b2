"""Translates the row of a job into what Celery's result backends say of a task."""

import builtins
from typing import Any

from billiard import exceptions as billiard_errors
from celery import exceptions as celery_errors
from celery import states
from celery.exceptions import Retry, TaskRevokedError

from ..errors import JobFailedError
from ..models import Failure, JobRecord
from ..status import JobStatus

STATES = {
    JobStatus.SUBMITTED: states.PENDING,
    JobStatus.WAITING: states.PENDING,
    JobStatus.QUEUED: states.PENDING,
    JobStatus.RUNNING: states.STARTED,
    JobStatus.REQUEUED: states.RETRY,
    JobStatus.RESUBMITTED: states.PENDING,
    JobStatus.FINISHED: states.SUCCESS,
    JobStatus.ERROR: states.FAILURE,
    JobStatus.CANCELLED: states.REVOKED,
}

PROGRESS = "PROGRESS"
"""The custom state by which Celery's documentation shows how far a task is."""


def meta_of(job: JobRecord) -> dict[str, Any]:
    """Return a job as Celery's result backends describe a task; a failure is an exception."""
    args, kwargs = job.shown_arguments
    meta: dict[str, Any] = {
        "task_id": job.task_id,
        "status": STATES[job.status],
        "result": None,
        "traceback": None,
        "children": [],
        "date_done": job.finished,
        "name": job.task,
        "args": list(args),
        "kwargs": dict(kwargs),
        "worker": job.worker,
        "queue": job.queue,
    }
    match job.status:
        case JobStatus.FINISHED:
            meta["result"] = job.result
        case JobStatus.ERROR:
            failure = job.error or Failure("task", "Error", job.message)
            meta |= {"result": exception_of(job.id, failure), "traceback": failure.traceback or None}
        case JobStatus.CANCELLED:
            meta["result"] = TaskRevokedError(job.message or "revoked")
        case JobStatus.REQUEUED:
            meta["result"] = Retry(job.message)
        case JobStatus.RUNNING if job.progress is not None:
            meta["status"] = PROGRESS
            meta["result"] = {
                "current": job.progress.current,
                "total": job.progress.total,
                "message": job.message,
            }
    return meta


def exception_of(job_id: int, failure: Failure) -> JobFailedError:
    """Return the exception of a failed job: a `JobFailedError`, and of a standard class what that is, too.

    A row has the name of an exception's class, not its module; so that of an own class is `JobFailedError`
    alone.
    """
    for module in (builtins, celery_errors, billiard_errors):
        kind = getattr(module, failure.type, None)
        if isinstance(kind, type) and issubclass(kind, Exception):
            try:
                error: JobFailedError = _both(kind)(job_id, failure)
                return error
            except TypeError:  # a class whose objects need more than a message
                break
    return JobFailedError(job_id, failure)


def _both(kind: type[Exception]) -> Any:
    return type(kind.__name__, (JobFailedError, kind), _OF_BOTH)


def _printed(error: JobFailedError) -> str:
    return Exception.__str__(error)  # some classes print their arguments otherwise


def _reduced(error: Any) -> tuple[Any, ...]:
    return exception_of, (error.job_id, error.failure)


_OF_BOTH = {"__module__": __name__, "__reduce__": _reduced, "__str__": _printed}
