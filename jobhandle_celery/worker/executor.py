"""A job's body, from the claim before it to what its own code ends with; `current_job`.

May import execution and below.
"""

import functools
import logging
import signal
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

from billiard.exceptions import SoftTimeLimitExceeded
from celery._state import get_current_task
from celery.exceptions import Ignore, Reject, Retry, WorkerShutdown, WorkerTerminate

from .. import internal_errors, serialization
from ..broker.headers import job_of_context, show_headers
from ..errors import ConfigurationError, DatabaseUnavailableError, JobHandleError, StopRequested
from ..handle import JobHandle
from ..runtime import runtime_of
from ..store import ClaimRejected, Refusal, Run
from . import execution
from .celery_bookkeeping import ignores_result, mark_revoked
from .execution import Execution, ResultError, execution_of, job_is_traced
from .outcomes import Outcome, Report

logger = logging.getLogger(__name__)

CLAIM_PATIENCE = 30.0
"""Seconds for which a claim asks a database that is away; then the sweep sends another message."""

FOREIGN_EVERY = 60.0
"""Seconds between two log messages that a task's jobs are another service's."""

_foreign_reported: dict[str, float] = {}

_REVOKED = {Refusal.CANCELLED, Refusal.EXPIRED}


def current_job() -> JobHandle | None:
    """Return a handle of the job that this code is the body of; None in a task called without one."""
    task: Any = get_current_task()
    current = None if task is None else execution_of(task.request)
    return None if current is None else runtime_of(task.app).handle(run=current.run)


def asked_to_stop(task: Any, current: Execution) -> bool:
    """Say whether a job was asked to stop; not, while the database is away: that ends no work."""
    try:
        return runtime_of(task.app).store.standing(current.run)[1]
    except DatabaseUnavailableError as error:
        logger.warning("whether job %s should stop is not known: %s", current.run.job_id, error)
        return False


def claim(task: Any) -> Execution:
    """Win the row of the current request, which is a job's.

    Raises:
        Ignore: the body must not run. Celery drops the message, and stores and sends nothing.
    """
    request, began = task.request, time.monotonic()
    try:
        job = job_of_context(request)
        if job is None:
            raise ValueError("no job's request")
        runtime = runtime_of(task.app)
    except (ValueError, ConfigurationError) as error:
        logger.error("task %s[%s] was not run: %s", task.name, request.id, error)
        raise Ignore(str(error)) from None
    if runtime.worker is None and not request.is_eager:
        # Jobs(app) was made after this worker had started: nobody would renew a lease for the claim.
        logger.error("job %s was not started: the worker was started before its app had Jobs", job[0])
        raise Ignore("this worker has no lease")
    me = runtime.myself_alone() if request.is_eager else runtime.me()
    run = Run(job[0], str(request.id), job[1], str(uuid.uuid4()), me)
    try:
        refused = _claim(runtime.store, run, task.name)
    except SoftTimeLimitExceeded:
        # While it waited for the database: the body has not begun, so this is not its failure.
        raise _abandoned(run) from None
    if refused is not None:
        _refuse(task, run, refused)
    return Execution(run, eager=bool(request.is_eager), began=began)


def _claim(store: Any, run: Run, task: str) -> ClaimRejected | None:
    deadline, pause = time.monotonic() + CLAIM_PATIENCE, 0.1
    unanswered = False
    while True:
        try:
            claimed: Run | ClaimRejected = store.claim(run, task)
        except DatabaseUnavailableError as error:
            unanswered = True
            logger.warning("job %s waits to start: %s", run.job_id, error)
        except JobHandleError as error:
            logger.error("job %s was not started: %s", run.job_id, error)
            raise _abandoned(run) from None
        except Exception as error:
            internal_errors.report("claiming a job", error, f"job {run.job_id} waits for another message")
            raise _abandoned(run) from None
        else:
            if isinstance(claimed, Run):
                return None
            if claimed.reason is not Refusal.NO_LEASE:
                return claimed
        if time.monotonic() >= deadline:
            if unanswered:
                raise _abandoned(run)
            return ClaimRejected(Refusal.NO_LEASE)
        time.sleep(pause)
        pause = min(pause * 2, 2.0)


class ClaimRefused(Ignore):
    """A message starts nothing; `report` is what the main process is to do about it."""

    def __init__(self, reason: str, report: Report | None = None) -> None:
        super().__init__(reason)
        self.report = report


def _abandoned(run: Run) -> ClaimRefused:
    """Return the refusal of a claim that was not answered, and that may have been written all the same."""
    given_back = Outcome(run, "give_back", ("its claim was not answered", run.worker))
    return ClaimRefused("the database did not answer; the job is sent again", Report(None, given_back))


def _may_tell(task: Any, run: Run) -> bool:
    try:
        return runtime_of(task.app).store.tell_revoked(run.job_id, run.task_id)
    except JobHandleError as error:
        logger.warning("the result backend is not told that job %s is revoked: %s", run.job_id, error)
        return False


def _refuse(task: Any, run: Run, refused: ClaimRejected) -> None:
    reason = refused.reason
    if reason in _REVOKED and _may_tell(task, run):
        revoked = "expired" if reason is Refusal.EXPIRED else "revoked"
        mark_revoked(task, task.request, revoked)
        raise ClaimRefused(reason.value, Report(None, revoked=revoked))
    if refused.foreign:
        _report_foreign(task, run, refused.foreign)
    # A duplicate leaves no trace: whatever is stored under this task id is another message's.
    raise Ignore(f"job {run.job_id} is not started by this message: {reason.value}")


def _report_foreign(task: Any, run: Run, where: str) -> None:
    """Log that another service's message was dropped here, once a minute for each task."""
    now = time.monotonic()
    if now - _foreign_reported.get(task.name, -FOREIGN_EVERY) < FOREIGN_EVERY:
        return
    _foreign_reported[task.name] = now
    delivered = getattr(task.request, "delivery_info", None) or {}
    logger.error(
        "job %s (%s[%s]) is not in namespace %s, it is %s: its message from queue %s was dropped here; if "
        "two services share that queue, give each its own (task_default_queue)",
        run.job_id,
        task.name,
        run.task_id,
        runtime_of(task.app).settings.namespace,
        where,
        delivered.get("routing_key"),
    )


class BodyExitedError(RuntimeError):
    """A body raised what is no Exception, and so would have ended more than itself."""


def _is_from_outside(error: BaseException) -> bool:
    """Say whether it was raised into the body: by a signal, by the worker, by a pool ending a greenlet."""
    if isinstance(error, (WorkerShutdown, WorkerTerminate)):
        return True
    if isinstance(error, KeyboardInterrupt):
        # Python raises it for Ctrl-C in the main thread alone.
        return threading.current_thread() is threading.main_thread()
    if isinstance(error, SystemExit):
        # billiard's handler in a pool's child exits with this for the signal that it got.
        return isinstance(error.code, int) and -256 < error.code < -256 + signal.NSIG
    return type(error).__module__.partition(".")[0] in ("gevent", "greenlet", "eventlet")


class WhileTraced:
    """An attribute of a task that is wrapped while a job of it is traced, and else what the task's class has.

    Celery reads bodies and hooks from the task, so a plain message meets no wrapper, and neither does
    code that reads or patches the task.
    """

    def __init__(self, wrap: Callable[[Any, Callable[..., Any]], Callable[..., Any]]) -> None:
        self._wrap = wrap

    def __set_name__(self, owner: type, name: str) -> None:
        self._owner, self._name = owner, name

    def __get__(self, task: Any, owner: Any = None) -> Any:
        if task is None:
            return self._of_class(owner)
        own = task.__dict__.get(self._name)
        plain = getattr(super(self._owner, task), self._name) if own is None else own
        return self._wrap(task, plain) if job_is_traced() else plain

    def __set__(self, task: Any, value: Any) -> None:
        task.__dict__[self._name] = value

    def __delete__(self, task: Any) -> None:
        del task.__dict__[self._name]

    def _of_class(self, owner: Any) -> Any:
        # Tracers replace ``type(task).__call__`` by a wrapper of it.
        @functools.wraps(getattr(super(self._owner, owner), self._name))
        def of_class(task: Any, /, *args: Any, **kwargs: Any) -> Any:
            return self.__get__(task)(*args, **kwargs)

        return of_class


def guarded(task: Any, body: Callable[..., Any]) -> Callable[..., Any]:
    """Return a body that is performed as its task's job while that is traced, and just called otherwise."""

    @functools.wraps(body)
    def guarded(*args: Any, **kwargs: Any) -> Any:
        current = execution_of(task.request)
        if current is None or current.entered:
            return body(*args, **kwargs)
        return _perform(task, current, body, args, kwargs)

    return guarded


def hooked(task: Any, hook: Callable[..., Any]) -> Callable[..., Any]:
    """Return a task's own `before_start`, which may end a job as its body may."""

    def before_start(*args: Any) -> None:
        current = execution_of(task.request)
        with nullcontext() if current is None else endings(task, current):
            hook(*args)

    return before_start


def _perform(task: Any, current: Execution, body: Callable[..., Any], args: Any, kwargs: Any) -> Any:
    current.entered = True
    if current.eager:
        show_headers(task.request)
    with endings(task, current):
        returned = body(*args, **kwargs)
    keep(task, current, returned)
    return returned


def keep(task: Any, current: Execution, returned: Any) -> None:
    """Keep what a body has returned as the result of its job.

    Raises:
        ResultError: it is no JSON.
    """
    try:
        if not ignores_result(task, task.request):
            current.result = serialization.encode(returned)
        current.returned = True
    except serialization.NotStorableError as error:
        raise ResultError(f"the result {error}") from None


@contextmanager
def endings(task: Any, current: Execution) -> Iterator[None]:
    """Settle what the task's own code may end with that Celery's signals do not tell of."""
    try:
        yield
    except StopRequested as stop:
        execution.stop(task, current, stop)
    except Retry as retry:
        cause: object = retry.exc
        if isinstance(cause, StopRequested):
            execution.stop(task, current, cause)
        raise
    except Reject as rejection:
        execution.reject(task, current, rejection)
        raise
    except Ignore:
        # The task has recorded what there is to record.
        execution.ignore(task, current)
        raise
    except Exception:
        raise
    except BaseException as error:
        if _is_from_outside(error):
            raise
        # sys.exit(), asyncio.CancelledError: from a pool of threads nobody would ever hear of it.
        raise BodyExitedError(f"the body ended itself by {type(error).__name__}: {error}") from error
