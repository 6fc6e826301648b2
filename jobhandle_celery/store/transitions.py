"""How a move is written: guard, row and event in one transaction, in one statement where that can be."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import timedelta
from functools import cached_property
from typing import Any

from sqlalchemy import (
    ColumnElement,
    Connection,
    Row,
    Table,
    and_,
    case,
    exists,
    insert,
    null,
    or_,
    select,
    tuple_,
    update,
)

from ..errors import InvalidTransitionError
from ..schema import NAME_LENGTH, clock, job, job_event, worker
from ..settings import Settings
from ..status import MOVES, JobStatus
from .database import Database
from .records import PendingMessage, ProcessRef, Run
from .statements import NAMESPACE, Transition, at, given, giving, is_free, locking, set_values

Guard = ColumnElement[bool]

MOST_PARAMETERS = 500
"""Values in the list of one statement; databases have limits, and SQLite's was once 999."""

MINE = and_(job.c.id == given(job.c.id), job.c.namespace == NAMESPACE)
"""The job of a call, in this namespace."""

NEVER_STARTED = job.c.started.is_(None)
STAMPED = job.c.cancel_requested.is_not(None)
NOT_STAMPED = job.c.cancel_requested.is_(None)
DUE = or_(job.c.not_before.is_(None), job.c.not_before <= clock())
HELD = and_(job.c.status_id == at(JobStatus.WAITING), job.c.not_before.is_(None))
EXPIRED = and_(NEVER_STARTED, job.c.expires <= clock())
NOT_EXPIRED = or_(job.c.expires.is_(None), ~NEVER_STARTED, job.c.expires > clock())

AT_REST: dict[str, Any] = {"due_at": null(), "not_before": null(), "unique_hash": null()}
"""What a final row does not have: nothing waits for it, and its unique key is free again."""

LEFT: dict[str, Any] = {"worker_uid": null(), "pid": null()}
"""A row that no body is attached to; `worker` and `claim_id` stay and say who was the last."""


def moves(verb: str) -> Guard:
    """Return the guard of a verb: the statuses that it may find, from the table of moves."""
    return job.c.status_id.in_([at(status) for status in sorted(MOVES[verb].sources, key=lambda one: one.id)])


def final(status: JobStatus, **columns: Any) -> dict[str, Any]:
    """Return the columns of a row that ends."""
    return {"status_id": at(status), "finished": clock(), **AT_REST, **columns}


def cancelled(republish_after: timedelta | ColumnElement[float], **columns: Any) -> dict[str, Any]:
    """Return the columns of a row that is cancelled while nothing runs it.

    If a message was ever sent, those who watch have heard of the job. Mostly a worker meets that message and
    tells them; after a patience the sweep does.
    """
    heard_of = (job.c.publish_count > 0) | (job.c.attempt > 0)
    return final(JobStatus.CANCELLED, due_at=case((heard_of, clock(republish_after)), else_=None), **columns)


def held_by(holder: Run | ProcessRef) -> Guard:
    """Return the guard of every write that a run makes: it is still the one that the row names."""
    by = (
        job.c.claim_id == holder.claim_id
        if isinstance(holder, Run)
        else and_(job.c.worker_uid == holder.worker_uid, job.c.pid == holder.pid)
    )
    return and_(
        job.c.id == holder.job_id,
        job.c.task_id == holder.task_id,
        job.c.attempt == holder.attempt,
        job.c.status_id == at(JobStatus.RUNNING),
        by,
    )


def named_by(run: Run) -> Guard:
    """Return the guard of what a run's own handle does: that run was not taken, ended or lost since.

    Unlike `held_by` it holds for a row that the run itself has ended or requeued.
    """
    return and_(job.c.task_id == run.task_id, job.c.attempt == run.attempt, job.c.claim_id == run.claim_id)


NAMING = (job.c.task_id, job.c.attempt, job.c.claim_id)
"""The columns of a row that `check_named` reads."""


def check_named(run: Run | None, row: Row[Any]) -> None:
    """Check that a row names a run, as `named_by` does in SQL; without a run there is nothing to check.

    Raises:
        InvalidTransitionError: the run is superseded.
    """
    if run is not None and (row.task_id, row.attempt, row.claim_id) != (
        run.task_id,
        run.attempt,
        run.claim_id,
    ):
        raise InvalidTransitionError(
            f"job {run.job_id}: attempt {run.attempt} on {run.worker.name} is superseded, and changes nothing"
        )


def lease_alive(worker_uid: ColumnElement[Any] | str, *, locked: bool = False) -> Guard:
    """Return a condition: the worker of that boot id has a lease that has not ended.

    Locked, its row cannot be reaped before our commit, should the lease end while we wait for a lock; but
    it can be renewed.
    """
    alive = select(worker.c.worker_uid).where(
        worker.c.worker_uid == worker_uid, worker.c.lease_until > clock()
    )
    return exists(alive.with_for_update(read=True, key_share=True) if locked else alive)


def unless_expired_before(later: clock) -> ColumnElement[Any]:
    """Return when the sweep must look at a row that has until `later`, or until it expires."""
    return case((NEVER_STARTED & (job.c.expires < later), job.c.expires), else_=later)


def actor_of(username: str | None) -> str:
    """Return how the events name somebody who holds a handle."""
    return f"user {username}"[:NAME_LENGTH] if username else "service"


class Moves:
    """What all rooms of the store share."""

    def __init__(self, door: Database, settings: Settings) -> None:
        self.door = door
        self.settings = settings

    @property
    def namespace(self) -> str:
        """The namespace that every statement of this store is confined to."""
        return self.settings.namespace

    def mine(self, job_id: int, username: str | None = None) -> Guard:
        """Return a condition: that job, in this namespace, and of that user if one is given."""
        conditions = [job.c.id == job_id, job.c.namespace == self.namespace]
        if username is not None:
            conditions.append(job.c.username == username)
        return and_(*conditions)

    @cached_property
    def places(self) -> dict[str, Any]:
        """What goes into the places of the settings, for statements that are given a list."""
        return set_values(self.settings)

    def move(
        self,
        connection: Connection,
        *guards: Guard,
        to: Mapping[str, Any],
        because: str | ColumnElement[str],
        actor: str | ColumnElement[str],
        skip_locked: bool = False,
    ) -> list[Row[Any]]:
        """Write a move that is made seldom; see `make`. A pass waits for no row: it skips those locked."""
        made = Transition(*guards, to=to, because=because, actor=actor, skip_locked=skip_locked)
        return self.make(connection, made)

    def make(self, connection: Connection, transition: Transition, **values: Any) -> list[Row[Any]]:
        """Write a move to every row that passes its guards, and an event for each.

        No row back means that somebody else was first: an ordinary result.
        """
        parameters = giving(**values)
        if connection.dialect.name == "postgresql":
            return list(self.execute(connection, transition.at_once, parameters))
        ids = self.execute(connection, transition.which, parameters).scalars().all()
        rows: list[Row[Any]] = []
        for start in range(0, len(ids), MOST_PARAMETERS):
            these = parameters | {"these": ids[start : start + MOST_PARAMETERS]}
            self.execute(connection, transition.change, these)
            rows += self.execute(connection, transition.look, these)
        self.log(connection, rows)
        return rows

    def make_many(self, connection: Connection, transition: Transition, **values: Any) -> int:
        """Write a move as `make` does, to any number of rows, and return how many they were."""
        if connection.dialect.name == "postgresql":
            return int(self.execute(connection, transition.at_once_counted, giving(**values)).scalar_one())
        return len(self.make(connection, transition, **values))

    def _make_alone(self, transition: Transition, **values: Any) -> int:
        """Write a move as `make_many` does, which nothing else belongs to."""
        rows = self.door.straight(transition.at_once_counted, self.places | giving(**values))
        if rows is not None:
            return int(rows[0][0])
        with self.door.moving() as connection:
            return self.make_many(connection, transition, **values)

    def free(self, connection: Connection, *guards: Guard) -> Guard:
        """Return the condition of the rows that pass and that nothing has locked, for an update of a pass.

        On MariaDB, whose UPDATE cannot skip rows, they are looked for and locked at once.
        """
        match connection.dialect.name:
            case "sqlite":
                return and_(*guards)
            case "postgresql":
                return and_(*guards, is_free(*guards))
            case _:
                return job.c.id.in_(self.execute(connection, locking(*guards)).scalars().all())

    def note_progress_where(
        self, connection: Connection, guard: Guard, current: float, total: float | None
    ) -> bool:
        """Write how far something is that passes the guard; no move, so no event."""
        noted = update(job).where(guard).values(progress_current=current, progress_total=total)
        return bool(self.execute(connection, noted).rowcount)

    def log(self, connection: Connection, rows: Sequence[Row[Any]]) -> None:
        if rows:
            events = [
                {
                    "job_id": row.id,
                    "attempt": row.attempt,
                    "status_id": row.status_id,
                    "message": row.told,
                    "actor": row.actor,
                }
                for row in rows
            ]
            self.execute(connection, insert(job_event).values(at=clock()), events)

    def execute(self, connection: Connection, statement: Any, parameters: Any = None) -> Any:
        """Execute a statement with our settings and options, also on a connection that is the caller's."""
        if not isinstance(parameters, list):
            parameters = self.places | parameters if parameters else self.places
        return connection.execute(statement, parameters, execution_options=self.door.options_on(connection))


def unless_there(connection: Connection, table: Table, values: Mapping[str, Any]) -> Any:
    """Return an insert that does nothing, and is no error, where a unique value is there already.

    An error would abort the caller's transaction on PostgreSQL.
    """
    match connection.dialect.name:
        case "postgresql":
            from sqlalchemy.dialects import postgresql  # no other database's dialect is imported

            return postgresql.insert(table).values(**values).on_conflict_do_nothing()
        case "sqlite":
            from sqlalchemy.dialects import sqlite

            return sqlite.insert(table).values(**values).on_conflict_do_nothing()
        case _:
            return insert(table).values(**values).prefix_with("IGNORE")


def for_these(messages: Sequence[PendingMessage]) -> Guard:
    """Return the guard of whoever has sent messages: each row still waits for that very message."""
    return tuple_(job.c.id, job.c.task_id, job.c.attempt, job.c.publish_count).in_(
        [(one.job_id, one.task_id, one.attempt - 1, one.publish_count) for one in messages]
    )


def grouped(
    messages: Iterable[PendingMessage], key: Callable[[PendingMessage], int]
) -> Iterable[tuple[int, list[PendingMessage]]]:
    """Return messages by what they have in common, so that one statement serves many rows."""
    groups: dict[int, list[PendingMessage]] = {}
    for one in messages:
        groups.setdefault(key(one), []).append(one)
    return groups.items()
