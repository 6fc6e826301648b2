"""Lists of jobs, page by page, whose cost does not grow with the number of finished jobs.

A page is read from the index of namespace, status and id, one status at a time; a user's from the index of
users. No index has the task's name: such a list reads a bounded number of ids, and returns where to go on. No
index has the time of submission; but ids rise with it, but for `MARGIN`, so the first id of a period is found
by bisection.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import Row, and_, func, select, union_all

from ..models import JobRecord
from ..schema import clock, job
from ..status import JobStatus
from .database import Database
from .executors import MAX_PARAMETERS, Executor
from .records import Selection
from .retrying import retry_on_disconnect
from .snapshots import to_jobs
from .statements import Guard
from .transitions import selected

STRIDE = 100_000
"""Ids read by one statement where no index helps."""

MARGIN = timedelta(minutes=5)
"""How much earlier a job may have been submitted than one with a lower id, as after a change of the clock."""

LOOKED_THROUGH = 1_000_000
"""Ids read for one page where no index helps."""


@dataclass(frozen=True)
class Page:
    """Jobs, newest first."""

    jobs: list[JobRecord]
    before: int | None
    """The `before` of the next page; None if there is none."""


class Pages:
    """Lists of jobs, newest first."""

    def __init__(self, database: Database) -> None:
        self._database = database

    @retry_on_disconnect
    def find(
        self, selection: Selection, before: int | None, limit: int, *, of_ended: bool = False
    ) -> list[JobRecord]:
        """Return the newest jobs of a selection, those with an id below `before` if it is given.

        With `of_ended`, also the progress of nodes that have ended.
        """
        found: list[Row[Any]] = []
        with self._database.autocommit() as db:
            selection, after, before = _narrow(db, selection, before)
            for part in selection.parts(MAX_PARAMETERS):
                found += _newest_by_id(db, part, after, before, limit)
            newest = sorted(found, key=lambda row: row.id, reverse=True)[:limit]
            return to_jobs(db, newest, of_ended=of_ended)

    @retry_on_disconnect
    def ids(self, selection: Selection) -> list[int]:
        """Return all ids of a selection without ids, newest first."""
        with self._database.autocommit() as db:
            selection, after, before = _narrow(db, selection, None)
            narrowed = select(job.c.id).where(selected(selection), _between(after, before))
            return list(db.execute(narrowed.order_by(job.c.id.desc())).scalars())

    @retry_on_disconnect
    def page(self, selection: Selection, before: int | None, limit: int) -> Page:
        """Return the newest jobs of a selection without ids, and where the next page begins.

        A job whose status changes meanwhile is listed once.
        """
        with self._database.autocommit() as db:
            selection, after, before = _narrow(db, selection, before)
            if selection.username is not None or selection.root is not None:
                return _page(db, _newest_by_id(db, selection, after, before, limit + 1), limit, None)
            if selection.task is None and selection.groupname is None:
                return _page(db, _newest_by_status(db, selection, after, before, limit + 1), limit, None)
            return _look_through(db, selection, after, before, limit)


def _look_through(db: Executor, selection: Selection, after: int, before: int | None, limit: int) -> Page:
    found: list[Row[Any]] = []
    looked = 0
    while True:
        newest = _newest_id(db, before)
        if newest is None or newest <= after:
            return _page(db, found, limit, None)
        floor = max(newest - STRIDE, after)
        found += _newest_by_status(db, selection, floor, newest + 1, limit + 1 - len(found))
        looked += STRIDE
        before = floor + 1
        if len(found) > limit or looked >= LOOKED_THROUGH:
            further = _newest_id(db, before)
            return _page(db, found, limit, before if further and further > after else None)


def _newest_id(db: Executor, before: int | None) -> int | None:
    newest = select(func.max(job.c.id))
    if before is not None:
        newest = newest.where(job.c.id < before)
    found: int | None = db.execute(newest).scalar()
    return found


def _newest_by_status(
    db: Executor, selection: Selection, after: int, before: int | None, limit: int
) -> list[Row[Any]]:
    # Each status is a range of the index, read from its end; one statement reads one snapshot.
    ranges = [
        select(job.c.id)
        .where(selected(replace(selection, statuses=(status,))), _between(after, before))
        .order_by(job.c.id.desc())
        .limit(limit)
        .subquery()
        for status in selection.statuses or tuple(JobStatus)
    ]
    newest = union_all(*(select(status_range.c.id) for status_range in ranges)).subquery()
    statement = select(job).join(newest, newest.c.id == job.c.id).order_by(job.c.id.desc()).limit(limit)
    return list(db.execute(statement))


def _newest_by_id(
    db: Executor, selection: Selection, after: int, before: int | None, limit: int
) -> list[Row[Any]]:
    fits = select(job).where(selected(selection), _between(after, before))
    # A tree is small, and its members are found by their index: a planner that expects many of them reads all
    # jobs in the order of their ids instead, unless that order needs a sort in either case.
    order = job.c.id if selection.root is None else job.c.id + 0
    return list(db.execute(fits.order_by(order.desc()).limit(limit)))


def _between(after: int, before: int | None) -> Guard:
    # `after` also where it is 0: without statistics, SQLite prefers the index of users only so.
    return job.c.id > after if before is None else and_(job.c.id > after, job.c.id < before)


def _narrow(db: Executor, selection: Selection, before: int | None) -> tuple[Selection, int, int | None]:
    """Return a selection whose times are moments, and the ids after and before which it has no job."""
    since, until, after = selection.since, selection.until, 0
    if since is not None:
        since = moment(db, since)
        after = max(first_since(db, job.c.id, job.c.submitted, _moved(since, -MARGIN)) - 1, 0)
    if until is not None:
        until = moment(db, until)
        first = first_since(db, job.c.id, job.c.submitted, _moved(until, MARGIN))
        before = first if before is None else min(before, first)
    return replace(selection, since=since, until=until), after, before


def _moved(moment: datetime, by: timedelta) -> datetime:
    try:
        return moment + by
    except OverflowError:  # at an end of the calendar
        return moment


def moment(db: Executor, ago: datetime | timedelta) -> datetime:
    """Return a moment, or the one that long ago by the database's clock."""
    if isinstance(ago, datetime):
        return ago
    moment: datetime = db.execute(select(clock(-ago))).scalar_one()
    return moment


def first_since(db: Executor, ids: Any, moments: Any, since: datetime) -> int:
    """Return the first id whose moment is not before `since`, in a table whose moments rise with its ids.

    One above the last id if all moments are before it. Ids of the same instant may be in either order, so the
    caller compares the moments too.
    """
    low = db.execute(select(func.min(ids))).scalar()
    high = db.execute(select(func.max(ids))).scalar()
    if low is None or high is None:
        return 0
    high += 1
    while low < high:
        middle = (low + high) // 2
        row = db.execute(select(ids, moments).where(ids >= middle).order_by(ids).limit(1)).first()
        if row is not None and row[1] < since:
            low = row[0] + 1
        else:
            high = middle
    return int(low)


def recent(db: Executor, ids: Any, moments: Any, last: timedelta) -> Guard:
    """Return the condition of the rows of such a table that are not older than that."""
    since = moment(db, last)
    return and_(ids >= first_since(db, ids, moments, since), moments >= since)


def _page(db: Executor, rows: Sequence[Row[Any]], limit: int, further: int | None) -> Page:
    jobs = to_jobs(db, rows[:limit], of_ended=True)
    return Page(jobs, jobs[-1].id if len(rows) > limit else further)
