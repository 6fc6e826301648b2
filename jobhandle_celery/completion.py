"""One poller per process for all waits: a single query covers every job that is waited for.

The poller has no thread of its own, so nothing has to be forked or stopped: one of the waiting threads polls,
and hands the turn to another when its own wait ends.
"""

import math
import threading
import time
from collections.abc import Callable

from .store import Forkable, Store, gate

SHORTEST_INTERVAL, LONGEST_INTERVAL = 0.01, 0.1
"""Seconds between two polls."""

INTERVAL_SHARE = 0.02
"""The interval between these two, as a share of the time that the newest wait has lasted."""


class _Waiter:
    def __init__(self, job_id: int) -> None:
        self.job_id = job_id
        self.since = time.monotonic()
        self.done = False
        self.wake = threading.Event()
        """Set when the job is final, and when it is this waiter's turn to poll, or to poll sooner."""


class CompletionPoller(Forkable):
    """The waits of one process."""

    def __init__(self, store: Store, assert_may_wait: Callable[[], object] = lambda: None) -> None:
        """`assert_may_wait` raises RuntimeError where a wait may never end: within a task."""
        self._store = store
        self._assert_may_wait = assert_may_wait
        self._reset()
        gate.register(self)

    def _reset(self) -> None:
        self._lock = threading.Lock()
        self._waiters: set[_Waiter] = set()
        self._polling: _Waiter | None = None
        self._polled_at = 0.0

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

    def wait_until_final(self, job_id: int, deadline: float = math.inf) -> bool:
        """Wait until a job is final or deleted; False if the deadline, by the monotonic clock, comes first.

        Raises:
            DatabaseUnavailableError: this thread polled, and the database did not answer.
        """
        waiter = _Waiter(job_id)
        try:
            with self._lock:
                self._waiters.add(waiter)
                if self._polling is None:
                    self._polling, self._polled_at = waiter, waiter.since
                self._polling.wake.set()  # a new wait shortens the interval
            while not waiter.done and (left := deadline - time.monotonic()) > 0:
                if self._polling is waiter:
                    self._poll_when_due(waiter, deadline)
                else:
                    waiter.wake.wait(min(left, threading.TIMEOUT_MAX))
            return waiter.done
        finally:
            with self._lock:
                self._waiters.discard(waiter)
                if self._polling is waiter:
                    self._polling = next(iter(self._waiters), None)
                    if self._polling is not None:
                        self._polling.wake.set()

    def _poll_when_due(self, waiter: _Waiter, deadline: float) -> None:
        due = min(self._polled_at + self._interval(), deadline)
        if (pause := due - time.monotonic()) > 0:
            waiter.wake.wait(pause)
            waiter.wake.clear()
            return
        with self._lock:
            job_ids = {waiting.job_id for waiting in self._waiters}
        final = job_ids - self._store.queries.unfinished(job_ids)
        with self._lock:
            self._polled_at = time.monotonic()
            for waiting in self._waiters:
                if waiting.job_id in final:
                    waiting.done = True
                    waiting.wake.set()

    def _interval(self) -> float:
        with self._lock:
            newest = max(waiting.since for waiting in self._waiters)
        age = time.monotonic() - newest
        return min(max(age * INTERVAL_SHARE, SHORTEST_INTERVAL), LONGEST_INTERVAL)
