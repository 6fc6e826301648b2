"""Rows come in, and messages go out: submit, publish, release, resubmit."""

import json
from collections.abc import Sequence
from datetime import datetime
from functools import cache
from typing import TYPE_CHECKING, Any

from sqlalchemy import (
    JSON,
    Connection,
    Double,
    Integer,
    Text,
    and_,
    bindparam,
    cast,
    column,
    delete,
    false,
    func,
    literal_column,
    select,
    true,
    update,
)
from sqlalchemy.exc import IntegrityError

from ..errors import InvalidTransitionError
from ..schema import clock, job
from ..serialization import clip_message
from ..status import JobStatus
from .after_commit import Attached, Callback, after_commit
from .insert import Inserting, timed
from .records import (
    MESSAGE_COLUMNS,
    NewJob,
    NewJobs,
    PendingMessage,
    Run,
    Submitted,
    outgoing,
    unique_hash,
)
from .retrying import repeatable
from .sessions import carry_text, connection_of, session_of
from .statements import at
from .transitions import (
    HELD,
    LEFT,
    MOST_PARAMETERS,
    NAMING,
    Guard,
    actor_of,
    check_named,
    for_these,
    grouped,
    lease_alive,
    moves,
    named_by,
    unless_expired_before,
)

if TYPE_CHECKING:
    from sqlalchemy.orm import Session, scoped_session


class Submitting(Inserting):
    """The verbs of whoever submits, and of whoever publishes."""

    @repeatable
    def submit(self, jobs: NewJobs) -> list[Submitted]:
        """Insert jobs in one transaction of our own; see `submit_within`."""
        alone = len(jobs) == 1
        inserted = self._insert_alone(*jobs) if alone else self._insert_straight(jobs)
        if inserted is not None:
            return inserted
        made = list(jobs)  # before a transaction is open, for that may take long
        with self.door.moving() if alone else self.door.transaction() as connection:
            now = self.now_on(connection) if timed(made) else None
            return self.submit_within(connection, made, now)

    def submit_within(
        self, connection: Connection, jobs: Sequence[NewJob], now: datetime | None = None
    ) -> list[Submitted]:
        """Insert jobs, in order, on a connection whose transaction is somebody's.

        Who may have been there first: the same submit, if the answer to its commit was lost (the task
        id, made by the submitter, tells: its id is returned), or an unfinished job with the same unique
        key (its id is returned, and nothing is written).
        """
        return self.insert_all(connection, jobs, now)

    def submit_in_session(
        self,
        session: "Session | scoped_session[Any]",
        jobs: Sequence[NewJob],
        send: Callback,
        handle: Attached | None = None,
    ) -> list[Submitted]:
        """Insert jobs in the caller's transaction; `send` gets their ids after its commit.

        Nothing at all remains of them after a rollback, of a savepoint too; the handle is detached.

        Raises:
            ApiUsageError: it is no Session, nor a scoped_session, or it cannot be joined.
            DBAPIError: SQLAlchemy's, of a serialization failure or a deadlock, which the caller repeats.
        """
        session = session_of(session)
        now = None
        if timed(jobs):
            # On a connection of ours: the caller's may have a style of dates that no driver reads.
            with self.door.reading() as ours:
                now = self.now_on(ours)
        with self.door.joining():
            connection = connection_of(session)
            carry_text(connection, (new.columns(self.namespace) for new in jobs))
            if connection.dialect.name == "sqlite":
                # A transaction that reads first is "locked" at once when another has written since.
                self.execute(connection, _TAKE_THE_WRITE_LOCK)
            submitted = self.submit_within(connection, jobs, now)
        fresh = [one.job_id for one in submitted if one.fresh]
        after_commit(session, connection, fresh, send, handle)
        return submitted

    @repeatable
    def outgoing(self, job_ids: Sequence[int]) -> list[PendingMessage]:
        """Reserve, as a sweep does, those of these jobs that are committed and wait to be sent.

        Who may have been there first: a sweep that sent it already (it is Queued), a cancel, a rollback
        of the caller's transaction. Such a job is not among them.
        """
        waiting = and_(
            job.c.namespace == self.namespace,
            job.c.status_id.in_((JobStatus.SUBMITTED, JobStatus.RESUBMITTED, JobStatus.REQUEUED)),
            job.c.not_before.is_(None),
        )
        reserved: list[PendingMessage] = []
        for start in range(0, len(job_ids), MOST_PARAMETERS):
            these = job.c.id.in_(job_ids[start : start + MOST_PARAMETERS])
            # Looked at without a lock first: the caller's transaction may be part of one that is still open.
            with self.door.reading() as connection:
                there = self.execute(connection, select(job.c.id).where(these, waiting)).scalars().all()
            if not there:
                continue
            mine = job.c.id.in_(there) & waiting
            with self.door.transaction() as connection:
                self.execute(
                    connection, update(job).where(mine).values(due_at=clock(self.settings.publish_grace))
                )
                rows = self.execute(connection, select(*MESSAGE_COLUMNS).where(mine).order_by(job.c.id))
                reserved += map(outgoing, rows)
        return reserved

    @repeatable
    def mark_queued(self, sent: Sequence[PendingMessage]) -> None:
        """Note that the broker was given these messages, and when to ask after them.

        Who may have been there first: the worker, which may have claimed, finished or requeued the job
        before we come to this; or a worker that does not know the task, and has sent it back. The guard has
        the attempt that the message is for, its task id, and how often the job had been sent before, so a
        late mark never touches what came after it. Losing this write is harmless: the row stays due, and
        an extra message is refused by the claim. So a row that something has locked is skipped.
        """
        if not sent:
            return
        with self.door.moving() as connection:
            if connection.dialect.name == "postgresql":
                rows = [(one, one.publish_count + 1) for one in sent]
                document = [
                    {
                        "id": one.job_id,
                        "task_id": one.task_id,
                        "attempt": one.attempt - 1,
                        "publish_count": publish_count,
                        "republish_after": self.settings.republish_delay(publish_count).total_seconds(),
                    }
                    for one, publish_count in rows
                ]
                self.execute(connection, _mark_queued(), {"document": json.dumps(document)})
                return
            for publish_count, group in grouped(sent, lambda one: one.publish_count + 1):
                due = unless_expired_before(clock(self.settings.republish_delay(publish_count)))
                queued = {**_QUEUED, "publish_count": publish_count, "due_at": due}
                free = self.free(connection, moves("publish"), ~HELD, for_these(group))
                self.execute(connection, update(job).where(free).values(**queued))

    @repeatable
    def put_off(self, unsendable: Sequence[PendingMessage], because: str) -> None:
        """Leave rows that cannot be sent for a patience, as if they had been; say why in an event.

        Nothing is lost by it: somebody may mend the row, or the queue, or upgrade whoever sweeps. Who may
        have been there first: a cancel, or a sweep that could send it.
        """
        with self.door.moving() as connection:
            for publish_count, group in grouped(unsendable, lambda one: one.publish_count + 1):
                due = unless_expired_before(clock(self.settings.republish_delay(publish_count)))
                self.move(
                    connection,
                    moves("publish"),
                    for_these(group),
                    job.c.due_at
                    <= clock(self.settings.publish_grace),  # not again what has just been put off
                    to={"due_at": due, "publish_count": publish_count},
                    because=clip_message(because),
                    actor="sweep",
                    skip_locked=True,
                )

    @repeatable
    def release(self, job_id: int, token: str, username: str | None, run: Run | None = None) -> bool:
        """Let a Waiting job go now; False if it is not Waiting.

        Who may have been there first: another release, the sweep if its time came, a cancel; and ourselves,
        if the answer to our commit was lost: then the row carries our token.

        Raises:
            InvalidTransitionError: the run is superseded.
        """
        with self.door.transaction() as connection:
            released = bool(
                self.move(
                    connection,
                    moves("release"),
                    self.mine(job_id, username),
                    *([] if run is None else [named_by(run)]),
                    to={
                        "status_id": JobStatus.SUBMITTED,
                        "not_before": None,
                        "scheduled_for": None,
                        "due_at": clock(self.settings.publish_grace),
                        "claim_id": token,
                    },
                    because="released",
                    actor=actor_of(username),
                )
            )
            if released:
                return True
            found = self.execute(connection, select(*NAMING).where(self.mine(job_id, username))).first()
            if found is None or found.claim_id == token:
                return found is not None
            check_named(run, found)
            return False

    @repeatable
    def resubmit(self, job_id: int, task_id: str, username: str | None, run: Run | None = None) -> bool:
        """Send a final job round again under a new task id; False if it is not final, or may still run.

        Who may have been there first: another resubmit; or an outsider who ended the row while its body
        still runs. Then the row names a worker with a lease, and two bodies would be alive at once: it is
        refused until that worker reports that the body has left, or its lease ends. A repeat of our own
        finds its task id in the row.

        Raises:
            InvalidTransitionError: another unfinished job has its unique key now, or the run is superseded.
        """
        with self.door.transaction() as connection:
            former = self.execute(
                connection,
                select(job.c.username, job.c.unique_key, *NAMING)
                .where(self.mine(job_id, username))
                .with_for_update(key_share=True),
            ).first()
            if former is None:
                return False
            if former.task_id == task_id:
                return True
            check_named(run, former)
            slot = unique_hash(self.namespace, former.username, former.unique_key)
            try:
                with connection.begin_nested():
                    return bool(
                        self._resubmit(connection, self.mine(job_id, username), task_id, slot, username)
                    )
            except IntegrityError:
                raise InvalidTransitionError(
                    f"job {job_id} was not resubmitted: "
                    f"another unfinished job has its unique_key {former.unique_key!r}"
                ) from None

    def _resubmit(
        self, connection: Connection, mine: Guard, task_id: str, slot: str | None, username: str | None
    ) -> Sequence[Any]:
        return self.move(
            connection,
            moves("resubmit"),
            mine,
            job.c.worker_uid.is_(None) | ~lease_alive(job.c.worker_uid),
            to=_AFRESH
            | {
                "status_id": JobStatus.RESUBMITTED,
                "task_id": task_id,
                "unique_hash": slot,
                "due_at": clock(self.settings.publish_grace),
            },
            because="resubmitted",
            actor=actor_of(username),
        )


_TAKE_THE_WRITE_LOCK = delete(job).where(false())
"""What changes nothing, but begins to write."""

_AFRESH: dict[str, Any] = {
    **LEFT,
    **dict.fromkeys(
        (
            "cancel_requested",
            "started",
            "finished",
            "result",
            "error",
            "progress_current",
            "progress_total",
            "expires",
            "not_before",
            "retry",
            "claim_id",
            "worker",
        )
    ),
    "terminate": False,
    "revoke_reported": False,
    "lost_count": 0,
    "publish_count": 0,
    "republish_deferrals": 0,
}
"""What a resubmit clears. Not `attempt`, which never goes down: the former round's writes must not fit."""

_QUEUED: dict[str, Any] = {"status_id": at(JobStatus.QUEUED), "republish_deferrals": literal_column("0")}


@cache
def _mark_queued() -> Any:
    """Return a mark of any number of rows, of which PostgreSQL's commit does not wait for the disk.

    A mark that is lost with the server's machine is harmless, see the verb.
    """
    known = (
        column("id", job.c.id.type),
        column("task_id", Text),
        column("attempt", Integer),
        column("publish_count", Integer),
        column("republish_after", Double),
    )
    sent = func.json_to_recordset(cast(bindparam("document", type_=Text), JSON)).table_valued(*known)
    sent = sent.render_derived(name="sent", with_types=True)
    lazily = select(func.set_config("synchronous_commit", "off", true())).scalar_subquery()
    due = unless_expired_before(clock(sent.c.republish_after))
    waiting = (
        moves("publish"),
        ~HELD,
        job.c.id == sent.c.id,
        job.c.task_id == sent.c.task_id,
        job.c.attempt == sent.c.attempt,
        job.c.publish_count == sent.c.publish_count - 1,
    )
    free = select(job.c.id).where(*waiting).with_for_update(skip_locked=True, key_share=True, of=job)
    return (
        update(job)
        .where(*waiting, lazily.is_not(None), job.c.id.in_(select(free.cte("free").c.id)))
        .values(**_QUEUED, publish_count=sent.c.publish_count, due_at=due)
    )
