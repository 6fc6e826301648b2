"""A store for tests, whose rows can be read and rewritten directly, and whose time can be moved.

Nothing sleeps here: `pass_time` moves every time in the rows back, which for the statements equals a
database clock that moves on.
"""

import copy
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import cache
from typing import Any

import pytest
from sqlalchemy import (
    BigInteger,
    BindParameter,
    ColumnElement,
    Connection,
    DateTime,
    Interval,
    Table,
    Text,
    Update,
    bindparam,
    func,
    select,
    text,
    type_coerce,
    update,
)

from jobhandle_celery.column_types import UtcDateTime
from jobhandle_celery.models import Failure
from jobhandle_celery.schema import clock, job, job_event, sweep, worker
from jobhandle_celery.settings import Settings
from jobhandle_celery.status import JobStatus
from jobhandle_celery.store import (
    ChangedJob,
    ClaimRejected,
    Database,
    NewJob,
    PendingMessage,
    Run,
    Store,
    SubmitResult,
    Worker,
    engine_maker,
    forks,
)
from jobhandle_celery.store.records import MESSAGE_COLUMNS

TASK = "shop.thumbnail"
GRACE = timedelta(minutes=1)
REPUBLISH_AFTER = timedelta(minutes=15)
LEASE = timedelta(minutes=10)
LAPSE = LEASE.total_seconds() + 1
"""Seconds after which a lease has ended."""
SWEEP_INTERVAL = timedelta(seconds=30)
"""Long enough that a machine that pauses for seconds fails no test."""

HELD = "Held"
"""A held job (Waiting without a time), treated as a tenth status by these tests."""
STATES = (*JobStatus, HELD)

FAILURE = Failure("task", "ValueError", "no good", "Traceback …")
Row = dict[str, Any]

CommonDoor = Callable[[str, str], Database]
"""Returns an open database that tests share: `common_database(url, whose)`."""


@dataclass(frozen=True)
class Placed:
    """A job in some status, and its last run, if any."""

    job_id: int
    run: Run | None


class Harness:
    """A store in a namespace, with helpers for tests; a given database is not closed."""

    def __init__(self, url: str, database: Database | None = None, **settings: Any) -> None:
        self.url = url
        long = {
            "lease": LEASE,
            "sweep_interval": SWEEP_INTERVAL,
            "publish_grace": GRACE,
            "republish_after": REPUBLISH_AFTER,
        }
        self.settings = Settings(**long | settings)
        self.database = (
            Database(engine_maker(url), self.settings)
            if database is None
            else with_settings(database, self.settings)
        )
        self.store = Store(self.database)
        self._owns_database = database is None

    def close(self) -> None:
        if self._owns_database:
            self.database.close()

    # Jobs.

    def submit(self, **given: Any) -> int:
        return self.store.inserter.submit([new_job(**given)])[0].job_id

    def queue(self, job_id: int) -> None:
        self.store.outbox.mark_queued([self.message(job_id)])

    def message(self, job_id: int) -> PendingMessage:
        """Return the message that a publisher would make of the row now, in any status."""
        with self.database.autocommit() as connection:
            row = connection.execute(select(*MESSAGE_COLUMNS).where(job.c.id == job_id)).one()
            return PendingMessage(*row)

    def worker(self, name: str = "w1", *, pid: int = 100) -> Worker:
        """Return a new worker that has a lease."""
        me = Worker(name, str(uuid.uuid4()), pid)
        self.store.leases.renew(me)
        return me

    def key(self, job_id: int, by: Worker) -> Run:
        """Return the key of a claim with the message that fits the row now."""
        message = self.message(job_id)
        return Run(job_id, message.task_id, message.attempt, str(uuid.uuid4()), by)

    def run(self, job_id: int, by: Worker | None = None) -> Run:
        """Claim the job; the claim must be won."""
        run = self.key(job_id, by or self.worker())
        won = self.store.runs.claim(run, TASK)
        assert not isinstance(won, ClaimRejected), won
        return won

    def release(self, job_id: int, username: str | None = None) -> bool:
        return self.store.control.release(job_id, str(uuid.uuid4()), username)

    def place(self, state: str, **given: Any) -> Placed:
        """Bring a new job into a status by store calls; a Waiting one is due."""
        if state == HELD:
            return Placed(self.submit(held=True, **given), None)
        if state == JobStatus.WAITING:
            job_id = self.submit(scheduled_for=timedelta(minutes=30), **given)
            self.pass_time(minutes=31)
            return Placed(job_id, None)
        job_id = self.submit(**given)
        match state:
            case JobStatus.SUBMITTED:
                return Placed(job_id, None)
            case JobStatus.QUEUED:
                self.queue(job_id)
                return Placed(job_id, None)
        run = self.run(job_id)
        match state:
            case JobStatus.REQUEUED:
                self.store.runs.retry(run, "{}", None, None, "again")
            case JobStatus.FINISHED | JobStatus.RESUBMITTED:
                self.store.runs.finish(run, "1")
            case JobStatus.ERROR:
                self.store.runs.fail(run, FAILURE)
            case JobStatus.CANCELLED:
                self.store.runs.stop(run, "")
        if state == JobStatus.RESUBMITTED:
            assert self.store.control.resubmit(job_id, str(uuid.uuid4()), None)
        assert self.status(job_id) == state
        return Placed(job_id, run)

    # Rows.

    def row(self, job_id: int) -> Row:
        """Return all columns of a job."""
        with self.database.autocommit() as connection:
            row = connection.execute(select(job).where(job.c.id == job_id)).mappings().one()
            return dict(row)

    def status(self, job_id: int) -> JobStatus:
        status: JobStatus = self.row(job_id)["status_id"]
        return status

    def events(self, job_id: int) -> list[JobStatus]:
        return [event.status for event in self.store.queries.events(job_id)]

    def write(self, job_id: int, **columns: Any) -> None:
        """Rewrite columns of a row, without guards."""
        with self.database.transaction() as connection:
            connection.execute(update(job).where(job.c.id == job_id).values(columns))

    def ahead(self, moment: datetime) -> timedelta:
        """Return how far ahead of the database's clock a time is."""
        with self.database.autocommit() as connection:
            now: datetime = connection.execute(select(clock())).scalar_one()
            return moment - now

    def due_in(self, job_id: int) -> timedelta | None:
        due_at = self.row(job_id)["due_at"]
        return None if due_at is None else self.ahead(due_at)

    # Time.

    def pass_time(self, **amount: float) -> None:
        """Let time pass for every row of this namespace."""
        with self.database.transaction() as connection:
            dialect = self.database.dialect
            given = {"here": self.settings.namespace, "passed": _passed(dialect, timedelta(**amount))}
            for statement in _put_back(dialect):
                connection.execute(statement, given)

    def trust_leases(self) -> None:
        """Record that sweeps have followed each other closely for longer than a lease."""
        long_ago = clock(-2 * self.settings.lease)
        self.store.sweep.begin_pass()  # creates the row, if this is the first pass
        mine = sweep.c.namespace == self.settings.namespace
        with self.database.transaction() as connection:
            trusted = update(sweep).where(mine).values(last_pass_at=clock(), unbroken_since=long_ago)
            connection.execute(trusted)

    def lapsed_workers(self) -> list[str]:
        self.trust_leases()
        return self.store.leases.lapsed_workers()

    def reap(self, worker_uid: str) -> list[ChangedJob]:
        self.trust_leases()
        return self.store.leases.reap(worker_uid)

    def pass_steadily(self, passed: timedelta) -> bool | None:
        """Let time pass with steady sweeps; return whether the last one trusts leases."""
        step = self.settings.unbroken / 2
        believed = self.store.sweep.begin_pass()
        for _ in range(int(passed / step) + 1):
            self.pass_time(seconds=step.total_seconds())
            believed = self.store.sweep.begin_pass()
        return believed


def with_settings(database: Database, settings: Settings) -> Database:
    """Return the same database with other settings: a new engine for each test takes time."""
    other = copy.copy(database)
    other._engine = database.engine
    other.settings = settings
    vars(other).pop("_setting_params", None)
    forks.register(other)
    return other


def new_job(**given: Any) -> NewJob:
    plain: dict[str, Any] = {"task": TASK, "task_id": str(uuid.uuid4()), "args": "[]", "kwargs": "{}"}
    return NewJob(**plain | given)


def insert_within(store: Store, connection: Connection, jobs: Sequence[NewJob]) -> list[SubmitResult]:
    """Insert jobs in the transaction of a connection."""
    return store.inserter._insert_all(store.database.executor(connection), jobs, None)


def about(found: timedelta | None, expected: timedelta) -> bool:
    """Return whether a duration is as expected, on a machine that may pause."""
    return found is not None and timedelta(seconds=-30) < found - expected < timedelta(seconds=1)


def alike(rows: Sequence[Row]) -> bool:
    """Return whether these rows are identical in every column."""
    return all(row == rows[0] for row in rows)


@cache
def _put_back(dialect: str) -> list[Update]:
    """Return the cached statements of `pass_time`: to build one takes longer than to execute it."""
    here: BindParameter[str] = bindparam("here")
    jobs = select(job.c.id).where(job.c.namespace == here)
    of_events = update(job_event).where(job_event.c.job_id.in_(jobs))
    return [
        statement.values({name: _earlier(dialect, column) for name, column in _moments(table)})
        for table, statement in [
            (job, update(job).where(job.c.namespace == here)),
            (job_event, of_events),
            (worker, update(worker).where(worker.c.namespace == here)),
            (sweep, update(sweep).where(sweep.c.namespace == here)),
        ]
    ]


def _moments(table: Table) -> list[tuple[str, ColumnElement[Any]]]:
    return [(column.name, column) for column in table.c if isinstance(column.type, UtcDateTime)]


def _passed(dialect: str, passed: timedelta) -> Any:
    if dialect == "sqlite":
        return f"{-passed.total_seconds():+.3f} seconds"
    if dialect in ("mysql", "mariadb"):
        return -(passed // timedelta(microseconds=1))
    return passed


def _earlier(dialect: str, column: ColumnElement[Any]) -> ColumnElement[Any]:
    if dialect == "sqlite":
        return func.strftime("%Y-%m-%d %H:%M:%f", column, bindparam("passed", type_=Text)).concat("000")
    if dialect in ("mysql", "mariadb"):
        return func.timestampadd(text("MICROSECOND"), bindparam("passed", type_=BigInteger), column)
    return type_coerce(column, DateTime(timezone=True)) - bindparam("passed", type_=Interval)


def through(harness: Harness, monkeypatch: pytest.MonkeyPatch, way: str = "execute_directly") -> list[bool]:
    """Return a list that records, for each later call of that method, whether it used psycopg directly."""
    gone: list[bool] = []
    plain = getattr(harness.database, way)

    def noted(*given: Any) -> Any:
        rows = plain(*given)
        gone.append(rows is not None and rows is not False)
        return rows

    monkeypatch.setattr(harness.database, way, noted)
    return gone


def uid_of(me: Worker) -> str:
    return str(me.worker_uid)
