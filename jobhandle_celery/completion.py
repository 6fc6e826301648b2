"""One poller per process for all who wait, threads and coroutines; a query covers all jobs together.

A thread polls while anyone waits, and ends soon after the last wait.
"""

import copy
import math
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import NamedTuple, TypeVar

from .batching import slices
from .status import JobStatus
from .store import Forkable, JobOutcome, JobState, Store, forks
from .tracing import untraced

K = TypeVar("K")

MIN_INTERVAL, MAX_INTERVAL = 0.01, 0.05
"""Seconds between two polls."""

INTERVAL_SHARE = 0.02
"""The interval between these two, as a share of the time that the newest wait has lasted."""

POLLS_APART = 4
"""The shortest interval, as a multiple of the time that the last poll took: many waits make polls long."""

MAX_OUTCOMES = 100
"""Outcomes read together: each may be large, and their waits end before the next are read."""

IDLE_TIMEOUT = 1.0
"""Seconds without a wait after which the thread ends."""


@dataclass(frozen=True)
class WaitCondition:
    """What is waited for: the end of a job, or any change of it."""

    job_id: int
    deadline: float = math.inf
    """When the wait ends in any case, by the monotonic clock."""
    seen: JobState | None = None
    """Wait until the job is no longer in this state; None: until it is final."""
    since: float = field(default_factory=time.monotonic)
    """When the caller has begun to wait, by the monotonic clock."""
    username: str | None = None
    """Whose job it has to be, so that the wait is complete; None: anybody's."""
    wants_outcome: bool = False
    """The outcome of the final job is asked for."""

    def accepts(self, username: str | None) -> bool:
        """Whether the job of this user may end the wait."""
        return self.username in (None, username)


class WaitResult(NamedTuple):
    """What ends a wait."""

    status: JobStatus | None = None
    """Final. None: the caller has to read the job. The wait was for a change, or for the outcome of a node;
    or the job was deleted or resubmitted, or is another user's."""
    outcome: JobOutcome | None = None
    """Of the final job, if it was asked for."""


Wait = Future[WaitResult]


class CompletionPoller(Forkable):
    """The waits of one process."""

    def __init__(self, store: Store, assert_may_wait: Callable[[], object] = lambda: None) -> None:
        """`assert_may_wait` raises RuntimeError where a wait may never end: within a task."""
        self._store = store
        self._assert_may_wait = assert_may_wait
        self._reset()
        forks.register(self)

    def _reset(self) -> None:
        self._changed = threading.Condition()
        self._waits: dict[Wait, WaitCondition] = {}
        self._thread: threading.Thread | None = None
        self._polled_at = self._newest = 0.0
        self._shortest = MIN_INTERVAL
        self._due = math.inf

    def after_fork(self) -> None:
        self._reset()

    def assert_may_wait(self, job_id: int) -> None:
        """Refuse a wait that would block the process which the job may need.

        Raises:
            RuntimeError: this is the body of a task, in a pool that runs one at a time.
        """
        try:
            self._assert_may_wait()
        except RuntimeError:
            raise RuntimeError(
                f"job {job_id} was not waited for: never wait for a job within a task. "
                "Submit it and return, or wait under celery.result.allow_join_result()"
            ) from None

    def wait(self, condition: WaitCondition) -> WaitResult | None:
        """Wait in this thread; None if the deadline comes first.

        Raises:
            DatabaseUnavailableError: the database did not answer.
        """
        # Read here first: an ended job needs no poller. A watch has just read the row: it is not read again.
        found = self.look(condition) if condition.seen is None else None
        if found is not None or time.monotonic() >= condition.deadline:
            return found
        wait = self.begin(condition)
        try:
            while (left := condition.deadline - time.monotonic()) > 0:
                try:
                    return wait.result(min(left, threading.TIMEOUT_MAX))
                except TimeoutError:
                    if wait.done():  # SQLite's or the driver's, of the poll
                        raise
            return None
        finally:
            self.end(wait)

    def look(self, condition: WaitCondition) -> WaitResult | None:
        """Return what ends a wait now, if it does; without the poller."""
        return next((found for _, found in self._found({condition.job_id: condition})), None)

    def begin(self, condition: WaitCondition, *, at_once: bool = False) -> Wait:
        """Begin a wait; its caller ends it, at the deadline or before.

        With `at_once` the next poll does not wait; else the caller has just looked at the job.
        """
        wait: Wait = Future()
        now = time.monotonic()
        with self._changed:
            if not (self._waits or at_once):
                self._polled_at = now
            self._waits[wait] = condition
            self._newest = max(self._newest, condition.since)
            if self._thread is None:
                thread = threading.Thread(target=self._run, name="jobhandle-polling", daemon=True)
                thread.start()
                self._thread = thread
            elif self._due > self._polled_at + self._shortest:
                self._due = now
                self._changed.notify_all()  # a new wait shortens the interval
        return wait

    def end(self, wait: Wait) -> None:
        """End a wait, whether it was completed or not."""
        with self._changed:
            self._waits.pop(wait, None)

    def _run(self) -> None:
        while True:
            with self._changed:
                self._due = math.inf
                if not self._changed.wait_for(lambda: self._waits, IDLE_TIMEOUT):
                    self._thread = None
                    return
                self._due = self._polled_at + self._interval()
                if (left := self._due - time.monotonic()) > 0:
                    self._changed.wait(left)
                    continue
                waits = dict(self._waits)
            with untraced():
                self._poll(waits)

    def _interval(self) -> float:
        age = time.monotonic() - self._newest
        return min(max(age * INTERVAL_SHARE, self._shortest), MAX_INTERVAL)

    def _poll(self, waits: Mapping[Wait, WaitCondition]) -> None:
        began = time.monotonic()
        completed: list[Wait] = []
        try:
            for wait, found in self._found(waits):
                completed.append(wait)
                if wait.set_running_or_notify_cancel():
                    wait.set_result(found)
        except Exception as error:
            left = waits.keys() - completed
            for wait in left:
                completed.append(wait)
                if wait.set_running_or_notify_cancel():
                    wait.set_exception(copy.copy(error))  # each is raised in another thread
        with self._changed:
            for wait in completed:
                self._waits.pop(wait, None)
            self._polled_at = time.monotonic()
            took = self._polled_at - began
            self._shortest = min(max(took * POLLS_APART, MIN_INTERVAL), MAX_INTERVAL)

    def _found(self, conditions: Mapping[K, WaitCondition]) -> Iterator[tuple[K, WaitResult]]:
        """Read the jobs of conditions; yield what ends each that ends, first those without an outcome."""
        queries = self._store.queries
        awaited = {condition.job_id for condition in conditions.values() if condition.seen is None}
        watched = {condition.job_id for condition in conditions.values() if condition.seen is not None}
        final = queries.final(awaited) if awaited else {}
        states = queries.states(watched) if watched else {}
        wanted: list[tuple[K, WaitCondition]] = []
        for key, condition in conditions.items():
            if condition.seen is not None:
                if states.get(condition.job_id) != condition.seen:
                    yield key, WaitResult()
            elif condition.job_id in final:
                job = final[condition.job_id]
                if job is None or not condition.accepts(job.username):
                    yield key, WaitResult()
                elif condition.wants_outcome:
                    wanted.append((key, condition))
                else:
                    yield key, WaitResult(job.status)
        for batch in slices(wanted, MAX_OUTCOMES):
            outcomes = queries.outcomes({condition.job_id for _, condition in batch})
            for key, condition in batch:
                outcome = outcomes.get(condition.job_id)
                if outcome is None or not condition.accepts(outcome.username):
                    yield key, WaitResult()
                else:
                    yield key, WaitResult(outcome.status, outcome)
