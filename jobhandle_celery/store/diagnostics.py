"""All that is known of a job, and the jobs that are stuck."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from datetime import datetime, timedelta
from enum import Enum
from typing import Any

from sqlalchemy import ColumnElement, Row, and_, exists, func, or_, select

from .. import serialization
from ..models import Event, JobRecord
from ..schema import clock, job, job_event, job_need, statement_clock, worker
from ..status import UNFINISHED, JobStatus
from .connections import durability
from .database import Database
from .decoding import read_column, to_event
from .executors import Executor
from .pages import recent
from .retrying import retry_on_disconnect
from .snapshots import TREE_COLUMNS, TreeRow, in_tree_order, to_jobs, to_tree_row
from .statements import NAMESPACE, Guard
from .transitions import IS_TASK, OF_NAMESPACE, STOP_REQUESTED, WAITING_WITHOUT_TIME, lease_alive, mine

SENT_TOO_OFTEN = 3
"""Messages published for one attempt after which the job counts as `UNCLAIMED`."""

IGNORES_CANCEL_AFTER = timedelta(minutes=5)
"""How long a body may continue after it was asked to stop."""

LONG_AGO = timedelta(days=1)
"""How long a job may be Running that was taken with `set_status`."""


@dataclass(frozen=True)
class JobInternals:
    """The columns of a job that `JobRecord` does not show."""

    now: datetime
    """The database's clock."""
    routing: Mapping[str, Any]
    not_before: datetime | None
    due_at: datetime | None
    """When the sweeper looks at the row again; None: never, or when its worker's lease ends."""
    publish_count: int
    """Messages published for the next attempt."""
    lost_count: int
    retry: bool
    """True if the next message is that of a retry which the task requested."""
    terminate: bool
    worker_uid: str | None
    pid: int | None
    lease_until: datetime | None
    """The lease of the worker that the row names; None if there is none, or it has no row."""
    unsettled: bool
    """It has ended, and the jobs that depend on it have not been looked at since."""


@dataclass(frozen=True)
class Need:
    """A job that another one needs; its status is None if its row is gone."""

    job_id: int
    status: JobStatus | None


@dataclass(frozen=True)
class JobDetails:
    """A job, with all that the tables have of it."""

    job: JobRecord
    internals: JobInternals
    events: list[Event]
    needs: list[Need]


class Trouble(Enum):
    """How a job can be stuck."""

    OVERDUE = "the sweeper should have looked at it by now"
    UNCLAIMED = "it was published several times and no worker claimed it"
    NO_LEASE = "it is Running, and its worker has no lease"
    IGNORES_CANCEL = "it was asked to stop a while ago, and its body goes on"
    SET_RUNNING_LONG_AGO = "it was set to Running by hand a day ago and has not ended"
    UNSETTLED = "it has ended, and the sweeper should have settled what depends on it by now"
    NEEDS_ENDED = "it waits for jobs that have all ended, or are gone"
    NOT_ENDED = "all members of this node have ended, and it has not"


@dataclass(frozen=True)
class Stuck:
    """How many jobs are stuck in one way, and the first of them."""

    trouble: Trouble
    count: int
    examples: list[JobDetails]


class Diagnostics:
    """Explains the status of jobs, and finds stuck ones."""

    def __init__(self, database: Database) -> None:
        self._database = database

    @retry_on_disconnect
    def details(self, job_id: int) -> JobDetails | None:
        """Return all that is known of a job, also the result of a node; None if there is no such job."""
        found = self._details(mine(job_id), 1, with_results=True)
        return found[0] if found else None

    @retry_on_disconnect
    def tree(self, node: JobRecord) -> list[TreeRow]:
        """Return what is below a node, in the order of its tree; without what may be large of a row."""
        statement = select(*TREE_COLUMNS).where(job.c.root_id == (node.root_id or node.id))
        with self._database.autocommit() as db:
            return [to_tree_row(row) for row in in_tree_order(db.execute(statement), node.id)]

    @retry_on_disconnect
    def details_of(self, job_ids: list[int]) -> list[JobDetails]:
        """Return all that is known of some jobs, by their ids."""
        return self._details(and_(job.c.id.in_(job_ids), OF_NAMESPACE), len(job_ids))

    @retry_on_disconnect
    def stuck(self, late: timedelta, examples: int) -> list[Stuck]:
        """Return how many jobs are stuck, by kind; jobs that have ended are not read."""
        found = []
        for trouble, guard in _guards(late).items():
            where = and_(job.c.namespace == NAMESPACE, guard)
            with self._database.autocommit() as db:
                count = db.execute(select(func.count()).select_from(job).where(where)).scalar()
            if count:
                found.append(Stuck(trouble, count, self._details(where, examples)))
        return found

    @retry_on_disconnect
    def count_held(self) -> int:
        """Return how many jobs wait for `release_job`."""
        statement = (
            select(func.count())
            .select_from(job)
            .where(job.c.namespace == NAMESPACE, WAITING_WITHOUT_TIME, ~job.c.blocked)
        )
        with self._database.autocommit() as db:
            return int(db.execute(statement).scalar_one())

    @retry_on_disconnect
    def touched_within(self, last: timedelta, limit: int) -> list[int]:
        """Return the ids of the newest tasks that have recent events, in ascending order."""
        with self._database.autocommit() as db:
            ours = select(job.c.id).where(
                job.c.id == job_event.c.job_id, job.c.namespace == NAMESPACE, IS_TASK
            )
            statement = (
                select(job_event.c.job_id)
                .where(recent(db, job_event.c.id, job_event.c.at, last), ours.exists())
                .order_by(job_event.c.id)
            )
            # Made distinct here: SQLite would use the index of jobs, and read every event.
            touched = sorted(set(db.execute(statement).scalars()))
            return touched[-limit:]

    @retry_on_disconnect
    def durability(self) -> dict[str, str]:
        """Return the database's settings that say whether a commit survives a crash."""
        with self._database.autocommit() as db:
            return durability(db.connection)

    def _details(self, where: Guard, limit: int, *, with_results: bool = False) -> list[JobDetails]:
        # Aliased, so that a condition's own subquery on the workers does not correlate with this join.
        its_worker = worker.alias("its_worker")
        columns = (job, clock().label("now"), its_worker.c.lease_until)
        chosen = (
            select(*columns)
            .outerjoin(its_worker, its_worker.c.worker_uid == job.c.worker_uid)
            .where(where)
            .order_by(job.c.id)
            .limit(limit)
        )
        with self._database.autocommit() as db:
            rows = list(db.execute(chosen))
            history = select(job_event).where(job_event.c.job_id.in_([row.id for row in rows]))
            events: dict[int, list[Event]] = {}
            for row in db.execute(history.order_by(job_event.c.id)):
                events.setdefault(row.job_id, []).append(to_event(row))
            needs = _needs_of(db, [row.id for row in rows if row.needs_when is not None])
            jobs = to_jobs(db, rows, of_ended=True, with_results=with_results)
        return [
            JobDetails(job, _internals(row), events.get(row.id, []), needs.get(row.id, []))
            for job, row in zip(jobs, rows, strict=True)
        ]


def _needs_of(db: Executor, job_ids: list[int]) -> dict[int, list[Need]]:
    needed = job.alias("needed")
    statement = (
        select(job_need.c.job_id, job_need.c.needs_id, needed.c.status_id)
        .outerjoin(needed, needed.c.id == job_need.c.needs_id)
        .where(job_need.c.job_id.in_(job_ids))
        .order_by(job_need.c.needs_id)
    )
    needs: dict[int, list[Need]] = {}
    for job_id, needs_id, status in db.execute(statement) if job_ids else ():
        needs.setdefault(job_id, []).append(Need(needs_id, status))
    return needs


def _guards(late: timedelta) -> Mapping[Trouble, ColumnElement[bool]]:
    running = and_(job.c.status_id == JobStatus.RUNNING, IS_TASK)
    late_for_sweep = (job.c.due_at <= statement_clock()) & (job.c.due_at < clock(-late))
    return {
        Trouble.OVERDUE: late_for_sweep & ~job.c.unsettled,
        Trouble.UNCLAIMED: and_(job.c.status_id == JobStatus.QUEUED, job.c.publish_count >= SENT_TOO_OFTEN),
        Trouble.NO_LEASE: and_(running, job.c.worker_uid.is_not(None), ~lease_alive(job.c.worker_uid)),
        Trouble.IGNORES_CANCEL: and_(
            running, STOP_REQUESTED, job.c.cancel_requested < clock(-IGNORES_CANCEL_AFTER)
        ),
        Trouble.SET_RUNNING_LONG_AGO: and_(
            running, job.c.worker_uid.is_(None), job.c.started < clock(-LONG_AGO)
        ),
        Trouble.UNSETTLED: late_for_sweep & job.c.unsettled,
        Trouble.NEEDS_ENDED: and_(
            job.c.status_id == JobStatus.WAITING,
            job.c.blocked,
            ~_needs_unsettled_job(),
            # Else the sweeper is to look at it.
            or_(job.c.due_at.is_(None), job.c.due_at < clock(-late), job.c.due_at == job.c.expires),
        ),
        Trouble.NOT_ENDED: and_(
            job.c.status_id.in_(sorted(UNFINISHED)), ~IS_TASK, ~job.c.blocked, ~_has_unsettled_child()
        ),
    }


def _needs_unsettled_job() -> ColumnElement[bool]:
    needed = job.alias("needed")
    needs = select(job_need.c.needs_id).join(needed, needed.c.id == job_need.c.needs_id)
    moving_on = or_(needed.c.status_id.in_(sorted(UNFINISHED)), needed.c.unsettled)
    return exists(needs.where(job_need.c.job_id == job.c.id, moving_on).correlate(job))


def _has_unsettled_child() -> ColumnElement[bool]:
    child = job.alias("child")
    children = select(child.c.id).where(child.c.parent_id == job.c.id).correlate(job)
    # Each by an index: that of children, or that of due rows, among which are those to settle.
    unsettled = (child.c.namespace == NAMESPACE) & child.c.due_at.is_not(None) & child.c.unsettled
    unfinished = child.c.status_id.in_(sorted(UNFINISHED))
    return or_(exists(children.where(unfinished)), exists(children.where(unsettled)))


def _internals(row: Row[Any]) -> JobInternals:
    routing = read_column(row, "routing", serialization.decode, dict, lambda _: {})
    decoded = {"routing": routing, "retry": row.retry is not None}
    return JobInternals(**{field.name: getattr(row, field.name) for field in fields(JobInternals)} | decoded)
