"""Statements for many rows at once: the insert of new jobs with their events, and the mark of what was sent.

On PostgreSQL the rows are one JSON document: its driver encodes one text faster than a list for each column.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime, timedelta
from functools import cache
from typing import Any

from sqlalchemy import (
    JSON,
    Boolean,
    Column,
    ColumnElement,
    Double,
    Integer,
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
    update,
)

from ..column_types import Name, UtcDateTime
from ..schema import clock, job, job_event, job_need
from ..status import JobStatus
from ..validation import NAME_LENGTH
from .records import PendingMessage, Run, RunResult
from .statements import IN_ARRAY, NO_FLUSH, Guard, event_columns, param, setting, status_literal, with_event
from .transitions import (
    WAITING_WITHOUT_TIME,
    claimed_as,
    finished,
    run_params,
    status_allows,
    unless_expired_before,
)

_COLUMNS = (
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
"""The columns that a submit fills in."""

NEW_ROW: dict[str, Any] = dict.fromkeys(column.name for column in _COLUMNS)
"""A value for each of them."""

_TREE_COLUMNS = (
    *_COLUMNS,
    job.c.kind,
    job.c.root_id,
    job.c.parent_id,
    job.c.position,
    job.c.needs_when,
    job.c.blocked,
    job.c.countdown,
    job.c.expires_in,
    job.c.needed,
)
"""The same for a row of a tree, or one with needs."""

NEW_TREE_ROW: dict[str, Any] = dict.fromkeys(column.name for column in _TREE_COLUMNS)


def to_document(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return rows as the parameter of `insert_document`."""
    document = [
        {**row, "status_id": row["status_id"].id, "number": number} for number, row in enumerate(rows)
    ]
    # In ASCII, which a connection of any encoding carries.
    return {"document": json.dumps(document, default=_to_json)}


def _to_json(moment: datetime) -> str:
    if moment.tzinfo is None:
        raise TypeError(f"{moment!r} has no time zone")
    return moment.isoformat()


def document(name: str, *columns: ColumnElement[Any]) -> Any:
    """Return the rows of the JSON document of a statement as a table (PostgreSQL)."""
    rows = func.json_to_recordset(cast(bindparam("document", type_=Text), JSON)).table_valued(*columns)
    return rows.render_derived(name=name, with_types=True)


KEY = (column("id", job.c.id.type), column("task_id", Text), column("attempt", Integer))


@cache
def insert_document(*, of_tree: bool = False) -> Any:
    """Return an insert of the rows of a JSON document, in their order, with their events (PostgreSQL)."""
    from sqlalchemy.dialects import postgresql  # no other database's dialect is imported

    number: ColumnElement[int] = column("number", Integer)
    columns = _TREE_COLUMNS if of_tree else _COLUMNS
    shapes = [column(new.name, _json_type(new.type)) for new in columns]
    rows = document("given", number, *shapes)
    values = _values(lambda new: rows.c[new.name], of_tree=of_tree)
    wanted = select(*(value.label(name) for name, value in values.items())).order_by(rows.c.number)
    inserted = postgresql.insert(job).from_select(list(values), wanted).on_conflict_do_nothing()
    return _with_event(inserted)


@cache
def insert_one() -> Any:
    """Return the same for one row, whose values are parameters (PostgreSQL)."""
    from sqlalchemy.dialects import postgresql

    return _with_event(postgresql.insert(job).values(**insert_row()).on_conflict_do_nothing())


def insert_row(*, of_tree: bool = False) -> dict[str, Any]:
    """Return the values of an insert whose parameters are named after the columns."""
    return _values(param, of_tree=of_tree)


def _values(of: Callable[[Column[Any]], ColumnElement[Any]], *, of_tree: bool) -> dict[str, Any]:
    values: dict[str, Any] = {new.name: of(new) for new in (_TREE_COLUMNS if of_tree else _COLUMNS)}
    submitted = values["status_id"] == status_literal(JobStatus.SUBMITTED)
    if of_tree:
        submitted &= values["kind"].is_(None)  # a node is never published
    values["due_at"] = case((submitted, clock(setting("publish_grace"))), else_=values["due_at"])
    return values | {"submitted": clock(), **_DEFAULTS}


def _with_event(inserted: Any) -> Any:
    changed = inserted.returning(*event_columns("submitted", _ACTOR))
    return with_event(changed, lambda moved: [moved.c.id, moved.c.task_id, moved.c.status_id])


_ACTOR: ColumnElement[str] = case(
    (job.c.username.is_(None), literal_column("'service'")),
    else_=func.substr(literal_column("'user '", String).concat(job.c.username), 1, NAME_LENGTH),
)
"""`actor_of` the row's user, in SQL."""

_DEFAULTS: dict[str, Any] = {
    **dict.fromkeys(("attempt", "publish_count", "republish_deferrals", "lost_count"), literal_column("0")),
    **dict.fromkeys(("terminate", "revoke_reported"), false()),
}
"""The defaults of a new row, in the statement: direct psycopg does not apply those of SQLAlchemy."""


def _json_type(kind: Any) -> Any:
    if isinstance(kind, Name):
        return Text()
    if isinstance(kind, UtcDateTime):
        return kind
    return SmallInteger() if kind is job.c.status_id.type else kind


@cache
def insert_needs() -> Any:
    """Return an insert of the needs of a JSON document; a row that exists stays (PostgreSQL)."""
    from sqlalchemy.dialects import postgresql

    shapes = [column(new.name, new.type) for new in job_need.c]
    rows = func.json_to_recordset(cast(bindparam("document", type_=Text), JSON)).table_valued(*shapes)
    rows = rows.render_derived(name="given", with_types=True)
    given = select(*(rows.c[new.name] for new in job_need.c))
    return postgresql.insert(job_need).from_select([*job_need.c.keys()], given).on_conflict_do_nothing()


def by_task_ids(rows: Sequence[dict[str, Any]]) -> Guard:
    """Return the condition of the rows with these task ids."""
    return job.c.task_id.in_([row["task_id"] for row in rows])


def select_inserted(which: Guard) -> Any:
    """Return a select of inserted rows, from which their events are made."""
    return select(*event_columns("submitted", _ACTOR)).where(which).order_by(job.c.id)


QUEUED: dict[str, Any] = {
    "status_id": status_literal(JobStatus.QUEUED),
    "republish_deferrals": literal_column("0"),
}


def to_marks(sent: Sequence[PendingMessage], delay: Callable[[int], timedelta]) -> dict[str, Any]:
    """Return messages as the parameter of `mark_queued`; `delay` is by the number of publishes."""
    marks = [
        {
            "id": message.job_id,
            "task_id": message.task_id,
            "attempt": message.attempt - 1,
            "publish_count": message.publish_count + 1,
            "republish_after": delay(message.publish_count + 1).total_seconds(),
        }
        for message in sent
    ]
    return {"document": json.dumps(marks)}


@cache
def mark_queued() -> Any:
    """Return a mark of the rows of a JSON document; the commit does not wait for the disk (PostgreSQL).

    A mark that is lost with the server's machine is harmless, see `Outbox.mark_queued`.
    """
    sent = document("sent", *KEY, column("publish_count", Integer), column("republish_after", Double))
    waiting = (
        status_allows("publish"),
        ~WAITING_WITHOUT_TIME,
        job.c.id == sent.c.id,
        job.c.task_id == sent.c.task_id,
        job.c.attempt == sent.c.attempt,
        job.c.publish_count == sent.c.publish_count - 1,
    )
    free = select(job.c.id).where(*waiting).with_for_update(skip_locked=True, key_share=True, of=job)
    due = unless_expired_before(clock(sent.c.republish_after))
    return (
        update(job)
        .where(*waiting, NO_FLUSH, job.c.id.in_(select(free.cte("free").c.id)))
        .values(**QUEUED, publish_count=sent.c.publish_count, due_at=due)
    )


def to_finishes(results: Mapping[Run, RunResult]) -> dict[str, Any]:
    """Return runs and their results (JSON texts) as the parameter of `finish_many`."""
    document = [
        {**run_params(run), "result": result.text, "ignored": result.ignored}
        for run, result in results.items()
    ]
    return {"document": json.dumps(document), "ids": [run.job_id for run in results]}


@cache
def finish_many() -> Any:
    """Return an update that ends the runs of a JSON document, with their events (PostgreSQL).

    Rows that are locked stay. It returns the id of each row that ended, and whether it is unsettled.
    """
    given = document(
        "given", *KEY, column("claim_id", Text), column("result", Text), column("ignored", Boolean)
    )
    free = (
        select(*given.c)
        .join_from(given, job, claimed_as(lambda place: given.c[place.name]))
        .where(IN_ARRAY)
        .with_for_update(skip_locked=True, key_share=True, of=job)
        .cte("free")
    )
    columns = (*event_columns("finished", param(job_event.c.actor)), job.c.unsettled)
    ended = update(job).where(claimed_as(lambda place: free.c[place.name]))
    ended = ended.values(**finished(free.c.result, ignored=free.c.ignored)).returning(*columns)
    return with_event(ended, lambda moved: [moved.c.id, moved.c.unsettled])
