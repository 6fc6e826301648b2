"""The result backend ``jobhandle``, which reads the rows of jobs."""

import time
from collections.abc import Collection, Iterable, Iterator
from typing import Any

from celery import Celery
from celery.backends.base import BaseBackend
from celery.contrib.abortable import ABORTED
from celery.exceptions import TimeoutError
from celery.result import AsyncResult
from celery.states import PENDING, READY_STATES

from ..completion import WaitCondition
from ..runtime import Runtime, runtime_of
from ..status import JobStatus
from .meta import failure_of_member, meta_of
from .polling import StateMessages, ended, interval_of


class JobBackend(BaseBackend):
    """Reads the result of a task from the row of its job, and stores nothing.

    A worker writes the outcome of a job to its row. A plain task has no row.
    """

    app: Celery
    supports_native_join = False
    persistent = True
    is_async = True  # a group whose results have ended calls what `then` was given

    @property
    def _runtime(self) -> Runtime:
        return runtime_of(self.app)

    def job_id_of(self, task_id: str) -> int | None:
        """Return the id of the job with this task id; None if there is none."""
        return self._runtime.submitter.flushed_store().queries.id_of_task(task_id)

    def meta_of_job(self, job_id: int | None) -> dict[str, Any]:
        """Return a job as Celery's result backends describe a task; PENDING if there is no row."""
        queries = self._runtime.submitter.flushed_store().queries
        record = None if job_id is None else queries.job(job_id)
        if record is None:
            return {"status": PENDING, "result": None}
        meta = meta_of(record)
        if record.kind is not None and record.status is JobStatus.ERROR:
            member, in_header = queries.failed_member(record)
            if member is not None:
                meta |= failure_of_member(record.id, member, in_header=in_header)
        return meta

    def get_task_meta(self, task_id: str, cache: bool = True) -> dict[str, Any]:
        """Return a task as it is now, never a cached one: a job that has ended may have been resubmitted."""
        return self._get_task_meta_for(task_id)

    def task_result_exists(self, task_id: str) -> bool:
        """Return True if a job has this task id, whatever its status is."""
        return self.job_id_of(task_id) is not None

    def _get_task_meta_for(self, task_id: str) -> dict[str, Any]:
        return self.meta_of_job(self.job_id_of(task_id))

    def meta_from_decoded(self, meta: dict[str, Any]) -> dict[str, Any]:
        """Return the metadata unchanged: errors in it are exceptions already."""
        return meta

    def wait_for_pending(
        self,
        result: Any,
        timeout: float | None = None,
        interval: float = 0.5,
        no_ack: bool = True,
        on_message: Any = None,
        on_interval: Any = None,
        callback: Any = None,
        propagate: bool = True,
    ) -> Any:
        """Wait until a job has ended, and return its result.

        `on_message` is called with the metadata of each state that is seen, at most one per interval.

        Raises:
            NotImplementedError: the result is an `AsyncResult` of a task that is no job.
            TimeoutError: Celery's; the job is not final yet.
        """
        until = None if timeout is None else time.monotonic() + timeout
        messages = StateMessages(on_message)
        while True:
            meta = result._get_task_meta()
            messages.pass_on(result.id, meta)
            if meta["status"] in READY_STATES:
                break
            if on_interval:
                on_interval()
            left = interval_of(interval)
            if until is not None:
                left = min(left, until - time.monotonic())
            if left <= 0:
                raise TimeoutError("The operation timed out.")
            self._wait(result, left)
        return result.maybe_throw(propagate=propagate, callback=callback)

    def _wait(self, result: Any, seconds: float) -> None:
        job_id = self._job_id_of_result(result)
        began = time.monotonic()
        deadline = began + seconds
        self._runtime.completion.wait(WaitCondition(job_id, deadline))
        if time.monotonic() - began < seconds and not self._has_row(job_id):
            time.sleep(max(deadline - time.monotonic(), 0.0))  # its transaction has not been committed

    def _job_id_of_result(self, result: Any) -> int:
        job_id: int | None = getattr(result, "job_id", None) or self.job_id_of(result.id)
        if job_id is None:
            raise NotImplementedError(
                f"No job has the task id {result.id}. The result backend `jobhandle` reads rows, and a plain "
                "task has none: make it durable, or configure another result backend."
            )
        return job_id

    def _has_row(self, job_id: int) -> bool:
        return self._runtime.store.queries.status(job_id) is not None

    def iter_native(  # type: ignore[override]  # its stubs say None
        self,
        result: Any,
        timeout: float | None = None,
        interval: float | None = 0.5,
        no_ack: bool = True,
        on_message: Any = None,
        on_interval: Any = None,
    ) -> Iterator[tuple[str, dict[str, Any]]]:
        """Yield the id and the metadata of each task of a set of results, in the order in which they end."""
        return self._ended(
            result.results,
            timeout=timeout,
            interval=interval,
            on_message=on_message,
            on_interval=on_interval,
        )

    def get_many(
        self,
        task_ids: Iterable[str],
        timeout: float | None = None,
        interval: float | None = 0.5,
        no_ack: bool = True,
        on_message: Any = None,
        on_interval: Any = None,
        max_iterations: int | None = None,
        READY_STATES: Any = None,
    ) -> Iterator[tuple[str, dict[str, Any]]]:
        """As `iter_native`, by the ids of tasks."""
        return self._ended(
            [AsyncResult(task_id, backend=self, app=self.app) for task_id in task_ids],
            timeout=timeout,
            interval=interval,
            on_message=on_message,
            on_interval=on_interval,
            max_polls=max_iterations,
        )

    def _ended(self, results: Iterable[Any], **options: Any) -> Iterator[tuple[str, dict[str, Any]]]:
        def final(job_ids: Collection[int]) -> Collection[int]:
            found = self._runtime.submitter.flushed_store().queries.final(job_ids)
            return [job_id for job_id, job in found.items() if job is not None]

        return ended(results, job_id_of=self._job_id_of_result, final=final, **options)

    def add_pending_result(self, result: Any, weak: bool = False) -> Any:
        """Return the result. Nothing is subscribed to: a wait polls the row."""
        return result

    def remove_pending_result(self, result: Any) -> Any:
        """Return the result. `add_pending_result` has subscribed to nothing."""
        return result

    def store_result(self, task_id: str, result: Any, state: str, *args: Any, **kwargs: Any) -> Any:
        """Store nothing: the worker writes the row of a job, and a plain task has none.

        The state ABORTED cancels the job: ``AbortableAsyncResult.abort()`` stores it.
        """
        if state == ABORTED and (job_id := self.job_id_of(task_id)) is not None:
            self._runtime.attach(job_id).cancel_job()
        return result

    def forget(self, task_id: str) -> None:
        """Forget nothing: `Jobs.prune` deletes rows."""

    def save_group(self, group_id: str, result: Any) -> Any:
        """Store nothing: a group of durable tasks has a row.

        Raises:
            NotImplementedError: no row has the id of the group: it is a group of plain tasks.
        """
        if self.job_id_of(group_id) is None:
            raise NotImplementedError(
                f"The result backend `jobhandle` finds a group by its row, and no job has the id {group_id}. "
                "Only a group with a durable task has one."
            )
        return result

    def restore_group(self, group_id: str, cache: bool = True) -> Any:
        """Return the result of a group of durable tasks, whether it was saved or not; None without a row."""
        job_id = self.job_id_of(group_id)
        if job_id is None:
            return None
        children = self._runtime.submitter.flushed_store().queries.children(job_id) or []
        return self.app.GroupResult(group_id, [self.app.AsyncResult(task_id) for _, task_id in children])

    def delete_group(self, group_id: str) -> None:
        """Delete nothing: `Jobs.prune` deletes rows."""

    def ensure_chords_allowed(self) -> None:
        """Refuse a chord of plain tasks, as Celery does without a result backend."""
        raise NotImplementedError(
            "The result backend `jobhandle` stores no results of plain tasks, which their chord needs. "
            "A chord of durable tasks is a tree of jobs."
        )

    def as_uri(self, include_password: bool = False) -> str:
        """Return the backend's name; the database is that of `Jobs`."""
        return "jobhandle://"


def backend_of(app: Celery) -> JobBackend:
    """Return the one backend of an app that has `Jobs`, whatever its result backend is."""
    runtime = runtime_of(app)
    if runtime.result_backend is None:
        runtime.result_backend = JobBackend(app)
    backend: JobBackend = runtime.result_backend
    return backend
