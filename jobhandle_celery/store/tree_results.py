"""The results of nodes of a tree, which no row has: they are read from the rows of the tasks below.

A result is as Celery's own canvas returns it: of a chain that of its last child, of a chord that of its body,
which is its last child, of a group the list of its children's. Callbacks have no position and do not count.
"""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from sqlalchemy import Row, and_, case, func, select

from ..schema import job
from .executors import MOST_PARAMETERS, Executor

NULL = "null"
"""The JSON of a result that there is not: the task has not Finished, or its row is gone."""


def results_of(db: Executor, ids: Iterable[int]) -> dict[int, str]:
    """Return the JSON of the results of tasks and nodes, by id; an id without a row is left out.

    One statement for each level of the trees, and each `MOST_PARAMETERS` ids. The rows of one statement are
    of one moment, those of several are not: the caller makes sure that the jobs are final and stay.
    """
    levels = [_rows(db, list(set(ids)))]
    while nodes := [row for row in levels[-1] if row.kind is not None]:
        levels.append(_children(db, nodes))
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


# A node's own result is no column of the statement: it has none.
_COLUMNS = (job.c.id, job.c.kind, job.c.parent_id, case((job.c.kind.is_(None), job.c.result)).label("result"))


def _parts(ids: Sequence[int]) -> Iterator[Sequence[int]]:
    return (ids[start : start + MOST_PARAMETERS] for start in range(0, len(ids), MOST_PARAMETERS))


def _rows(db: Executor, ids: Sequence[int]) -> list[Row[Any]]:
    rows: list[Row[Any]] = []
    for part in _parts(ids):
        rows += db.execute(select(*_COLUMNS).where(job.c.id.in_(part)))
    return rows


def _children(db: Executor, nodes: Sequence[Row[Any]]) -> list[Row[Any]]:
    """Return the children that make up the results of nodes, those of a node by their positions."""
    rows: list[Row[Any]] = []
    groups = [row.id for row in nodes if row.kind == "group"]
    for part in _parts(groups):
        counting = and_(job.c.parent_id.in_(part), job.c.position.is_not(None))
        rows += db.execute(select(*_COLUMNS).where(counting).order_by(job.c.parent_id, job.c.position))
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
        rows += db.execute(select(*_COLUMNS).join(last, is_last).where(whose))
    return rows
