"""What a test kit does to rows that nothing else does: it makes jobs due, ends a lease, reads all trees."""

from collections.abc import Collection
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import and_, literal, or_, select, update

from ..schema import clock, job, job_need, sweep, worker
from ..status import JobStatus
from ..store import Database


@dataclass(frozen=True)
class Place:
    """The place of a job in its tree."""

    parent: int | None
    position: int | None
    """None: a callback, or a root."""
    needs: tuple[tuple[int, int | None], ...]
    """The jobs that it needs, with the places of their results among its arguments."""

    @property
    def order(self) -> tuple[bool, int]:
        """What orders children: by position, callbacks last."""
        return self.position is None, self.position or 0


class Rows:
    """Reads and changes rows of a test's database."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def make_due(
        self, job_ids: Collection[int] | None, *, scheduled: bool, until: datetime | None = None
    ) -> int | None:
        """Make the job due whose time comes next, and return its id; None if there is none.

        Args:
            job_ids: Of these jobs alone; None: of all.
            scheduled: Also of jobs that wait for their time, not of retries alone.
            until: The latest time of such a job; None: any.
        """
        waits = job.c.status_id == JobStatus.WAITING
        if until is not None:
            waits &= job.c.not_before <= literal(until, job.c.not_before.type)
        retries = job.c.status_id == JobStatus.REQUEUED
        which = and_(
            job.c.namespace == self._database.settings.namespace,
            job.c.not_before > clock(),
            or_(retries, waits) if scheduled else retries,
        )
        if job_ids is not None:
            which &= job.c.id.in_(job_ids)
        first = select(job.c.id).where(which).order_by(job.c.not_before, job.c.id).limit(1)
        with self._database.transaction() as db:
            job_id: int | None = db.execute(first).scalar()
            if job_id is not None:
                due = {"not_before": clock(), "due_at": clock()}
                db.execute(update(job).where(job.c.id == job_id).values(due))
            return job_id

    def places(self) -> dict[int, Place]:
        """Return the places of all jobs in their trees, by id."""
        here = job.c.namespace == self._database.settings.namespace
        needed = select(job_need).join(job, job.c.id == job_need.c.job_id).where(here)
        needs: dict[int, list[tuple[int, int | None]]] = {}
        with self._database.transaction() as db:
            for row in db.execute(needed):
                needs.setdefault(row.job_id, []).append((row.needs_id, row.position))
            rows = db.execute(select(job.c.id, job.c.parent_id, job.c.position).where(here)).all()
        return {row.id: Place(row.parent_id, row.position, tuple(needs.get(row.id, ()))) for row in rows}

    def worker_of(self, job_id: int) -> str | None:
        """Return the uid of the worker that runs a job; None if none does."""
        with self._database.autocommit() as db:
            found: str | None = db.execute(select(job.c.worker_uid).where(job.c.id == job_id)).scalar()
            return found

    def end_lease(self, worker_uid: str) -> None:
        """End the lease of a worker, as if passes of the sweeper had found it alive until now."""
        settings = self._database.settings
        lapsed = clock(-settings.lease)
        with self._database.transaction() as db:
            here = sweep.c.namespace == settings.namespace
            passes = {"last_pass_at": clock(), "unbroken_since": lapsed}
            if not db.execute(update(sweep).where(here).values(passes)).rowcount:
                db.insert_if_absent(sweep, {"namespace": settings.namespace, **passes})
            mine = worker.c.worker_uid == worker_uid
            db.execute(update(worker).where(mine).values(lease_until=lapsed))
