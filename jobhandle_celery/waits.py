"""What `wait`, `result` and `watch` of a handle do, written once for threads and coroutines.

Each is a generator of steps: what it does between two yields is short and blocking, and what it yields is a
`WaitCondition` that its caller waits for, in a thread or in an event loop. The `WaitResult` is sent back.
"""

import math
import time
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Generic, Protocol, TypeVar

from . import validation
from .completion import CompletionPoller, WaitCondition, WaitResult
from .errors import JobCancelledError, JobFailedError, JobHandleError, WaitTimeoutError
from .models import Failure, JobRecord, Unreadable
from .status import JobStatus
from .store import JobOutcome, JobState

T = TypeVar("T")

Steps = Generator[WaitCondition, WaitResult | None, T]


class Attached(Protocol):
    """A handle, as far as a wait uses it."""

    _username: str | None

    @property
    def job_id(self) -> int: ...

    def job_status(self) -> JobStatus: ...

    def get_job(self) -> JobRecord: ...


class Timeout:
    """How long a caller waits for the job of a handle."""

    def __init__(self, handle: Attached, given: float | timedelta | None, poller: CompletionPoller) -> None:
        """Check that the caller may wait; None: for ever."""
        self.job_id, self.username = handle.job_id, handle._username
        self.began = time.monotonic()
        self._seconds = math.inf if given is None else validation.timeout("timeout", given)
        self.deadline = self.began + self._seconds
        if self._seconds > 0:
            poller.assert_may_wait(self.job_id)

    def check(self, status: JobStatus) -> None:
        """Raise WaitTimeoutError if it has passed."""
        if time.monotonic() >= self.deadline:
            raise WaitTimeoutError(f"job {self.job_id} is {status} after {self._seconds:g} s")


def until_final(handle: Attached, timeout: Timeout) -> Steps[JobStatus]:
    """Wait until the job is final; return its status."""
    while True:
        found = yield WaitCondition(timeout.job_id, timeout.deadline, username=timeout.username)
        if found is not None and found.status is not None:
            return found.status
        if (status := handle.job_status()).final:
            return status
        timeout.check(status)


def until_result(handle: Attached, timeout: Timeout) -> Steps[Any]:
    """Wait until the job is final; return the result of a job that has Finished.

    Raises:
        JobFailedError, JobCancelledError: it has not.
    """
    while True:
        found = yield WaitCondition(
            timeout.job_id, timeout.deadline, username=timeout.username, wants_outcome=True
        )
        if found is not None and found.outcome is not None:
            return _result(found.outcome)
        if (job := handle.get_job()).status.final:
            return _result(JobOutcome.of(job))
        timeout.check(job.status)


def _result(job: JobOutcome) -> Any:
    if job.status is JobStatus.CANCELLED:
        raise JobCancelledError(f"job {job.id} was cancelled: {job.message}".rstrip(": "))
    if job.status is JobStatus.ERROR:
        raise JobFailedError(job.id, job.error or Failure("task", "Error", job.message))
    if isinstance(job.result, Unreadable):
        raise JobHandleError(f"job {job.id}: its result cannot be read: {job.result.reason}")
    return job.result


def changes(handle: Attached, timeout: Timeout) -> Iterator[WaitCondition | JobRecord]:
    """Yield the record now, and at each change of status, message or progress, until it is final."""
    shown: JobState | None = None
    while True:
        job = handle.get_job()
        state = JobState.of(job)
        if state != shown:
            shown = state
            yield job
        if job.status.final:
            return
        timeout.check(job.status)
        yield WaitCondition(timeout.job_id, timeout.deadline, state, timeout.began)


@dataclass(frozen=True)
class Done(Generic[T]):
    """What `advance` returns when the steps of a wait have ended, with their result."""

    value: T


def advance(steps: Steps[T], found: WaitResult | None = None) -> WaitCondition | Done[T]:
    """Do what comes before the next wait."""
    try:
        return steps.send(found)
    except StopIteration as done:
        return Done(done.value)


def finish(steps: Steps[T], poller: CompletionPoller) -> T:
    """Do all steps in this thread."""
    step = advance(steps)
    while isinstance(step, WaitCondition):
        step = advance(steps, poller.wait(step))
    return step.value


def watched(steps: Iterator[WaitCondition | JobRecord], poller: CompletionPoller) -> Iterator[JobRecord]:
    """Yield the records, and wait between them in this thread."""
    for step in steps:
        if isinstance(step, WaitCondition):
            poller.wait(step)
        else:
            yield step
