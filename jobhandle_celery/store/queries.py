"""Reads of single jobs, lists, counts and histories."""

from collections.abc import Collection, Sequence
from functools import cache
from typing import Any

from sqlalchemy import Row, and_, func, select

from ..batching import slices
from ..models import Event, JobRecord
from ..schema import clock, job, job_event, job_need
from ..status import FINAL, UNFINISHED, JobStatus
from .database import Database
from .decoding import to_event, to_job, to_progress
from .executors import ALL_ROWS, MAX_PARAMETERS, Executor
from .nodes import select_deciding_child
from .records import EVERYTHING, Selection
from .retrying import retry_on_disconnect
from .snapshots import FinalJob, JobOutcome, JobState, Node, count_members, in_tree_order, to_jobs
from .statements import param, params, status_literal
from .transitions import IS_TASK, OF_NAMESPACE, mine, select_one, selected
from .tree_results import results_needed


class Queries:
    """Reads of single jobs, their needs, events and trees, for handles and workers."""

    def __init__(self, database: Database) -> None:
        self._database = database

    @retry_on_disconnect
    def job(self, job_id: int, username: str | None = None) -> JobRecord | None:
        """Return a snapshot; None if there is no such job, or it is another user's.

        With the progress and the result of a node. A tree that has Finished does not change any more, except
        that a prune deletes it as a whole: if its root is there after the read, its members were.
        """
        row = self._row(job, job_id, username)
        if row is None or (row.kind is None and row.needs_when is None):
            return None if row is None else to_job(row)
        with self._database.autocommit() as db:
            (found,) = to_jobs(db, [row], of_ended=True, with_results=True)
        return found if self._row(job.c.id, job_id, username) is not None else None

    @retry_on_disconnect
    def stored_job(self, job_id: int, username: str | None = None) -> JobRecord | None:
        """Return what its row says: without needs, and without a node's progress and result."""
        row = self._row(job, job_id, username)
        return None if row is None else to_job(row)

    @retry_on_disconnect
    def members(self, job_id: int, username: str | None = None) -> list[JobRecord] | None:
        """Return all jobs below a node, in the order of its tree; None if there is no such job.

        For a nested node the whole tree is read, in one statement: that of a moment.
        """
        top = self._row(job, job_id, username)
        if top is None or top.kind is None:
            return None if top is None else []
        root_id = top.id if top.parent_id is None else top.root_id
        with self._database.autocommit() as db:
            rows = db.execute(select(job).where(job.c.root_id == root_id)).all()
            return to_jobs(db, in_tree_order(rows, job_id))

    @retry_on_disconnect
    def ids_of_tasks(self, task_ids: Sequence[str]) -> tuple[list[int], list[int]]:
        """Return the ids of the unfinished jobs with these task ids: those of tasks, and those of nodes."""
        tasks: list[int] = []
        nodes: list[int] = []
        with self._database.autocommit() as db:
            for part in slices(task_ids, MAX_PARAMETERS):
                named = job.c.task_id.in_(part)
                for found in db.execute(select(job.c.id, job.c.kind).where(named, _UNFINISHED)):
                    (tasks if found.kind is None else nodes).append(found.id)
        return tasks, nodes

    @retry_on_disconnect
    def children(self, job_id: int) -> list[tuple[int, str]] | None:
        """Return ids and task ids of what Celery calls the children of a task; None if there is no such job.

        Those of a node are the jobs right below it. Those of a job outside of a tree are the jobs that need
        it, of a tree the root: its callbacks are among them.
        """
        with self._database.autocommit() as db:
            row = db.execute(
                select_one(job.c.kind, job.c.parent_id, by_user=False), params(id=job_id)
            ).first()
            if row is None:
                return None
            if row.kind is None and row.parent_id is not None:
                return []
            found = db.execute(_below() if row.kind else _needing(), params(id=job_id)).all()
            return [(child.id, child.task_id) for child in found]

    @retry_on_disconnect
    def failed_member(self, node: JobRecord) -> tuple[JobRecord | None, bool]:
        """Return the task by which a node ended in Error, and whether it is in the header of a chord.

        None: no member is in Error any more.
        """
        job_id, kind, in_header = node.id, node.kind, False
        while kind is not None:
            with self._database.autocommit() as db:
                child = db.execute(select_deciding_child(), params(id=job_id)).first()
            if child is None or child.status_id is not JobStatus.ERROR:
                return None, False
            in_header = in_header or (kind == "chord" and child.position == 0)
            job_id, kind = child.id, child.kind
        row = self._row(job, job_id, None)
        return None if row is None else to_job(row), in_header

    @retry_on_disconnect
    def status(self, job_id: int, username: str | None = None) -> JobStatus | None:
        """Return the status alone; None if there is no such job, or it is another user's."""
        row = self._row(job.c.status_id, job_id, username)
        return None if row is None else row.status_id

    @retry_on_disconnect
    def id_of_task(self, task_id: str) -> int | None:
        """Return the id of the job whose current task id this is; None if there is none."""
        with self._database.autocommit() as db:
            found: int | None = db.execute(_of_task(), params(task_id=task_id)).scalar()
            return found

    def _row(self, columns: Any, job_id: int, username: str | None) -> Row[Any] | None:
        with self._database.autocommit() as db:
            statement = select_one(columns, by_user=username is not None)
            row: Row[Any] | None = db.execute(statement, params(id=job_id, username=username)).first()
            return row

    @retry_on_disconnect
    def final(self, job_ids: Collection[int]) -> dict[int, FinalJob | None]:
        """Return those of these jobs that are final; with None those that do not exist.

        What a poll reads of a thousand unfinished jobs is one number.
        """
        with self._database.autocommit() as db:
            rows, count = db.rows_and_count_of(job_ids, *_FINAL_JOB, where=_FINAL)
            found: dict[int, FinalJob | None] = {
                row.id: FinalJob(row.status_id, row.username) for row in rows
            }
            if count < len(job_ids):
                unfinished = set(job_ids) - found.keys()
                found |= dict.fromkeys(unfinished - db.filter_ids(unfinished, ALL_ROWS))
        return found

    @retry_on_disconnect
    def outcomes(self, job_ids: Collection[int]) -> dict[int, JobOutcome]:
        """Return how those of these jobs have ended that are final and no nodes."""
        with self._database.autocommit() as db:
            rows = db.rows_of(job_ids, *_OUTCOME, where=_FINAL_TASK)
        return {row.id: JobOutcome.of_row(row) for row in rows}

    @retry_on_disconnect
    def states(self, job_ids: Collection[int]) -> dict[int, JobState]:
        """Return what may change often of those of these jobs that exist, as `job` would return it."""
        with self._database.autocommit() as db:
            rows = db.rows_of(job_ids, *_STATE)
            nodes = [Node(row.id, row.parent_id, row.root_id) for row in rows if row.kind is not None]
            counted = count_members(db, nodes) if nodes else {}
        return {
            row.id: JobState(row.status_id, row.message, counted.get(row.id, to_progress(row)))
            for row in rows
        }

    @retry_on_disconnect
    def count_by_status(self, selection: Selection = EVERYTHING) -> dict[JobStatus, int]:
        """Return how many jobs of a selection are in each of the nine statuses."""
        counts = dict.fromkeys(JobStatus, 0)
        with self._database.autocommit() as db:
            for part in selection.parts(MAX_PARAMETERS):
                counted = select(job.c.status_id, func.count()).where(selected(part))
                for status, count in db.execute(counted.group_by(job.c.status_id)):
                    counts[status] += count
        return counts

    @retry_on_disconnect
    def needs(self, job_id: int) -> list[JobRecord]:
        """Return what a job needs: first what makes up its arguments, in their order."""
        with self._database.autocommit() as db:
            rows = db.execute(_needs(), params(id=job_id)).all()
            return to_jobs(db, rows, of_ended=True, with_results=True)

    @retry_on_disconnect
    def results_needed(self, job_id: int, limit: int) -> dict[int, str | None]:
        """Return the results that go before a job's arguments, as JSON in their order, by the jobs' ids.

        None: the row is gone. The jobs are final, and stay so while this one is unfinished.

        Raises:
            ResultNotKept: one of them was ignored, and could not be kept.
            ResultsTooLarge: they have more than `limit` characters.
        """
        with self._database.autocommit() as db:
            return results_needed(db, job_id, limit)

    @retry_on_disconnect
    def events(self, job_id: int, username: str | None = None) -> list[Event]:
        """Return a job's moves in their order; empty if there is no such job.

        Those of an unfinished node end with an event that is not stored: how many members have Finished.
        """
        node = (job.c.id, job.c.kind, job.c.parent_id, job.c.root_id, job.c.status_id, job.c.attempt)
        now = [column.label(f"now_{column.name}") for column in node]
        statement = (
            select(job_event, *now, clock().label("now"))
            .join(job, job.c.id == job_event.c.job_id)
            .where(mine(job_id, username))
            .order_by(job_event.c.id)
        )
        with self._database.autocommit() as db:
            rows = db.execute(statement).all()
            events = [to_event(row) for row in rows]
            if rows and rows[0].now_kind is not None and not rows[0].now_status_id.final:
                events += _count_as_event(db, rows[0])
            return events


def _count_as_event(db: Executor, row: Row[Any]) -> list[Event]:
    progress = count_members(db, [Node(row.now_id, row.now_parent_id, row.now_root_id)]).get(row.now_id)
    if progress is None:
        return []
    message = f"{progress.current:,} of {progress.total:,} finished"
    return [Event(row.now, row.now_status_id, row.now_attempt, message, "", computed=True)]


@cache
def _of_task() -> Any:
    return select(job.c.id).where(job.c.task_id == param(job.c.task_id))


@cache
def _needs() -> Any:
    in_order = (job_need.c.position.is_(None), job_need.c.position, job_need.c.needs_id)
    needing = job_need.c.job_id == param(job.c.id)
    return select(job).join(job_need, job_need.c.needs_id == job.c.id).where(needing).order_by(*in_order)


_STATE = (
    *(job.c.id, job.c.status_id, job.c.message, job.c.progress_current, job.c.progress_total),
    *(job.c.kind, job.c.parent_id, job.c.root_id),
)


@cache
def _below() -> Any:
    below = select(job.c.id, job.c.task_id).where(job.c.parent_id == param(job.c.id))
    return below.order_by(job.c.position.is_(None), job.c.position, job.c.id)


@cache
def _needing() -> Any:
    ids = (
        select(func.coalesce(job.c.root_id, job.c.id))
        .join(job_need, job_need.c.job_id == job.c.id)
        .where(job_need.c.needs_id == param(job.c.id))
    )
    return select(job.c.id, job.c.task_id).where(job.c.id.in_(ids)).order_by(job.c.id)


_FINAL_JOB = (job.c.id, job.c.status_id, job.c.username)
_OUTCOME = (*_FINAL_JOB, job.c.message, job.c.result, job.c.error)
_FINAL = job.c.status_id.in_([status_literal(status) for status in sorted(FINAL)])
_FINAL_TASK = and_(_FINAL, IS_TASK)

_UNFINISHED = and_(OF_NAMESPACE, job.c.status_id.in_(UNFINISHED))
