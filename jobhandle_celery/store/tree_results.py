"""The results of nodes. No row stores them: they are read from the rows of the tasks below.

They are those of Celery's canvas: the result of a chain is that of its last child, the result of a chord that
of its body, which is its last child, and the result of a group is the list of those of its children.
Callbacks have no position, and their results do not count.
"""

from collections.abc import Callable, Iterable, Sequence
from functools import cache
from typing import Any

from sqlalchemy import BigInteger, BindParameter, ColumnElement, Row, and_, bindparam, case, func, select

from ..batching import slices
from ..schema import job, job_need
from .executors import MAX_PARAMETERS, Executor
from .statements import param, params

NULL = "null"
"""The JSON in place of a missing result: the task has not Finished, or its row is gone."""


NOT_KEPT = ""
"""In the column of a result: the task ignores its result, another job may need it, and it is not JSON."""


class ResultNotKept(Exception):
    """A result that is to be an argument was not kept."""

    def __init__(self, job_id: int) -> None:
        super().__init__(f"the result of job {job_id}")
        self.job_id = job_id


class ResultsTooLarge(Exception):
    """The results are longer than the limit of the reader."""

    def __init__(self, size: int) -> None:
        """Name the length of the results that were read until then."""
        super().__init__(f"at least {size:,} bytes")


def results_of(db: Executor, ids: Iterable[int]) -> dict[int, str]:
    """Return the JSON of the results of tasks and nodes, by id; an id without a row is left out.

    It takes one statement for each level of the trees and each `MAX_PARAMETERS` ids. The statements see the
    rows at different moments: the caller makes sure that the jobs are final and do not change.
    """
    reader = _Reader(db, None)
    return reader.complete(reader.read(_by_ids, list(set(ids))))


def results_needed(db: Executor, job_id: int, limit: int) -> dict[int, str | None]:
    """Return the JSON of the results that go before a job's arguments, in their order, by the jobs' ids.

    None: the row is gone. The results of tasks take one statement, which each step of a chain executes.

    Raises:
        ResultNotKept: one of them is `NOT_KEPT`.
        ResultsTooLarge: they have more than `limit` characters; the reading stopped there.
    """
    reader = _Reader(db, limit)
    rows = reader.execute(_needed_by_job, id=job_id)
    found = reader.complete([row for row in rows if row.id is not None])
    return {row.needs_id: found.get(row.needs_id) for row in rows}


def _text(row: Row[Any], children: Sequence[str]) -> str:
    match row.kind:
        case None:
            return row.result or NULL
        case "group":
            return f"[{','.join(children)}]"
        case _:
            return children[-1] if children else NULL


class _Reader:
    """Reads rows with their results, up to a total length of these."""

    def __init__(self, db: Executor, limit: int | None) -> None:
        self._db = db
        self._limit = limit
        self._size = 0

    def complete(self, rows: Sequence[Row[Any]]) -> dict[int, str]:
        """Return the results of rows by id; the results of nodes are read level by level."""
        levels = [rows]
        while nodes := [row for row in levels[-1] if row.kind is not None]:
            groups = [row.id for row in nodes if row.kind == "group"]
            sequences = [row.id for row in nodes if row.kind != "group"]
            levels.append([*self.read(_of_groups, groups), *self.read(_of_sequences, sequences)])
        texts: dict[int, str] = {}
        below: dict[int, list[str]] = {}
        for level in reversed(levels):
            texts = {row.id: _text(row, below.get(row.id, [])) for row in level}
            below = {}
            for row in level:
                below.setdefault(row.parent_id, []).append(texts[row.id])
        return texts

    def read(self, statement: Callable[..., Any], ids: Sequence[int]) -> list[Row[Any]]:
        """Return the rows of a statement with the parameter `ids`, in parts."""
        rows: list[Row[Any]] = []
        for part in slices(ids, MAX_PARAMETERS):
            rows += self.execute(statement, ids=part)
        return rows

    def execute(self, statement: Callable[..., Any], **values: Any) -> Sequence[Row[Any]]:
        """Return the rows of a statement.

        Raises:
            ResultNotKept: with a limit, one of the results is `NOT_KEPT`.
            ResultsTooLarge: the results of all statements so far are longer than the limit.
        """
        is_limited = self._limit is not None
        parameters = params(**values, limit=self._limit) if is_limited else params(**values)
        rows: Sequence[Row[Any]] = self._db.execute(statement(is_limited=is_limited), parameters).all()
        if self._limit is not None:
            self._size += sum(row.size for row in rows)
            if self._size > self._limit:
                raise ResultsTooLarge(self._size)
            for row in rows:
                if row.result == NOT_KEPT:
                    raise ResultNotKept(row.id)
        return rows


# The statements, each with a limit or without one.

_IDS: BindParameter[Any] = bindparam("param_ids", expanding=True)
_RESULT = case((job.c.kind.is_(None), job.c.result))
"""Of a task alone: the column of a node is not read."""


def _columns(*in_order: ColumnElement[Any], is_limited: bool) -> list[Any]:
    columns = [job.c.id, job.c.kind, job.c.parent_id]
    if not is_limited:
        return [*columns, _RESULT.label("result")]
    size = func.coalesce(func.length(_RESULT), 0)
    # The database sends no more than the limit, in all or, where there are few rows, of each row.
    sent = func.sum(size).over(order_by=in_order) if in_order else size
    fits = sent <= bindparam("param_limit", type_=BigInteger)
    return [*columns, size.label("size"), case((fits, _RESULT)).label("result")]


@cache
def _by_ids(*, is_limited: bool) -> Any:
    return select(*_columns(job.c.id, is_limited=is_limited)).where(job.c.id.in_(_IDS)).order_by(job.c.id)


@cache
def _needed_by_job(*, is_limited: bool) -> Any:
    position = job_need.c.position
    return (
        select(job_need.c.needs_id, *_columns(is_limited=is_limited))
        .select_from(job_need)
        .outerjoin(job, job.c.id == job_need.c.needs_id)
        .where(job_need.c.job_id == param(job.c.id), position.is_not(None))
        .order_by(position)
    )


@cache
def _of_groups(*, is_limited: bool) -> Any:
    """Return a select of the children of groups, in the order of their positions."""
    in_order = job.c.parent_id, job.c.position
    counting = and_(job.c.parent_id.in_(_IDS), job.c.position.is_not(None))
    return select(*_columns(*in_order, is_limited=is_limited)).where(counting).order_by(*in_order)


@cache
def _of_sequences(*, is_limited: bool) -> Any:
    """Return a select of the last child of each chain, and of the body of each chord."""
    whose = job.c.parent_id.in_(_IDS)
    last = (
        select(job.c.parent_id, func.max(job.c.position).label("position"))
        .where(whose)
        .group_by(job.c.parent_id)
        .subquery()
    )
    is_last = and_(job.c.parent_id == last.c.parent_id, job.c.position == last.c.position)
    # `whose` stands here, too: else PostgreSQL, by its estimate of the children, might read the whole table.
    return select(*_columns(job.c.parent_id, is_limited=is_limited)).join(last, is_last).where(whose)
