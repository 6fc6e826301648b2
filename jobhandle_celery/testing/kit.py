"""`JobsKit`: the `Jobs` of a service during one test, and what a test asks of it."""

import contextvars
from collections.abc import Callable, Collection
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timedelta
from functools import cache, cached_property
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, TypeVar

import pytest
from celery import signals

from ..batching import slices
from ..broker.headers import readable_job_of
from ..errors import ApiUsageError, JobFailedError, ValidationError
from ..jobs import Jobs
from ..models import Job, JobRecord
from ..status import JobStatus
from ..store import runs_event_loop, uncommitted
from .matching import Expectation, met, unmet
from .matching_trees import StoredTrees
from .rows import Rows
from .worker import InProcessWorker

if TYPE_CHECKING:
    from celery.canvas import Signature

    from .database import DatabaseOfTests
    from .mailbox import Mailbox
    from .redirect import TestRuntime

T = TypeVar("T")

MAX_RUN = 1_000
"""Messages that one call of `JobsKit.run_jobs` delivers."""


class JobsKit(Jobs):
    """The `Jobs` of a service, with a fresh database, and with what a test needs beside it.

    It has all operations of `Jobs`, and the service's own object works as well: both are redirected. Nothing
    runs until `run_jobs` or `perform` is called, unless ``task_always_eager`` is set.
    """

    def __init__(
        self, jobs: Jobs, runtime: "TestRuntime", mailbox: "Mailbox", database: "DatabaseOfTests"
    ) -> None:
        """Called by the fixture ``jobs``."""
        # Not `Jobs.__init__`: the app has its `Jobs`.
        self._app, self._durable = jobs._app, jobs._durable
        self._runtime: TestRuntime = runtime
        self._database = jobs._database  # type: ignore[method-assign]  # that of the test
        self._mailbox = mailbox
        self._of_tests = database
        self._worker: InProcessWorker | None = None
        self._errors: dict[str, tuple[BaseException, TracebackType | None]] = {}

    @cached_property
    def _rows(self) -> Rows:
        return Rows(self._runtime.store.database)  # at the first use: settings may change until then

    @property
    def database_url(self) -> str:
        """The URL of the test's database, for an engine of the service whose sessions jobs join."""
        return self._of_tests.url

    # What was submitted.

    def assert_submitted(self, task: Any, **fields: Any) -> JobRecord:
        """Return the newest job of a task that has these fields of a `JobRecord`; fail if there is none.

        Args:
            task: A task, its name, or a signature of it: then its arguments are expected, too. Or a canvas:
                then a chain, group or chord of the same tasks is expected, in the same places and with the
                same arguments, by itself or within another canvas. Options of signatures are not compared.
            fields: For instance ``args``, ``kwargs``, ``username``, ``queue``, ``status``. What is left out
                may have any value.

        Raises:
            ApiUsageError: a record has no such field, or no job could have what is expected.
        """
        __tracebackhide__ = True
        expectation, records = Expectation.of(task, fields), self._submitted()
        trees = self._trees_of(records)
        for record in records:
            if not expectation.differences(record, trees):
                return record
        pytest.fail(unmet(expectation, records, trees, len(uncommitted())))

    def refute_submitted(self, task: Any, **fields: Any) -> None:
        """Fail if there is a job as `assert_submitted` looks for."""
        __tracebackhide__ = True
        expectation, records = Expectation.of(task, fields), self._submitted()
        trees = self._trees_of(records)
        if found := [record for record in records if not expectation.differences(record, trees)]:
            pytest.fail(met(expectation, found))

    def _trees_of(self, records: list[JobRecord]) -> Callable[[], StoredTrees]:
        """Return what reads the trees of these jobs, once, if they are needed."""
        return cache(lambda: StoredTrees(records, self._rows.places()))

    def _submitted(self) -> list[JobRecord]:
        """Return all jobs, newest first, each published if it is to be."""
        self._runtime.submitter.publish_pending()
        records: list[JobRecord] = []
        while page := self.find(before=records[-1].id if records else None, limit=1_000):
            records += page
        return records

    # What runs.

    def run_jobs(
        self, *, with_scheduled: bool | datetime | timedelta = False, most: int = MAX_RUN
    ) -> list[JobRecord]:
        """Run the jobs that may start, as a worker does, until there are none; return those that it started.

        A job takes the same path as in a worker: message, claim, body with its signals, outcome. So the
        jobs that bodies submit run as well, and members of trees as soon as their needs have ended; retries
        run without their delay. Bodies run in this thread, one after another, without time limits; in a
        coroutine, in another thread meanwhile. A body's error ends its job in Error, and not this call.

        Args:
            with_scheduled: Also run jobs that wait for their time: True, all of them; a moment, or a
                timedelta from now: those that are due by then. Held jobs never run.
            most: Messages that it delivers at most.

        Raises:
            ApiUsageError: `with_scheduled` is something else, or a moment without a time zone.
            DatabaseUnavailableError: within `database_away`.
            RuntimeError: there are more messages: a job may retry or submit itself without end.
        """
        if not isinstance(with_scheduled, (bool, datetime, timedelta)):
            raise ValidationError("with_scheduled", with_scheduled, "True, False, a moment, or a timedelta")
        until = with_scheduled if isinstance(with_scheduled, (datetime, timedelta)) else None
        if isinstance(until, timedelta):
            until = self._of_tests.now() + until
        if until is not None and until.tzinfo is None:
            raise ApiUsageError(f"with_scheduled: {until} has no time zone")
        scheduled = bool(with_scheduled)
        return _outside_event_loop(lambda: self._run(None, scheduled=scheduled, until=until, most=most))

    def perform(
        self, job: "Job | Signature[Any]", *, username: str | None = None, groupname: str | None = None
    ) -> Any:
        """Submit a job, run it and no other, and return what its body returned; for tests of the body.

        A signature, a `Job` or a canvas, whose times it does not wait for.

        Raises:
            Exception: the error that the body raised, or the one that it retried for too often.
            JobFailedError: the job ended in Error without an error of a body.
            JobCancelledError: the job was cancelled.
        """
        job_id = self.submit(job, username=username, groupname=groupname)
        handle = self.attach(job_id)
        members = {member.id for member in handle.members()}
        _outside_event_loop(lambda: self._run({job_id} | members, scheduled=True))
        try:
            return handle.result(timeout=0)
        except JobFailedError:
            for record in (handle.get_job(), *handle.members()):
                if record.status is JobStatus.ERROR and record.task_id in self._errors:
                    error, traceback = self._errors[record.task_id]
                    raise error.with_traceback(traceback) from error.__cause__
            raise

    def _run(
        self,
        job_ids: Collection[int] | None,
        *,
        scheduled: bool,
        until: datetime | None = None,
        most: int = MAX_RUN,
    ) -> list[JobRecord]:
        if self._worker is None:
            self._worker = InProcessWorker(self._app, self._runtime)
        self._worker.write()
        with self._runtime.running(), _Observed() as observed:
            for _ in range(most):
                self._worker.renew()
                message = self._next_message(job_ids, scheduled=scheduled, until=until)
                if message is None:
                    break
                observed.begin(message)
                self._worker.deliver(message)
                if observed.outcome is not None:
                    raise observed.outcome
            else:
                raise RuntimeError(
                    f"{most} messages were delivered, and there are more. Does a job retry or submit itself "
                    f"without end? The last one was of job {observed.job_id}. For more: run_jobs(most=…)"
                )
        self._errors |= observed.errors
        records: dict[int, JobRecord] = {}
        started = list(observed.started)
        for ids in slices(started, MAX_RUN):
            records |= {record.id: record for record in self.find(ids=ids, limit=MAX_RUN)}
        return [records[job_id] for job_id in started if job_id in records]

    def _next_message(
        self, job_ids: Collection[int] | None, *, scheduled: bool, until: datetime | None
    ) -> dict[str, Any] | None:
        while True:
            self._runtime.submitter.drain()
            message = self._mailbox.take(job_ids)
            if message is None:
                self.sweep()
                message = self._mailbox.take(job_ids)
            if message is not None:
                return message
            if self._rows.make_due(job_ids, scheduled=scheduled, until=until) is None:
                return None


class _Observed:
    """What Celery's signals tell of the bodies that run in this block."""

    def __init__(self) -> None:
        self.job_id: int | None = None
        self.started: dict[int, None] = {}
        """Ids of the jobs whose bodies were started, in order."""
        self.errors: dict[str, tuple[BaseException, TracebackType | None]] = {}
        """What bodies raised, and the tracebacks, by task id."""
        self.outcome: BaseException | None = None
        """What ends the test: ``pytest.fail()`` and the like, called in a body."""
        self._task_id: str | None = None

    def begin(self, message: dict[str, Any]) -> None:
        self._task_id = message["headers"]["id"]
        job = readable_job_of(message["headers"])
        self.job_id = None if job is None else job[0]

    def _on_prerun(self, task_id: str | None = None, **_: Any) -> None:
        if self.job_id is not None and task_id == self._task_id:
            self.started.setdefault(self.job_id)

    def _on_failure(
        self, task_id: str | None = None, exception: BaseException | None = None, **_: Any
    ) -> None:
        if task_id is None or exception is None:
            return
        # Its traceback is dropped once the worker has reported it.
        self.errors[task_id] = exception, exception.__traceback__
        cause = exception.__cause__
        if task_id == self._task_id and isinstance(cause, _OUTCOMES):
            self.outcome = cause

    def __enter__(self) -> Self:
        signals.task_prerun.connect(self._on_prerun, weak=False)
        signals.task_failure.connect(self._on_failure, weak=False)
        return self

    def __exit__(self, *_: object) -> None:
        signals.task_prerun.disconnect(self._on_prerun)
        signals.task_failure.disconnect(self._on_failure)


_OUTCOMES = (pytest.fail.Exception, pytest.skip.Exception, pytest.exit.Exception)


def _outside_event_loop(run: Callable[[], T]) -> T:
    """Call a function in this thread, or in another one if this one runs an event loop, as no worker does."""
    if not runs_event_loop():
        return run()
    with ThreadPoolExecutor(1) as threads:
        return threads.submit(contextvars.copy_context().run, run).result()
