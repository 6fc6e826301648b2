"""Settles the jobs that end in this process, and publishes the jobs that become ready."""

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar

from billiard.exceptions import SoftTimeLimitExceeded

from . import internal_errors
from .background import BackgroundQueue
from .errors import DatabaseUnavailableError
from .store import PendingMessage, Store

logger = logging.getLogger(__name__)

BATCH = 500
"""Jobs settled at a time."""

SETTLE_TIMEOUT = 5.0
"""Seconds of settling in one call; the sweeper settles the rest.

A mass cancel may end more jobs than its caller, or a pass of the sweeper, can wait for."""


MAX_WAIT = 0.1
"""Seconds for which members of a large group wait for the next one that ends in this process."""

_node: ContextVar[int | None] = ContextVar("jobhandle_node", default=None)


class _Later(BackgroundQueue[int]):
    """Jobs that have ended, and are settled by a thread."""

    name = "settling jobs that ended"
    on_failure = "the sweeper settles them"

    def __init__(self, settle: Callable[[Sequence[int]], None], delay: float) -> None:
        super().__init__(delay, BATCH)
        self._settle = settle

    def _do(self, work: Sequence[int]) -> None:
        self._settle(work)


class Settler:
    """Is called after each commit in which jobs ended that other jobs depend on."""

    def __init__(
        self,
        store: Store,
        send: Callable[[Sequence[PendingMessage]], None],
        is_alone: Callable[[], bool] = lambda: False,
    ) -> None:
        """Make the settler of one app.

        Args:
            store: Where the jobs are.
            send: Publishes the messages of jobs that may start.
            is_alone: Returns True if there is no sweeper that could do the rest: jobs run eagerly.
        """
        self._store = store
        self._send = send
        self._is_alone = is_alone
        self._local = threading.local()
        self._waiting = _Later(self.settle, MAX_WAIT)
        """Members of large groups, if none ends after them in this process."""
        self._at_once = _Later(self.settle, 0.0)
        """Jobs that ended in a block of `in_another_thread`."""

    def drain(self) -> None:
        """Settle what waits for others or for the thread."""
        self._waiting.flush()
        self._at_once.flush()

    @contextmanager
    def in_another_thread(self) -> Iterator[None]:
        """Settle jobs that end in this block in another thread: a silent broker may hold up a settle."""
        self._local.defers = True
        try:
            yield
        finally:
            self._local.defers = False

    @contextmanager
    def end_of_member(self, node_id: int | None) -> Iterator[None]:
        """Note that a child of that node ends in this block; None: another job.

        While many of its siblings are unfinished, it waits for the next one that ends in this process, and is
        settled by the same statement: nothing else changes by its end.
        """
        token = _node.set(node_id)
        try:
            yield
        finally:
            _node.reset(token)

    def settle(self, job_ids: Sequence[int]) -> None:
        """Settle jobs, and those that end thereby; raise no error except that of a time limit: the end of
        the jobs is committed.

        If a settle ends other jobs, or runs a body eagerly that ends, this method is called again within the
        outer call, which then settles those jobs as well.
        """
        pending: deque[int] | None = getattr(self._local, "pending", None)
        if pending is not None:
            pending.extend(job_ids)
            return
        if getattr(self._local, "defers", False):
            self._at_once.later(job_ids)
            return
        node_id = _node.get()
        if node_id is not None and not self._is_alone():
            if self._store.settling.is_crowded(node_id):
                self._waiting.later(job_ids)
                return
            job_ids = [*self._waiting.take(), *job_ids]
        self._local.pending = pending = deque(job_ids)
        try:
            self._settle_all(pending)
        finally:
            self._local.pending = None

    @contextmanager
    def settling_at_once(self) -> Iterator[None]:
        """Settle jobs that end in this block at once: a body that a settle runs eagerly may wait for them."""
        outer = getattr(self._local, "pending", None)
        self._local.pending = None
        try:
            yield
        finally:
            self._local.pending = outer

    def _settle_all(self, pending: deque[int]) -> None:
        spent = 0.0
        while pending:
            batch = [pending.popleft() for _ in range(min(len(pending), BATCH))]
            if spent > SETTLE_TIMEOUT and not self._is_alone():
                logger.info("%d jobs that ended are left to the sweeper to settle", len(batch) + len(pending))
                return
            began = time.monotonic()
            try:
                ready = self._store.settling.settle(batch)
                spent += time.monotonic() - began
                if ready:
                    self._send(ready)
            except SoftTimeLimitExceeded:
                raise  # of the body that this thread runs
            except DatabaseUnavailableError as error:
                logger.warning(
                    "%d jobs that ended were not settled (%s); the sweeper settles them",
                    len(batch) + len(pending),
                    error,
                )
                return
            except Exception as error:
                internal_errors.log("settling jobs that ended", error, f"the sweeper settles them: {batch}")
