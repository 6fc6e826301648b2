"""Translates the row of a job into the metadata by which Celery's result backends describe a task."""

import builtins
import sys
from functools import lru_cache
from typing import Any

from billiard import exceptions as billiard_errors
from celery import exceptions as celery_errors
from celery import states
from celery.exceptions import ChordError, Retry, TaskRevokedError

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
"""The custom state that Celery's documentation uses for the progress of a task."""


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
            meta |= _failure_of(job)
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


def _failure_of(job: JobRecord) -> dict[str, Any]:
    failure = job.error or Failure("task", "Error", job.message)
    return {"result": exception_of(job.id, failure), "traceback": failure.traceback or None}


def failure_of_member(node_id: int, member: JobRecord, *, in_header: bool) -> dict[str, Any]:
    """Return the failure of a chain or chord as Celery's result backends describe it.

    It is the exception of the member that failed; if that member is in the header of a chord, Celery's
    `ChordError`, with that exception as its cause.
    """
    meta = _failure_of(member)
    if in_header:
        cause = meta["result"]
        text = f"Dependency {member.task_id} raised {meta['result']!r}"
        chord = Failure("system", ChordError.__name__, text, meta["traceback"] or "")
        meta["result"] = exception_of(node_id, chord)
        meta["result"].__cause__ = cause
    return meta


def exception_of(job_id: int, failure: Failure) -> JobFailedError:
    """Return the exception of a failed job: an instance of `JobFailedError` and of the class that was raised.

    As in Celery's result backends, this process must have imported the module of that class, and the class
    is called with the arguments of the raised exception. If it cannot be made, the exception is a
    `JobFailedError` alone.
    """
    args = (failure.message,) if failure.args is None else failure.args
    try:
        kind = _class_of(failure)
        error: JobFailedError = _both(kind).__new__(_both(kind), *args)
        kind.__init__(error, *args)
        error.job_id, error.failure = job_id, failure
    except Exception:  # the class is the user's: it may not be derivable, or need other arguments
        return JobFailedError(job_id, failure)
    return error


def _class_of(failure: Failure) -> Any:
    """Return the class of an exception.

    Raises:
        LookupError: it is not imported, or it is not an `Exception`.
    """
    if failure.path:
        module, _, names = failure.path.partition(":")
        places = [(sys.modules.get(module), names)]
    else:
        places = [(module, failure.type) for module in (builtins, celery_errors, billiard_errors)]
    for place, names in places:
        found: Any = place
        for name in names.split("."):
            found = getattr(found, name, None)
        if isinstance(found, type) and issubclass(found, Exception):
            return found
    raise LookupError(failure.type)


@lru_cache(maxsize=1000)
def _both(kind: type[Exception]) -> Any:
    own = {"__module__": kind.__module__, "__qualname__": kind.__qualname__, "__reduce__": _reduced}
    metaclass: Any = type(kind)
    return metaclass(kind.__name__, (JobFailedError, kind), own)


def _reduced(error: Any) -> tuple[Any, ...]:
    return exception_of, (error.job_id, error.failure)
