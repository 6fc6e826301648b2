"""Background work: done in its order by a thread of this process, much of it together.

The rows hold the truth, so what is lost with the process is done later by the sweep. May import faults, store
and below.
"""

import atexit
import logging
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import ClassVar, Generic, TypeVar
from weakref import WeakMethod

from billiard.exceptions import SoftTimeLimitExceeded

from . import internal_errors
from .errors import JobHandleError
from .store import gate

logger = logging.getLogger(__name__)

T = TypeVar("T")

FLUSHES_FOR = 10.0
"""Seconds for which the end of a process waits for a lock; what is left is found by the sweep."""

LINGERS = 1.0
"""Seconds for which the thread waits for further work before it ends."""


class Background(ABC, Generic[T]):
    """A queue of work, and the thread that does it."""

    name: ClassVar[str]
    """What the work is, for the thread's name and the log."""
    otherwise: ClassVar[str]
    """What happens with work that failed, for the log."""

    def __init__(self, delay: float = 0.0, many: int = 1) -> None:
        """Start nothing yet.

        Args:
            delay: Seconds for which work is gathered at most.
            many: So much is not gathered any longer.
        """
        self._delay = delay
        self._many = many
        self._renew()
        gate.register(self)
        atexit.register(_flush_at_exit, WeakMethod(self.flush))

    @abstractmethod
    def _do(self, work: Sequence[T]) -> None:
        """Do work, in the thread or in that of a caller of `flush`."""

    def _put_back(self, work: Sequence[T]) -> None:
        """Have the thread do this later; `_do` calls it."""
        with self._changed:
            self._pending[:0] = work
            if self._thread is None:
                self._start()
            self._changed.notify_all()

    def _renew(self) -> None:
        self._changed = threading.Condition()
        self._working = threading.Lock()
        self._pending: list[T] = []
        self._thread: threading.Thread | None = None

    def later(self, work: Sequence[T]) -> None:
        """Have this done soon; returns at once."""
        if not work:
            return
        with self._changed:
            self._pending += work
            if self._thread is not None:
                if len(self._pending) == len(work) or len(self._pending) >= self._many:
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
            return False  # no thread can be had any more, or the interpreter is ending
        self._thread = thread
        return True

    def flush(self) -> None:
        """Do what is pending, and wait for what is being done; for some seconds, if a lock is in the way."""
        until = time.monotonic() + FLUSHES_FOR
        while self._pending or self._working.locked():
            self._do_pending()
            if time.monotonic() >= until:
                break

    def flush_once(self) -> None:
        """The same, but what a lock is in the way of is left to the thread."""
        if self._pending or self._working.locked():
            self._do_pending()

    def before_fork(self) -> None:
        """Nothing: a fork waits for the verbs under way."""

    def after_fork(self) -> None:
        """Leave the parent's work to the parent."""
        self._renew()

    def _run(self) -> None:
        while True:
            with self._changed:
                if not self._changed.wait_for(lambda: self._pending, LINGERS):
                    self._thread = None
                    return
                self._changed.wait_for(lambda: len(self._pending) >= self._many, self._delay)
            self._do_pending()

    def _do_pending(self) -> None:
        with self._working:
            with self._changed:
                work, self._pending = self._pending, []
            try:
                self._do(work)
            except JobHandleError as error:
                logger.warning("%s failed (%s); %s", self.name, error, self.otherwise)
            except SoftTimeLimitExceeded:
                raise
            except Exception as error:
                # In a thread of its own, or before a caller's own query.
                internal_errors.report(self.name, error, self.otherwise)


def _flush_at_exit(flush: "WeakMethod[Callable[[], None]]") -> None:
    pending = flush()
    if pending is not None:
        pending()
