"""Rows come in: any number of jobs, and an event for each, in as few statements as the database allows."""

import json
from collections.abc import Iterator, Sequence
from datetime import datetime, timedelta
from functools import cache
from itertools import chain
from typing import Any

from sqlalchemy import (
    JSON,
    ColumnElement,
    Connection,
    Integer,
    Row,
    SmallInteger,
    String,
    Text,
    bindparam,
    case,
    cast,
    column,
    false,
    func,
    literal_column,
    select,
)

from ..batching import pieces
from ..schema import NAME_LENGTH, Name, UtcDateTime, clock, job
from ..status import JobStatus
from .direct_psycopg import NotDirect
from .records import NewJob, NewJobs, Submitted
from .retrying import repeating
from .statements import at, given, giving, setting, told, with_event
from .transitions import Moves

MOST_ROWS = 1_000
MOST_BYTES = 8 * 2**20
"""What one statement takes: PostgreSQL has a limit of 1 GiB, and other memory than ours is finite too."""

_GIVEN = (
    job.c.namespace,
    job.c.task,
    job.c.task_id,
    job.c.args,
    job.c.kwargs,
    job.c.username,
    job.c.groupname,
    job.c.message,
    job.c.meta,
    job.c.unique_key,
    job.c.unique_hash,
    job.c.queue,
    job.c.routing,
    job.c.priority,
    job.c.time_limit,
    job.c.soft_time_limit,
    job.c.max_attempts,
    job.c.scheduled_for,
    job.c.expires,
    job.c.not_before,
    job.c.due_at,
    job.c.status_id,
)
"""The columns that a submit fills in, each from a value of its own."""

_NOTHING: dict[str, Any] = dict.fromkeys(one.name for one in _GIVEN)


class Inserting(Moves):
    """What every submit comes to."""

    def insert_all(
        self, connection: Connection, jobs: Sequence[NewJob], now: datetime | None
    ) -> list[Submitted]:
        """Insert jobs in their order; one that is there already, by its task id or its unique key, is not."""
        submitted: list[Submitted] = []
        for part in pieces(jobs, MOST_ROWS, _length, MOST_BYTES):
            values = [new.columns(self.namespace) | _schedule(new, now) for new in part]
            rows = {row.task_id: row for row in self._append(connection, values)}
            submitted += [
                Submitted(row.id, row.status_id)
                if (row := rows.get(new.task_id))
                else self._insert(connection, new, one)
                for new, one in zip(part, values, strict=True)
            ]
        return submitted

    def now_on(self, connection: Connection) -> datetime:
        """Return the database's clock."""
        now: datetime = self.execute(connection, select(clock())).scalar_one()
        return now

    def _insert_alone(self, new: NewJob) -> list[Submitted] | None:
        """Insert a job by one statement, straight; None, and nothing is inserted, if that cannot be."""
        if new.scheduled_for is not None or new.expires is not None:
            return None  # by the database's clock, which must be asked
        values = new.columns(self.namespace) | _schedule(new, None)
        every = self.places | giving(**_NOTHING | values)
        rows = self.door.straight(_insert_row(), every)
        return [Submitted(rows[0][0], JobStatus.from_id(rows[0][2]))] if rows else None

    def _insert_straight(self, jobs: NewJobs) -> list[Submitted] | None:
        """Insert jobs, straight, as they are made; None, and nothing is inserted, if that cannot be."""
        if repeating():
            return None  # they may be there already, which takes another look
        task_ids: list[str] = []
        submitted: list[Submitted] = []

        def documents() -> Iterator[dict[str, Any]]:
            for part in pieces(jobs, MOST_ROWS, _length, MOST_BYTES):
                if any(new.unique_key or new.scheduled_for or new.expires for new in part):
                    raise NotDirect
                task_ids.extend(new.task_id for new in part)
                values = [new.columns(self.namespace) | _schedule(new, None) for new in part]
                yield self.places | _document(values)

        def look(parts: list[list[tuple[Any, ...]]]) -> None:
            rows = {task_id: (job_id, status) for part in parts for job_id, task_id, status in part}
            if len(rows) != len(task_ids):
                raise NotDirect
            for task_id in task_ids:
                job_id, status = rows[task_id]
                submitted.append(Submitted(job_id, JobStatus.from_id(status)))

        following = documents()
        try:
            first = next(following)  # before a connection is taken: mostly that is all
        except (StopIteration, NotDirect):
            return None
        gone = self.door.straight_each(_insert_document(), chain([first], following), look)
        return submitted if gone else None

    def _insert(self, connection: Connection, new: NewJob, values: dict[str, Any]) -> Submitted:
        while True:
            there = self._there(connection, job.c.task_id == new.task_id)
            if there is None and new.unique_key is not None:
                there = self._there(connection, job.c.unique_hash == values["unique_hash"])
            if there is not None:
                return Submitted(there.id, there.status_id, fresh=there.task_id == new.task_id)
            # It was there and has just finished, so the key is free.
            for row in self._append(connection, [values]):
                return Submitted(row.id, row.status_id)

    def _taken(self, connection: Connection, values: Sequence[dict[str, Any]]) -> set[str]:
        """Return which unique keys of these, by their slots, unfinished jobs have; on MariaDB alone.

        There an insert that finds one leaves locks, with which a caller's session holds up every submit.
        """
        slots = [one["unique_hash"] for one in values if one.get("unique_hash") is not None]
        if not slots or connection.dialect.name not in ("mysql", "mariadb"):
            return set()
        found = select(job.c.unique_hash).where(job.c.unique_hash.in_(slots))
        taken = set(self.execute(connection, found).scalars())
        if self._is_mariadb_of_the_caller(connection):
            with self.door.reading() as ours:
                taken |= set(self.execute(ours, found).scalars())
        return taken

    def _there(self, connection: Connection, which: ColumnElement[bool]) -> Row[Any] | None:
        """Look for a job without a lock, which would hold up others until the caller's commit.

        The caller's transaction on MariaDB may see only what was there at its beginning; ours sees what is.
        """
        found = select(job.c.id, job.c.status_id, job.c.task_id).where(which).limit(1)
        there: Row[Any] | None = self.execute(connection, found).first()
        if there is None and self._is_mariadb_of_the_caller(connection):
            with self.door.reading() as ours:
                there = self.execute(ours, found).first()
        return there

    def _is_mariadb_of_the_caller(self, connection: Connection) -> bool:
        mariadb = connection.dialect.name in ("mysql", "mariadb")
        return mariadb and connection.engine.pool is not self.door.engine.pool

    def _append(self, connection: Connection, values: Sequence[dict[str, Any]]) -> Sequence[Row[Any]]:
        if connection.dialect.name == "postgresql":
            rows: Sequence[Row[Any]] = self.execute(connection, _insert_document(), _document(values)).all()
            return rows
        # An event for those alone that are inserted now; the insert itself does not tell which.
        there = self.execute(connection, select(job.c.task_id).where(_ANY_OF), _any_of(values))
        known, taken = set(there.scalars()), self._taken(connection, values)
        values = [
            one for one in values if one["task_id"] not in known and one.get("unique_hash") not in taken
        ]
        if not values:
            return []
        every = [self.places | giving(**_NOTHING | one) for one in values]
        self.execute(connection, _insert_each(connection.dialect.name), every)
        rows = self.execute(connection, _look(), _any_of(values)).all()
        self.log(connection, rows)
        return rows


_ANY_OF: ColumnElement[bool] = job.c.task_id.in_(bindparam("task_ids", expanding=True))


def _any_of(values: Sequence[dict[str, Any]]) -> dict[str, Any]:
    return {"task_ids": [one["task_id"] for one in values]}


def timed(jobs: Sequence[NewJob]) -> bool:
    """Say whether one of these jobs has a time, which takes the database's clock."""
    return any(new.scheduled_for is not None or new.expires is not None for new in jobs)


def _length(new: NewJob) -> int:
    return len(new.args) + len(new.kwargs) + len(new.meta or "") + len(new.message)


def _schedule(new: NewJob, now: datetime | None) -> dict[str, Any]:
    """Return the status, and the times that are known; one that is Submitted is due after the grace."""
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


def _moment(given: datetime | timedelta | None, now: datetime) -> datetime | None:
    return now + given if isinstance(given, timedelta) else given


def _document(values: Sequence[dict[str, Any]]) -> dict[str, Any]:
    # One parameter for all of it: a list for each column would take PostgreSQL's driver longer.
    document = [_as_json(number, one) for number, one in enumerate(values)]
    # In ASCII, which a connection of any encoding carries.
    return {"document": json.dumps(document, default=_moment_as_json)}


def _as_json(number: int, values: dict[str, Any]) -> dict[str, Any]:
    return {**values, "status_id": values["status_id"].id, "number": number}


def _moment_as_json(value: datetime) -> str:
    if value.tzinfo is None:
        raise TypeError(f"{value!r} has no time zone")
    return value.isoformat()


def _due(status: ColumnElement[Any], due: ColumnElement[Any]) -> ColumnElement[Any]:
    return case((status == at(JobStatus.SUBMITTED), clock(setting("publish_grace"))), else_=due)


@cache
def _insert_document() -> Any:
    """Return an insert of all rows of a JSON document, in their order, which appends their events."""
    from sqlalchemy.dialects import postgresql  # no other database's dialect is imported

    number: ColumnElement[int] = column("number", Integer)
    shapes = [column(one.name, _shape(one.type)) for one in _GIVEN]
    rows = func.json_to_recordset(cast(bindparam("document", type_=Text), JSON)).table_valued(number, *shapes)
    rows = rows.render_derived(name="given", with_types=True)
    values: dict[str, Any] = {one.name: rows.c[one.name] for one in _GIVEN}
    values["due_at"] = _due(rows.c.status_id, rows.c.due_at)
    values |= {"submitted": clock(), **_AT_FIRST}
    wanted = select(*(value.label(name) for name, value in values.items())).order_by(rows.c.number)
    inserted = postgresql.insert(job).from_select(list(values), wanted).on_conflict_do_nothing()
    return _with_its_event(inserted)


@cache
def _insert_row() -> Any:
    """Return the same for a single row, whose values the server need not take out of a document."""
    from sqlalchemy.dialects import postgresql

    return _with_its_event(postgresql.insert(job).values(**_row()).on_conflict_do_nothing())


def _row() -> dict[str, Any]:
    values: dict[str, Any] = {one.name: given(one) for one in _GIVEN}
    values["due_at"] = _due(given(job.c.status_id), given(job.c.due_at))
    return values | {"submitted": clock(), **_AT_FIRST}


def _with_its_event(inserted: Any) -> Any:
    changed = inserted.returning(*told("submitted", _ACTOR))
    return with_event(changed, lambda moved: [moved.c.id, moved.c.task_id, moved.c.status_id])


_ACTOR: ColumnElement[str] = case(
    (job.c.username.is_(None), literal_column("'service'")),
    else_=func.substr(literal_column("'user '", String).concat(job.c.username), 1, NAME_LENGTH),
)
"""Who submitted a row, as `actor_of` has it."""

_AT_FIRST: dict[str, Any] = {
    **dict.fromkeys(("attempt", "publish_count", "republish_deferrals", "lost_count"), literal_column("0")),
    **dict.fromkeys(("terminate", "revoke_reported"), false()),
}
"""What a new row has, as part of the text: nobody fills in defaults on the way straight to the driver."""


def _shape(kind: Any) -> Any:
    if isinstance(kind, Name):
        return Text()
    if isinstance(kind, UtcDateTime):
        return kind
    return SmallInteger() if kind is job.c.status_id.type else kind


@cache
def _insert_each(dialect: str) -> Any:
    if dialect == "sqlite":
        from sqlalchemy.dialects import sqlite

        return sqlite.insert(job).values(**_row()).on_conflict_do_nothing()
    from sqlalchemy.dialects import mysql

    # Not IGNORE, which would take every other error for a job that is there already, too.
    return mysql.insert(job).values(**_row()).on_duplicate_key_update(id=job.c.id)


@cache
def _look() -> Any:
    return select(*told("submitted", _ACTOR)).where(_ANY_OF).order_by(job.c.id)
