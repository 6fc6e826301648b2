"""The results of nodes of a tree, which no row has: they are read from the rows of the tasks below.

A result is as Celery's own canvas returns it: of a chain that of its last child, of a chord that of its body,
which is its last child, of a group the list of its children's. Callbacks have no position and do not count.
"""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from sqlalchemy import ColumnElement, Row, and_, case, func, select

from ..schema import job
from .executors import MOST_PARAMETERS, Executor
from .statements import Guard

NULL = "null"
"""The JSON of a result that there is not: the task has not Finished, or its row is gone."""


class ResultsTooLarge(Exception):
    """Results are longer than the reader's limit; `size` is the length of those that were seen."""

    def __init__(self, size: int) -> None:
        super().__init__(f"at least {size:,} bytes")
        self.size = size


def results_of(db: Executor, ids: Iterable[int], limit: int | None = None) -> dict[int, str]:
    """Return the JSON of the results of tasks and nodes, by id; an id without a row is left out.

    One statement for each level of the trees, and each `MOST_PARAMETERS` ids. The rows of one statement are
    of one moment, those of several are not: the caller makes sure that the jobs are final and stay.

    Raises:
        ResultsTooLarge: they have more than `limit` characters; no more of them were read.
    """
    reader = _Reader(db, limit)
    levels = [reader.rows(list(set(ids)))]
    while nodes := [row for row in levels[-1] if row.kind is not None]:
        levels.append(reader.children(nodes))
    texts: dict[int, str] = {}
    below: dict[int, list[str]] = {}
    for level in reversed(levels):
        texts = {row.id: _text(row, below.get(row.id, [])) for row in level}
        below = {}
        for row in level:
            below.setdefault(row.parent_id, []).append(texts[row.id])
    return texts


def _text(row: Row[Any], children: Sequence[str]) -> str:
    match row.kind:
        case None:
            return row.result or NULL
        case "group":
            return f"[{','.join(children)}]"
        case _:
            return children[-1] if children else NULL


class _Reader:
    """Reads rows with their results, up to a total length of the results."""

    def __init__(self, db: Executor, limit: int | None) -> None:
        self._db = db
        self._limit = limit
        self._size = 0

    def rows(self, ids: Sequence[int]) -> list[Row[Any]]:
        rows: list[Row[Any]] = []
        for part in _parts(ids):
            rows += self._read(job.c.id.in_(part), job.c.id)
        return rows

    def children(self, nodes: Sequence[Row[Any]]) -> list[Row[Any]]:
        """Return the children that make up the results of nodes, those of a node by their positions."""
        rows: list[Row[Any]] = []
        groups = [row.id for row in nodes if row.kind == "group"]
        for part in _parts(groups):
            counting = and_(job.c.parent_id.in_(part), job.c.position.is_not(None))
            rows += self._read(counting, job.c.parent_id, job.c.position)
        sequences = [row.id for row in nodes if row.kind != "group"]
        for part in _parts(sequences):
            whose = job.c.parent_id.in_(part)
            last = (
                select(job.c.parent_id, func.max(job.c.position).label("position"))
                .where(whose)
                .group_by(job.c.parent_id)
                .subquery()
            )
            is_last = and_(job.c.parent_id == last.c.parent_id, job.c.position == last.c.position)
            # `whose` again: by the estimated number of children, PostgreSQL might read the whole table.
            rows += self._read(whose, job.c.parent_id, join=(last, is_last))
        return rows

    def _read(self, which: Guard, *in_order: ColumnElement[Any], join: Any = ()) -> Sequence[Row[Any]]:
        # A node's own result is no column of the statement: it has none.
        result: Any = case((job.c.kind.is_(None), job.c.result))
        columns: list[Any] = [job.c.id, job.c.kind, job.c.parent_id]
        if self._limit is not None:
            size = func.coalesce(func.length(result), 0)
            columns.append(size.label("size"))
            # The database sends no more of them than the limit, whatever there is.
            result = case((func.sum(size).over(order_by=in_order) <= self._limit, result))
        statement = select(*columns, result.label("result"))
        if join:
            statement = statement.join(*join)
        rows: Sequence[Row[Any]] = self._db.execute(statement.where(which).order_by(*in_order)).all()
        if self._limit is not None:
            self._size += sum(row.size for row in rows)
            if self._size > self._limit:
                raise ResultsTooLarge(self._size)
        return rows


def _parts(ids: Sequence[int]) -> Iterator[Sequence[int]]:
    return (ids[start : start + MOST_PARAMETERS] for start in range(0, len(ids), MOST_PARAMETERS))
