"""Marks that may wait: that the broker was given a message. May import store and below.

A row whose mark is lost is due after the grace, and an extra message is refused by the claim. So nobody waits
for a mark: a thread of this process writes those of a moment together. Mostly a worker is faster, and
there is nothing left to mark.
"""

import atexit
import logging
import threading
from collections.abc import Callable, Sequence
from datetime import timedelta
from weakref import WeakMethod

from billiard.exceptions import SoftTimeLimitExceeded

from .errors import JobHandleError
from .store import Outgoing, Store, gate

logger = logging.getLogger(__name__)

DELAY = 0.2
"""Seconds for which marks are gathered at most."""

SHARE_OF_GRACE = 0.1
"""And this part of the grace at most, after which the sweep would send again."""

MANY = 500
"""Marks that are not held back any longer."""

LINGERS = 1.0
"""Seconds for which the thread waits for further marks before it ends."""


class Marks:
    """The marks that this process has yet to write."""

    def __init__(self, store: Store, grace: timedelta) -> None:
        self._store = store
        self._delay = min(DELAY, grace.total_seconds() * SHARE_OF_GRACE)
        self._renew()
        gate.register(self)
        atexit.register(_flush_at_exit, WeakMethod(self.flush))

    def _renew(self) -> None:
        self._changed = threading.Condition()
        self._writing = threading.Lock()
        self._pending: list[Outgoing] = []
        self._thread: threading.Thread | None = None

    def later(self, sent: Sequence[Outgoing]) -> None:
        """Have these marked soon; returns at once."""
        if not sent:
            return
        with self._changed:
            self._pending += sent
            if self._thread is not None:
                if len(self._pending) >= MANY:
                    self._changed.notify_all()
                return
            thread = threading.Thread(target=self._write, name="jobhandle-marks", daemon=True)
            try:
                thread.start()
            except RuntimeError:
                pass  # no thread can be had any more, or the interpreter is ending
            else:
                self._thread = thread
                return
        self._write_pending()

    def flush(self) -> None:
        """Write what is pending, and wait for what is being written: for whoever looks at the rows next."""
        if self._pending or self._writing.locked():
            self._write_pending()

    def before_fork(self) -> None:
        """Nothing: a fork waits for the verbs under way."""

    def after_fork(self) -> None:
        """Leave the parent's marks to the parent."""
        self._renew()

    def _write(self) -> None:
        while True:
            with self._changed:
                if not self._changed.wait_for(lambda: self._pending, LINGERS):
                    self._thread = None
                    return
                self._changed.wait_for(lambda: len(self._pending) >= MANY, self._delay)
            self._write_pending()

    def _write_pending(self) -> None:
        with self._writing:
            with self._changed:
                sent, self._pending = self._pending, []
            try:
                self._store.mark_queued(sent)
            except JobHandleError as error:
                logger.warning("jobs were sent and could not be marked; that is harmless: %s", error)
            except SoftTimeLimitExceeded:
                raise
            except Exception:
                # In a thread of its own, which nobody waits for, or before somebody's own question.
                logger.exception("jobs were sent and could not be marked; that is harmless")


def _flush_at_exit(flush: "WeakMethod[Callable[[], None]]") -> None:
    pending = flush()
    if pending is not None:
        pending()
