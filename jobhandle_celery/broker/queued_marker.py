"""Marks published jobs as Queued, in the background.

If a mark is lost, its row is due again after publish_grace, and the claim refuses the extra message. So no
caller waits: a thread writes the marks of a moment together. Mostly a worker has claimed the job by then, and
there is nothing left to write. The thread tries again later if a row is locked: a read of the jobs does not
wait for a transaction, which its own caller may have open.
"""

from collections.abc import Sequence
from datetime import timedelta

from ..background import BackgroundQueue
from ..errors import DatabaseUnavailableError
from ..store import PendingMessage, Store, limit_retries

DELAY = 0.2
"""Maximum delay of a mark, in seconds: marks are gathered meanwhile."""

GRACE_SHARE = 0.1
"""Maximum delay as a fraction of publish_grace, after which the sweeper would publish again."""

BATCH = 500
"""Number of marks that are written at once."""

LOCK_WAIT = 0.3
"""Seconds that a try waits for a lock, whose transaction may be open in the very thread that waits."""


class QueuedMarker(BackgroundQueue[PendingMessage]):
    """The jobs that this process has published and not yet marked as Queued."""

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
            if error.retry != "after_pause":
                raise
            self._put_back(work)
