"""`JobHandle`: the thirteen operations of ``omero::api::JobHandle``, and a few beyond."""

import logging
import uuid
from collections.abc import Collection, Iterator
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, Generic, Self

from . import validation
from .completion import CompletionPoller
from .errors import (
    DatabaseUnavailableError,
    HandleClosedError,
    InvalidTransitionError,
    NotAttachedError,
    StopRequested,
    UnknownJobError,
    ValidationError,
)
from .models import Event, Job, JobRecord
from .preparer import Prepared
from .status import SETTABLE, JobStatus
from .store import Run, Store
from .submitter import Submitter
from .waits import Timeout, changes, finish, until_final, until_result, watched

if TYPE_CHECKING:
    from celery.canvas import Signature
    from sqlalchemy.orm import Session, scoped_session
    from typing_extensions import TypeVar

    R = TypeVar("R", default=Any)
    T = TypeVar("T")
else:
    from typing import TypeVar

    R = TypeVar("R")
    T = TypeVar("T")

logger = logging.getLogger(__name__)


class JobHandle(Generic[R]):
    """Submits a job or attaches to one, watches, updates and cancels it.

    Calling order: `submit` or `attach`, then the others, then `close`. Submitting or attaching again moves
    the handle to another job. Any number of handles, in any number of processes, may be attached to one job;
    each call reads the row. A handle is for one thread.

    A handle with a username sees that user's jobs alone; one without sees all. `JobHandle[int]` is for type
    checkers: its `result` returns an int. No call checks what a task returns.

    In a task, `current_job` returns a handle that writes for its own attempt alone. Once another attempt has
    superseded that, `set_message` and `set_progress` do nothing, and other changes raise
    `InvalidTransitionError`.

    Any call may raise `DatabaseUnavailableError` or `SchemaError`, except `set_progress` and
    `raise_if_cancelled` in a task, which an outage must not end. After `close`, calls raise
    `HandleClosedError`; before `submit` or `attach`, `NotAttachedError`; if the job was pruned,
    `UnknownJobError`.
    """

    def __init__(
        self,
        submitter: Submitter,
        poller: CompletionPoller,
        username: str | None = None,
        groupname: str | None = None,
        *,
        run: Run | None = None,
    ) -> None:
        """Called by `Jobs.handle`, `Jobs.attach` and `current_job`."""
        self._submitter = submitter
        self._poller = poller
        self._username = validation.name("username", username)
        self._groupname = validation.name("groupname", groupname)
        self._job_id = run.job_id if run else None
        self._run = run
        self._closed = False

    # The thirteen.

    def submit(
        self, job: "Job | Signature[R]", *, session: "Session | scoped_session[Any] | None" = None
    ) -> int:
        """Store a `Job` or a Celery signature, publish its message, and return its id.

        Once this has returned, the job will start, whatever happens to the broker. With `session`, the row
        joins that SQLAlchemy transaction, and the message is published after its commit; after a rollback
        there is no job, and the handle is not attached. If an unfinished job has the same `unique_key`,
        nothing is written, and the id of that job is returned.

        Raises:
            ApiUsageError: not a Job or signature, an unknown status word, or a session that cannot be joined.
            ValidationError: a field was refused; nothing was written.
            DBAPIError: SQLAlchemy's, for a serialization failure or a deadlock: retry the transaction.
            DatabaseUnavailableError: whether the job was stored is unknown. A `unique_key` makes a second
                submit safe while the job is unfinished.
        """
        return self._insert(self._prepare(job), session)

    def attach(self, job_id: int) -> JobStatus:
        """Attach to a job and return its current status.

        Raises:
            UnknownJobError: there is no job of that id, or it belongs to another user.
        """
        self._check_open()
        status = self._store().queries.status(validation.job_id(job_id), self._username)
        if status is None:
            raise UnknownJobError(f"no job {job_id}")
        self._move_to(job_id)
        return status

    def get_job(self) -> JobRecord:
        """Return the job as it is stored now; of a node, progress and result are read from its members."""
        return self._known(self._store().queries.job(self.job_id, self._username))

    def job_status(self) -> JobStatus:
        """Return the current status."""
        return self._known(self._store().queries.status(self.job_id, self._username))

    def job_finished(self) -> datetime | None:
        """Return when the job ended, in UTC; None while it is not final."""
        return self._stored_job().finished

    def job_message(self) -> str:
        """Return the newest message; empty when there is none."""
        return self._stored_job().message

    def job_running(self) -> bool:
        """Return True while the job is Running."""
        return self.job_status() is JobStatus.RUNNING

    def job_error(self) -> bool:
        """Return True if the job ended in Error."""
        return self.job_status() is JobStatus.ERROR

    def cancel_job(self, *, terminate: bool = False) -> JobStatus:
        """Cancel the job and return its status afterwards.

        Cancelled: no worker will run it. Running: its body was asked to stop, and the job becomes Cancelled
        once it has. Finished or Error: too late. With `terminate`, the worker also ends the process of the
        body (prefork and gevent; threads and solo can only ask). A chain, group or chord that is final stays
        so; a member that was resubmitted by itself is cancelled, and the answer is Running while its body
        runs.

        Raises:
            InvalidTransitionError: called in a body whose attempt is superseded; nothing was written.
        """
        job_id, end = self.job_id, validation.flag("terminate", terminate)
        return self._known(self._store().control.cancel(job_id, self._username, terminate=end, run=self._run))

    def set_status(self, status: str) -> JobStatus:
        """Set the status and return the previous one.

        Running claims the job for the caller, who then has to finish it: there is no lease. Finished and
        Error end a Running job; if a worker runs it, its body is asked to stop. Cancelled is `cancel_job`.

        Raises:
            ApiUsageError: not the word of a status.
            ValidationError: Submitted, Resubmitted, Queued, Requeued and Waiting cannot be set.
            InvalidTransitionError: the job's status does not allow it, or this is a body whose attempt is
                superseded; nothing was written.
        """
        return self._set(status, None)

    def set_message(self, message: str | None) -> str:
        """Replace the message and return the previous one; None changes nothing."""
        job_id, new = self.job_id, validation.message(message)
        return self._known(self._store().control.set_message(job_id, new, self._username, self._run))

    def set_status_and_message(self, status: str, message: str | None) -> JobStatus:
        """Set both or neither, and return the previous status. Raises as `set_status` does."""
        return self._set(status, message)

    def members(self) -> list[JobRecord]:
        """Return the jobs below a chain, group or chord, in its order; none of a task.

        Each node comes before its children. Page through a very large tree with `Jobs.find(root=…)`.
        """
        return self._known(self._store().queries.members(self.job_id, self._username))

    def events(self) -> list[Event]:
        """Return the job's moves in their order: why it is in its status.

        For a chain, group or chord that has not ended, the last one is computed: it says how many of its
        members have Finished.
        """
        return self._known(self._store().queries.events(self.job_id, self._username) or None)

    def close(self) -> None:
        """Detach from the job, which does not change it. A second call does nothing."""
        self._closed = True

    # Beyond OMERO.

    @property
    def job_id(self) -> int:
        """The id of the job that this handle is attached to.

        Raises:
            NotAttachedError: it is attached to none.
            HandleClosedError: it is closed.
        """
        self._check_open()
        if self._job_id is None:
            raise NotAttachedError("this handle is not attached to a job: call submit or attach first")
        return self._job_id

    def wait(self, timeout: float | timedelta | None = None) -> JobStatus:
        """Wait until the job is final and return its status.

        All waits of a process share one query, every 10 to 50 ms: the longer the newest wait has lasted, the
        less often.

        Args:
            timeout: Seconds, or a timedelta; None waits for ever, 0 checks once.

        Raises:
            WaitTimeoutError: the job is not final yet; it continues.
            RuntimeError: called within a task with a timeout other than 0, as by Celery's ``get()``: the job
                may need the process that waits. ``celery.result.allow_join_result()`` permits it.
        """
        return finish(until_final(self, Timeout(self, timeout, self._poller)), self._poller)

    def result(self, timeout: float | timedelta | None = None) -> R:
        """Wait until the job is final and return what its body returned.

        Raises:
            JobFailedError: the job ended in Error; carries the `Failure`.
            JobCancelledError: the job was cancelled.
            WaitTimeoutError, RuntimeError: as for `wait`.
        """
        steps = until_result(self, Timeout(self, timeout, self._poller))
        result: R = finish(steps, self._poller)
        return result

    def watch(self, timeout: float | timedelta | None = None) -> Iterator[JobRecord]:
        """Yield the job as it is now, and whenever its status, message or progress has changed.

        The iterator ends after the record of the final job. Of changes within a tenth of a second, it may
        yield the last one alone.

        Args:
            timeout: Seconds, or a timedelta, for the whole iteration; None: until the job is final.

        Raises:
            WaitTimeoutError, RuntimeError: as for `wait`.
        """
        return watched(changes(self, Timeout(self, timeout, self._poller)), self._poller)

    def set_progress(self, current: float, total: float | None = None) -> None:
        """Record how far the job is, in units of its own.

        A body records it for its own attempt, and skips it while the database is unavailable; from outside it
        is for the attempt that runs now. Each call is a statement: call it about once a second, not for each
        row of a file.
        """
        job_id, current = self.job_id, validation.number("current", current)
        total = None if total is None else validation.number("total", total)
        if self._run is not None:
            try:
                self._store().runs.note_progress(self._run, current, total)
            except DatabaseUnavailableError as error:
                logger.warning("job %s: progress was not recorded (%s); the body continues", job_id, error)
        elif not self._store().control.note_progress_of(job_id, current, total, self._username):
            self.job_status()  # not Running is no error; a job that does not exist is

    def cancel_requested(self) -> bool:
        """Return True if the job was asked to stop; in a body, also if its attempt is superseded."""
        if self._run is not None:
            self._check_open()
            return self._store().runs.check(self._run)[1]
        return self._stored_job().cancel_requested is not None

    def raise_if_cancelled(self) -> None:
        """Raise `StopRequested`, which ends a body, if `cancel_requested`.

        A body continues while the database is unavailable; the next call checks again.
        """
        try:
            requested = self.cancel_requested()
        except DatabaseUnavailableError as error:
            if self._run is None:
                raise
            logger.warning(
                "job %s: its stop request could not be read, the body continues: %s", self._job_id, error
            )
            return
        if requested:
            raise StopRequested

    def needs(self) -> list[JobRecord]:
        """Return the jobs that must end before this one starts; those whose results are its arguments first.

        These are in the order of the arguments, the others in that of their ids.
        """
        needs = self._store().queries.needs(self.job_id)
        if not needs:
            self.job_status()  # a job without needs is no error, one that does not exist is
        return needs

    def resubmit_job(self) -> None:
        """Run a final job again, with the same arguments; it waits for unfinished jobs that it needs.

        Raises:
            InvalidTransitionError: it is not final, its last body may still be alive, another unfinished job
                has its unique key, it needs a job that did not end as it must have, or this is a body whose
                attempt is superseded.
        """
        ready = self._store().control.resubmit(self.job_id, str(uuid.uuid4()), self._username, self._run)
        if ready is None:
            status = self.job_status()
            raise InvalidTransitionError(
                f"job {self.job_id} is {status}: its last body may still run on its worker; try again later"
                if status.final
                else f"job {self.job_id} is {status}; only a final job can be resubmitted"
            )
        self._submitter.send(ready)

    def release_job(self) -> None:
        """Submit a Waiting job now.

        Raises:
            InvalidTransitionError: it is not Waiting, it waits for jobs that it needs, or this is a body
                whose attempt is superseded.
        """
        if not self._store().control.release(self.job_id, str(uuid.uuid4()), self._username, self._run):
            status = self.job_status()
            raise InvalidTransitionError(
                f"job {self.job_id} waits for the jobs that it needs; it cannot be released"
                if status is JobStatus.WAITING
                else f"job {self.job_id} is {status}, not Waiting"
            )
        self._submitter.send([self.job_id])

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def __repr__(self) -> str:
        state = "closed" if self._closed else f"job {self._job_id}" if self._job_id else "not attached"
        return f"<JobHandle: {state}>"

    def _set(self, word: str, message: str | None) -> JobStatus:
        job_id, status, new = self.job_id, validation.status_word(word), validation.message(message)
        if status not in SETTABLE:
            raise ValidationError("status", str(status), "Running, Finished, Error or Cancelled")
        token = str(uuid.uuid4())
        previous, moved = self._store().control.set_status(
            job_id, status, token, self._username, new, self._run
        )
        before = self._known(previous)
        if not moved:
            raise InvalidTransitionError(f"job {job_id} is {before}; it cannot be set to {status} now")
        return before

    def _stored_job(self) -> JobRecord:
        return self._known(self._store().queries.stored_job(self.job_id, self._username))

    def _store(self) -> Store:
        return self._submitter.flushed_store()

    def detach_from(self, job_ids: Collection[int]) -> None:
        """Detach from any of these jobs; called when a session rolls back."""
        if self._job_id in job_ids:
            self._job_id = self._run = None

    def _prepare(self, job: object) -> Prepared:
        self._check_open()
        return self._submitter.preparer.prepare([job], self._username, self._groupname)

    def _insert(self, prepared: Prepared, session: "Session | scoped_session[Any] | None") -> int:
        job_id = self._submitter.insert(prepared, session, self)[0].job_id
        self._move_to(job_id)
        return job_id

    def _check_open(self) -> None:
        if self._closed:
            raise HandleClosedError("this handle was closed")

    def _move_to(self, job_id: int) -> None:
        if job_id != self._job_id:
            self._run = None
        self._job_id = job_id

    def _known(self, found: T | None) -> T:
        if found is None:
            raise UnknownJobError(f"no job {self._job_id}")
        return found
