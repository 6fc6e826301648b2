"""Counts and rates of tasks, the workers and what they run, the passes of the sweeper.

Unfinished jobs are counted by the index. Jobs that have ended are counted by their recent events, whose ids
rise with their time: the first event of a period is found without reading the others.
"""

from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import func, select

from ..models import JobRecord
from ..schema import clock, job, job_event, worker
from ..schema import sweep as sweep_table
from ..status import FINAL, STARTABLE, UNFINISHED, JobStatus
from .database import Database
from .decoding import to_job
from .pages import moment, recent
from .retrying import retry_on_disconnect
from .statements import NAMESPACE
from .transitions import IS_TASK


@dataclass(frozen=True)
class Tally:
    """Jobs of one task in one status."""

    task: str
    status: JobStatus
    count: int
    oldest: datetime | None = None
    """When the first of them was submitted; None where a period was counted."""


@dataclass(frozen=True)
class WorkerSeen:
    """A worker's row, and the jobs that it runs."""

    name: str
    worker_uid: str
    pid: int
    started: datetime
    lease_until: datetime
    alive: bool
    """False: its lease has ended, and the next pass of the sweeper recovers its jobs."""
    jobs: list[JobRecord] = field(default_factory=list)


@dataclass(frozen=True)
class Passes:
    """The passes of the sweeper; the durations are None if there never was one."""

    since_last: timedelta | None
    unbroken: timedelta | None


class Stats:
    """Counts, workers and passes, for the command line."""

    def __init__(self, database: Database) -> None:
        self._database = database

    @retry_on_disconnect
    def now(self) -> datetime:
        """Return the database's clock."""
        with self._database.autocommit() as db:
            return moment(db, timedelta(0))

    @retry_on_disconnect
    def tally(self, statuses: frozenset[JobStatus] = UNFINISHED) -> list[Tally]:
        """Count jobs by task and status; for final statuses it reads all of their jobs."""
        statement = (
            select(job.c.task, job.c.status_id, func.count(), func.min(job.c.submitted))
            .where(job.c.namespace == NAMESPACE, job.c.status_id.in_(sorted(statuses)), IS_TASK)
            .group_by(job.c.task, job.c.status_id)
            .order_by(job.c.task, job.c.status_id)
        )
        with self._database.autocommit() as db:
            return [Tally(*row) for row in db.execute(statement)]

    @retry_on_disconnect
    def ended_within(self, last: timedelta) -> list[Tally]:
        """Count the jobs that have ended recently, by task and status."""
        with self._database.autocommit() as db:
            # Not a join: SQLite would read all jobs, and the events of each.
            ours = (job.c.id == job_event.c.job_id) & (job.c.namespace == NAMESPACE)
            task = select(job.c.task).where(ours, IS_TASK)
            ended = (
                select(task.scalar_subquery().label("task"), job_event.c.status_id)
                .where(
                    recent(db, job_event.c.id, job_event.c.at, last),
                    job_event.c.status_id.in_(sorted(FINAL)),
                )
                .subquery()
            )
            statement = (
                select(ended.c.task, ended.c.status_id, func.count())
                .where(ended.c.task.is_not(None))
                .group_by(ended.c.task, ended.c.status_id)
                .order_by(ended.c.task, ended.c.status_id)
            )
            return [Tally(*row) for row in db.execute(statement)]

    @retry_on_disconnect
    def submitted_within(self, last: timedelta) -> dict[str, int]:
        """Count the jobs that were submitted recently, by task."""
        with self._database.autocommit() as db:
            statement = (
                select(job.c.task, func.count())
                .where(recent(db, job.c.id, job.c.submitted, last), job.c.namespace == NAMESPACE, IS_TASK)
                .group_by(job.c.task)
            )
            return dict(db.execute(statement).all())

    @retry_on_disconnect
    def workers(self) -> list[WorkerSeen]:
        """Return the workers that have a row, by name, with the jobs that they run."""
        columns = (worker.c.name, worker.c.worker_uid, worker.c.pid, worker.c.started, worker.c.lease_until)
        workers = (
            select(*columns, (worker.c.lease_until > clock()).label("alive"))
            .where(worker.c.namespace == NAMESPACE)
            .order_by(worker.c.name)
        )
        with self._database.autocommit() as db:
            rows = list(db.execute(workers))
            running = select(job).where(
                job.c.worker_uid.in_([row.worker_uid for row in rows]), job.c.status_id == JobStatus.RUNNING
            )
            jobs: dict[str, list[JobRecord]] = {}
            for row in db.execute(running.order_by(job.c.id)):
                jobs.setdefault(row.worker_uid, []).append(to_job(row))
        return [WorkerSeen(**row._mapping, jobs=jobs.get(row.worker_uid, [])) for row in rows]

    @retry_on_disconnect
    def running(self, limit: int) -> list[JobRecord]:
        """Return running tasks, those first that have run the longest."""
        statement = (
            select(job)
            .where(job.c.namespace == NAMESPACE, job.c.status_id == JobStatus.RUNNING, IS_TASK)
            .order_by(job.c.started, job.c.id)
            .limit(limit)
        )
        with self._database.autocommit() as db:
            return [to_job(row) for row in db.execute(statement)]

    @retry_on_disconnect
    def passes(self) -> Passes:
        """Return how long ago the last pass of the sweeper began, and how long they are uninterrupted."""
        statement = select(sweep_table, clock().label("now")).where(sweep_table.c.namespace == NAMESPACE)
        with self._database.autocommit() as db:
            row = db.execute(statement).first()
        if row is None:
            return Passes(None, None)
        return Passes(row.now - row.last_pass_at, row.now - row.unbroken_since)

    @retry_on_disconnect
    def count_startable(self, column: str) -> dict[Any, int]:
        """Count the jobs that a worker may start by a column: task or queue."""
        by = job.c[column]
        startable = job.c.status_id.in_(sorted(STARTABLE)) & IS_TASK
        statement = select(by, func.count()).where(job.c.namespace == NAMESPACE, startable).group_by(by)
        with self._database.autocommit() as db:
            return dict(db.execute(statement).all())
