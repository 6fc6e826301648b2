"""A job's request in the worker's main process: how a child's run ended, if the child could not write it.

`Task.Request` is Celery's documented extension point for this. The main process knows its child and the
message, but not whether the child's claim won. So its writes are fenced by worker uid, process id, task id
and attempt (`store.ProcessRef`). Housekeeping makes them: an event loop must not wait for a database.
"""

import functools
import logging
import os
from collections.abc import Callable, Iterator
from types import FunctionType
from typing import Any

from billiard.exceptions import TimeLimitExceeded, WorkerLostError
from celery import Celery, signals, states
from celery.worker.request import Request
from celery.worker.state import task_ready

from .. import celery_compat
from ..broker.headers import HEADER, readable_job_of, sensitive_of
from ..redaction import masked
from ..runtime import DeferredWrite, runtime_of
from ..status import JobStatus
from ..store import ChangedJob, MessageKey, ProcessRef, Store, Worker
from .current_run import HARD_LIMIT, unclaimed
from .decision import describe_lost_process, time_limit_failure
from .message_guard import TaskRefused, refuse_request
from .outcomes import Outcome, Report, Retried, is_cancelled, take_over
from .result_backend import hide_sensitive, mark_revoked

logger = logging.getLogger(__name__)

_LOST = (WorkerLostError, SystemExit, KeyboardInterrupt)
"""Errors by which a main process learns that the process of a body is gone."""


class JobRequest:
    """Mixed into the request class of every task; for a message that is no job's it changes nothing."""

    # Given by celery.worker.request.Request, which this is mixed into.
    app: Celery
    id: str
    request_dict: dict[str, Any]
    worker_pid: int | None
    time_start: float | None
    _error: BaseException | None = None
    task: Any
    _cut_off = False
    """The body was cut off by this library or the worker: the Terminated that follows is not a revoke."""
    terminate: Callable[..., None]
    _eventer: Any
    _context: Any
    name: str
    _limits: tuple[float | None, float | None] = (None, None)

    _unclaimed: Any = None
    """The task, if the message is marked as a job's."""
    _already_revoked: bool

    def __init__(self, message: Any, **options: Any) -> None:
        """Make the request; the task's own class, which this is mixed into, cannot run the body meanwhile."""
        headers = message.headers
        if not isinstance(headers, dict) or HEADER not in headers:
            super().__init__(message, **options)  # type: ignore[call-arg]  # a mixin
            return
        self._unclaimed = options["task"]
        with unclaimed(self._unclaimed):
            super().__init__(message, **options)  # type: ignore[call-arg]  # a mixin

    @property
    def is_job(self) -> bool:
        """True if the message is a job's, well-formed."""
        return readable_job_of(self.request_dict) is not None

    @property
    def key(self) -> MessageKey:
        """Job id, task id and attempt of a job's message."""
        job_id, attempt = readable_job_of(self.request_dict) or (0, 0)
        return job_id, self.id, attempt

    def _hide_arguments(self) -> None:
        # Where bodies run in this process, the arguments are in what it stores in the result backend.
        if sensitive_of(self.request_dict):
            hide_sensitive(self.task.backend)

    def __init_subclass__(cls, **options: Any) -> None:
        """Wrap the methods that the class derived by Celery for a task overrides."""
        super().__init_subclass__(**options)
        celery_compat.wrap_derived_request(
            cls, execute_using_pool=_with_its_limit, on_success=_with_its_report
        )

    def note_limit(self, pool: Any) -> None:
        """Put the hard limit that holds into the request; log if the pool keeps none."""
        self.request_dict[HARD_LIMIT] = self.time_limits[0]
        runtime, given = runtime_of(self.app), zip(("hard", "soft"), self.time_limits, strict=True)
        ignored = celery_compat.ignored_time_limits({parent.__module__ for parent in type(pool).__mro__})
        unenforced = [kind for kind, limit in given if limit and kind in ignored]
        if unenforced and not runtime.warned_of_limits:
            runtime.warned_of_limits = True
            logger.warning(
                "job %s: its %s time limit is ignored, as are those of later jobs: the pool of this worker "
                "cannot end a body; use the prefork pool for jobs with time limits",
                self.key[0],
                " and ".join(unenforced),
            )

    def _announce_dropped(self, reason: str) -> None:
        """Report the task as Celery does when it drops a revoked message, so that Flower shows it."""
        self.send_event("task-revoked", terminated=False, signum=None, expired=reason == "expired")
        self._signal_revoked(reason)

    def apply_report(self, report: Report) -> None:
        """Write and report what the body's process could not."""
        if report.unwritten is not None:
            self._write_later(report.unwritten)
        if report.revoked is not None:
            self._announce_dropped(report.revoked)

    def _write_later(self, outcome: Outcome) -> None:
        take_over(runtime_of(self.app), outcome, self._report)

    def _report(self, outcome: Outcome, written: Any) -> object:
        """Step 5 of the executor, for an outcome that this process has written."""
        run = outcome.run
        if is_cancelled(outcome, written):
            mark_revoked(self.task, self._context, "revoked")
            self._signal_revoked("revoked")
            return [ChangedJob(run.job_id, run.task_id, self.name, JobStatus.CANCELLED, "stopped on request")]
        if isinstance(outcome, Retried) and outcome.is_due(written):
            runtime_of(self.app).submitter.send([run.job_id])
        return written

    def _signal_revoked(self, reason: str) -> None:
        signals.task_revoked.send(
            sender=self.task,
            request=self._context,
            terminated=False,
            signum=None,
            expired=reason == "expired",
        )

    def revoked(self) -> bool:
        """Return True if the message starts nothing; so it is if the task's own class runs the body here.

        Celery asks after it has taken a slot of the pool, which an error would not release.
        """
        if self._already_revoked:
            return True
        try:
            return bool(super().revoked())  # type: ignore[misc]  # a mixin
        except TaskRefused as refusal:
            task_ready(self)
            refuse_request(self, refusal)
            self._already_revoked = True
            return True

    def on_accepted(self, pid: int, time_accepted: float) -> None:
        """Note the process of the body, which claims by itself; the task's own class cannot run it here."""
        try:
            super().on_accepted(pid, time_accepted)  # type: ignore[misc]  # a mixin
        except TaskRefused as refusal:
            logger.error("job %s: %s; it runs in the pool alone", self.key[0], refusal)
            if self.time_start is None:
                Request.on_accepted(self, pid, time_accepted)  # type: ignore[arg-type]  # a mixin

    def on_failure(self, exc_info: Any, *args: Any, **kwargs: Any) -> Any:
        """Note the end of a body whose process is gone."""
        self._error = _unwrapped(exc_info.exception)
        self._hide_arguments()
        try:
            return super().on_failure(exc_info, *args, **kwargs)  # type: ignore[misc]  # a mixin
        finally:
            if isinstance(self._error, _LOST):
                reason = describe_lost_process(self._error)
                # Or the stored record: the child may have written its outcome before it ended.
                self._write_once_gone(
                    lambda store, ref, me: (
                        store.recovery.lose(ref, reason, me)
                        or store.recovery.lose_unstarted(self.key, me)
                        or store.queries.job(ref.job_id, None)
                    )
                )

    def send_event(self, type: str, **fields: Any) -> None:
        """Send an event of Celery's; drop or change one that would show a job in a wrong state in Flower."""
        if self.is_job and type == "task-cancelled":
            return  # no later event would change that state; an event with the row's status is sent
        if self.is_job and type == "task-failed" and isinstance(self._error, _LOST):
            return  # the job may run again; an event is sent once its row has changed
        if self.is_job and type == "task-revoked":
            fields["state"] = states.REVOKED  # without it, Flower ignores the event after PROGRESS
        if self.is_job and type == "task-failed" and "ExceptionWithTraceback" in fields["exception"]:
            fields["exception"] = repr(self._error)
        super().send_event(type, **fields)  # type: ignore[misc]  # a mixin

    def on_timeout(self, soft: bool, timeout: float) -> None:
        """Note a hard time limit; in a pool of greenlets no failure follows it."""
        self._hide_arguments()
        try:
            super().on_timeout(soft, timeout)  # type: ignore[misc]  # a mixin
        finally:
            if not soft:
                failure = time_limit_failure(TimeLimitExceeded(timeout))
                self._write_once_gone(lambda store, ref, me: store.recovery.fail_process(ref, failure, me))

    def cancel(self, pool: Any, signal: Any = None, emit_retry: bool = True) -> None:
        """Give the job back when Celery cuts its body off: at a cold shutdown, or when the broker is gone.

        It does so even if Celery's bookkeeping fails, as when the result backend is unavailable as well.
        """
        self._cut_off = True
        self._hide_arguments()
        try:
            super().cancel(pool, signal, emit_retry)  # type: ignore[misc]  # a mixin
        except NotImplementedError:
            if not self.is_job:
                raise
            # The solo pool cannot end a body, and calls this from within that body: the body continues.
            self._cut_off = False
        finally:
            noted = self._cut_off and self._write_once_gone(
                lambda store, ref, me: store.recovery.give_back(ref, "its worker cut it off", me)
            )
            if noted and self._eventer and self._eventer.enabled and self.task.send_events:
                runtime_of(self.app).cut_off.append(self.key)

    @property
    def time_limits(self) -> tuple[float | None, float | None]:
        """Hard and soft: the message's, else the task's as they are now.

        Celery looks at the task's when it starts consuming, and never sees what an operator sets by Flower or
        ``control.time_limit``.
        """
        if not self.is_job:
            return self._limits
        hard, soft = self._limits
        return hard or self.task.time_limit, soft or self.task.soft_time_limit

    @time_limits.setter
    def time_limits(self, given: tuple[float | None, float | None] | None) -> None:
        self._limits = given or (None, None)

    def info(self, safe: bool = False) -> dict[str, Any]:
        """Return what ``inspect active`` shows of a running task; its sensitive arguments are hidden."""
        shown: dict[str, Any] = super().info(safe)  # type: ignore[misc]  # a mixin
        hidden = sensitive_of(self.request_dict)
        if hidden and not safe:
            shown["args"], shown["kwargs"] = masked(shown["args"], shown["kwargs"], hidden)
        return shown

    def maybe_expire(self) -> bool:
        """Let the row decide: Celery would also refuse all later messages of that task id."""
        return False if self.is_job else super().maybe_expire()  # type: ignore[misc]  # a mixin

    def _announce_revoked(self, reason: str, terminated: bool, signum: Any, expired: bool) -> None:
        self._hide_arguments()
        try:
            super()._announce_revoked(reason, terminated, signum, expired)  # type: ignore[misc]  # a mixin
        finally:
            if self.is_job and not self._cut_off:
                self._note_revoked(terminated, signum)

    def _note_revoked(self, terminated: bool, signum: Any) -> None:
        if terminated:
            message = f"its process was terminated ({signum})"
            self._write_once_gone(lambda store, ref, me: store.recovery.stop_process(ref, message, me))
            return
        # Another program revoked the task id; this message may be a duplicate of the one that runs.
        (job_id, task_id, _), runtime = self.key, runtime_of(self.app)
        self._later(lambda: runtime.store.control.cancel(job_id, None, terminate=False, task_id=task_id))

    def _retry_worker_lost(self, *args: Any) -> bool:
        # Celery would publish a message with an ETA; the row decides whether a lost job runs again.
        return False if self.is_job else super()._retry_worker_lost(*args)  # type: ignore[misc]  # a mixin

    def _later(self, write: Callable[[], object], **options: Any) -> None:
        """Let housekeeping make a write; see `DeferredWrite` for the options."""
        runtime_of(self.app).deferred_writes.put(DeferredWrite(self.key[0], self.id, write, **options))

    def _write_once_gone(self, write: Callable[[Store, ProcessRef, Worker], object]) -> bool:
        """Let housekeeping write how this job's run ended, once its process is gone; False if it has none."""
        runtime, job = runtime_of(self.app), readable_job_of(self.request_dict)
        me, pid = runtime.current_worker(), self.worker_pid if runtime.prefork else os.getpid()
        if job is None or pid is None or me.worker_uid is None:
            return False
        ref = ProcessRef(job[0], self.id, job[1], me.worker_uid, pid)

        def write_and_note_exit() -> object:
            written = write(runtime.store, ref, me)
            # If another process has ended the row, a resubmit is blocked until the row names no body.
            runtime.store.runs.note_body_exited(ref)
            return written

        self._later(write_and_note_exit, pid=pid if runtime.prefork else None)
        return True


def request_class(plain: type) -> type:
    """Return the request class of a task, of which `plain` is the one that its author has chosen.

    None of the author's own methods can run the task's body for a job's message: it would not be claimed.
    """
    known: type
    for known in plain.__subclasses__():  # a cache would keep the classes of deleted apps
        if known.__bases__ == (JobRequest, plain):
            return known
    made: type = type(plain.__name__, (JobRequest, plain), {"__module__": plain.__module__})
    for name, method in _own_methods(plain):
        setattr(made, name, _without_the_body(made, name, method))
    return made


def _own_methods(plain: type) -> Iterator[tuple[str, FunctionType]]:
    celerys = set(Request.__mro__)
    for place in plain.__mro__:
        if place not in celerys:
            for name, method in vars(place).items():
                if isinstance(method, FunctionType) and not name.startswith("__"):
                    yield name, method


def _without_the_body(cls: type, name: str, method: FunctionType) -> Callable[..., Any]:
    @functools.wraps(method)
    def without_the_body(self: Any, *args: Any, **kwargs: Any) -> Any:
        if self._unclaimed is None:
            return getattr(super(cls, self), name)(*args, **kwargs)
        with unclaimed(self._unclaimed):
            return getattr(super(cls, self), name)(*args, **kwargs)

    return without_the_body


def _with_its_limit(execute: Callable[..., Any]) -> Callable[..., Any]:
    def execute_using_pool(self: JobRequest, pool: Any, **kwargs: Any) -> Any:
        if self.is_job:
            self.note_limit(pool)
        return execute(self, pool, **kwargs)

    return execute_using_pool


def _with_its_report(succeed: Callable[..., Any]) -> Callable[..., Any]:
    def on_success(self: JobRequest, failed__retval__runtime: tuple[Any, Any, Any], **kwargs: Any) -> Any:
        failed, returned, report = failed__retval__runtime
        if not isinstance(report, Report):
            return succeed(self, failed__retval__runtime, **kwargs)
        try:
            return succeed(self, (failed, returned, report.runtime), **kwargs)
        finally:
            self.apply_report(report)

    return on_success


def _unwrapped(error: BaseException) -> BaseException:
    return getattr(error, "exc", error) if type(error).__name__ == "ExceptionWithTraceback" else error
