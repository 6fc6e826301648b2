"""Snapshots of jobs: from their rows, and from the rows below a node its progress and result."""

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Any, NamedTuple, TypeVar

from sqlalchemy import Row, case, func, select

from .. import serialization
from ..batching import slices
from ..models import Failure, JobRecord, Progress, Unreadable
from ..schema import job, job_need
from ..status import JobStatus
from .decoding import read_error, read_result, to_job, to_progress
from .executors import MAX_PARAMETERS, Executor
from .statements import status_literal
from .tree_results import results_of

T = TypeVar("T", bound=Any)

_PLACE = (job.c.id, job.c.parent_id, job.c.position, job.c.kind, job.c.task)
TREE_COLUMNS = (*_PLACE, job.c.status_id, job.c.progress_current, job.c.progress_total)
"""What `to_tree_row` reads."""


@dataclass(frozen=True, slots=True)
class TreeRow:
    """A job of a tree, without columns that may be large."""

    id: int
    parent_id: int
    position: int | None
    """Its place among its parent's children; None: a callback."""
    kind: str | None
    task: str
    status: JobStatus
    progress: Progress | None
    """As its body has set it; None for a node."""


def to_tree_row(row: Row[Any]) -> TreeRow:
    """Return the record of a row's `TREE_COLUMNS`."""
    place = (row.id, row.parent_id, row.position, row.kind, row.task)
    return TreeRow(*place, row.status_id, to_progress(row))


class JobState(NamedTuple):
    """The fields of a job that may change often."""

    status: JobStatus
    message: str
    progress: Progress | None

    @classmethod
    def of(cls, job: JobRecord) -> "JobState":
        return cls(job.status, job.message, job.progress)


class FinalJob(NamedTuple):
    """A job that has ended, without columns that may be large."""

    status: JobStatus
    username: str | None


class JobOutcome(NamedTuple):
    """How a job has ended."""

    id: int
    status: JobStatus
    username: str | None
    message: str
    result: Any
    error: Failure | None

    @classmethod
    def of(cls, job: JobRecord) -> "JobOutcome":
        return cls(job.id, job.status, job.username, job.message, job.result, job.error)

    @classmethod
    def of_row(cls, row: Row[Any]) -> "JobOutcome":
        return cls(row.id, row.status_id, row.username, row.message, read_result(row), read_error(row))


class Node(NamedTuple):
    """A node, and its place in its tree."""

    id: int
    parent_id: int | None
    root_id: int | None


def to_jobs(
    db: Executor, rows: Sequence[Row[Any]], *, of_ended: bool = False, with_results: bool = False
) -> list[JobRecord]:
    """Return snapshots of rows, in their order; what is in other rows is read in a few statements for all.

    The progress of a node is counted from its members. Lists leave it out for nodes that have ended: the cost
    of a list must not grow with the number of finished jobs. They leave out the results of nodes, too, which
    may be thousands of values each.

    Args:
        db: Reads the other rows.
        rows: Rows of ``jobhandle_job``, with all columns.
        of_ended: Count the members of nodes that have ended, too.
        with_results: Read the results of nodes that have Finished.
    """
    jobs = [to_job(row) for row in rows]
    if needing := [row.id for row in rows if row.needs_when is not None]:
        needs = _needs_of(db, needing)
        jobs = [replace(job, after=needs[job.id]) if job.id in needs else job for job in jobs]
    nodes = [row for row in rows if row.kind is not None]
    if nodes:
        counted = [row for row in nodes if of_ended or not row.status_id.final]
        progress = count_members(db, [Node(row.id, row.parent_id, row.root_id) for row in counted])
        jobs = [replace(job, progress=progress[job.id]) if job.id in progress else job for job in jobs]
    if with_results:
        finished = [row.id for row in nodes if row.status_id is JobStatus.FINISHED]
        results = results_of(db, finished) if finished else {}
        jobs = [replace(job, result=_decoded(results[job.id])) if job.id in results else job for job in jobs]
    return jobs


def _needs_of(db: Executor, job_ids: Sequence[int]) -> dict[int, tuple[int, ...]]:
    """Return the ids of what each of these jobs needs: first the jobs whose results are its arguments."""
    needs: dict[int, tuple[int, ...]] = {}
    in_order = (job_need.c.job_id, job_need.c.position.is_(None), job_need.c.position, job_need.c.needs_id)
    for part in slices(job_ids, MAX_PARAMETERS):
        statement = select(job_need.c.job_id, job_need.c.needs_id).where(job_need.c.job_id.in_(part))
        rows = db.execute(statement.order_by(*in_order))
        for job_id, some in groupby(rows, key=lambda row: row.job_id):
            needs[job_id] = tuple(row.needs_id for row in some)
    return needs


def _decoded(result: str) -> Any:
    try:
        return serialization.decode(result)
    except Exception as error:  # a member's result is not JSON; a read of that member logs it
        return Unreadable(type(error).__name__)


def count_members(db: Executor, nodes: Sequence[Node]) -> dict[int, Progress]:
    """Return the number of tasks below each node, and of those that have Finished, by the id of the node.

    A node without tasks is left out. It takes one statement for all roots, and two for all nested nodes,
    which read their whole trees.
    """
    counted: dict[int, tuple[int, int]] = {}
    roots = [node.id for node in nodes if node.parent_id is None]
    for part in slices(roots, MAX_PARAMETERS):
        for root_id, members, finished in db.execute(_count(job.c.root_id, part)):
            counted[root_id] = int(finished), members
    nested = {node.id: node.root_id for node in nodes if node.parent_id is not None}
    for part in slices({root_id for root_id in nested.values() if root_id is not None}, MAX_PARAMETERS):
        below = _count_below(db, part)
        counted |= {node_id: below[node_id] for node_id in nested.keys() & below.keys()}
    return {node_id: Progress(finished, members) for node_id, (finished, members) in counted.items()}


def in_tree_order(rows: Iterable[T], top: int) -> list[T]:
    """Return the rows below a node, each before its children; children by position, callbacks last."""
    children: dict[int, list[T]] = {}
    for row in sorted(rows, key=lambda row: (row.position is None, row.position or 0, row.id)):
        children.setdefault(row.parent_id, []).append(row)
    ordered: list[T] = []
    following = children.get(top, [])[::-1]
    while following:
        row = following.pop()
        ordered.append(row)
        following += children.get(row.id, [])[::-1]
    return ordered


_FINISHED = func.sum(case((job.c.status_id == status_literal(JobStatus.FINISHED), 1), else_=0))


def _count(by: Any, trees: Collection[int]) -> Any:
    tasks = job.c.root_id.in_(trees) & job.c.kind.is_(None)
    return select(by, func.count(), _FINISHED).where(tasks).group_by(by)


def _count_below(db: Executor, trees: Collection[int]) -> dict[int, tuple[int, int]]:
    """Return the counts of all nodes of these trees: the tasks of a node count for those above it, too."""
    nodes = select(job.c.id, job.c.parent_id).where(job.c.root_id.in_(trees), job.c.kind.is_not(None))
    parents: dict[int, int | None] = {row.id: row.parent_id for row in db.execute(nodes)}
    counted: dict[int, tuple[int, int]] = {}
    for parent_id, members, finished in db.execute(_count(job.c.parent_id, trees)):
        above: int | None = parent_id
        while above is not None:
            ended, total = counted.get(above, (0, 0))
            counted[above] = ended + int(finished), total + members
            above = parents.get(above)
    return counted
