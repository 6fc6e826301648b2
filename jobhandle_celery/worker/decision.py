"""Step 3 of running a job: the outcome of a run, from how its body ended and what it requested."""

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from billiard.exceptions import SoftTimeLimitExceeded, TimeLimitExceeded
from celery import states
from celery.exceptions import Ignore, Reject, Retry
from celery.utils.serialization import UnpickleableExceptionWrapper

from .. import serialization
from ..broker.task_signatures import retry_record
from ..errors import StopRequested, shown
from ..models import Failure
from ..runtime import runtime_of
from ..serialization import MESSAGE_LIMIT, clip_message, clip_traceback, storable
from ..store import Run
from .current_run import CurrentRun, ResultError
from .outcomes import Cancelled, Failed, Finished, GivenBack, Outcome, Retried


def decide(task: Any, current: CurrentRun, outside: BaseException | None) -> Outcome:
    """Return the outcome of a run, from how its body ended and what it requested before."""
    run, error = current.run, current.error
    if current.unstartable is not None:
        name = type(current.unstartable).__name__
        return Failed(run, Failure("system", name, clip_message(str(current.unstartable))))
    cause: Any = error.exc if isinstance(error, Retry) else error
    # A retry is decided once Celery has stored RETRY and called ``on_retry``: then its signal concludes it.
    decided = current.returned or isinstance(cause, StopRequested) or isinstance(error, (Ignore, Reject))
    if outside is not None and not decided:
        message = clip_message(f"internal error outside the task's body: {outside}")
        name, traceback = storable(type(outside).__name__), clip_traceback(current.traceback)
        return Failed(run, Failure("system", name, message, traceback))
    if isinstance(cause, StopRequested):
        return Cancelled(run, clip_message(str(cause)))
    signature: Any = getattr(error, "sig", None) if isinstance(error, Retry) else current.retry
    if signature is not None:
        by_itself = cause is None or isinstance(cause, (Ignore, Reject))
        return _retried(task, current, signature, "retry" if by_itself else f"retry: {shown(cause)}")
    match error:
        case Retry():
            # Raised by hand, not by Task.retry: Celery publishes nothing for it either.
            message = f"a Retry that Task.retry did not make starts nothing: {error}"
            return Failed(run, Failure("task", "Retry", clip_message(message)))
        case Ignore():
            return _ignored(current)
        case Reject():
            return _rejected(run, error)
        case None if not (current.entered or current.returned):
            # With `worker_deduplicate_successful_tasks` Celery starts no body of a redelivered message whose
            # task id has a result; that may be the job's former attempt.
            return GivenBack(run, "Celery did not start its body")
        case None:
            return Finished(run, current.result, ignored=current.ignored)
    return Failed(run, failure_of(error, current.traceback))


def _rejected(run: Run, rejection: Any) -> Outcome:
    if rejection.requeue:
        return GivenBack(run, clip_message(f"the task rejected its message: {rejection.reason}"))
    return Failed(run, Failure("task", "Reject", clip_message(str(rejection.reason))))


def _ignored(current: CurrentRun) -> Outcome:
    """Return the outcome of a body that raised ``Ignore``, by the state that it set before."""
    run = current.run
    match current.state:
        case (states.FAILURE, meta):
            return Failed(run, failure_of_state(meta))
        case (states.REVOKED, meta):
            return Cancelled(run, "" if meta is None else clip_message(printed(meta)))
        case (states.RETRY | states.REJECTED as state, _):
            message = f"the task set the state {state} and published no message"
            return Failed(run, Failure("task", state.capitalize(), message))
        case (states.SUCCESS, meta):
            try:
                return Finished(run, serialization.encode(meta))
            except serialization.NotStorableError as error:
                return Failed(run, Failure("task", ResultError.__name__, f"the result {error}"))
    return Finished(run, current.result, ignored=current.ignored)


def _retried(task: Any, current: CurrentRun, signature: Any, reason: str) -> Outcome:
    try:
        # Made where Celery publishes a retry, in the body; eagerly it publishes none.
        record = getattr(signature, "record", None) or retry_record(
            runtime_of(task.app).routing, signature, getattr(signature, "request", current.context)
        )
        queue = record.pop("queue", None)
        delay = None if current.context.is_eager else _delay(signature.options)
        return Retried(current.run, serialization.encode(record), queue, delay, clip_message(reason))
    except Exception as error:
        # Its arguments or its delay cannot be kept.
        message = clip_message(f"its retry cannot be kept: {error}")
        return Failed(current.run, Failure("task", type(error).__name__, message))


def _delay(options: Any) -> float | datetime | None:
    countdown, eta = options.get("countdown"), options.get("eta")
    if countdown is not None:
        return float(countdown) if countdown > 0 else None
    if isinstance(eta, str):
        eta = datetime.fromisoformat(eta)
    if isinstance(eta, datetime):
        # Celery reads a time without a zone as UTC, regardless of `timezone`.
        return eta.replace(tzinfo=UTC) if eta.tzinfo is None else eta
    return None


def failure_of(error: BaseException, traceback: str = "") -> Failure:
    """Return the failure of a task whose own code raised this error."""
    if isinstance(error, SoftTimeLimitExceeded):
        return time_limit_failure(error, clip_traceback(traceback))
    name, message = type(error).__name__, printed(error)
    module, place, args = type(error).__module__, type(error).__qualname__, error.args
    if isinstance(error, UnpickleableExceptionWrapper):
        # Celery has replaced the raised error by it.
        name = error.exc_cls_name or name
        message = ", ".join(map(printed, error.exc_args or ()))
        module, place, args = error.exc_module or "", name, error.exc_args or ()
    return Failure(
        "task",
        storable(name),
        clip_message(message),
        clip_traceback(traceback),
        storable(f"{module}:{place}"),
        _arguments(args),
    )


def failure_of_state(meta: Any) -> Failure:
    """Return the failure of a body that set its state to FAILURE; `meta` is in Celery's form, or any."""
    if isinstance(meta, BaseException):
        return failure_of(meta)
    name, message, path, args = states.FAILURE, meta, "", None
    if isinstance(meta, dict):
        name, message = meta.get("exc_type") or name, meta.get("exc_message", meta)
        if meta.get("exc_module"):
            path = storable(f"{printed(meta['exc_module'])}:{printed(name)}")
    if isinstance(message, (list, tuple)):
        args = _arguments(message)
        message = ", ".join(map(printed, message))
    words = f"the task set the state {states.FAILURE}" if message is None else printed(message)
    return Failure("task", storable(printed(name)), clip_message(words), path=path, args=args)


def _arguments(args: Sequence[Any]) -> list[Any] | None:
    """Return the arguments of an exception as JSON gives them back; None if they cannot be kept."""
    try:
        encoded = serialization.encode(args)
        kept: list[Any] = serialization.decode(encoded)
    except serialization.NotStorableError:
        return None
    return kept if len(encoded) <= MESSAGE_LIMIT and not serialization.holds_nul(encoded) else None


def time_limit_failure(error: SoftTimeLimitExceeded | TimeLimitExceeded, traceback: str = "") -> Failure:
    """Return the failure of a body that a time limit ended."""
    soft = isinstance(error, SoftTimeLimitExceeded)
    seconds = error.args[0] if error.args and isinstance(error.args[0], (int, float)) else None
    limit = f"{'soft ' if soft else ''}time limit" + (f" of {seconds:g} s" if seconds else "")
    message = f"the {limit} was exceeded"
    return Failure("system", type(error).__name__, message, traceback, args=_arguments(error.args))


def describe_lost_process(error: BaseException) -> str:
    """Return why a job's process is gone, from the error by which the main process learned it."""
    if isinstance(error, SystemExit):
        return f"the process that ran it was lost: it exited with status {error.code}"
    if isinstance(error, KeyboardInterrupt):
        return "the process that ran it was lost: it was interrupted"
    return f"the process that ran it was lost: {error}"


def printed(value: object) -> str:
    """Return a value as text, whatever its ``__str__`` does."""
    try:
        return str(value)
    except Exception:
        return f"<{type(value).__name__} that cannot be printed>"
