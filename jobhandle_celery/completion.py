"""Everybody in this process who waits for jobs to end: one of them asks the database for all.

There is no thread of its own for it, and nothing to be forked or ended: whoever comes first asks, and hands
that over when it leaves. May import store and below.
"""

import math
import threading
import time
from collections.abc import Callable

from .store import Store, gate

SOONEST, LATEST = 0.01, 0.1
"""Seconds between two looks."""

SHARE = 0.02
"""How long a wait may be prolonged by the pause between two looks, in parts of itself, between these two."""


class _Waiter:
    def __init__(self, job_id: int) -> None:
        self.job_id = job_id
        self.since = time.monotonic()
        self.over = False
        self.wake = threading.Event()
        """Its job is over; or it is this waiter's turn to ask, or to ask sooner."""


class CompletionPoller:
    """The waits of this process."""

    def __init__(self, store: Store, assert_may_wait: Callable[[], object] = lambda: None) -> None:
        """Make one; `assert_may_wait` raises RuntimeError where a wait may never end: within a task."""
        self._store = store
        self._assert_may_wait = assert_may_wait
        self._renew()
        gate.register(self)

    def _renew(self) -> None:
        self._lock = threading.Lock()
        self._waiters: set[_Waiter] = set()
        self._asks: _Waiter | None = None
        self._asked_at = 0.0

    def before_fork(self) -> None:
        """Nothing: a fork waits for the verbs under way."""

    def after_fork(self) -> None:
        """Leave the parent's threads to the parent."""
        self._renew()

    def assert_may_wait(self, job_id: int) -> None:
        """Refuse a wait that would hold the process which the job may need.

        Raises:
            RuntimeError: this is a body of a pool that runs one at a time.
        """
        try:
            self._assert_may_wait()
        except RuntimeError:
            raise RuntimeError(
                f"job {job_id} was not waited for: never wait for a job within a task. "
                "Submit it and return, or wait under celery.result.allow_join_result()"
            ) from None

    def until_over(self, job_id: int, deadline: float = math.inf) -> bool:
        """Wait until a job is final, or gone; False if the deadline, by the monotonic clock, comes first.

        Raises:
            DatabaseUnavailableError: it was this thread's turn to ask, and there was no answer.
        """
        waiter = _Waiter(job_id)
        try:
            with self._lock:
                self._waiters.add(waiter)
                if self._asks is None:
                    self._asks, self._asked_at = waiter, waiter.since
                self._asks.wake.set()  # a new wait makes the pauses shorter
            while not waiter.over and time.monotonic() < deadline:
                if self._asks is waiter:
                    self._ask_in_time(waiter, deadline)
                else:
                    waiter.wake.wait(_until(deadline))
            return waiter.over
        finally:
            with self._lock:
                self._waiters.discard(waiter)
                if self._asks is waiter:
                    self._asks = next(iter(self._waiters), None)
                    if self._asks is not None:
                        self._asks.wake.set()

    def _ask_in_time(self, waiter: _Waiter, deadline: float) -> None:
        moment = min(self._asked_at + self._pause(), deadline)
        if (pause := moment - time.monotonic()) > 0:
            waiter.wake.wait(pause)
            waiter.wake.clear()
            return
        with self._lock:
            asked_for = {one.job_id for one in self._waiters}
        over = asked_for - self._store.queries.unfinished(asked_for)
        with self._lock:
            self._asked_at = time.monotonic()
            for one in self._waiters:
                if one.job_id in over:
                    one.over = True
                    one.wake.set()

    def _pause(self) -> float:
        with self._lock:
            youngest = max(one.since for one in self._waiters)
        return min(max((time.monotonic() - youngest) * SHARE, SOONEST), LATEST)


def _until(deadline: float) -> float | None:
    return None if deadline == math.inf else max(deadline - time.monotonic(), 0.0)
