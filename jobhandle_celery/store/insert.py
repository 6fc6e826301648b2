"""Submitting: jobs and their events are inserted, in a transaction of our own or in the caller's."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime, timedelta
from functools import partial
from itertools import chain
from typing import TYPE_CHECKING, Any

from sqlalchemy import Row, select

from ..batching import batches
from ..errors import ValidationError
from ..schema import clock, job
from ..status import JobStatus
from .after_commit import Callback, Detachable, after_commit
from .bulk_statements import NEW_ROW, insert_document, insert_one, to_document
from .call_threads import call_blocking
from .database import Database
from .direct_psycopg import NotDirect
from .executors import Executor
from .records import NewJob, NewJobs, SubmitResult, unique_hash
from .retrying import is_retry, retry_on_disconnect
from .sessions import carry_text, connection_of, session_of
from .statements import Guard, params

if TYPE_CHECKING:
    from sqlalchemy.orm import Session, scoped_session

MAX_ROWS = 1_000
MAX_BYTES = 8 * 2**20
"""Rows and bytes of one statement: PostgreSQL has a limit of 1 GiB, and this process has limited memory."""


class Inserter:
    """Inserts jobs; a job that exists, by its task id or its unique key, is not inserted again."""

    def __init__(self, database: Database) -> None:
        self._database = database

    @retry_on_disconnect
    def submit(self, jobs: NewJobs) -> list[SubmitResult]:
        """Insert jobs in one transaction of our own; return them in their order.

        Who may have been there first: the same submit, if the answer to its commit was lost (found by the
        task id, which the submitter makes; its id is returned), or an unfinished job with the same unique key
        (its id is returned, and nothing is written).
        """
        single = len(jobs) == 1
        inserted = self._insert_one_directly(*jobs) if single else self._insert_directly(jobs)
        if inserted is not None:
            return inserted
        new = list(jobs)  # before a transaction is open: it may take long
        with self._database.single_statement() if single else self._database.transaction() as db:
            return self._insert_all(db, new, read_clock(db) if need_clock(new) else None)

    def submit_in_session(
        self,
        session: "Session | scoped_session[Any]",
        jobs: Sequence[NewJob],
        send: Callback,
        handle: Detachable | None = None,
    ) -> list[SubmitResult]:
        """Insert jobs in the caller's transaction; `send` is called with their ids after its commit.

        A rollback, also of a savepoint, leaves nothing of them and detaches the handle.

        Raises:
            ApiUsageError: not a Session or scoped_session, or it cannot be joined.
            DBAPIError: SQLAlchemy's, for a serialization failure or a deadlock, which the caller retries.
        """
        with joined(self._database, session, jobs) as (joining, db, now):
            submitted = self._insert_all(db, jobs, now)
        fresh = [new.job_id for new in submitted if new.fresh]
        after_commit(joining, db.connection, fresh, {send: fresh}, handle)
        return submitted

    def _insert_all(self, db: Executor, jobs: Sequence[NewJob], now: datetime | None) -> list[SubmitResult]:
        submitted: dict[str, SubmitResult] = {}
        for part in batches(self._in_order_of_keys(jobs), MAX_ROWS, payload_length, MAX_BYTES):
            rows = [self._row(new, now) for new in part]
            inserted = {row.task_id: row for row in db.insert_jobs(rows)}
            for new, row in zip(part, rows, strict=True):
                found = inserted.get(new.task_id)
                submitted[new.task_id] = (
                    SubmitResult(found.id, found.status_id) if found else _find_or_insert(db, new, row)
                )
        return [submitted[new.task_id] for new in jobs]

    def _in_order_of_keys(self, jobs: Sequence[NewJob]) -> Sequence[NewJob]:
        """Return jobs, with those that have unique keys in the order of the keys, in each other's places.

        An insert waits for another transaction that has inserted its key. If all insert their keys in one
        order, no two wait for each other.
        """
        keyed = [number for number, new in enumerate(jobs) if new.unique_key is not None]
        if len(keyed) < 2:
            return jobs
        ordered, namespace = list(jobs), self._database.settings.namespace

        def order(number: int) -> str:
            return unique_hash(namespace, jobs[number].username, jobs[number].unique_key) or ""

        for place, number in zip(keyed, sorted(keyed, key=order), strict=True):
            ordered[place] = jobs[number]
        return ordered

    def _insert_one_directly(self, new: NewJob) -> list[SubmitResult] | None:
        """Insert a job with direct psycopg; None, and nothing is inserted, if that is not possible."""
        if need_clock([new]):
            return None
        rows = self._database.execute_directly(insert_one(), params(**NEW_ROW | self._row(new)))
        return [SubmitResult(rows[0][0], JobStatus.from_id(rows[0][2]))] if rows else None

    def _insert_directly(self, jobs: NewJobs) -> list[SubmitResult] | None:
        """Insert jobs with direct psycopg while they are prepared; None, and no row, if not possible."""
        if is_retry():
            return None  # they may have been inserted: only `_insert_all` looks
        task_ids: list[str] = []
        submitted: list[SubmitResult] = []

        def documents() -> Iterator[dict[str, Any]]:
            for part in batches(jobs, MAX_ROWS, payload_length, MAX_BYTES):
                if any(new.unique_key for new in part) or need_clock(part):
                    raise NotDirect
                task_ids.extend(new.task_id for new in part)
                yield to_document([self._row(new) for new in part])

        def check(parts: list[list[tuple[Any, ...]]]) -> None:
            rows = {task_id: (job_id, status) for part in parts for job_id, task_id, status in part}
            if len(rows) != len(task_ids):
                raise NotDirect
            for task_id in task_ids:
                job_id, status = rows[task_id]
                submitted.append(SubmitResult(job_id, JobStatus.from_id(status)))

        following = documents()
        try:
            first = next(following)  # before a connection is taken: it is often the only one
        except (StopIteration, NotDirect):
            return None
        done = self._database.execute_each_directly(insert_document(), chain([first], following), check)
        return submitted if done else None

    def _row(self, new: NewJob, now: datetime | None = None) -> dict[str, Any]:
        return new.columns(self._database.settings.namespace) | schedule(new, now)


@contextmanager
def joined(
    database: Database, given: "Session | scoped_session[Any]", jobs: Sequence[NewJob]
) -> Iterator[tuple["Session", Executor, datetime | None]]:
    """Join a caller's session, to insert jobs; the clock is given with it if they need it.

    Raises:
        ApiUsageError: not a Session or scoped_session, or it cannot be joined.
    """
    session = session_of(given)
    with database.joining():
        connection = connection_of(session)
        if not database.schema_is_known:
            call_blocking(connection, database.find_schema)
        # Not on the caller's connection, which may have a date style that the driver cannot read.
        now = call_blocking(connection, partial(_clock_of, database)) if need_clock(jobs) else None
        carry_text(connection, (new.columns(database.settings.namespace) for new in jobs))
        db = database.executor(connection)
        db.begin_writing()
        yield session, db, now


def _clock_of(database: Database) -> datetime:
    with database.autocommit() as db:
        return read_clock(db)


def _find_or_insert(db: Executor, new: NewJob, row: dict[str, Any]) -> SubmitResult:
    while True:
        found = find_job(db, job.c.task_id == new.task_id)
        if found is None and new.unique_key is not None:
            found = find_job(db, job.c.unique_hash == row["unique_hash"])
        if found is not None:
            if found.task_id == new.task_id:
                check_task_id(new)
            return SubmitResult(found.id, found.status_id, fresh=found.task_id == new.task_id)
        # The job that had the key has just ended: the key is free.
        for inserted in db.insert_jobs([row]):
            return SubmitResult(inserted.id, inserted.status_id)


def check_task_id(new: NewJob) -> None:
    """Refuse a job whose task id a row has, unless that may be its own row, of a lost answer.

    Raises:
        ValidationError: the caller has chosen an id that another job has.
    """
    if new.task_id_given and not is_retry():
        raise ValidationError(
            "task_id", new.task_id, "an id that no job has; prune() frees those of old jobs"
        )


def find_job(db: Executor, which: Guard) -> Row[Any] | None:
    """Return the row that passes a guard, without a lock: it would block others until a caller's commit."""
    columns = (job.c.id, job.c.status_id, job.c.task_id, job.c.kind, job.c.root_id)
    found = db.read_current(select(*columns).where(which).limit(1))
    return found[0] if found else None


def read_clock(db: Executor) -> datetime:
    """Return the database's clock."""
    now: datetime = db.execute(select(clock())).scalar_one()
    return now


def need_clock(jobs: Sequence[NewJob]) -> bool:
    """Return True if a job has a time, which is compared with the database's clock."""
    return any(new.scheduled_for is not None or new.expires is not None for new in jobs)


def payload_length(new: NewJob) -> int:
    """Return about how many characters a row has."""
    return len(new.args) + len(new.kwargs) + len(new.meta or "") + len(new.message)


def schedule(new: NewJob, now: datetime | None) -> dict[str, Any]:
    """Return the status and the times; the statement makes a Submitted job due after the publish grace."""
    if now is None:
        return {"status_id": JobStatus.WAITING if new.held else JobStatus.SUBMITTED}
    scheduled, expires = _moment(new.scheduled_for, now), _moment(new.expires, now)
    times: dict[str, Any] = {"scheduled_for": scheduled, "expires": expires}
    if scheduled is not None and scheduled > now:
        due = scheduled if expires is None else min(scheduled, expires)
        return times | {"status_id": JobStatus.WAITING, "not_before": scheduled, "due_at": due}
    if scheduled is None and new.held:
        return times | {"status_id": JobStatus.WAITING, "due_at": expires}
    return times | {"status_id": JobStatus.SUBMITTED}


def _moment(time: datetime | timedelta | None, now: datetime) -> datetime | None:
    return now + time if isinstance(time, timedelta) else time
