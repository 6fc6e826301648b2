"""What makes a Celery task a job's task: the claim before the body, the stop, the retry; `current_job`.

May import request and below. Tasks stay ordinary Celery tasks: `seal` puts `JobTask` outermost in the class
of every task that is registered with the app, now or later, however it was defined.
"""

import functools
import logging
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, NoReturn

from celery import Celery, states
from celery._state import get_current_task
from celery.app.registry import TaskRegistry
from celery.app.task import Context
from celery.app.trace import task_has_custom
from celery.canvas import Signature
from celery.exceptions import Ignore, Reject, Retry, TaskRevokedError
from celery.utils.imports import symbol_by_name

from . import codec, text
from .dispatch import job_headers
from .errors import ApiUsageError, DatabaseUnavailableError, JobCancelled, JobHandleError
from .handle import JobHandle
from .model import Failure
from .request import ClaimAbandoned, JobRequest, RefusedAsRevoked, job_of_context
from .service import service_of
from .store import Refusal, Refused, Run

logger = logging.getLogger(__name__)

CLAIM_PATIENCE = 30.0
"""Seconds for which a claim asks a database that is away; then the sweep sends another message."""

_REVOKED = {Refusal.CANCELLED, Refusal.EXPIRED}


class ResultError(TypeError):
    """What a body returned cannot be kept as the result of a job."""


@dataclass
class Execution:
    """One run of a body in this process, from its won claim to the write that ends it."""

    run: Run
    eager: bool
    entered: bool = False
    result: str = "null"
    retry: Signature | None = None
    """What ``retry(throw=False)`` asked for; it counts once the body has left."""


_ATTRIBUTE = "jobhandle_execution"
_executions: dict[tuple[str, int], Execution] = {}


def execution_of(request: Any) -> Execution | None:
    """Return the execution of a task request; None if it is no job's, or its claim has not won."""
    return getattr(request, _ATTRIBUTE, None)


def execution_known_as(task_id: str, attempt: int) -> Execution | None:
    """Return an execution that has not been settled yet, when the request is gone already."""
    return _executions.get((task_id, attempt))


def current_job() -> JobHandle | None:
    """Return a handle of the job that this code is the body of; None in a task called without one."""
    task: Any = get_current_task()
    execution = None if task is None else execution_of(task.request)
    return None if execution is None else service_of(task.app).handle(run=execution.run)


# Sealing.


def seal(app: Celery) -> None:
    """Make every task of the app claim, those registered already and those still to come."""
    registry: Any = app._tasks  # type: ignore[attr-defined]  # `tasks` would finalize the app
    if not isinstance(registry, _SealingRegistry):
        registry.__class__ = type("SealingRegistry", (_SealingRegistry, type(registry)), {})
    for task in list(registry.values()):
        seal_task(task)


class _SealingRegistry(TaskRegistry):
    def __setitem__(self, name: str, task: Any) -> None:
        super().__setitem__(name, task)
        seal_task(task)


def seal_task(task: Any) -> None:
    """Put `JobTask` outermost in the class of one task, above whatever its author has overridden."""
    plain = type(task)
    if issubclass(plain, JobTask):
        return
    request = symbol_by_name(plain.Request)
    own: dict[str, Any] = {
        "__module__": plain.__module__,
        "__doc__": plain.__doc__,
        "_plain": plain,
        "Request": type(request.__name__, (JobRequest, request), {"__module__": request.__module__}),
    }
    if task_has_custom(task, "__call__"):
        # Celery then calls the task itself, which may do its work without `run`.
        own["__call__"] = _call
    metaclass: Any = type(plain)
    task.__class__ = metaclass(plain.__name__, (JobTask, plain), own)
    task.__trace__ = None
    # Inside autoretry, which may wrap `run` before or after this: a stop is no error to be retried.
    inner = "_orig_run" if hasattr(task, "_orig_run") else "run"
    setattr(task, inner, _guarded(task, getattr(task, inner)))


def _guarded(task: Any, run: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(run)
    def guarded(*args: Any, **kwargs: Any) -> Any:
        return _perform(task, run, args, kwargs)

    return guarded


def _call(task: Any, *args: Any, **kwargs: Any) -> Any:
    return _perform(task, functools.partial(type(task)._plain.__call__, task), args, kwargs)


class JobTask:
    """Mixed into every task of the app; for a message that is no job's it changes nothing."""

    # Given by celery.app.task.Task, which this is mixed into.
    app: Celery
    backend: Any
    request: Any
    _plain: type

    # A worker lost is the row's business, see JobRequest; STARTED is stored after a won claim, below.
    @property
    def track_started(self) -> bool:
        """False to Celery, which would store STARTED before the claim; `before_start` stores it."""
        return False

    @track_started.setter
    def track_started(self, value: bool) -> None:
        self.__dict__["_track_started"] = value

    @classmethod
    def bind(cls, app: Celery) -> Any:
        """Bind the plain class, so that `task_annotations` are written below this one, not above it."""
        return cls._plain.bind(app)  # type: ignore[attr-defined]

    def before_start(self, task_id: str, args: Any, kwargs: Any) -> None:
        """Claim, then let the task's own hook have its turn."""
        execution = _claim_once(self)
        _store_started(self)
        with nullcontext() if execution is None else _endings(self, execution):
            super().before_start(task_id, args, kwargs)  # type: ignore[misc]

    def signature_from_request(self, request: Any = None, *args: Any, **kwargs: Any) -> Any:
        """Return a signature of the next attempt that is recorded where Celery would publish it."""
        signature = super().signature_from_request(request, *args, **kwargs)  # type: ignore[misc]
        execution = execution_of(self.request if request is None else request)
        if execution is None:
            return signature
        recorded = _RecordedSignature(signature, app=self.app)
        recorded._type = signature._type
        recorded.execution = execution
        headers = signature.options.get("headers") or {}
        recorded.options["headers"] = headers | job_headers(execution.run.job_id, execution.run.attempt + 1)
        return recorded

    subtask_from_request = signature_from_request

    def retry(self, *args: Any, exc: Any = None, **options: Any) -> Any:
        """Retry as Celery does; but a result that cannot be kept is not made better by another run."""
        if isinstance(exc, ResultError):
            raise exc  # from autoretry_for=(Exception,)
        return super().retry(*args, exc=exc, **options)  # type: ignore[misc]

    def replace(self, sig: Any) -> Any:
        """Refuse, in a job: it is one task, and its row could not follow the replacement."""
        if execution_of(self.request) is not None:
            raise ApiUsageError("a task that runs as a job cannot replace itself; submit another job instead")
        return super().replace(sig)  # type: ignore[misc]


class _RecordedSignature(Signature[Any]):
    execution: Execution
    _type: Any

    def apply_async(self, *args: Any, **kwargs: Any) -> Any:
        self.execution.retry = self

    def apply(self, *args: Any, **options: Any) -> Any:
        # Eagerly, the next attempt: whoever asked for the first one raises what the last one ends with.
        return super().apply(*args, **{**options, "throw": False})


def _store_started(task: Any) -> None:
    request = task.request
    wanted = task.__dict__.get("_track_started", task._plain.track_started)
    if wanted and not request.is_eager and not _ignores_result(task, request):
        me = service_of(task.app).me()
        meta = {"pid": me.pid, "hostname": request.hostname}
        task.backend.store_result(request.id, meta, states.STARTED, request=request)


def _ignores_result(task: Any, request: Context) -> bool:
    # As celery.app.task.get_actual_ignore_result: what the message says goes before the task's own.
    said = request.__dict__.get("ignore_result")
    return bool(task.ignore_result if said is None else said)


# The claim.


def _claim_once(task: Any) -> Execution | None:
    """Win the row of the current request, once; None if it is no job's.

    Raises:
        Ignore: the body must not run. Celery drops the message, and stores and sends nothing.
    """
    request = task.request
    execution = execution_of(request)
    if execution is not None:
        return execution
    try:
        job = job_of_context(request)
    except ValueError as error:
        logger.error("task %s[%s] was not run: %s", task.name, request.id, error)
        raise Ignore(str(error)) from None
    if job is None:
        return None
    service = service_of(task.app)
    if service.worker is None and not request.is_eager:
        # Jobs(app) was made after this worker had started: nobody would renew a lease for the claim.
        logger.error("job %s was not started: the worker was started before its app had Jobs", job[0])
        raise Ignore("this worker has no lease")
    me = service.myself_alone() if request.is_eager else service.me()
    run = Run(job[0], str(request.id), job[1], str(uuid.uuid4()), me)
    refused = _claim(service.store, run, task.name)
    if refused is not None:
        _refuse(task, run, refused)
    execution = Execution(run, eager=bool(request.is_eager))
    setattr(request, _ATTRIBUTE, execution)
    _executions[run.task_id, run.attempt] = execution
    return execution


def _claim(store: Any, run: Run, task: str) -> Refused | None:
    deadline, pause = time.monotonic() + CLAIM_PATIENCE, 0.1
    unanswered = False
    while True:
        try:
            claimed: Run | Refused = store.claim(run, task)
        except DatabaseUnavailableError as error:
            unanswered = True
            logger.warning("job %s waits to start: %s", run.job_id, error)
        except JobHandleError as error:
            logger.error("job %s was not started: %s", run.job_id, error)
            raise ClaimAbandoned(run) from None
        else:
            if isinstance(claimed, Run):
                return None
            if claimed.reason is not Refusal.NO_LEASE:
                return claimed
        if time.monotonic() >= deadline:
            if unanswered:
                raise ClaimAbandoned(run)
            return Refused(Refusal.NO_LEASE)
        time.sleep(pause)
        pause = min(pause * 2, 2.0)


def _refuse(task: Any, run: Run, refused: Refused) -> None:
    reason = refused.reason
    if reason in _REVOKED and service_of(task.app).store.tell_revoked(run.job_id, run.task_id):
        expired = reason is Refusal.EXPIRED
        mark_revoked(task, "expired" if expired else "revoked")
        raise RefusedAsRevoked(reason.value, expired)
    # A duplicate leaves no trace: whatever is stored under this task id is another message's.
    raise Ignore(f"job {run.job_id} is not started by this message: {reason.value}")


def mark_revoked(task: Any, reason: str) -> None:
    """Do what Celery does for a revoked task: chords end, the rest of a chain is REVOKED too."""
    request = task.request
    ignored = _ignores_result(task, request)
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


# The body.


def _perform(task: Any, body: Callable[..., Any], args: Any, kwargs: Any) -> Any:
    # Claimed by now, in `before_start`. Asked again, should anything have got around that.
    execution = _claim_once(task)
    if execution is None or execution.entered:
        return body(*args, **kwargs)
    execution.entered = True
    with _endings(task, execution):
        returned = body(*args, **kwargs)
    try:
        execution.result = codec.encode(returned)
    except codec.NotStorableError as error:
        raise ResultError(f"the result {error}") from None
    return returned


@contextmanager
def _endings(task: Any, execution: Execution) -> Iterator[None]:
    """Settle what the task's own code may end with that Celery's signals do not tell of."""
    try:
        yield
    except JobCancelled as stop:
        _stop(task, execution, stop)
    except Retry as retry:
        cause: object = retry.exc
        if isinstance(cause, JobCancelled):
            _stop(task, execution, cause)
        raise
    except Reject as rejection:
        _reject(task, execution, rejection)
        raise
    except Ignore:
        # The task's own way to say that there is nothing more to record.
        settle(execution, lambda: service_of(task.app).store.finish(execution.run, "null"))
        raise


def _stop(task: Any, execution: Execution, stop: JobCancelled) -> NoReturn:
    """Write that the body has stopped, and raise what tells Celery so."""
    store = service_of(task.app).store
    if not settle(execution, lambda: store.stop(execution.run, str(stop))):
        raise Ignore("stopped; superseded")
    mark_revoked(task, "revoked")
    raise RefusedAsRevoked("stopped on request")


def _reject(task: Any, execution: Execution, rejection: Any) -> None:
    """Settle a job whose body rejected its message: sent round again if it asked for that, else Error."""
    store, run = service_of(task.app).store, execution.run
    if rejection.requeue:
        because = f"the task rejected its message: {rejection.reason}"
        settle(execution, lambda: store.give_back(run, because, run.worker))
    else:
        failure = Failure("task", "Reject", text.message(str(rejection.reason)))
        settle(execution, lambda: store.fail(run, failure))


def settle(execution: Execution, write: Callable[[], Any]) -> Any:
    """Write the outcome of an execution until it is written or superseded; return what the verb returned."""
    written = until_written(write)
    _executions.pop((execution.run.task_id, execution.run.attempt), None)
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
            return write()
        except DatabaseUnavailableError as error:
            logger.warning("the outcome of a job waits for the database: %s", error)
            time.sleep(pause)
            pause = min(pause * 2, 5.0)
