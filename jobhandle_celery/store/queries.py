"""Reads of single jobs, lists, counts and histories."""

from collections.abc import Collection
from functools import cache
from typing import Any

from sqlalchemy import Row, func, select

from ..models import Event, JobRecord
from ..schema import job, job_event, job_need
from ..status import FINAL, JobStatus
from .database import Database
from .executors import MOST_PARAMETERS
from .records import EVERYTHING, Selection, to_event, to_job
from .retrying import retry_on_disconnect, untraced
from .statements import param, params, status_literal
from .transitions import mine, select_one, selected
from .tree_results import results_of


class Queries:
    """The reads of handles."""

    def __init__(self, database: Database) -> None:
        self._database = database

    @retry_on_disconnect
    def job(self, job_id: int, username: str | None = None) -> JobRecord | None:
        """Return a snapshot; None if there is no such job, or it is another user's."""
        row = self._row(job, job_id, username)
        return None if row is None else to_job(row)

    @retry_on_disconnect
    def status(self, job_id: int, username: str | None = None) -> JobStatus | None:
        """Return the status alone; None if there is no such job, or it is another user's."""
        row = self._row(job.c.status_id, job_id, username)
        return None if row is None else row.status_id

    def _row(self, columns: Any, job_id: int, username: str | None) -> Row[Any] | None:
        with self._database.autocommit() as db:
            statement = select_one(columns, by_user=username is not None)
            row: Row[Any] | None = db.execute(statement, params(id=job_id, username=username)).first()
            return row

    @untraced
    @retry_on_disconnect
    def unfinished(self, job_ids: Collection[int]) -> set[int]:
        """Return those of these jobs that are there and not final."""
        with self._database.autocommit() as db:
            return db.filter_ids(job_ids, _NOT_FINAL)

    @retry_on_disconnect
    def count_by_status(self, selection: Selection = EVERYTHING) -> dict[JobStatus, int]:
        """Return how many jobs of a selection are in each of the nine statuses."""
        counts = dict.fromkeys(JobStatus, 0)
        with self._database.autocommit() as db:
            for part in selection.parts(MOST_PARAMETERS):
                counted = select(job.c.status_id, func.count()).where(selected(part))
                for status, count in db.execute(counted.group_by(job.c.status_id)):
                    counts[status] += count
        return counts

    @retry_on_disconnect
    def needs(self, job_id: int) -> list[JobRecord]:
        """Return what a job needs: first what makes up its arguments, in their order."""
        with self._database.autocommit() as db:
            return [to_job(row) for row in db.execute(_needs(), params(id=job_id))]

    @retry_on_disconnect
    def results_needed(self, job_id: int) -> dict[int, str | None]:
        """Return the results that go before a job's arguments, as JSON in their order, by the jobs' ids.

        None: the row is gone. The jobs are final, and stay so while this one is unfinished.
        """
        with self._database.autocommit() as db:
            ids = db.execute(_needs_as_arguments(), params(id=job_id)).scalars().all()
            found = results_of(db, ids)
            return {needed: found.get(needed) for needed in ids}

    @retry_on_disconnect
    def events(self, job_id: int, username: str | None = None) -> list[Event]:
        """Return a job's moves in their order; empty if there is no such job."""
        statement = (
            select(job_event)
            .join(job, job.c.id == job_event.c.job_id)
            .where(mine(job_id, username))
            .order_by(job_event.c.id)
        )
        with self._database.autocommit() as db:
            return [to_event(row) for row in db.execute(statement)]


@cache
def _needs() -> Any:
    in_order = (job_need.c.position.is_(None), job_need.c.position, job_need.c.needs_id)
    needing = job_need.c.job_id == param(job.c.id)
    return select(job).join(job_need, job_need.c.needs_id == job.c.id).where(needing).order_by(*in_order)


@cache
def _needs_as_arguments() -> Any:
    of_job = job_need.c.job_id == param(job.c.id)
    has_place = job_need.c.position.is_not(None)
    return select(job_need.c.needs_id).where(of_job, has_place).order_by(job_need.c.position)


_NOT_FINAL = job.c.status_id.not_in([status_literal(status) for status in sorted(FINAL)])
