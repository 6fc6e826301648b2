"""What a row has beside its snapshot, and which rows stand where they should not. Nothing is written here."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import Enum
from types import MappingProxyType
from typing import Any

from sqlalchemy import ColumnElement, Row, and_, func, select, text

from .. import serialization
from ..models import Event, JobRecord
from ..schema import clock, job, job_event, statement_clock, worker
from ..status import JobStatus
from .records import read_column, to_event, to_job
from .retrying import repeatable
from .stats import Overview
from .transitions import HELD, STAMPED, Guard, lease_alive

SENT_TOO_OFTEN = 3
"""Messages sent for one attempt after which it is said that nobody takes them."""

DEAF_AFTER = timedelta(minutes=5)
"""For so long a body may be busy after it was asked to stop."""

FORGOTTEN_AFTER = timedelta(days=1)
"""For so long somebody may have a job in hand that was taken with `set_status`."""


@dataclass(frozen=True)
class Inside:
    """What the library keeps of a job for itself."""

    now: datetime
    """The database's clock at the look."""
    routing: Mapping[str, Any]
    not_before: datetime | None
    due_at: datetime | None
    """When the sweep looks at the row again; None: only its worker's lease counts, or nothing."""
    publish_count: int
    """Messages sent for the attempt to come."""
    lost_count: int
    retry: bool
    """True if a task's own retry brought it here."""
    terminate: bool
    worker_uid: str | None
    pid: int | None
    lease_until: datetime | None
    """Of the worker that the row names; None if there is none, or it has no row."""


@dataclass(frozen=True)
class Sight:
    """A job, with all there is to know of it."""

    job: JobRecord
    inside: Inside
    events: list[Event]


class Trouble(Enum):
    """How a job can be stuck."""

    OVERDUE = "the sweep should have looked at it by now"
    UNTAKEN = "it was sent several times and no worker took it"
    DESERTED = "it is Running, and its worker has no lease"
    DEAF = "it was asked to stop a while ago, and its body goes on"
    FORGOTTEN = "somebody took it by hand a day ago and has not ended it"


@dataclass(frozen=True)
class Stuck:
    """How many jobs are in one kind of trouble, and the first of them."""

    trouble: Trouble
    count: int
    examples: list[Sight]


class Inspecting(Overview):
    """The questions of somebody who wants to know why."""

    @repeatable
    def sight(self, job_id: int) -> Sight | None:
        """Return all that is known of a job; None if there is no such job."""
        found = self._sights(self.mine(job_id), 1)
        return found[0] if found else None

    @repeatable
    def sights(self, job_ids: list[int]) -> list[Sight]:
        """Return all that is known of some jobs, by their ids."""
        return self._sights(and_(job.c.id.in_(job_ids), job.c.namespace == self.namespace), len(job_ids))

    @repeatable
    def stuck(self, late: timedelta, examples: int) -> list[Stuck]:
        """Return how many jobs are stuck, and how; of what has ended nothing is read."""
        found = []
        for trouble, guard in _guards(late).items():
            where = and_(job.c.namespace == self.namespace, guard)
            with self.door.reading() as connection:
                count = self.execute(connection, select(func.count()).select_from(job).where(where)).scalar()
            if count:
                found.append(Stuck(trouble, count, self._sights(where, examples)))
        return found

    @repeatable
    def count_held(self) -> int:
        """Return how many jobs wait for somebody to release them."""
        statement = select(func.count()).select_from(job).where(job.c.namespace == self.namespace, HELD)
        with self.door.reading() as connection:
            return int(self.execute(connection, statement).scalar_one())

    @repeatable
    def touched_within(self, last: timedelta, limit: int) -> list[int]:
        """Return the ids of the newest jobs that something happened to of late, in their order."""
        with self.door.reading() as connection:
            since = self.moment(connection, last)
            first = self.first_since(connection, job_event.c.id, job_event.c.at, since)
            ours = select(job.c.id).where(job.c.id == job_event.c.job_id, job.c.namespace == self.namespace)
            statement = (
                select(job_event.c.job_id)
                .where(job_event.c.id >= first, job_event.c.at >= since, ours.exists())
                .order_by(job_event.c.id)
            )
            # Made distinct here: SQLite would do it by the index of jobs, and so read every event.
            touched = sorted(set(self.execute(connection, statement).scalars()))
            return touched[-limit:]

    @repeatable
    def durability(self) -> dict[str, str]:
        """Return the database's settings that say whether a commit outlives a crash, where it has some."""
        with self.door.reading() as connection:
            match connection.dialect.name:
                case "postgresql":
                    names = ["fsync", "synchronous_commit", "full_page_writes"]
                    return {name: str(connection.execute(text(f"SHOW {name}")).scalar()) for name in names}
                case "mysql" | "mariadb":
                    name = "innodb_flush_log_at_trx_commit"
                    return {name: str(connection.execute(text(f"SELECT @@{name}")).scalar())}
                case _:
                    return {}

    @property
    def dialect(self) -> str:
        """The kind of database, in SQLAlchemy's word for it."""
        return self.door.engine.dialect.name

    def _sights(self, where: Guard, limit: int) -> list[Sight]:
        # By another name: what a condition asks of the workers is a question of its own.
        its_worker = worker.alias("its_worker")
        columns = (job, clock().label("now"), its_worker.c.lease_until)
        chosen = (
            select(*columns)
            .outerjoin(its_worker, its_worker.c.worker_uid == job.c.worker_uid)
            .where(where)
            .order_by(job.c.id)
            .limit(limit)
        )
        with self.door.reading() as connection:
            rows = list(self.execute(connection, chosen))
            history = select(job_event).where(job_event.c.job_id.in_([row.id for row in rows]))
            events: dict[int, list[Event]] = {}
            for row in self.execute(connection, history.order_by(job_event.c.id)):
                events.setdefault(row.job_id, []).append(to_event(row))
        return [Sight(to_job(row), _inside(row), events.get(row.id, [])) for row in rows]


def _guards(late: timedelta) -> Mapping[Trouble, ColumnElement[bool]]:
    running = job.c.status_id == JobStatus.RUNNING
    return MappingProxyType(
        {
            Trouble.OVERDUE: (job.c.due_at <= statement_clock()) & (job.c.due_at < clock(-late)),
            Trouble.UNTAKEN: and_(job.c.status_id == JobStatus.QUEUED, job.c.publish_count >= SENT_TOO_OFTEN),
            Trouble.DESERTED: and_(running, job.c.worker_uid.is_not(None), ~lease_alive(job.c.worker_uid)),
            Trouble.DEAF: and_(running, STAMPED, job.c.cancel_requested < clock(-DEAF_AFTER)),
            Trouble.FORGOTTEN: and_(
                running, job.c.worker_uid.is_(None), job.c.started < clock(-FORGOTTEN_AFTER)
            ),
        }
    )


def _inside(row: Row[Any]) -> Inside:
    return Inside(
        now=row.now,
        routing=read_column(row, "routing", serialization.decode, dict, lambda _: {}),
        not_before=row.not_before,
        due_at=row.due_at,
        publish_count=row.publish_count,
        lost_count=row.lost_count,
        retry=row.retry is not None,
        terminate=bool(row.terminate),
        worker_uid=row.worker_uid,
        pid=row.pid,
        lease_until=row.lease_until,
    )
