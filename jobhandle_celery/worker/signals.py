"""Celery's signals of a body that has ended, to the store. May import task and below.

Receivers are module-level functions (Celery holds them weakly) and act only where the request carries an
execution, that is in the process whose claim won; main processes say what they know in `request`. Celery
swallows what a receiver raises, so each writes until it is written or superseded.
"""

import logging
from typing import Any

from celery import signals

from .. import internal_errors, text
from ..broker.headers import job_of
from ..errors import shown
from ..models import Failure
from ..runtime import DeferredWrite, runtime_of
from . import execution
from .execution import ResultError, execution_known_as, execution_of
from .executor import keep

logger = logging.getLogger(__name__)

_reporting = internal_errors.reporting(
    "a receiver of Celery's signals", "the job's row is settled as a stray's"
)


def connect() -> None:
    """Connect the receivers of a worker's main process; once is enough, however many apps there are.

    Strongly, as below: a weak connection leaves something behind at each call.
    """
    signals.task_unknown.connect(on_unknown, weak=False)


def connect_runs() -> None:
    """Connect the receivers of a process that runs jobs.

    Before the first of them, for each receiver costs every plain task some time.
    """
    signals.task_success.connect(on_success, weak=False)
    signals.task_failure.connect(on_failure, weak=False)
    signals.task_retry.connect(on_retry, weak=False)
    signals.task_internal_error.connect(on_internal_error, weak=False)


@_reporting
def on_success(sender: Any = None, result: Any = None, **_: Any) -> None:
    """A body has returned: Finished, or what its ``retry(throw=False)`` asked for."""
    current = execution_of(sender.request)
    if current is None:
        return
    try:
        if not current.returned:
            keep(sender, current, result)  # of a body that was patched in past its wrapper
    except ResultError as error:
        execution.fail(sender, current, execution.failure_of(error, ""))
    else:
        execution.finish(sender, current)


@_reporting
def on_failure(sender: Any = None, exception: Any = None, einfo: Any = None, **_: Any) -> None:
    """A body has raised; what it asked for by ``retry(throw=False)`` before that counts all the same."""
    current = execution_of(sender.request)
    if current is None:
        return
    if current.retry is not None:
        execution.finish(sender, current, f"retry: {shown(exception)}")
    elif current.returned:
        _finish_all_the_same(sender, current, exception)
    else:
        execution.fail(sender, current, execution.failure_of(exception, _traceback(einfo)))


@_reporting
def on_retry(sender: Any = None, request: Any = None, reason: Any = None, **_: Any) -> None:
    """A body has left by ``retry()``, and Celery has stored RETRY: now the row may move on."""
    current = execution_of(request)
    if current is None or reason is None:
        return
    if reason.sig is None:
        # Raised by hand, not by Task.retry: Celery publishes nothing for it either.
        said = f"a Retry that Task.retry did not make starts nothing: {reason}"
        execution.fail(sender, current, Failure("task", "Retry", text.message(said)))
    else:
        why = f"retry: {shown(reason.exc)}" if reason.exc is not None else "retry"
        execution.retry(sender, current, reason.sig, why)


@_reporting
def on_internal_error(
    sender: Any = None,
    task_id: str = "",
    request: Any = None,
    exception: Any = None,
    einfo: Any = None,
    **_: Any,
) -> None:
    """Celery, or a hook of the task's, failed outside the body."""
    try:
        job = job_of(request)
    except ValueError:
        return
    current = None if job is None else execution_known_as(task_id, job[1])
    if current is not None and current.returned:
        _finish_all_the_same(sender, current, exception)
    elif current is not None:
        name = text.storable(type(exception).__name__)
        said = text.message(f"internal error outside the task's body: {exception}")
        execution.fail(sender, current, Failure("system", name, said, _traceback(einfo)))


@_reporting
def on_unknown(sender: Any = None, message: Any = None, **_: Any) -> None:
    """A worker has dropped a message whose task it does not know: the job goes back, to be sent again."""
    try:
        job = job_of(message.headers)
    except ValueError:
        return
    if job is not None:
        runtime, me = runtime_of(sender.app), runtime_of(sender.app).me()
        task_id, task = str(message.headers.get("id")), str(message.headers.get("task"))
        runtime.ends.put(
            DeferredWrite(task_id, lambda: runtime.store.send_back(job[0], task_id, job[1], task, me))
        )


def _finish_all_the_same(task: Any, current: execution.Execution, error: Any) -> None:
    # A result backend that is away, say. The row is the truth, and the body has returned.
    logger.warning("job %s is Finished, though Celery failed after it: %r", current.run.job_id, error)
    execution.finish(task, current)


def _traceback(einfo: Any) -> str:
    return text.traceback(str(getattr(einfo, "traceback", "") or ""))
