"""`JobResult`: what Celery's calls of a durable task return."""

from collections.abc import Callable, Iterator
from functools import wraps
from typing import TYPE_CHECKING, Any

from celery import Celery
from celery.app import app_or_default
from celery.backends.base import DisabledBackend
from celery.exceptions import ChordError
from celery.result import AsyncResult, GroupResult

from ..errors import ApiUsageError, JobFailedError, UnknownJobError, ValidationError
from ..handle import JobHandle
from ..runtime import runtime_of
from ..status import JobStatus
from .backend import JobBackend, backend_of

if TYPE_CHECKING:
    _AnyResult = AsyncResult[Any]
else:
    _AnyResult = AsyncResult  # Celery 5.6 cannot be subscripted

_SIGNALS = (None, "TERM", "SIGTERM", 15)
"""Signals by which a worker ends the process of a body."""


class JobResult(_AnyResult):
    """The result of a durable task: an `AsyncResult` that reads the row of its job.

    It needs no result backend. The exception of a failed job is a `JobFailedError`. It is also an instance of
    the class that the task raised, if this process has imported that class.
    """

    backend: JobBackend
    _cache: Any
    _maybe_set_cache: Any

    def __init__(
        self,
        id: str,
        backend: Any = None,
        task_name: str | None = None,
        app: Celery | None = None,
        parent: Any = None,
        *,
        job_id: int | None = None,
    ) -> None:
        """Called by Celery's calls of a durable task.

        Args:
            id: Celery's id of the task.
            backend: Not used.
            task_name: Not used.
            app: An app that has `Jobs`; None: the current one.
            parent: The result of the task before it in a chain.
            job_id: The id of the job; None: it is looked up by the task id, at the first use.
        """
        app = app_or_default(app)
        super().__init__(id, backend_of(app), app=app, parent=parent)
        self._job_id = job_id

    @property
    def job_id(self) -> int | None:
        """The id of the job; None while no row has the task id."""
        if self._job_id is None:
            self._job_id = self.backend.job_id_of(self.id)
        return self._job_id

    @property
    def children(self) -> "list[JobResult] | None":  # type: ignore[override]  # Celery's is a list of results
        """The results of the members of a chain, group or chord, or of the callbacks of a task.

        None without a row. Jobs that the body of the task has submitted are not among them.
        """
        job_id = self.job_id
        queries = runtime_of(self.app).submitter.flushed_store().queries
        children = None if job_id is None else queries.children(job_id)
        if children is None:
            return None
        return [type(self)(task_id, app=self.app, job_id=child) for child, task_id in children]

    def get(self, *args: Any, **options: Any) -> Any:
        """Wait for the result, and return it; the arguments are those of Celery's ``AsyncResult.get``.

        If a task in the header of a chord failed, its exception is raised, as Celery raises it from the
        parent of the body's result. With ``propagate=False``, or ``follow_parents=False``, it is the
        `ChordError` of the body, as in Celery.
        """
        follow_parents = options.get("follow_parents", args[4] if len(args) > 4 else True)
        try:
            return super().get(*args, **options)
        except ChordError as error:
            cause = error.__cause__
            if not (follow_parents and isinstance(cause, JobFailedError)):
                raise
        raise cause

    def abort(self) -> None:
        """Cancel the job, as `revoke` does. In its body, ``AbortableTask.is_aborted()`` becomes True."""
        self.revoke()

    def is_aborted(self) -> bool:
        """Return True if the job is cancelled, or asked to stop."""
        handle = self._handle()
        return handle.cancel_requested() and not self.successful() and not self.failed()

    def _get_task_meta(self) -> Any:
        if self._cache is None:
            return self._maybe_set_cache(self.backend.meta_of_job(self.job_id))
        return self._cache

    def revoke(  # type: ignore[override]  # Celery's returns None
        self,
        connection: Any = None,
        terminate: bool = False,
        signal: str | int | None = None,
        wait: bool = False,
        timeout: float | None = None,
    ) -> JobStatus:
        """Cancel the job, as `JobHandle.cancel_job` does, and return its status afterwards.

        Args:
            connection: Not used: no message is sent.
            terminate: Also end the process of a running body.
            signal: ``"TERM"`` or None.
            wait: Not used: the call always returns once the row is written.
            timeout: Not used.

        Raises:
            UnknownJobError: there is no such job.
            ValidationError: another signal.
        """
        if signal not in _SIGNALS:
            raise ValidationError("signal", signal, "'TERM', or None")
        return self._handle().cancel_job(terminate=terminate)

    def _handle(self) -> JobHandle:
        job_id = self.job_id
        if job_id is None:
            raise UnknownJobError(f"no job with the task id {self.id}")
        return runtime_of(self.app).attach(job_id)

    def __copy__(self) -> "JobResult":
        return type(self)(self.id, app=self.app, parent=self.parent, job_id=self._job_id)

    def __reduce__(self) -> tuple[Any, ...]:
        return _unpickled, (type(self), self.id, self.parent, self._job_id)


def _unpickled(kind: type[JobResult], task_id: str, parent: Any, job_id: int | None) -> JobResult:
    return kind(task_id, parent=parent, job_id=job_id)


class JobGroupResult(GroupResult):
    """The result of a group of durable tasks: a `GroupResult` of `JobResult` objects, with `job_id`."""

    job_id: int
    """The id of the group's own row."""

    def __init__(self, id: str, results: Any, *, job_id: int, **options: Any) -> None:
        super().__init__(id, results, **options)
        self.job_id = job_id

    @property
    def backend(self) -> JobBackend:
        """The backend that reads rows, whatever the result backend of the app is."""
        return backend_of(self.app)

    def join(self, *args: Any, **options: Any) -> Any:
        """Wait for all results; with `on_message`, by `join_native`, which alone takes it."""
        if options.get("on_message") is not None:
            return self.join_native(*args, **options)
        return super().join(*args, **options)

    def revoke(self, connection: Any = None, terminate: bool = False, **unused: Any) -> JobStatus:  # type: ignore[override]  # Celery's returns None
        """Cancel all jobs of the group, and return the status of the group afterwards."""
        return runtime_of(self.app).attach(self.job_id).cancel_job(terminate=terminate)

    def save(self, backend: Any = None) -> Any:
        """Save it in a result backend, by default the app's; do nothing if the app has none."""
        backend = backend or self.app.backend
        return self if isinstance(backend, DisabledBackend) else super().save(backend)

    def delete(self, backend: Any = None) -> None:
        """Delete what `save` has stored. The rows stay."""
        backend = backend or self.app.backend
        if not isinstance(backend, DisabledBackend):
            super().delete(backend)

    def __reduce__(self) -> tuple[Any, ...]:
        return _group_unpickled, (type(self), self.id, self.results, self.job_id)


def _group_unpickled(kind: type[JobGroupResult], id: str, results: Any, job_id: int) -> JobGroupResult:
    return kind(id, results, job_id=job_id)


def wrap_iter_native(plain: Callable[..., Any]) -> Callable[..., Any]:
    """Return the wrapper of ``ResultSet.iter_native``, which asks the result backend of the app.

    That would wait for results of durable tasks for ever. Those of a set of them are read from the rows.
    """

    @wraps(plain)
    def iter_native(self: Any, *args: Any, **options: Any) -> Iterator[tuple[str, Any]]:
        if not any(isinstance(result, (JobResult, JobGroupResult)) for result in self.results):
            return plain(self, *args, **options)  # type: ignore[no-any-return]  # Celery's
        if not all(isinstance(result, JobResult) for result in self.results):
            raise ApiUsageError("results: not each is that of one durable task; use join() for such a set")
        self._on_full.finalize()
        return backend_of(self.results[0].app).iter_native(self, *args, **options)

    return iter_native
