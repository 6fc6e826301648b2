"""What a run ends with: written to the row, and told to Celery where Celery does not know.

May import request and below. An `Execution` is one run of a body in this process. Every way to end it is
here; the task's own code ends it through `task`, Celery's signals through `signals`.
"""

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from datetime import datetime
from typing import Any, NoReturn
from weakref import WeakValueDictionary

from billiard.exceptions import SoftTimeLimitExceeded
from celery import states
from celery.app.task import Context
from celery.canvas import Signature
from celery.exceptions import Ignore, TaskRevokedError
from celery.utils.serialization import UnpickleableExceptionWrapper

from . import codec, text
from .errors import DatabaseUnavailableError, JobCancelled, SchemaError
from .model import Failure
from .request import RefusedAsRevoked, time_limit_failure
from .routing import signature_record
from .service import service_of
from .status import JobStatus
from .store import Run

logger = logging.getLogger(__name__)


class ResultError(TypeError):
    """What a body returned cannot be kept as the result of a job."""


@dataclass
class Execution:
    """One run of a body in this process, from its won claim to the write that ends it."""

    run: Run
    eager: bool
    entered: bool = False
    returned: bool = False
    """The body has returned, and its result is kept: whatever fails after that is not its failure."""
    result: str = "null"
    retry: Signature | None = None
    """What ``retry(throw=False)`` asked for; it counts once the body has left."""
    state: tuple[str, Any] | None = None
    """State and meta that the body set by ``update_state``; they count if it ends by ``Ignore``."""


_running: ContextVar[Execution | None] = ContextVar("jobhandle_execution", default=None)
_executions: WeakValueDictionary[tuple[str, int], Execution] = WeakValueDictionary()


def job_is_traced() -> bool:
    """Say whether Celery traces a job's message in this context, not a plain one."""
    return _running.get() is not None


def execution_of(request: Any) -> Execution | None:
    """Return the execution of a task request; None if it is no job's, or its claim has not won."""
    current = _running.get()
    return current if current is not None and current.run.task_id == request.id else None


def execution_known_as(task_id: str, attempt: int) -> Execution | None:
    """Return an execution whose request Celery has put away already."""
    return _executions.get((task_id, attempt))


@contextmanager
def running(execution: Execution) -> Iterator[None]:
    """Make an execution that of its request while Celery traces the task."""
    _executions[execution.run.task_id, execution.run.attempt] = execution
    token = _running.set(execution)
    try:
        yield
    finally:
        _running.reset(token)


def finish(task: Any, execution: Execution, why: str = "retry") -> None:
    """End a run whose body has left: Finished, or what its ``retry(throw=False)`` asked for."""
    if execution.retry is not None:
        retry(task, execution, execution.retry, why)
        return
    store = service_of(task.app).store
    settle(execution, lambda: store.finish(execution.run, execution.result))


def fail(task: Any, execution: Execution, failure: Failure) -> None:
    """End a run in Error."""
    store = service_of(task.app).store
    settle(execution, lambda: store.fail(execution.run, failure))


def retry(task: Any, execution: Execution, signature: Any, why: str) -> None:
    """Send the job of a run round again, with the signature of its next message."""
    service, run = service_of(task.app), execution.run
    try:
        record = signature_record(signature)
        queue = record.pop("queue")
        encoded = codec.encode(record)
        delay = None if execution.eager else _delay(signature.options)
    except Exception as error:
        # Its arguments or its delay cannot be kept. Celery would swallow this.
        said = text.message(f"its retry cannot be kept: {error}")
        fail(task, execution, Failure("task", type(error).__name__, said))
        return
    because = text.message(why)
    status = settle(execution, lambda: service.store.retry(run, encoded, queue, delay, because))
    if status is JobStatus.CANCELLED:
        mark_revoked(task, "revoked")
    elif status is JobStatus.REQUEUED and delay is None and not execution.eager:
        # At once: by this same process. With a delay the sweep sends it when its time comes.
        service.submissions.send([run.job_id])


def _delay(options: Any) -> float | datetime | None:
    countdown, eta = options.get("countdown"), options.get("eta")
    if countdown is not None:
        return float(countdown) if countdown > 0 else None
    if isinstance(eta, str):
        eta = datetime.fromisoformat(eta)
    if isinstance(eta, datetime):
        return eta.astimezone() if eta.tzinfo is None else eta
    return None


def stop(task: Any, execution: Execution, request: JobCancelled) -> NoReturn:
    """Write that the body has stopped, and raise what tells Celery so."""
    store = service_of(task.app).store
    if not settle(execution, lambda: store.stop(execution.run, str(request))):
        raise Ignore("stopped; superseded")
    mark_revoked(task, "revoked")
    raise RefusedAsRevoked("stopped on request")


def reject(task: Any, execution: Execution, rejection: Any) -> None:
    """Settle a job whose body rejected its message: sent round again if it asked for that, else Error."""
    store, run = service_of(task.app).store, execution.run
    if execution.retry is not None:
        finish(task, execution)
    elif rejection.requeue:
        because = f"the task rejected its message: {rejection.reason}"
        settle(execution, lambda: store.give_back(run, because, run.worker))
    else:
        failure = Failure("task", "Reject", text.message(str(rejection.reason)))
        settle(execution, lambda: store.fail(run, failure))


def ignore(task: Any, execution: Execution) -> None:
    """End a run whose body raised ``Ignore``: as the state says that it set before, else Finished."""
    store, run = service_of(task.app).store, execution.run
    if execution.retry is not None:
        finish(task, execution)
        return
    match execution.state:
        case (states.FAILURE, meta):
            fail(task, execution, _failure_set(meta))
        case (states.REVOKED, meta):
            settle(execution, lambda: store.stop(run, "" if meta is None else text.message(_words(meta))))
        case (states.RETRY | states.REJECTED as state, _):
            said = f"the task set the state {state} and published no message"
            fail(task, execution, Failure("task", state.capitalize(), said))
        case (states.SUCCESS, meta):
            try:
                execution.result = codec.encode(meta)
            except codec.NotStorableError as error:
                fail(task, execution, Failure("task", ResultError.__name__, f"the result {error}"))
            else:
                finish(task, execution)
        case _:
            finish(task, execution)


def _failure_set(meta: Any) -> Failure:
    """Return the failure that a body has set by itself; its meta is in Celery's form, or in none."""
    if isinstance(meta, BaseException):
        return failure_of(meta, "")
    name, said = states.FAILURE, meta
    if isinstance(meta, dict):
        name, said = meta.get("exc_type") or name, meta.get("exc_message", meta)
    if isinstance(said, (list, tuple)):  # the arguments of the exception
        said = ", ".join(map(_words, said))
    words = f"the task set the state {states.FAILURE}" if said is None else _words(said)
    return Failure("task", text.storable(_words(name)), text.message(words))


def failure_of(exception: BaseException, traceback: str) -> Failure:
    """Return what is kept of an exception that a body ended with."""
    if isinstance(exception, SoftTimeLimitExceeded):
        return time_limit_failure(exception, text.traceback(traceback))
    name, said = type(exception).__name__, _words(exception)
    if isinstance(exception, UnpickleableExceptionWrapper):
        # Celery has put it in the place of what was raised.
        name = exception.exc_cls_name or name
        said = ", ".join(map(_words, exception.exc_args or ()))
    return Failure("task", text.storable(name), text.message(said), text.traceback(traceback))


def _words(value: object) -> str:
    try:
        return str(value)
    except Exception:
        return f"<{type(value).__name__} that cannot be printed>"


def mark_revoked(task: Any, reason: str) -> None:
    """Do what Celery does for a revoked task: chords end, the rest of a chain is REVOKED too."""
    request = task.request
    ignored = ignores_result(task, request)
    try:
        task.backend.mark_as_failure(
            request.id,
            TaskRevokedError(reason),
            request=request,
            store_result=not request.is_eager and (not ignored or task.store_errors_even_if_ignored),
            state=states.REVOKED,
            call_errbacks=False,
        )
    except Exception:
        # A result backend that is away must not make a cancelled job run.
        logger.exception("the result backend was not told that task %s is revoked", request.id)


def ignores_result(task: Any, request: Context) -> bool:
    """As celery.app.task.get_actual_ignore_result: what the message says goes before the task's own."""
    said = request.__dict__.get("ignore_result")
    return bool(task.ignore_result if said is None else said)


def settle(execution: Execution, write: Callable[[], Any]) -> Any:
    """Write the outcome of an execution until it is written or superseded; return what the verb returned."""
    written = until_written(write)
    if not written:
        run = execution.run
        logger.warning(
            "job %s: the outcome of attempt %s was not written: superseded", run.job_id, run.attempt
        )
    return written


def until_written(write: Callable[[], Any]) -> Any:
    """Call a verb of the store until the database has answered.

    An outcome that is not written would be lost with this process, and the job taken for lost; so a body's
    process waits. Its worker's lease ends meanwhile for everybody or for nobody.
    """
    pause = 0.1
    while True:
        try:
            try:
                return write()
            except (DatabaseUnavailableError, SchemaError) as error:
                logger.warning("the outcome of a job waits for the database: %s", error)
                time.sleep(pause)
                pause = min(pause * 2, 5.0)
        except SoftTimeLimitExceeded:
            continue  # the limit is the body's, and the body has left
