"""One pass of the sweep: whatever should have happened by now and has not. May import dispatch and below."""

import logging
import time
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

    A queue that holds at least as many messages as rows are Queued for it has probably lost none. Other
    tasks' messages may hide a lost one in that count, so it is believed a few times at most.
    """
    doubtful = [one for one in late if one.queue is not None and one.damped < DAMPED_AT_MOST]
    queues = sorted({one.queue for one in doubtful if one.queue is not None})
    rows = store.count_queued(queues)
    full = set()
    for queue in queues:
        depth = dispatcher.depth(queue)
        if depth is not None and depth >= max(rows.get(queue, 0), 1):
            full.add(queue)
    return [one for one in doubtful if one.queue in full]
