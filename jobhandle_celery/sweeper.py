"""One pass of the sweeper: recovers lost jobs, ends expired ones, settles, and publishes what is due."""

import logging
import time
from collections import defaultdict
from collections.abc import Callable
from datetime import datetime

from .broker.publisher import Publisher
from .errors import DatabaseUnavailableError
from .status import JobStatus
from .store import MAX_REPUBLISH_DEFERRALS, ChangedJob, PendingMessage, Store, limit_retries

logger = logging.getLogger(__name__)

BATCH = 500
"""Rows reserved at a time. A row that is reserved and not published is due again after publish_grace."""

SETTLED_TOGETHER = 50
"""Rows that a pass settles at a time: the first that is locked puts off the others."""

PASS_TIMEOUT = 2.0
"""Seconds after which a pass reserves no more rows: lost workers are looked for once per pass."""


def sweep(store: Store, publisher: Publisher, on_changed: Callable[[ChangedJob], None] | None = None) -> bool:
    """Make a pass and return True; return False if another process made one within the interval.

    Args:
        store: Where the jobs are.
        publisher: Publishes what is due.
        on_changed: Called for each job whose worker was lost, and for each job that was cancelled without any
            worker having received its message.
    """
    unbroken = store.sweep.begin_pass()
    if unbroken is None:
        return False
    if unbroken:
        for worker_uid in store.leases.lapsed_workers():
            for lost in store.leases.reap(worker_uid):
                logger.warning("job %s is %s: its worker was lost", lost.job_id, lost.status)
                if on_changed is not None:
                    on_changed(lost)
    since = store.sweep.first_due()
    if since is not None:
        _handle_due(store, publisher, on_changed, since)
    return True


def _handle_due(
    store: Store, publisher: Publisher, on_changed: Callable[[ChangedJob], None] | None, since: datetime
) -> None:
    store.sweep.expire(since)
    if on_changed is not None:
        for cancelled in store.sweep.unreported_cancels(BATCH, since):
            on_changed(cancelled)
    deadline = time.monotonic() + PASS_TIMEOUT
    while publisher.reachable and (due := store.outbox.reserve_due(BATCH, since)):
        if not _publish(store, publisher, due) or len(due) < BATCH or time.monotonic() > deadline:
            break
    _settle(store, publisher, since)


def _settle(store: Store, publisher: Publisher, since: datetime) -> None:
    """Settle jobs that ended in a process that died before it did so, and publish what becomes ready."""
    deadline = time.monotonic() + PASS_TIMEOUT
    while any(due := store.settling.reserve_unsettled(SETTLED_TOGETHER, since)):
        try:
            # A caller's transaction may have locked a dependent row: it is not waited for long.
            with limit_retries(PASS_TIMEOUT):
                ready = store.settling.settle(due.ended)
                armed = store.settling.arm(due.blocked)
        except DatabaseUnavailableError as error:
            if error.retry != "after_pause":
                raise
            logger.info("jobs %s are settled later: %s", [*due.ended, *due.blocked], error)
        else:
            _publish(store, publisher, [*ready, *store.outbox.reserve(armed)])
        if time.monotonic() > deadline:
            break


def _publish(store: Store, publisher: Publisher, due: list[PendingMessage]) -> bool:
    """Publish what is due; return False if the publisher has left some of it."""
    queued = [job for job in due if job.status is JobStatus.QUEUED]
    deferred = _backlog(store, publisher, queued) if queued else []
    store.outbox.defer_republish(deferred)
    deferred_ids = {job.job_id for job in deferred}
    jobs = [job for job in due if job.job_id not in deferred_ids]
    published = publisher.publish(jobs)
    store.outbox.mark_queued(published.sent)
    for reason, unsendable in published.unsendable.items():
        store.outbox.defer_unsendable(unsendable, reason)
    return len(published) == len(jobs)


def _backlog(store: Store, publisher: Publisher, queued: list[PendingMessage]) -> list[PendingMessage]:
    """Return the jobs whose message is probably still in its queue.

    The number of lost messages is estimated as the queue's Queued rows minus its depth. Messages that workers
    have prefetched are missing from the depth as well, and they are the oldest. So the oldest rows are
    published again, and a backlog behind busy workers is not published twice as a whole. The estimate misses
    the loss of a younger message, or of one that other tasks' messages in the queue make up for. So a row is
    deferred at most `MAX_REPUBLISH_DEFERRALS` times.
    """
    by_queue: dict[str, list[PendingMessage]] = defaultdict(list)
    for job in queued:  # in the order of their reservation: the oldest first
        if job.queue is not None and job.republish_deferrals < MAX_REPUBLISH_DEFERRALS:
            by_queue[job.queue].append(job)
    rows = store.outbox.count_queued(sorted(by_queue))
    deferred: list[PendingMessage] = []
    for queue, jobs in by_queue.items():
        depth = publisher.depth(queue)
        if depth is not None:
            missing = max(rows.get(queue, 0), 1) - depth
            deferred += jobs[max(missing, 0) :]
    return deferred
