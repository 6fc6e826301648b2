"""One poller per process for all who wait, threads and coroutines; a query covers all jobs together.

A thread polls while anyone waits, and ends soon after the last wait.
"""

import copy
import math
import threading
import time
from collections.abc import Callable, Collection, Mapping
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import NamedTuple

from .models import JobRecord
from .status import JobStatus
from .store import Forkable, JobState, Store, gate
from .tracing import untraced

SHORTEST_INTERVAL, LONGEST_INTERVAL = 0.01, 0.1
"""Seconds between two polls."""

INTERVAL_SHARE = 0.02
"""The interval between these two, as a share of the time that the newest wait has lasted."""

IDLE_TIMEOUT = 1.0
"""Seconds without a wait after which the thread ends."""


@dataclass(frozen=True)
class Pause:
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
    wants_record: bool = False
    """The record of the final job is asked for."""


class Found(NamedTuple):
    """What ends a wait."""

    status: JobStatus | None = None
    """Final; None: the job was deleted, or the wait was for a change."""
    record: JobRecord | None = None
    """Of the final job, if it was asked for; None of a node, whose result its members have."""
    complete: bool = False
    """Whether this is all that was asked for."""


Wait = Future[Found]


class CompletionPoller(Forkable):
    """The waits of one process."""

    def __init__(self, store: Store, assert_may_wait: Callable[[], object] = lambda: None) -> None:
        """`assert_may_wait` raises RuntimeError where a wait may never end: within a task."""
        self._store = store
        self._assert_may_wait = assert_may_wait
        self._reset()
        gate.register(self)

    def _reset(self) -> None:
        self._changed = threading.Condition()
        self._waits: dict[Wait, Pause] = {}
        self._thread: threading.Thread | None = None
        self._polled_at = 0.0
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

    def wait(self, pause: Pause) -> Found | None:
        """Wait in this thread; None if the deadline comes first.

        Raises:
            DatabaseUnavailableError: the database did not answer.
        """
        # Looked at here first: an ended job needs no poller. The caller has just seen what a watch has shown.
        found = self.look(pause) if pause.seen is None else None
        if found is not None or time.monotonic() >= pause.deadline:
            return found
        wait = self.begin(pause)
        try:
            while (left := pause.deadline - time.monotonic()) > 0:
                try:
                    return wait.result(min(left, threading.TIMEOUT_MAX))
                except TimeoutError:
                    if wait.done():  # SQLite's or the driver's, of the poll
                        raise
            return None
        finally:
            self.end(wait)

    def look(self, pause: Pause) -> Found | None:
        """Return what ends a wait now, if it does; without the poller."""
        return self._read([pause])(pause)

    def begin(self, pause: Pause, *, at_once: bool = False) -> Wait:
        """Begin a wait; its caller ends it, at the deadline or before.

        With `at_once` the next poll does not wait; else the caller has just looked at the job.
        """
        wait: Wait = Future()
        now = time.monotonic()
        with self._changed:
            if not (self._waits or at_once):
                self._polled_at = now
            self._waits[wait] = pause
            if self._thread is None:
                thread = threading.Thread(target=self._run, name="jobhandle-polling", daemon=True)
                thread.start()
                self._thread = thread
            elif self._due > self._polled_at + SHORTEST_INTERVAL:
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
        newest = max(pause.since for pause in self._waits.values())
        age = time.monotonic() - newest
        return min(max(age * INTERVAL_SHARE, SHORTEST_INTERVAL), LONGEST_INTERVAL)

    def _poll(self, waits: Mapping[Wait, Pause]) -> None:
        completed: list[Wait] = []
        try:
            read = self._read(waits.values())
        except Exception as error:
            for wait in waits:
                completed.append(wait)
                if wait.set_running_or_notify_cancel():
                    wait.set_exception(copy.copy(error))  # each is raised in another thread
        else:
            for wait, pause in waits.items():
                if (found := read(pause)) is not None:
                    completed.append(wait)
                    if wait.set_running_or_notify_cancel():
                        wait.set_result(found)
        with self._changed:
            for wait in completed:
                self._waits.pop(wait, None)
            self._polled_at = time.monotonic()

    def _read(self, pauses: Collection[Pause]) -> Callable[[Pause], Found | None]:
        """Read the jobs of pauses; return what says of each whether its wait ends."""
        queries = self._store.queries
        awaited = {pause.job_id for pause in pauses if pause.seen is None}
        watched = {pause.job_id for pause in pauses if pause.seen is not None}
        statuses = queries.statuses(awaited) if awaited else {}
        states = queries.states(watched) if watched else {}
        final = {job_id for job_id, status in statuses.items() if status.final}
        wanted = final & {
            pause.job_id for pause in pauses if pause.wants_record or pause.username is not None
        }
        records = queries.stored_tasks(wanted) if wanted else {}

        def found(pause: Pause) -> Found | None:
            job_id = pause.job_id
            if pause.seen is not None:
                return Found() if states.get(job_id) != pause.seen else None
            if job_id in statuses and job_id not in final:
                return None
            record = records.get(job_id)
            if pause.username is None and not pause.wants_record:
                return Found(statuses.get(job_id), None, job_id in final)
            complete = (
                record is not None and record.status.final and pause.username in (None, record.username)
            )
            return Found(statuses.get(job_id), record if complete else None, complete)

        return found
