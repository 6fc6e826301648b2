"""The jobs to publish: a submitter or the sweeper reserves their rows, and marks those that it has sent.

No lock is held while a process talks to the broker: a row is reserved by moving its `due_at`. If the process
dies before the mark, the row is due again.
"""

from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime
from functools import cache
from typing import Any

from sqlalchemy import and_, func, select, update

from ..batching import slices
from ..schema import clock, job
from ..serialization import clip_message
from ..status import JobStatus
from .database import Database
from .executors import MAX_PARAMETERS, Executor
from .records import MESSAGE_COLUMNS, PendingMessage
from .retrying import retry_on_disconnect
from .statements import IN_ARRAY, NAMESPACE, Guard, Transition, is_locked_in_order, setting, status_literal
from .transitions import (
    DUE,
    IS_TASK,
    OF_NAMESPACE,
    WAITING_WITHOUT_TIME,
    due_since,
    for_these,
    grouped,
    status_allows,
    unless_expired_before,
)

MAX_REPUBLISH_DEFERRALS = 3
"""Times in a row that the queue's depth may defer a republish. No promise depends on the depth."""

_UNSENT = and_(
    OF_NAMESPACE,
    job.c.status_id.in_(
        [
            status_literal(status)
            for status in (JobStatus.SUBMITTED, JobStatus.RESUBMITTED, JobStatus.REQUEUED)
        ]
    ),
    job.c.not_before.is_(None),
    IS_TASK,
)


class Outbox:
    """The rows whose message is to be sent, or sent again."""

    def __init__(self, database: Database) -> None:
        self._database = database

    @retry_on_disconnect
    def reserve(self, job_ids: Sequence[int]) -> list[PendingMessage]:
        """Reserve those of these jobs that are committed and wait to be sent; return them in the order given.

        Who may have been there first: a pass that has sent the job (it is Queued), a cancel, a rollback of
        the caller's transaction. Such a job is not among them.
        """
        position = {job_id: number for number, job_id in enumerate(job_ids)}
        rows = self._database.execute_directly(_reserve_unsent(), {"ids": list(position)})
        if rows is not None:
            return [_message(*row) for row in sorted(rows, key=lambda row: position[row[0]])]
        reserved: list[PendingMessage] = []
        # Read without a lock first: the caller's transaction may be part of one that is still open.
        with self._database.autocommit() as db:
            unsent = sorted(db.filter_ids(job_ids, _UNSENT))
        for these in slices(unsent, MAX_PARAMETERS):
            with self._database.transaction() as db:
                if len(these) > 1:
                    db.lock_in_order(job.c.id.in_(these), _UNSENT)
                reserved += _reserve(db, job.c.id.in_(these) & _UNSENT)
        return sorted(reserved, key=lambda message: position[message.job_id])

    @retry_on_disconnect
    def reserve_due(self, limit: int, since: datetime | None = None) -> list[PendingMessage]:
        """Reserve rows that are due, the oldest first: for the publish grace no other pass takes them.

        Who may have been there first: another pass (its rows are skipped, not waited for), a claim or a
        cancel, which leave no row due.
        """
        due = (
            select(job.c.id)
            .where(due_since(since), status_allows("publish"), DUE, ~WAITING_WITHOUT_TIME)
            .order_by(job.c.due_at)
            .limit(limit)
            .with_for_update(skip_locked=True, key_share=True)
        )
        with self._database.transaction() as db:
            ids = db.execute(due).scalars().all()
            return _reserve(db, job.c.id.in_(ids)) if ids else []

    @retry_on_disconnect
    def mark_queued(self, sent: Sequence[PendingMessage]) -> None:
        """Mark jobs whose message the broker has accepted as Queued, and set when they are due again.

        Who may have been there first: the worker, which may have claimed, finished or requeued the job
        already; or a worker that does not know the task, and has sent it back. The guard has the attempt that
        the message is for, its task id, and how often the job had been sent before, so a late mark never
        changes what came after it. A mark that is lost is harmless: the row stays due, and the claim rejects
        an extra message. So a row that is locked is skipped.
        """
        if sent:
            with self._database.single_statement() as db:
                db.mark_queued(sent, self._database.settings.republish_delay)

    @retry_on_disconnect
    def defer_unsendable(self, messages: Sequence[PendingMessage], reason: str) -> None:
        """Defer jobs that cannot be sent, as if they had been; the event has the reason.

        Nothing is lost: the row or the queue may be corrected, or the sweeping process upgraded. Who may have
        been there first: a cancel, or a pass that could send it.
        """
        with self._database.single_statement() as db:
            for publish_count, group in grouped(messages, lambda message: message.publish_count + 1):
                due = unless_expired_before(clock(self._database.settings.republish_delay(publish_count)))
                defer = Transition(
                    status_allows("publish"),
                    for_these(group),
                    job.c.due_at <= clock(setting("publish_grace")),  # not what was just deferred
                    to={"due_at": due, "publish_count": publish_count},
                    reason=clip_message(reason),
                    actor="sweep",
                    skip_locked=True,
                )
                db.count_applied(defer)

    @retry_on_disconnect
    def defer_republish(self, messages: Sequence[PendingMessage]) -> None:
        """Defer the republish of Queued jobs, whose messages seem to be in the queue still.

        Who may have been there first: the worker; then the row is no longer Queued for that attempt.
        """
        with self._database.transaction() as db:
            for waits, group in grouped(
                messages, lambda message: message.publish_count + message.republish_deferrals + 1
            ):
                later = unless_expired_before(clock(self._database.settings.republish_delay(waits)))
                db.update_unlocked(
                    for_these(group),
                    # Reserved, so due within the grace: what was just deferred is not deferred again.
                    job.c.due_at <= clock(setting("publish_grace")),
                    job.c.status_id == JobStatus.QUEUED,
                    values={"republish_deferrals": job.c.republish_deferrals + 1, "due_at": later},
                )

    @retry_on_disconnect
    def count_queued(self, queues: Sequence[str]) -> dict[str, int]:
        """Return how many rows are Queued for each of these queues."""
        counts = (
            select(job.c.queue, func.count())
            .where(
                job.c.namespace == NAMESPACE,
                job.c.status_id == JobStatus.QUEUED,
                job.c.queue.in_(queues),
            )
            .group_by(job.c.queue)
        )
        with self._database.autocommit() as db:
            return dict(db.execute(counts).all())


@cache
def _reserve_unsent() -> Any:
    """Return the same as one statement, for PostgreSQL; its first column is the id."""
    return (
        update(job)
        .where(IN_ARRAY, _UNSENT, is_locked_in_order(IN_ARRAY, _UNSENT))
        .values(due_at=clock(setting("publish_grace")))
        .returning(*MESSAGE_COLUMNS)
    )


def _message(*row: Any) -> PendingMessage:
    message = PendingMessage(*row)
    status_id: Any = message.status  # as the driver returns it
    return replace(message, status=JobStatus.from_id(status_id))


def _reserve(db: Executor, which: Guard) -> list[PendingMessage]:
    db.execute(update(job).where(which).values(due_at=clock(setting("publish_grace"))))
    rows: Any = db.execute(select(*MESSAGE_COLUMNS).where(which).order_by(job.c.id))
    return [PendingMessage(*row) for row in rows]
