"""The pass of the sweeper, and what it does alone: expired jobs, unreported cancels, old jobs."""

from datetime import datetime, timedelta
from functools import cache
from typing import Any

from sqlalchemy import and_, case, delete, exists, literal, or_, select, update

from ..batching import slices
from ..schema import clock, job, job_event, job_need
from ..schema import sweep as sweep_table
from ..status import FINAL, UNFINISHED, JobStatus
from .database import Database
from .dependencies import DEPENDENT, in_statuses, is_needed_by
from .executors import MAX_PARAMETERS
from .records import ChangedJob
from .retrying import retry_on_disconnect
from .runs import expire
from .statements import NAMESPACE, Guard, ago, setting
from .transitions import due_since

PRUNE_BATCH = 1_000
"""Jobs deleted in one transaction: a long one would hold locks and bloat the log.

A tree is deleted as a whole, however large it is."""


class Sweep:
    """What any process of the namespace may do at any time."""

    def __init__(self, database: Database) -> None:
        self._database = database

    @retry_on_disconnect
    def begin_pass(self) -> bool | None:
        """Begin a pass; None if one was begun less than an interval ago.

        True if leases can be trusted: passes have followed each other closely for at least one lease. After
        an outage of the database, in which no worker could renew its lease, that time starts anew.
        """
        with self._database.single_statement() as db:
            here = sweep_table.c.namespace == NAMESPACE
            unbroken = db.update_returning(_begin_pass(), _UNBROKEN_FOR_A_LEASE, here)
            if unbroken is not None:
                return bool(unbroken)
            namespace = self._database.settings.namespace
            first = {"namespace": namespace, "last_pass_at": clock(), "unbroken_since": clock()}
            return False if db.insert_if_absent(sweep_table, first) else None

    @retry_on_disconnect
    def first_due(self) -> datetime | None:
        """Return the earliest `due_at` that has passed; None if no job is due.

        The index keeps the entries of jobs that were due and have ended since until they are vacuumed or
        purged, for long if a transaction stays open. They come first, and each query of due jobs would read
        all of them; a pass reads them here once, and begins its other queries at this time. A row that is due
        earlier and is committed meanwhile is left for the next pass.
        """
        first = select(job.c.due_at).where(due_since(None)).order_by(job.c.due_at).limit(1)
        with self._database.autocommit() as db:
            due_at: datetime | None = db.execute(first).scalar()
            return due_at

    @retry_on_disconnect
    def expire(self, since: datetime | None = None) -> int:
        """Cancel the jobs whose `expires` has passed before they were started; return how many."""
        with self._database.transaction() as db:
            return db.count_applied(expire(due_since(since), "sweep", skip_locked=True))

    @retry_on_disconnect
    def unreported_cancels(self, limit: int, since: datetime | None = None) -> list[ChangedJob]:
        """Return cancelled jobs that Celery's events do not show as revoked yet; each once.

        Who may have been there first: a worker that met the message and has reported them; a resubmit.
        """
        due = (
            select(job.c.id, job.c.task_id, job.c.task, job.c.message)
            .where(due_since(since), job.c.status_id == JobStatus.CANCELLED, job.c.unsettled.is_(False))
            .limit(limit)
        )
        with self._database.transaction() as db:
            rows = db.reschedule(due, None)
            return [
                ChangedJob(row.id, row.task_id, row.task, JobStatus.CANCELLED, row.message) for row in rows
            ]

    def prune(self, older_than: timedelta) -> int:
        """Delete the jobs that ended longer ago than that, with their events; return how many.

        Longer ago than that at the beginning: jobs that end meanwhile stay.
        """
        pruned, before = self._prune(older_than, None)
        batch = pruned
        while batch:
            batch, before = self._prune(older_than, before)
            pruned += batch
        return pruned

    @retry_on_disconnect
    def _prune(self, older_than: timedelta, before: datetime | None) -> tuple[int, datetime]:
        with self._database.transaction() as db:
            if before is None:
                before = db.execute(select(clock(-older_than))).scalar_one()
            ended = (
                select(job.c.id, job.c.kind)
                .where(
                    job.c.namespace == NAMESPACE,
                    job.c.status_id.in_(FINAL),
                    job.c.finished < literal(before, job.c.finished.type),
                    job.c.root_id.is_(None),
                    _IS_UNUSED,
                )
                .limit(PRUNE_BATCH)
                .with_for_update(skip_locked=True)
            )
            ids: list[int] = []
            for row in db.execute(ended).all():
                if row.kind is not None:
                    members = select(job.c.id).where(job.c.root_id == row.id).order_by(job.c.id)
                    locked = db.execute(members.with_for_update()).scalars().all()
                    still = select(job.c.id).where(job.c.id == row.id, _IS_UNUSED)
                    if db.execute(still).first() is None:
                        continue  # a member was resubmitted, or is needed, since the select
                    ids += locked
                ids.append(row.id)
                if len(ids) >= PRUNE_BATCH:
                    break  # the next transaction deletes the others
            for part in slices(ids, MAX_PARAMETERS):
                db.execute(delete(job_need).where(job_need.c.job_id.in_(part)))
                db.execute(delete(job_event).where(job_event.c.job_id.in_(part)))
                db.execute(delete(job).where(job.c.id.in_(part)))
            return len(ids), before


_MEMBER = job.alias("member")


def _is_used(row: Any) -> Guard:
    """Return the condition: the row is to be settled, or an unfinished job needs it, and reads its result."""
    needed = is_needed_by(in_statuses(DEPENDENT.c.status_id, UNFINISHED), row=row)
    return or_(row.c.unsettled, in_statuses(row.c.status_id, UNFINISHED), needed)


_IS_UNUSED = and_(
    ~_is_used(job),
    or_(
        job.c.kind.is_(None),
        ~exists(select(_MEMBER.c.id).where(_MEMBER.c.root_id == job.c.id, _is_used(_MEMBER)).correlate(job)),
    ),
)

_UNBROKEN_FOR_A_LEASE = sweep_table.c.unbroken_since <= clock(ago("lease"))


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
                sweep_table.c.last_pass_at > clock(setting("lease")),  # the database's clock was set back
            ),
        )
        .values(
            unbroken_since=case((gap, clock()), else_=sweep_table.c.unbroken_since),
            last_pass_at=clock(),
        )
    )
