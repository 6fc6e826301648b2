"""Work that a thread of this process does later, in order and in batches.

The rows hold the truth: work that is lost with the process is done later by the sweeper.
"""

import atexit
import logging
import threading
import time
from abc import abstractmethod
from collections.abc import Callable, Sequence
from typing import ClassVar, Generic, TypeVar
from weakref import WeakMethod

from billiard.exceptions import SoftTimeLimitExceeded

from . import internal_errors
from .errors import JobHandleError
from .store import Forkable, forks
from .tracing import untraced

logger = logging.getLogger(__name__)

T = TypeVar("T")

FLUSH_TIMEOUT = 10.0
"""Seconds for which the end of a process waits for a lock. The sweeper does the remaining work."""

IDLE_TIMEOUT = 1.0
"""Seconds for which the thread waits for more work before it ends."""


class BackgroundQueue(Forkable, Generic[T]):
    """A queue of work, and the thread that does it."""

    name: ClassVar[str]
    """The work, for the thread's name and the log."""
    on_failure: ClassVar[str]
    """What happens to work that failed, for the log."""

    def __init__(self, delay: float = 0.0, batch: int = 1, pause: float = 0.0) -> None:
        """Start nothing yet.

        Args:
            delay: Seconds for which the thread gathers work.
            batch: Number of items with which it does not wait any longer.
            pause: Seconds after its last work for which it gathers more, if that is longer than `delay`.
        """
        self._delay = delay
        self._batch = batch
        self._pause = pause
        self._renew()
        forks.register(self)
        call_at_exit(self.flush)

    @abstractmethod
    def _do(self, work: Sequence[T]) -> None:
        """Do work, in the thread or in that of a caller of `flush`."""

    def _put_back(self, work: Sequence[T]) -> None:
        """Leave work to the thread; called by `_do`."""
        with self._changed:
            self._pending[:0] = work
            self._since = time.monotonic()
            if self._thread is None:
                self._start()
            self._changed.notify_all()

    def _renew(self) -> None:
        self._changed = threading.Condition()
        self._working = threading.Lock()
        self._pending: list[T] = []
        self._since = 0.0
        """When the first of what is pending came, or was left to the thread again."""
        self._thread: threading.Thread | None = None
        self._ended = 0.0

    def later(self, work: Sequence[T]) -> None:
        """Queue work and return at once. If no thread can be started, do it here."""
        if not work:
            return
        with self._changed:
            if not self._pending:
                self._since = time.monotonic()
            self._pending += work
            if self._thread is not None:
                if len(self._pending) == len(work) or len(self._pending) >= self._batch:
                    self._changed.notify_all()
                return
            if self._start():
                return
        self._do_pending()

    def _start(self) -> bool:
        thread = threading.Thread(target=self._run, name=f"jobhandle-{self.name}", daemon=True)
        try:
            thread.start()
        except RuntimeError:
            return False  # the process has too many threads, or the interpreter is shutting down
        self._thread = thread
        return True

    def flush(self) -> None:
        """Do what is pending and wait for what is being done, until `FLUSH_TIMEOUT` if a lock prevents it."""
        deadline = time.monotonic() + FLUSH_TIMEOUT
        while self._pending or self._working.locked():
            self._do_pending()
            if time.monotonic() >= deadline:
                break

    def take(self) -> list[T]:
        """Return what is pending, which the caller does instead."""
        with self._changed:
            work, self._pending = self._pending, []
            return work

    def flush_once(self) -> None:
        """As `flush`, but leave work that is blocked by a lock to the thread."""
        if self._pending or self._working.locked():
            self._do_pending()

    def after_fork(self) -> None:
        self._renew()

    def _run(self) -> None:
        while True:
            with self._changed:
                if not self._changed.wait_for(lambda: self._pending, IDLE_TIMEOUT):
                    self._thread = None
                    return
                while self._pending and not self._is_due():
                    self._changed.wait(self._due() - time.monotonic())
            with untraced():
                self._do_pending()
            self._ended = time.monotonic()

    def _is_due(self) -> bool:
        return len(self._pending) >= self._batch or time.monotonic() >= self._due()

    def _due(self) -> float:
        return max(self._since + self._delay, self._ended + self._pause)

    def _do_pending(self) -> None:
        with self._working:
            work = self.take()
            try:
                if work:
                    self._do(work)
            except JobHandleError as error:
                logger.warning("%s failed (%s); %s", self.name, error, self.on_failure)
            except SoftTimeLimitExceeded:
                raise
            except Exception as error:
                # No caller asked for this work: it runs in a thread, or before a caller's own query.
                internal_errors.report(self.name, error, self.on_failure)


def call_at_exit(method: Callable[[], None]) -> None:
    """Call a method when this process ends, unless its object is gone by then."""
    reference = WeakMethod(method)

    def call() -> None:
        if (method := reference()) is not None:
            method()

    atexit.register(call)
