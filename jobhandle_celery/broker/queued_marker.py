"""Records in the background that jobs were published.

If a record is lost, its row is due again after publish_grace, and the claim refuses the extra message. So no
caller waits: a thread writes those of a moment together. Mostly a worker is faster, and there is nothing left
to write. The thread tries again later if a row is locked: a read of the jobs does not wait for a
transaction, which its own caller may have open.
"""

from collections.abc import Sequence
from datetime import timedelta

from ..background import BackgroundQueue
from ..errors import DatabaseUnavailableError
from ..store import PendingMessage, Store, limit_retries

DELAY = 0.2
"""Seconds for which records are gathered at most."""

GRACE_SHARE = 0.1
"""The same, as a part of publish_grace, after which the sweeper would publish again."""

BATCH = 500
"""Number of records that are not held back any longer."""

LOCK_WAIT = 0.3
"""Seconds that a try waits for a lock, whose transaction may be open in the very thread that waits."""


class QueuedMarker(BackgroundQueue[PendingMessage]):
    """The jobs that this process has published and not yet recorded as Queued."""

    name = "marking jobs as queued"
    on_failure = "their messages are published, and the sweeper publishes harmless second ones"

    def __init__(self, store: Store, publish_grace: timedelta) -> None:
        super().__init__(min(DELAY, publish_grace.total_seconds() * GRACE_SHARE), BATCH)
        self._store = store

    def _do(self, work: Sequence[PendingMessage]) -> None:
        try:
            with limit_retries(LOCK_WAIT):
                self._store.outbox.mark_queued(work)
        except DatabaseUnavailableError as error:
            if error.again != "soon":
                raise
            self._put_back(work)
