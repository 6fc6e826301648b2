"""What a run ends with: written to the row, and told to Celery where Celery does not know.

May import request and below. An `Execution` is one run of a body in this process. Every way to end it is
here; the task's own code ends it through `task`, Celery's signals through `signals`.
"""

import logging
import math
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, NoReturn
from weakref import WeakValueDictionary

from billiard.exceptions import SoftTimeLimitExceeded
from celery import states
from celery.canvas import Signature
from celery.exceptions import Ignore
from celery.utils.serialization import UnpickleableExceptionWrapper

from .. import internal_errors, serialization, text
from ..broker.retry_options import record_of
from ..errors import DatabaseUnavailableError, JobHandleError, SchemaError, StopRequested
from ..models import Failure
from ..runtime import runtime_of
from ..status import JobStatus
from ..store import Run, Store
from .celery_bookkeeping import mark_revoked
from .outcomes import Outcome, Report, Verb
from .request import HARD_LIMIT, time_limit_failure

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
    outcome: Outcome | None = None
    """What it ends with, as far as that is known."""
    written: bool = False
    """The outcome is written, or the run was superseded."""
    revoked: bool = False
    """The job is Cancelled by its outcome, and the result backend knows."""
    began: float = field(default_factory=time.monotonic)
    """When its process took the message, by the monotonic clock: its time limits count from there."""
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
    else:
        settle(task, execution, "finish", execution.result)


def fail(task: Any, execution: Execution, failure: Failure) -> None:
    """End a run in Error."""
    settle(task, execution, "fail", failure)


def retry(task: Any, execution: Execution, signature: Any, why: str) -> None:
    """Send the job of a run round again, with the signature of its next message."""
    try:
        # Made where Celery publishes a retry, in the body; eagerly it publishes none.
        record = getattr(signature, "record", None) or record_of(
            runtime_of(task.app).routing, signature, task.request
        )
        queue = record.pop("queue", None)
        encoded = serialization.encode(record)
        delay = None if execution.eager else _delay(signature.options)
    except Exception as error:
        # Its arguments or its delay cannot be kept. Celery would swallow this.
        said = text.message(f"its retry cannot be kept: {error}")
        fail(task, execution, Failure("task", type(error).__name__, said))
        return
    status = settle(task, execution, "retry", encoded, queue, delay, text.message(why))
    if status is JobStatus.CANCELLED:
        _revoke(task, execution)
    elif status is JobStatus.REQUEUED and delay is None and not execution.eager:
        # At once: by this same process. With a delay the sweep sends it when its time comes.
        runtime_of(task.app).submitter.send([execution.run.job_id])


def _delay(options: Any) -> float | datetime | None:
    countdown, eta = options.get("countdown"), options.get("eta")
    if countdown is not None:
        return float(countdown) if countdown > 0 else None
    if isinstance(eta, str):
        eta = datetime.fromisoformat(eta)
    if isinstance(eta, datetime):
        # A time without a zone is UTC to Celery, whatever `timezone` says.
        return eta.replace(tzinfo=UTC) if eta.tzinfo is None else eta
    return None


def stop(task: Any, execution: Execution, request: StopRequested) -> NoReturn:
    """Write that the body has stopped, and raise what tells Celery so."""
    if settle(task, execution, "stop", text.message(str(request))):
        _revoke(task, execution)
    # Celery's own class: tools know by it that this is no error.
    raise Ignore("stopped on request")


def _revoke(task: Any, execution: Execution) -> None:
    mark_revoked(task, task.request, "revoked")
    execution.revoked = True


def reject(task: Any, execution: Execution, rejection: Any) -> None:
    """Settle a job whose body rejected its message: sent round again if it asked for that, else Error."""
    if execution.retry is not None:
        finish(task, execution)
    elif rejection.requeue:
        because = text.message(f"the task rejected its message: {rejection.reason}")
        settle(task, execution, "give_back", because, execution.run.worker)
    else:
        fail(task, execution, Failure("task", "Reject", text.message(str(rejection.reason))))


def ignore(task: Any, execution: Execution) -> None:
    """End a run whose body raised ``Ignore``: as the state says that it set before, else Finished."""
    if execution.retry is not None:
        finish(task, execution)
        return
    match execution.state:
        case (states.FAILURE, meta):
            fail(task, execution, _failure_set(meta))
        case (states.REVOKED, meta):
            settle(task, execution, "stop", "" if meta is None else text.message(_words(meta)))
        case (states.RETRY | states.REJECTED as state, _):
            said = f"the task set the state {state} and published no message"
            fail(task, execution, Failure("task", state.capitalize(), said))
        case (states.SUCCESS, meta):
            try:
                execution.result = serialization.encode(meta)
            except serialization.NotStorableError as error:
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


def settle(task: Any, execution: Execution, verb: Verb, *arguments: Any) -> Any:
    """Write the outcome of a run; return what the verb of the store returned, None if it is not written.

    What cannot be written now goes to the worker's main process (see `report_of`): here it would keep a
    place of the pool, and a time limit that is the body's, which has left, would end it.
    """
    outcome = execution.outcome = Outcome(execution.run, verb, arguments)
    job_id = outcome.run.job_id
    try:
        written = _write_in_time(task, execution, outcome)
    except Exception as error:
        if isinstance(error, JobHandleError):
            logger.warning("job %s: its outcome (%s) is to be written later: %s", job_id, verb, error)
        else:
            internal_errors.report(
                "writing an outcome", error, f"that of job {job_id} is to be written later"
            )
        return None
    execution.written = True
    if not written:
        logger.warning(
            "job %s: the outcome of attempt %s was not written: superseded", job_id, outcome.run.attempt
        )
    return written


def settle_at_last(task: Any, execution: Execution) -> None:
    """End a run that nothing has ended: a receiver is disconnected, or Celery took the task for done.

    With ``worker_deduplicate_successful_tasks`` it starts no body of a redelivered message whose task id has
    a result; that may be the job's former attempt.
    """
    if execution.outcome is not None:
        return
    if execution.returned or execution.retry is not None:
        finish(task, execution)
    elif not execution.entered:
        settle(task, execution, "give_back", "Celery did not start its body", execution.run.worker)
    else:
        fail(task, execution, Failure("system", "OutcomeUnknown", "Celery did not tell how its body ended"))


def report_of(execution: Execution, runtime: float | None) -> Any:
    """Return what the main process receives in the place of a task's runtime: that, or more."""
    unwritten = None if execution.written else execution.outcome
    revoked = "revoked" if execution.revoked else None
    return Report(runtime, unwritten, revoked) if unwritten or revoked else runtime


LONGEST_WRITE = 60.0
"""Seconds after which a database has answered a write, or its connection has failed."""


def _write_in_time(task: Any, execution: Execution, outcome: Outcome) -> Any:
    """Write an outcome, but wait no longer than half the time that is left to a hard limit.

    Raises:
        DatabaseUnavailableError: it may be written in a moment all the same; to write it twice is harmless.
    """
    store, limit = runtime_of(task.app).store, getattr(task.request, HARD_LIMIT, None)
    left = math.inf if limit is None else limit - (time.monotonic() - execution.began)
    if left > LONGEST_WRITE:
        return _write(store, outcome, execution.eager)
    future: Future[Any] = Future()

    def write() -> None:
        try:
            future.set_result(_write(store, outcome, execution.eager))
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=write, name="jobhandle-outcome", daemon=True).start()
    until = time.monotonic() + left / 2
    while True:
        try:
            return future.result(max(0.0, until - time.monotonic()))
        except SoftTimeLimitExceeded:
            continue
        except TimeoutError:
            raise DatabaseUnavailableError("no answer in the time that is left to its limit") from None


def _write(store: Store, outcome: Outcome, patient: bool) -> Any:
    pause = 0.1
    while True:
        try:
            try:
                return outcome.write(store)
            except (DatabaseUnavailableError, SchemaError) as error:
                if not patient:
                    raise
                # Eagerly: there is no other process to write it.
                logger.warning("the outcome of job %s waits for the database: %s", outcome.run.job_id, error)
                time.sleep(pause)
                pause = min(pause * 2, 5.0)
        except SoftTimeLimitExceeded:
            continue  # the limit is the body's, and the body has left
