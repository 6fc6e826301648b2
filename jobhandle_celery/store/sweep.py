"""The sweep: rows that are due, jobs that have expired, workers whose lease has ended. And the leases.

No lock is held while anybody talks to the broker: rows are reserved by moving their `due_at`, then
published by the caller, then marked. A sweep that dies in between leaves rows that are due again.
"""

from collections.abc import Sequence
from functools import cache
from typing import Any

from sqlalchemy import (
    ColumnElement,
    Connection,
    Double,
    case,
    delete,
    exists,
    func,
    literal,
    or_,
    select,
    update,
)

from ..schema import clock, job, statement_clock, worker
from ..schema import sweep as sweep_table
from ..status import JobStatus
from .records import MESSAGE_COLUMNS, Lost, PendingMessage, RunSnapshot, Worker, outgoing, to_progress
from .retrying import repeatable
from .runs import Running
from .statements import NAMESPACE, ago, at, given, giving, setting
from .transitions import (
    DUE,
    HELD,
    STAMPED,
    Guard,
    for_these,
    grouped,
    moves,
    unless_expired_before,
    unless_there,
)
from .untraced import untraced

DAMPED_AT_MOST = 3
"""How often in a row the broker's count may put off asking again. No promise rests on the count."""


class Sweeping(Running):
    """The verbs of the worker step, about many jobs at a time."""

    @untraced
    @repeatable
    def begin_pass(self) -> bool | None:
        """Begin a pass; None if somebody began one less than an interval ago.

        True if leases may be believed: passes have followed each other closely for at least one lease.
        After an outage of the database nobody could renew, so that clock starts anew.
        """
        with self.door.moving() as connection:
            unbroken = self._note_pass(connection)
            if unbroken is not None:
                return unbroken
            anew = {"namespace": self.namespace, "last_pass_at": clock(), "unbroken_since": clock()}
            first = unless_there(connection, sweep_table, anew).returning(sweep_table.c.namespace)
            return None if self.execute(connection, first).first() is None else False

    def _note_pass(self, connection: Connection) -> bool | None:
        if connection.dialect.name == "postgresql":
            # What stands alone says all that is wanted at once: after it a connection may break.
            told = self.execute(connection, _begin_pass_and_tell()).first()
            return None if told is None else bool(told[0])
        if self.execute(connection, _begin_pass()).rowcount == 0:
            return None
        return bool(self.execute(connection, _unbroken_for_a_lease()).scalar())

    @untraced
    @repeatable
    def expire(self) -> int:
        """Cancel the jobs whose `expires` passed before they were started; return how many."""
        with self.door.transaction() as connection:
            due = (job.c.namespace == self.namespace) & (job.c.due_at <= statement_clock())
            return self._expire(connection, due, "sweep", skip_locked=True)

    @untraced
    @repeatable
    def reserve(self, limit: int) -> list[PendingMessage]:
        """Reserve rows that are due for a publish, the oldest first: nobody else takes them within the grace.

        Who may have been there first: another sweep (its rows are skipped, not waited for), a claim or a
        cancel, which leave no row due.
        """
        with self.door.transaction() as connection:
            due = (
                select(job.c.id)
                .where(
                    job.c.namespace == self.namespace,
                    job.c.due_at <= statement_clock(),
                    moves("publish"),
                    DUE,
                    ~HELD,
                )
                .order_by(job.c.due_at)
                .limit(limit)
                .with_for_update(skip_locked=True, key_share=True)
            )
            ids = self.execute(connection, due).scalars().all()
            if not ids:
                return []
            reserved = job.c.id.in_(ids)
            publish_grace = clock(self.settings.publish_grace)
            self.execute(connection, update(job).where(reserved).values(due_at=publish_grace))
            rows = self.execute(connection, select(*MESSAGE_COLUMNS).where(reserved).order_by(job.c.id))
            return [outgoing(row) for row in rows]

    @untraced
    @repeatable
    def unheard(self, limit: int) -> list[Lost]:
        """Return cancelled jobs that those who watch have heard of, and not of their cancel; each once.

        Who may have been there first: a worker that met the message and told them; a resubmit.
        """
        with self.door.transaction() as connection:
            due = (
                select(job.c.id, job.c.task_id, job.c.task, job.c.message)
                .where(
                    job.c.namespace == self.namespace,
                    job.c.due_at <= statement_clock(),
                    job.c.status_id == JobStatus.CANCELLED,
                )
                .limit(limit)
                .with_for_update(skip_locked=True, key_share=True)
            )
            rows = self.execute(connection, due).all()
            if rows:
                them = job.c.id.in_([row.id for row in rows])
                self.execute(connection, update(job).where(them).values(due_at=None))
            return [Lost(row.id, row.task_id, row.task, JobStatus.CANCELLED, row.message) for row in rows]

    @untraced
    @repeatable
    def count_queued(self, queues: Sequence[str]) -> dict[str, int]:
        """Return how many rows are Queued for each of these queues."""
        statement = (
            select(job.c.queue, func.count())
            .where(
                job.c.namespace == self.namespace,
                job.c.status_id == JobStatus.QUEUED,
                job.c.queue.in_(queues),
            )
            .group_by(job.c.queue)
        )
        with self.door.reading() as connection:
            return dict(self.execute(connection, statement).all())

    @untraced
    @repeatable
    def look_later(self, rows: Sequence[PendingMessage]) -> None:
        """Leave Queued rows to their messages once more, for another patience.

        Who may have been there first: the worker; then the row is no longer Queued for that attempt.
        """
        with self.door.transaction() as connection:
            for waits, group in grouped(rows, lambda one: one.publish_count + one.republish_deferrals + 1):
                later = unless_expired_before(clock(self.settings.republish_delay(waits)))
                # Reserved, so due within the grace; what has just been put off is not put off again.
                reserved = for_these(group) & (job.c.due_at <= clock(self.settings.publish_grace))
                free = self.free(connection, reserved, job.c.status_id == JobStatus.QUEUED)
                put_off = (
                    update(job)
                    .where(free)
                    .values(republish_deferrals=job.c.republish_deferrals + 1, due_at=later)
                )
                self.execute(connection, put_off)

    @untraced
    @repeatable
    def lapsed_workers(self) -> list[str]:
        """Return the boot ids of the workers whose lease has ended, if leases may be believed now."""
        statement = select(worker.c.worker_uid).where(
            worker.c.namespace == self.namespace,
            worker.c.lease_until <= clock(),
            self._unbroken(self._longest),
        )
        with self.door.reading() as connection:
            return list(self.execute(connection, statement).scalars())

    @repeatable
    def reap(self, worker_uid: str) -> list[Lost]:
        """Settle the jobs of a worker whose lease has ended, and forget the worker once there are none.

        Who may have been there first: the worker itself, renewing. Its row is locked and its lease looked
        at again before any of its jobs is touched, so it renews either before, and loses nothing, or
        after, and finds its row gone. Or an outage, between the beginning of our pass and here: then
        nobody could renew, and each statement of ours sees by the clock that its pass is too long ago.
        """
        with self.door.transaction() as connection:
            lapsed = self.execute(
                connection,
                select(worker.c.name, self._longest.label("lease"))
                .where(
                    worker.c.worker_uid == worker_uid,
                    worker.c.lease_until <= clock(),
                    self._unbroken(self._longest),
                )
                .with_for_update(skip_locked=True),
            ).first()
            if lapsed is None:
                return []
            running = (job.c.worker_uid == worker_uid) & moves("lose")
            lost = self._lose_where(
                connection,
                running & self._unbroken(literal(lapsed.lease, Double())),
                f"the worker {lapsed.name} was lost",
                "sweep",
                skip_locked=True,
            )
            self._forget(connection, worker_uid)
            return lost

    @property
    def _longest(self) -> ColumnElement[float]:
        """The seconds of a worker's own lease, or of ours if that is longer."""
        ours: ColumnElement[float] = literal(self.settings.lease.total_seconds(), Double())
        return case((worker.c.lease > ours, worker.c.lease), else_=ours)

    def _unbroken(self, lease: ColumnElement[float]) -> Guard:
        """Return a condition: passes have followed each other closely for a lease, up to this moment."""
        return exists(
            select(sweep_table.c.namespace).where(
                sweep_table.c.namespace == self.namespace,
                sweep_table.c.unbroken_since <= clock(-lease),
                sweep_table.c.last_pass_at >= clock(-self.settings.unbroken),
            )
        )

    def _forget(self, connection: Connection, worker_uid: str | None) -> None:
        # Not while a row names it: the sweep would never find that row again. The worker's row is locked, so
        # no claim names it anew. Not one statement: on MariaDB a DELETE waits for the rows that it looks at.
        named = select(job.c.id).where(job.c.worker_uid == worker_uid, moves("lose")).limit(1)
        if self.execute(connection, named).first() is None:
            self.execute(connection, delete(worker).where(worker.c.worker_uid == worker_uid))

    @untraced
    @repeatable
    def renew(self, me: Worker) -> bool:
        """Renew this worker's lease; False if there was none: it is new, or was taken for lost."""
        with self.door.moving() as connection:
            mine = self.execute(connection, _renew(), giving(worker_uid=me.worker_uid)).rowcount
            if not mine:
                first = {
                    "worker_uid": me.worker_uid,
                    "namespace": self.namespace,
                    "name": me.name,
                    "pid": me.pid,
                    "started": clock(),
                    "lease_until": clock(self.settings.lease),
                    "lease": self.settings.lease.total_seconds(),
                }
                self.execute(connection, unless_there(connection, worker, first))
            return bool(mine)

    @repeatable
    def retire(self, me: Worker) -> None:
        """Forget this worker, unless a row still names it: then its lease ends by itself."""
        with self.door.transaction() as connection:
            # A claim of this worker may be under way: its end is waited for here, and seen by what follows.
            mine = select(worker.c.worker_uid).where(worker.c.worker_uid == me.worker_uid)
            self.execute(connection, mine.with_for_update())
            # What it was handed and has not begun goes back to the broker: no loss.
            noted = update(job).where(job.c.worker_uid == me.worker_uid, moves("give_up"))
            self.execute(connection, noted.values(worker_uid=None))
            self._forget(connection, me.worker_uid)

    @untraced
    @repeatable
    def standings(self, worker_uid: str) -> list[RunSnapshot]:
        """Return the running jobs whose rows name this worker."""
        with self.door.reading() as connection:
            return [
                RunSnapshot(
                    row.id,
                    row.task_id,
                    row.attempt,
                    row.claim_id,
                    row.pid,
                    bool(row.stop),
                    bool(row.terminate),
                    row.message,
                    to_progress(row),
                )
                for row in self.execute(connection, _standings(), giving(worker_uid=worker_uid))
            ]

    @repeatable
    def superseded(self, messages: Sequence[tuple[int, str, int]]) -> set[tuple[int, str, int]]:
        """Of messages (job id, task id, attempt) being worked on, return those whose attempt is over.

        Another attempt has been made, or its claim was taken away, or the job was sent round again or is
        gone: a worker that was stopped for longer than its lease goes on with such bodies. One whose claim
        has not been made yet is not among them, nor one that has just ended by itself.
        """
        statement = select(job.c.id, job.c.task_id, job.c.attempt, job.c.claim_id).where(
            job.c.id.in_([job_id for job_id, _, _ in messages])
        )
        with self.door.reading() as connection:
            rows = {row.id: row for row in self.execute(connection, statement)}
        return {
            (job_id, task_id, attempt)
            for job_id, task_id, attempt in messages
            if (row := rows.get(job_id)) is None
            or row.task_id != task_id
            or row.attempt > attempt
            or (row.attempt == attempt and row.claim_id is None)
        }


_UNBROKEN_FOR_A_LEASE = sweep_table.c.unbroken_since <= clock(ago("lease"))


@cache
def _begin_pass_and_tell() -> Any:
    return _begin_pass().returning(_UNBROKEN_FOR_A_LEASE)


@cache
def _unbroken_for_a_lease() -> Any:
    return select(_UNBROKEN_FOR_A_LEASE).where(sweep_table.c.namespace == NAMESPACE)


@cache
def _begin_pass() -> Any:
    gap = or_(
        sweep_table.c.last_pass_at < clock(ago("unbroken")),
        sweep_table.c.unbroken_since > clock(),  # the database's clock was set back
    )
    return (
        update(sweep_table)
        .where(
            sweep_table.c.namespace == NAMESPACE,
            or_(
                sweep_table.c.last_pass_at <= clock(ago("pass_interval")),
                # The database's clock was set back.
                sweep_table.c.last_pass_at > clock(setting("lease")),
            ),
        )
        .values(
            unbroken_since=case((gap, clock()), else_=sweep_table.c.unbroken_since),
            last_pass_at=clock(),
        )
    )


@cache
def _renew() -> Any:
    return (
        update(worker)
        .where(worker.c.worker_uid == given(worker.c.worker_uid))
        .values(lease_until=clock(setting("lease")))
    )


@cache
def _standings() -> Any:
    return select(
        job.c.id,
        job.c.task_id,
        job.c.attempt,
        job.c.claim_id,
        job.c.pid,
        STAMPED.label("stop"),
        job.c.terminate,
        job.c.message,
        job.c.progress_current,
        job.c.progress_total,
    ).where(job.c.worker_uid == given(job.c.worker_uid), job.c.status_id == at(JobStatus.RUNNING))
