"""Reading: snapshots, lists, counts, histories. And forgetting what is long over."""

from collections.abc import Collection
from datetime import datetime, timedelta
from functools import cache
from typing import Any

from sqlalchemy import ARRAY, BigInteger, BindParameter, any_, bindparam, delete, func, literal, select

from ..models import Event, JobRecord
from ..schema import clock, job, job_event
from ..status import FINAL, JobStatus
from .control import Acting
from .records import EVERYTHING, Selection, to_event, to_job
from .retrying import repeatable
from .statements import THESE, at, given, giving
from .transitions import MINE, MOST_PARAMETERS, Guard
from .untraced import untraced

PRUNE_BATCH = 1_000
"""Jobs deleted in one transaction: a long one would hold locks and bloat the log."""


class Reading(Acting):
    """The questions."""

    @repeatable
    def job(self, job_id: int, username: str | None = None) -> JobRecord | None:
        """Return a snapshot; None if there is no such job, or it is another user's."""
        with self.door.reading() as connection:
            whose = giving(id=job_id, username=username)
            row = self.execute(connection, _whole(named=username is not None), whose).first()
            return None if row is None else to_job(row)

    @repeatable
    def status(self, job_id: int, username: str | None = None) -> JobStatus | None:
        """Return the status alone; None if there is no such job, or it is another user's."""
        with self.door.reading() as connection:
            whose = giving(id=job_id, username=username)
            status: JobStatus | None = self.execute(
                connection, _status(named=username is not None), whose
            ).scalar()
            return status

    @untraced
    @repeatable
    def unfinished(self, job_ids: Collection[int]) -> set[int]:
        """Return those of these jobs that are there and not final."""
        found: set[int] = set()
        with self.door.reading() as connection:
            if connection.dialect.name == "postgresql":
                # One parameter, so that the statement is the same for any number.
                return set(self.execute(connection, _unfinished(), {"ids": list(job_ids)}).scalars())
            ids = list(job_ids)
            for start in range(0, len(ids), MOST_PARAMETERS):
                these = {"these": ids[start : start + MOST_PARAMETERS]}
                found |= set(self.execute(connection, _UNFINISHED, these).scalars())
        return found

    @repeatable
    def count_by_status(self, selection: Selection = EVERYTHING) -> dict[JobStatus, int]:
        """Return how many jobs of a selection are in each of the nine statuses."""
        counts = dict.fromkeys(JobStatus, 0)
        with self.door.reading() as connection:
            for part in selection.parts(MOST_PARAMETERS):
                counted = select(job.c.status_id, func.count()).where(self.selected(part))
                for status, count in self.execute(connection, counted.group_by(job.c.status_id)):
                    counts[status] += count
        return counts

    @repeatable
    def events(self, job_id: int, username: str | None = None) -> list[Event]:
        """Return a job's moves in their order; empty if there is no such job."""
        statement = (
            select(job_event)
            .join(job, job.c.id == job_event.c.job_id)
            .where(self.mine(job_id, username))
            .order_by(job_event.c.id)
        )
        with self.door.reading() as connection:
            return [to_event(row) for row in self.execute(connection, statement)]

    def prune(self, older_than: timedelta) -> int:
        """Delete the jobs that ended longer ago than that, with their events; return how many.

        Longer ago than that when it begins: it does not follow jobs that end meanwhile.
        """
        pruned, before = self._prune(older_than, None)
        batch = pruned
        while batch:
            batch, before = self._prune(older_than, before)
            pruned += batch
        return pruned

    @repeatable
    def _prune(self, older_than: timedelta, before: datetime | None) -> tuple[int, datetime]:
        with self.door.transaction() as connection:
            if before is None:
                before = self.execute(connection, select(clock(-older_than))).scalar_one()
            over = (
                select(job.c.id)
                .where(
                    job.c.namespace == self.namespace,
                    job.c.status_id.in_(FINAL),
                    job.c.finished < literal(before, job.c.finished.type),
                )
                .limit(PRUNE_BATCH)
                .with_for_update(skip_locked=True)
            )
            ids = self.execute(connection, over).scalars().all()
            if ids:
                self.execute(connection, delete(job_event).where(job_event.c.job_id.in_(ids)))
                self.execute(connection, delete(job).where(job.c.id.in_(ids)))
            return len(ids), before


def _of(named: bool) -> Guard:
    return MINE & (job.c.username == given(job.c.username)) if named else MINE


@cache
def _whole(*, named: bool) -> Any:
    return select(job).where(_of(named))


@cache
def _status(*, named: bool) -> Any:
    return select(job.c.status_id).where(_of(named))


_NOT_FINAL = job.c.status_id.not_in([at(status) for status in sorted(FINAL)])
_UNFINISHED = select(job.c.id).where(THESE, _NOT_FINAL)


@cache
def _unfinished() -> Any:
    ids: BindParameter[Any] = bindparam("ids", type_=ARRAY(BigInteger))
    return select(job.c.id).where(job.c.id == any_(ids), _NOT_FINAL)
