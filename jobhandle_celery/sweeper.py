"""One pass of the sweep: whatever should have happened by now and has not. May import dispatch and below."""

import logging
import time
from collections import defaultdict
from collections.abc import Callable

from .broker.publisher import Publisher
from .status import JobStatus
from .store import DAMPED_AT_MOST, Lost, PendingMessage, Store

logger = logging.getLogger(__name__)

BATCH = 500
"""Rows reserved at a time; what is reserved and not sent is due again after the grace."""

LONGEST = 2.0
"""Seconds after which a pass takes no further batch: the leases of the lost are looked at every pass."""


def sweep(store: Store, publisher: Publisher, tell: Callable[[Lost], None] | None = None) -> bool:
    """Make a pass, unless somebody made one less than an interval ago; say whether it was made.

    Settles the jobs of workers that are lost, cancels what has expired, and publishes what is due. Tells of
    what is lost, and of what was cancelled and no worker has met since.
    """
    unbroken = store.begin_pass()
    if unbroken is None:
        return False
    if unbroken:
        for worker_uid in store.lapsed_workers():
            for lost in store.reap(worker_uid):
                logger.warning("job %s is %s: its worker was lost", lost.job_id, lost.status)
                if tell is not None:
                    tell(lost)
    store.expire()
    if tell is not None:
        for cancelled in store.unheard(BATCH):
            tell(cancelled)
    until = time.monotonic() + LONGEST
    while publisher.reachable and (due := store.reserve(BATCH)):
        if not _send(store, publisher, due) or len(due) < BATCH or time.monotonic() > until:
            break
    return True


def _send(store: Store, publisher: Publisher, due: list[PendingMessage]) -> bool:
    late = [one for one in due if one.status is JobStatus.QUEUED]
    waiting = _still_waiting(store, publisher, late) if late else []
    store.look_later(waiting)
    to_send = [one for one in due if one not in waiting]
    published = publisher.publish(to_send)
    store.mark_queued(published.sent)
    for because, unsendable in published.unsendable.items():
        store.put_off(unsendable, because)
    return len(published) == len(to_send)


def _still_waiting(store: Store, publisher: Publisher, late: list[PendingMessage]) -> list[PendingMessage]:
    """Return those whose message is probably just waiting its turn.

    By the count, a queue has lost as many messages as it holds fewer than rows are Queued for it. What
    workers have reserved is missing too, and always the oldest; so the oldest are taken for lost, and a
    backlog behind busy workers is not sent once more as a whole. A loss among the young, or one that other
    tasks' messages make up for, hides in that count; so a row is left to it a few times at most.
    """
    by_queue: dict[str, list[PendingMessage]] = defaultdict(list)
    for one in late:  # as they were reserved: the oldest first
        if one.queue is not None and one.republish_deferrals < DAMPED_AT_MOST:
            by_queue[one.queue].append(one)
    rows = store.count_queued(sorted(by_queue))
    waiting: list[PendingMessage] = []
    for queue, doubtful in by_queue.items():
        depth = publisher.depth(queue)
        if depth is not None:
            missing = max(rows.get(queue, 0), 1) - depth
            waiting += doubtful[max(missing, 0) :]
    return waiting
