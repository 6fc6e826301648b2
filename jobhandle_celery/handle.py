"""`JobHandle`: the thirteen operations of ``omero::api::JobHandle``, and a few beyond.

May import submission and below.
"""

import logging
import math
import time
import uuid
from collections.abc import Collection
from datetime import datetime, timedelta
from types import TracebackType
from typing import TYPE_CHECKING, Any, Generic, Self

from . import validation
from .completion import CompletionPoller
from .errors import (
    DatabaseUnavailableError,
    HandleClosedError,
    InvalidTransitionError,
    JobCancelledError,
    JobFailedError,
    JobHandleError,
    NotAttachedError,
    StopRequested,
    UnknownJobError,
    ValidationError,
    WaitTimeoutError,
)
from .models import Event, Failure, Job, JobRecord, Unreadable
from .status import SETTABLE, JobStatus
from .store import Run, Store
from .submitter import Submitter

if TYPE_CHECKING:
    from celery.canvas import Signature
    from sqlalchemy.orm import Session, scoped_session
    from typing_extensions import TypeVar

    R = TypeVar("R", default=Any)
else:
    from typing import TypeVar

    R = TypeVar("R")

logger = logging.getLogger(__name__)


class JobHandle(Generic[R]):
    """Submits one job, or attaches to one, watches it, speaks for it and cancels it.

    Calling order: `submit` or `attach`, then the others, then `close`. Submitting or attaching again moves
    the handle to another job. Any number of handles, in any number of processes, may be attached to one job;
    each call reads the row afresh. A handle is for one thread.

    With a username, the handle sees that user's jobs alone; without one it is the service's own and sees all.

    Any call may raise `DatabaseUnavailableError`, or `SchemaError` if the tables do not fit; in a body,
    `set_progress` and `raise_if_cancelled` do not, for an outage is no reason to end the work. The handle of
    a body, from `current_job`, writes for its own attempt alone. Once that is superseded, no call changes the
    job: `set_message` and `set_progress` are left out, the others raise `InvalidTransitionError`. After
    `close`, calls raise `HandleClosedError`; before a `submit` or `attach`, `NotAttachedError`; of a job that
    was pruned since, `UnknownJobError`.
    """

    def __init__(
        self,
        store: Store,
        submitter: Submitter,
        waits: CompletionPoller,
        username: str | None = None,
        groupname: str | None = None,
        *,
        run: Run | None = None,
    ) -> None:
        """Made by `Jobs.handle`, `Jobs.attach` and `current_job`, not by hand."""
        self._store = store
        self._submissions = submitter
        self._waits = waits
        self._username = validation.name("username", username)
        self._groupname = validation.name("groupname", groupname)
        self._job_id = run.job_id if run else None
        self._run = run
        self._closed = False

    # The thirteen.

    def submit(
        self, job: "Job | Signature[R]", *, session: "Session | scoped_session[Any] | None" = None
    ) -> int:
        """Store a `Job`, or a Celery signature, and send it to run; return its id.

        Once this has returned the job will start, whatever happens to the broker. With `session`, the row
        joins that SQLAlchemy transaction: it exists from the caller's commit on, after which the message goes
        out. After a rollback there never was a job, and the handle has none. With a `unique_key` that an
        unfinished job has, nothing is written, and the id of that job is returned. To call it takes a moment
        and waits for the database, so in a coroutine it belongs into a thread, or into
        ``AsyncSession.run_sync``.

        Raises:
            ApiUsageError: not a Job or signature, an unknown status word, or a session that cannot be joined.
            ValidationError: a field was refused; nothing was written.
            DBAPIError: SQLAlchemy's own, of a serialization failure or a deadlock in the session: repeat its
                transaction.
            DatabaseUnavailableError: whether the job was stored is not known. Submitted again with the same
                unique key it is the same job, as long as that is unfinished.
        """
        self._check_open()
        submitted = self._submissions.submit([job], self._username, self._groupname, session, self)[0]
        self._move_to(submitted.job_id)
        return submitted.job_id

    def attach(self, job_id: int) -> JobStatus:
        """Attach to a job and return its current status.

        Raises:
            UnknownJobError: there is none of that id for this handle's user.
        """
        self._check_open()
        status = self._flushed().queries.status(validation.job_id(job_id), self._username)
        if status is None:
            raise UnknownJobError(f"no job {job_id}")
        self._move_to(job_id)
        return status

    def get_job(self) -> JobRecord:
        """Return the job as it is now."""
        job = self._flushed().queries.job(self.job_id, self._username)
        if job is None:
            raise self._unknown()
        return job

    def job_status(self) -> JobStatus:
        """Return the current status."""
        status = self._flushed().queries.status(self.job_id, self._username)
        if status is None:
            raise self._unknown()
        return status

    def job_finished(self) -> datetime | None:
        """Return when the job ended, in UTC; None while it is not final."""
        return self.get_job().finished

    def job_message(self) -> str:
        """Return the newest message; empty when there is none."""
        return self.get_job().message

    def job_running(self) -> bool:
        """Return True while the job is Running."""
        return self.job_status() is JobStatus.RUNNING

    def job_error(self) -> bool:
        """Return True if the job ended in Error."""
        return self.job_status() is JobStatus.ERROR

    def cancel_job(self, *, terminate: bool = False) -> JobStatus:
        """Cancel the job and return its status after that, which says what the cancel came to.

        Cancelled: no worker will ever run it. Running: its body was asked to stop, and the job becomes
        Cancelled when it has. Finished or Error: too late. With `terminate`, the worker that runs the job
        ends the process of its body (prefork and gevent can; threads and solo can only ask).

        Raises:
            InvalidTransitionError: in a body that is superseded by another attempt; nothing was written.
        """
        job_id, end = self.job_id, validation.flag("terminate", terminate)
        status = self._flushed().control.cancel(job_id, self._username, terminate=end, run=self._run)
        if status is None:
            raise self._unknown()
        return status

    def set_status(self, status: str) -> JobStatus:
        """Set the status by hand and return the previous one.

        Running claims the job for the caller, who then finishes it: there is no lease, and no worker takes
        it away. Finished and Error end a Running job; if a worker runs it, its body is asked to stop.
        Cancelled is `cancel_job`.

        Raises:
            ApiUsageError: not the word of a status.
            ValidationError: a status that nobody may set: Submitted, Resubmitted, Queued, Requeued, Waiting.
            InvalidTransitionError: the job's present status does not allow it, or, in a body, another
                attempt has superseded this one; nothing was written.
        """
        return self._set(status, None)

    def set_message(self, message: str | None) -> str:
        """Replace the message and return the previous one; None, or a superseded body, leaves it alone."""
        job_id, said = self.job_id, validation.message(message)
        previous = self._flushed().control.set_message(job_id, said, self._username, self._run)
        if previous is None:
            raise self._unknown()
        return previous

    def set_status_and_message(self, status: str, message: str | None) -> JobStatus:
        """Set both, or neither, and return the previous status. Raises as `set_status` does."""
        return self._set(status, message)

    def events(self) -> list[Event]:
        """Return the job's moves in their order: why it is in its status."""
        events = self._flushed().queries.events(self.job_id, self._username)
        if not events:
            raise self._unknown()
        return events

    def close(self) -> None:
        """Let go of the job, which is not changed by it. Closing twice is closing once."""
        self._closed = True

    # Beyond OMERO.

    @property
    def job_id(self) -> int:
        """The id of the job that this handle is attached to."""
        self._check_open()
        if self._job_id is None:
            raise NotAttachedError("this handle has no job yet: submit or attach first")
        return self._job_id

    def wait(self, timeout: float | timedelta | None = None) -> JobStatus:
        """Wait until the job is final and return its status.

        All who wait in a process share one question to the database, which is asked 10 to 100 times a second
        at most, less often the longer the wait.

        Args:
            timeout: Seconds, or a timedelta; None waits for ever, 0 looks once.

        Raises:
            WaitTimeoutError: it is not final yet; it goes on.
            RuntimeError: within a task, as Celery's ``get()`` does, but for a timeout of 0: the job may need
                the process that waits. ``celery.result.allow_join_result()`` lifts it.
        """
        return self._wait(*self._deadline(timeout))

    def result(self, timeout: float | timedelta | None = None) -> R:
        """Wait until the job is final and return what its body returned.

        Raises:
            JobFailedError: it ended in Error; carries the `Failure`.
            JobCancelledError: it was cancelled.
            WaitTimeoutError, RuntimeError: as for `wait`.
        """
        seconds, deadline = self._deadline(timeout)
        self._wait(seconds, deadline)
        while not (job := self.get_job()).status.final:  # resubmitted since the wait
            self._wait(seconds, deadline)
        if job.status is JobStatus.CANCELLED:
            raise JobCancelledError(f"job {job.id} was cancelled: {job.message}".rstrip(": "))
        if job.status is JobStatus.ERROR:
            raise JobFailedError(job.id, job.error or Failure("task", "Error", job.message))
        if isinstance(job.result, Unreadable):
            raise JobHandleError(f"job {job.id}: its result cannot be read: {job.result.reason}")
        result: R = job.result
        return result

    def set_progress(self, current: float, total: float | None = None) -> None:
        """Say how far the job is, in units of its own.

        In a body, this counts for its own attempt alone, and is left out while the database is away; from
        outside it counts for whatever runs the job now. Each call is a statement: once for every second of
        work is plenty, once for every row of a file is not.
        """
        job_id, current = self.job_id, validation.number("current", current)
        total = None if total is None else validation.number("total", total)
        if self._run is not None:
            try:
                self._flushed().runs.note_progress(self._run, current, total)
            except DatabaseUnavailableError as error:
                logger.warning("the progress of job %s is not shown: %s", job_id, error)
        elif not self._flushed().control.note_progress_of(job_id, current, total, self._username):
            self.job_status()  # not Running, which is no error; or gone, which is

    def cancel_requested(self) -> bool:
        """Return True if the job was asked to stop; in a body, also if another attempt has superseded it."""
        if self._run is not None:
            self._check_open()
            return self._flushed().runs.check(self._run)[1]
        return self.get_job().cancel_requested is not None

    def raise_if_cancelled(self) -> None:
        """Raise `StopRequested`, which ends a body, if `cancel_requested`.

        In a body that goes on while the database is away: the next call asks again.
        """
        try:
            requested = self.cancel_requested()
        except DatabaseUnavailableError as error:
            if self._run is None:
                raise
            logger.warning("whether job %s should stop is not known: %s", self._job_id, error)
            return
        if requested:
            raise StopRequested

    def resubmit_job(self) -> None:
        """Send a final job round again, with the same arguments.

        Raises:
            InvalidTransitionError: it is not final, its former body may still be alive, another unfinished
                job has its unique key, or, in a body, another attempt has superseded this one.
        """
        if not self._flushed().control.resubmit(self.job_id, str(uuid.uuid4()), self._username, self._run):
            status = self.job_status()
            raise InvalidTransitionError(
                f"job {self.job_id} is {status}: its former body may still be running on its worker"
                if status.final
                else f"job {self.job_id} is {status}; only a final job can be resubmitted"
            )
        self._submissions.send([self.job_id])

    def release_job(self) -> None:
        """Let a Waiting job go now.

        Raises:
            InvalidTransitionError: it is not Waiting, or, in a body, another attempt has superseded this one.
        """
        if not self._flushed().control.release(self.job_id, str(uuid.uuid4()), self._username, self._run):
            raise InvalidTransitionError(f"job {self.job_id} is {self.job_status()}, not Waiting")
        self._submissions.send([self.job_id])

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        state = "closed" if self._closed else f"job {self._job_id}" if self._job_id else "not attached"
        return f"<JobHandle: {state}>"

    def _deadline(self, timeout: float | timedelta | None) -> tuple[float, float]:
        """Return the timeout in seconds, and when it ends by the monotonic clock."""
        job_id = self.job_id
        seconds = math.inf if timeout is None else validation.timeout("timeout", timeout)
        if seconds > 0:
            self._waits.assert_may_wait(job_id)
        return seconds, time.monotonic() + seconds

    def _wait(self, seconds: float, deadline: float) -> JobStatus:
        while not (status := self.job_status()).final:
            if time.monotonic() >= deadline:
                raise WaitTimeoutError(f"job {self.job_id} is {status} after {seconds:g} s")
            self._waits.wait_until_final(self.job_id, deadline)
        return status

    def _set(self, word: str, message: str | None) -> JobStatus:
        job_id, status, said = self.job_id, validation.status_word(word), validation.message(message)
        if status not in SETTABLE:
            raise ValidationError("status", str(status), "Running, Finished, Error or Cancelled")
        token = str(uuid.uuid4())
        previous, moved = self._flushed().control.set_status(
            job_id, status, token, self._username, said, self._run
        )
        if previous is None:
            raise self._unknown()
        if not moved:
            raise InvalidTransitionError(f"job {job_id} is {previous}; it cannot be set to {status} now")
        return previous

    def _flushed(self) -> Store:
        """Flush pending updates, so that this process reads its own writes; return the store."""
        self._submissions.queued_marker.flush_once()
        return self._store

    def detach_from(self, job_ids: Collection[int]) -> None:
        """Have no job any more if it is one of these; the end of a session calls this."""
        if self._job_id in job_ids:
            self._job_id = self._run = None

    def _check_open(self) -> None:
        if self._closed:
            raise HandleClosedError("this handle was closed")

    def _move_to(self, job_id: int) -> None:
        if job_id != self._job_id:
            self._run = None
        self._job_id = job_id

    def _unknown(self) -> UnknownJobError:
        return UnknownJobError(f"no job {self._job_id}")
