"""Marks that may wait: that the broker was given a message. May import background, store and below.

A row whose mark is lost is due after the grace, and an extra message is refused by the claim. So nobody waits
for a mark: a thread of this process writes those of a moment together. Mostly a worker is faster, and
there is nothing left to mark. What a lock is in the way of is tried again by the thread: a look waits for no
transaction, which its caller may have open.
"""

from collections.abc import Sequence
from datetime import timedelta

from ..background import Background
from ..errors import DatabaseUnavailableError
from ..store import PendingMessage, Store, briefly

DELAY = 0.2
"""Seconds for which marks are gathered at most."""

SHARE_OF_GRACE = 0.1
"""And this part of the grace at most, after which the sweep would send again."""

MANY = 500
"""Marks that are not held back any longer."""

LOCK_WAIT = 0.3
"""Seconds that a try waits for a lock: the transaction that has it may be open in the thread that looks."""


class QueuedMarker(Background[PendingMessage]):
    """The marks that this process has yet to write."""

    name = "marking jobs as queued"
    otherwise = "their messages are out, and the sweep publishes harmless second ones"

    def __init__(self, store: Store, publish_grace: timedelta) -> None:
        super().__init__(min(DELAY, publish_grace.total_seconds() * SHARE_OF_GRACE), MANY)
        self._store = store

    def _do(self, work: Sequence[PendingMessage]) -> None:
        try:
            with briefly(LOCK_WAIT):
                self._store.mark_queued(work)
        except DatabaseUnavailableError as error:
            if error.again != "soon":
                raise
            self._put_back(work)
