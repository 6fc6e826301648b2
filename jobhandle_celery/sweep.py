"""One pass of the sweep: whatever should have happened by now and has not. May import dispatch and below."""

import logging
import time
from collections import defaultdict
from collections.abc import Callable

from .dispatch import Dispatcher
from .status import JobStatus
from .store import DAMPED_AT_MOST, Lost, Outgoing, Store

logger = logging.getLogger(__name__)

BATCH = 500
"""Rows reserved at a time; what is reserved and not sent is due again after the grace."""

LONGEST = 2.0
"""Seconds after which a pass takes no further batch: the leases of the lost are looked at every pass."""


def sweep(store: Store, dispatcher: Dispatcher, tell: Callable[[Lost], None] | None = None) -> bool:
    """Make a pass, unless somebody made one less than an interval ago; say whether it was made.

    Settles the jobs of workers that are lost, cancels what has expired, and publishes what is due. Tells of
    what is lost, and of what was cancelled and no worker has met since.
    """
    unbroken = store.begin_pass()
    if unbroken is None:
        return False
    if unbroken:
        for boot_id in store.lapsed_workers():
            for lost in store.reap(boot_id):
                logger.warning("job %s is %s: its worker was lost", lost.job_id, lost.status)
                if tell is not None:
                    tell(lost)
    store.expire()
    if tell is not None:
        for cancelled in store.unheard(BATCH):
            tell(cancelled)
    until = time.monotonic() + LONGEST
    while dispatcher.reachable and (due := store.reserve(BATCH)):
        if not _send(store, dispatcher, due) or len(due) < BATCH or time.monotonic() > until:
            break
    return True


def _send(store: Store, dispatcher: Dispatcher, due: list[Outgoing]) -> bool:
    late = [one for one in due if one.status is JobStatus.QUEUED]
    waiting = _still_waiting(store, dispatcher, late) if late else []
    store.look_later(waiting)
    to_send = [one for one in due if one not in waiting]
    published = dispatcher.publish(to_send)
    store.mark_queued(published.sent)
    for because, unsendable in published.unsendable.items():
        store.put_off(unsendable, because)
    return len(published) == len(to_send)


def _still_waiting(store: Store, dispatcher: Dispatcher, late: list[Outgoing]) -> list[Outgoing]:
    """Return those whose message is probably just waiting its turn.

    By the count, a queue has lost as many messages as it holds fewer than rows are Queued for it. What
    workers have reserved is missing too, and always the oldest; so the oldest are taken for lost, and a
    backlog behind busy workers is not sent once more as a whole. A loss among the young, or one that other
    tasks' messages make up for, hides in that count; so a row is left to it a few times at most.
    """
    by_queue: dict[str, list[Outgoing]] = defaultdict(list)
    for one in late:  # as they were reserved: the oldest first
        if one.queue is not None and one.damped < DAMPED_AT_MOST:
            by_queue[one.queue].append(one)
    rows = store.count_queued(sorted(by_queue))
    waiting: list[Outgoing] = []
    for queue, doubtful in by_queue.items():
        depth = dispatcher.depth(queue)
        if depth is not None:
            missing = max(rows.get(queue, 0), 1) - depth
            waiting += doubtful[max(missing, 0) :]
    return waiting
