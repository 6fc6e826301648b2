"""One poller per process for all who wait, threads and coroutines; a query covers all jobs together.

A thread polls while anyone waits, and ends soon after the last wait.
"""

import copy
import math
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass, field

from .status import JobStatus
from .store import Forkable, JobState, Store, gate
from .tracing import untraced

SHORTEST_INTERVAL, LONGEST_INTERVAL = 0.01, 0.1
"""Seconds between two polls."""

INTERVAL_SHARE = 0.02
"""The interval between these two, as a share of the time that the newest wait has lasted."""

IDLE_TIMEOUT = 1.0
"""Seconds without a wait after which the thread ends."""

Wait = Future[JobStatus | None]
"""What a poll completes: with the final status, or with None if the job has changed or was deleted."""


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

    def wait(self, pause: Pause) -> JobStatus | None:
        """Wait in this thread; return the final status, if a poll has seen it before the deadline.

        Raises:
            DatabaseUnavailableError: the database did not answer.
        """
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

    def begin(self, pause: Pause) -> Wait:
        """Begin a wait; its caller ends it, at the deadline or before."""
        wait: Wait = Future()
        now = time.monotonic()
        with self._changed:
            if not self._waits:
                self._polled_at = now
            self._waits[wait] = pause
            if self._thread is None:
                thread = threading.Thread(target=self._run, name="jobhandle-polling", daemon=True)
                thread.start()
                self._thread = thread
            elif self._due > now + SHORTEST_INTERVAL:
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
            self._polled_at = time.monotonic()

    def _interval(self) -> float:
        newest = max(pause.since for pause in self._waits.values())
        age = time.monotonic() - newest
        return min(max(age * INTERVAL_SHARE, SHORTEST_INTERVAL), LONGEST_INTERVAL)

    def _poll(self, waits: Mapping[Wait, Pause]) -> None:
        awaited = {pause.job_id for pause in waits.values() if pause.seen is None}
        watched = {pause.job_id for pause in waits.values() if pause.seen is not None}
        try:
            statuses = self._store.queries.statuses(awaited) if awaited else {}
            states = self._store.queries.states(watched) if watched else {}
        except Exception as error:
            for wait in waits:
                if wait.set_running_or_notify_cancel():
                    wait.set_exception(copy.copy(error))  # each is raised in another thread
            completed = list(waits)
        else:
            completed = []
            for wait, pause in waits.items():
                status = statuses.get(pause.job_id)
                changed = states.get(pause.job_id) != pause.seen
                if changed if pause.seen is not None else status is None or status.final:
                    completed.append(wait)
                    if wait.set_running_or_notify_cancel():
                        wait.set_result(status)
        with self._changed:
            for wait in completed:
                self._waits.pop(wait, None)
