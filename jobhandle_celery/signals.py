"""Celery's signals of a body that has ended, to the store. May import task and below.

Receivers are module-level functions (Celery holds them weakly) and act only where the request carries an
execution, that is in the process whose claim won; main processes say what they know in `request`. Celery
swallows what a receiver raises, so each writes until it is written or superseded.
"""

from datetime import datetime
from typing import Any

from billiard.exceptions import SoftTimeLimitExceeded
from celery import signals
from celery.utils.serialization import UnpickleableExceptionWrapper

from . import codec, text
from .dispatch import signature_record
from .model import Failure
from .request import job_of, time_limit_failure
from .service import End, service_of
from .status import JobStatus
from .task import Execution, execution_known_as, execution_of, mark_revoked, settle


def connect() -> None:
    """Connect the receivers; once is enough, however many apps there are."""
    signals.task_success.connect(on_success)
    signals.task_failure.connect(on_failure)
    signals.task_retry.connect(on_retry)
    signals.task_internal_error.connect(on_internal_error)
    signals.task_unknown.connect(on_unknown)


def on_success(sender: Any = None, **_: Any) -> None:
    """A body has returned: Finished, or what its ``retry(throw=False)`` asked for."""
    execution = execution_of(sender.request)
    if execution is None:
        return
    if execution.retry is not None:
        _retry(sender, execution, execution.retry, "retry")
        return
    store = service_of(sender.app).store
    settle(execution, lambda: store.finish(execution.run, execution.result))


def on_failure(sender: Any = None, exception: Any = None, einfo: Any = None, **_: Any) -> None:
    """A body has raised."""
    execution = execution_of(sender.request)
    if execution is None:
        return
    if execution.retry is not None:
        _retry(sender, execution, execution.retry, f"retry: {exception!r}")
        return
    _fail(sender, execution, _failure(exception, str(getattr(einfo, "traceback", "") or "")))


def on_retry(sender: Any = None, request: Any = None, reason: Any = None, **_: Any) -> None:
    """A body has left by ``retry()``, and Celery has stored RETRY: now the row may move on."""
    execution = execution_of(request)
    if execution is None or reason is None:
        return
    if reason.sig is None:
        # Raised by hand, not by Task.retry: Celery publishes nothing for it either.
        said = f"a Retry that Task.retry did not make starts nothing: {reason}"
        _fail(sender, execution, Failure("task", "Retry", text.message(said)))
    else:
        why = f"retry: {reason.exc!r}" if reason.exc is not None else "retry"
        _retry(sender, execution, reason.sig, why)


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
    execution = None if job is None else execution_known_as(task_id, job[1])
    if execution is not None:
        failure = Failure(
            "system",
            text.storable(type(exception).__name__),
            text.message(f"internal error outside the task's body: {exception}"),
            text.traceback(str(getattr(einfo, "traceback", "") or "")),
        )
        _fail(sender, execution, failure)


def on_unknown(sender: Any = None, message: Any = None, **_: Any) -> None:
    """A worker has dropped a message whose task it does not know: the job goes back, to be sent again."""
    try:
        job = job_of(message.headers)
    except ValueError:
        return
    if job is not None:
        service, task_id = service_of(sender.app), str(message.headers.get("id"))
        me = service.me()
        service.ends.put(End(task_id, lambda: service.store.send_back(job[0], task_id, job[1], me)))


def _failure(exception: BaseException, traceback: str) -> Failure:
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


def _fail(task: Any, execution: Execution, failure: Failure) -> None:
    store = service_of(task.app).store
    settle(execution, lambda: store.fail(execution.run, failure))


def _retry(task: Any, execution: Execution, signature: Any, why: str) -> None:
    service, run = service_of(task.app), execution.run
    try:
        record = signature_record(signature)
        queue = record.pop("queue")
        encoded = codec.encode(record)
        delay = None if execution.eager else _delay(signature.options)
    except Exception as error:
        # Its arguments or its delay cannot be kept. Celery would swallow this.
        said = text.message(f"its retry cannot be kept: {error}")
        _fail(task, execution, Failure("task", type(error).__name__, said))
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
