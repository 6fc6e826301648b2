"""An expected canvas, and the trees of jobs that fit it."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from ..broker.plan_canvas import plan
from ..broker.signatures import CHORD
from ..models import Job, JobRecord
from .rows import Place


@dataclass(frozen=True)
class Part:
    """A job of a tree, as it is compared."""

    name: str
    """Of its task; of a node ``"celery.chain"`` and the like."""
    args: Any
    kwargs: Any
    needs: frozenset[tuple[str, int | None]]
    """Which parts of the tree it needs, and where their results go among its arguments."""
    shown: str

    def difference(self, other: "Part", equal: Any) -> str:
        """Return how another part differs, which was found at the place of this one; empty if it does not."""
        same = self.name == other.name and equal(self.args, other.args) and equal(self.kwargs, other.kwargs)
        if not same:
            return f"{other.shown}, not {self.shown}"
        return "" if self.needs == other.needs else f"{other.shown} has other needs, or takes other results"


Parts = Mapping[str, Part]
"""The parts of a tree below its root, in order, by their places: ``"header[1]"``."""


@dataclass(frozen=True)
class _Row:
    job: Job
    kind: str | None
    place: Place


def planned_parts(canvas: object) -> tuple[str, Parts]:
    """Return the name of the root, and the parts, of the tree that would be submitted for a canvas.

    Raises:
        ApiUsageError: it could not be submitted.
    """
    planned = plan([canvas])
    rows = {
        index: _Row(member.job, member.kind, Place(member.parent, member.position, member.needs))
        for index, member in enumerate(planned.members)
    }
    (root,) = planned.roots
    return rows[root].job.task, _parts(root, rows)


class StoredTrees:
    """The trees of all jobs of a test."""

    def __init__(self, records: Iterable[JobRecord], places: Mapping[int, Place]) -> None:
        self._rows = {
            record.id: _Row(record, record.kind, places[record.id])
            for record in records
            if record.id in places
        }
        self._children = _children(self._rows)

    def parts(self, record: JobRecord) -> Parts:
        """Return the parts below a node, which may be in another canvas."""
        return _parts(record.id, self._rows, self._children)


def _children(rows: Mapping[int, _Row]) -> Mapping[int, list[int]]:
    """Return the children of each node: by position, callbacks last."""
    children: dict[int, list[int]] = {}
    for key in sorted(rows, key=lambda key: (rows[key].place.order, key)):
        if (parent := rows[key].place.parent) is not None:
            children.setdefault(parent, []).append(key)
    return children


def _parts(root: int, rows: Mapping[int, _Row], children: Mapping[int, list[int]] | None = None) -> Parts:
    children = _children(rows) if children is None else children
    where = {root: ""}
    following = children.get(root, [])[::-1]
    while following:
        key = following.pop()
        where[key] = _where(key, rows, where, children)
        following += children.get(key, [])[::-1]
    return {path: _part(rows[key], where) for key, path in where.items() if key != root}


def _where(
    key: int, rows: Mapping[int, _Row], where: Mapping[int, str], children: Mapping[int, list[int]]
) -> str:
    place = rows[key].place
    assert place.parent is not None
    node = rows[place.parent]
    if place.position is None:
        name = f"callback[{children[place.parent].index(key)}]"
    elif node.kind == CHORD:
        name = ("header", "body")[place.position]
    else:
        name = f"{node.kind}[{place.position}]"
    above = where[place.parent]
    return f"{above}, {name}" if above else name


def _part(row: _Row, where: Mapping[int, str]) -> Part:
    needs = frozenset((where[need], position) for need, position in row.place.needs if need in where)
    job = row.job
    args, kwargs = job.shown_arguments
    given = ", ".join([*map(repr, args), *(f"{name}={value!r}" for name, value in kwargs.items())])
    shown = job.task if row.kind else f"{job.task}({given})"
    return Part(job.task, job.args, job.kwargs, needs, shown)
