"""All that is known of a job, and the jobs that are stuck."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from datetime import datetime, timedelta
from enum import Enum
from typing import Any

from sqlalchemy import ColumnElement, Row, and_, func, select

from .. import serialization
from ..models import Event, JobRecord
from ..schema import clock, job, job_event, statement_clock, worker
from ..status import JobStatus
from .connections import durability
from .database import Database
from .pages import recent
from .records import read_column, to_event, to_job
from .retrying import retry_on_disconnect
from .statements import NAMESPACE, Guard
from .transitions import HELD, STOP_REQUESTED, lease_alive, mine

SENT_TOO_OFTEN = 3
"""Messages published for one attempt after which the job counts as `UNTAKEN`."""

IGNORES_CANCEL_AFTER = timedelta(minutes=5)
"""How long a body may continue after it was asked to stop."""

FORGOTTEN_AFTER = timedelta(days=1)
"""How long a job may be Running that was taken with `set_status`."""


@dataclass(frozen=True)
class JobInternals:
    """The columns of a job that `JobRecord` does not show."""

    now: datetime
    """The database's clock."""
    routing: Mapping[str, Any]
    not_before: datetime | None
    due_at: datetime | None
    """When the sweep looks at the row again; None: never, or when its worker's lease ends."""
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


@dataclass(frozen=True)
class JobDetails:
    """A job, with all that the tables have of it."""

    job: JobRecord
    internals: JobInternals
    events: list[Event]


class Trouble(Enum):
    """How a job can be stuck."""

    OVERDUE = "the sweep should have looked at it by now"
    UNTAKEN = "it was published several times and no worker claimed it"
    DESERTED = "it is Running, and its worker has no lease"
    IGNORES_CANCEL = "it was asked to stop a while ago, and its body goes on"
    FORGOTTEN = "it was set to Running by hand a day ago and has not ended"


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
        """Return all that is known of a job; None if there is no such job."""
        found = self._details(mine(job_id), 1)
        return found[0] if found else None

    @retry_on_disconnect
    def details_of(self, job_ids: list[int]) -> list[JobDetails]:
        """Return all that is known of some jobs, by their ids."""
        return self._details(and_(job.c.id.in_(job_ids), job.c.namespace == NAMESPACE), len(job_ids))

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
        statement = select(func.count()).select_from(job).where(job.c.namespace == NAMESPACE, HELD)
        with self._database.autocommit() as db:
            return int(db.execute(statement).scalar_one())

    @retry_on_disconnect
    def touched_within(self, last: timedelta, limit: int) -> list[int]:
        """Return the ids of the newest jobs that have recent events, in ascending order."""
        with self._database.autocommit() as db:
            ours = select(job.c.id).where(job.c.id == job_event.c.job_id, job.c.namespace == NAMESPACE)
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

    def _details(self, where: Guard, limit: int) -> list[JobDetails]:
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
        return [JobDetails(to_job(row), _internals(row), events.get(row.id, [])) for row in rows]


def _guards(late: timedelta) -> Mapping[Trouble, ColumnElement[bool]]:
    running = job.c.status_id == JobStatus.RUNNING
    return {
        Trouble.OVERDUE: (job.c.due_at <= statement_clock()) & (job.c.due_at < clock(-late)),
        Trouble.UNTAKEN: and_(job.c.status_id == JobStatus.QUEUED, job.c.publish_count >= SENT_TOO_OFTEN),
        Trouble.DESERTED: and_(running, job.c.worker_uid.is_not(None), ~lease_alive(job.c.worker_uid)),
        Trouble.IGNORES_CANCEL: and_(
            running, STOP_REQUESTED, job.c.cancel_requested < clock(-IGNORES_CANCEL_AFTER)
        ),
        Trouble.FORGOTTEN: and_(running, job.c.worker_uid.is_(None), job.c.started < clock(-FORGOTTEN_AFTER)),
    }


def _internals(row: Row[Any]) -> JobInternals:
    routing = read_column(row, "routing", serialization.decode, dict, lambda _: {})
    decoded = {"routing": routing, "retry": row.retry is not None}
    return JobInternals(**{field.name: getattr(row, field.name) for field in fields(JobInternals)} | decoded)
