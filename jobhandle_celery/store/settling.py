"""Settling: how the end of a job changes the jobs that depend on it, and its parent.

Whether a job is ready is queried, and never counted. Each statement is idempotent, and committed by itself
after the commit of the end: if two needs end at the same instant, the second settle sees both ends. The row
that has ended keeps its unsettled flag (`transitions.final`) until the last statement, so that the sweeper
settles it if this process dies.
"""

import math
import time
from collections.abc import Sequence
from datetime import datetime
from operator import attrgetter
from typing import Any, NamedTuple

from sqlalchemy import Row, or_, select, update

from ..batching import slices
from ..schema import clock, job
from ..status import FINAL, JobStatus
from .adoption import adopt, is_adopting, unblock
from .database import Database
from .dependencies import (
    ACTOR,
    BLOCKED,
    BY_IDS,
    BY_NEED,
    cancel_dependents,
    cancel_unstartable,
    is_impossible,
    make_ready,
    select_unstartable,
    why_cancelled,
)
from .executors import MAX_PARAMETERS
from .nodes import (
    UNSTARTED_NODE,
    end_by_child,
    finish_empty,
    select_deciding_child,
    select_parent,
    start_node,
)
from .records import PendingMessage, message_of
from .retrying import retry_on_disconnect
from .statements import Transition, params, select_unlocked, setting
from .transitions import due_since
from .unsettled import Ended, clear_flag, clear_flags, select_ended, select_needs, settle_or_select

CALM = 0.05
"""Seconds for which a node counts as crowded once it was seen so, unless a caller asks for another time."""

MAX_REMEMBERED = 1_000
"""Nodes of which a process remembers that."""


class Due(NamedTuple):
    """Rows that a process did not settle or arm, because it died or lost its connection."""

    ended: list[int]
    """To settle."""
    blocked: list[int]
    """To arm."""


class Settling:
    """What is done once a job has ended, and once a job that needs others is committed."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._crowded_at: dict[int, float] = {}
        """When nodes were seen crowded last, by the monotonic clock."""

    def settle(self, job_ids: Sequence[int]) -> list[PendingMessage]:
        """Settle jobs that have ended; return the messages of those that may start, which are reserved.

        Rows that this ends are settled in a further call, see `Database.on_unsettled`. Who may have been
        there first: another settle of the same row, or a resubmit, which has cleared the unsettled flag.
        """
        ready: list[PendingMessage] = []
        for part in slices(job_ids, MAX_PARAMETERS):
            ended = self._read_ended(part)
            self._note_crowds(ended)
            for row in ended:
                if row.has_dependents:
                    ready += self._settle_dependents(row)
                if row.parent_is_unstarted and row.started:
                    self.start_ancestors(row.id, ACTOR)
            last = (row.parent_id for row in ended if row.parent_id is not None and row.is_last)
            for node_id in dict.fromkeys(last):
                self._end_node(node_id)
            if unsettled := [row for row in ended if not row.is_settled]:
                self._clear_flags(unsettled)
        return ready

    def is_crowded(self, node_id: int, within: float | None = None) -> bool:
        """Return True if many children of a node were unfinished a moment ago, by what a settle has read.

        Then that of a child that ends may wait for as long, for that of the next one: it changes no other
        row, unless so many end in that time. `within` is the length of the moment in seconds, `CALM` if None.
        """
        seen = self._crowded_at.get(node_id, -math.inf)
        return time.monotonic() - seen < (CALM if within is None else within)

    def _note_crowds(self, ended: Sequence[Ended]) -> None:
        nodes = {row.parent_id for row in ended if row.parent_is_crowded and row.changes_nothing}
        if nodes:
            if len(self._crowded_at) >= MAX_REMEMBERED:
                self._crowded_at.clear()
            self._crowded_at |= dict.fromkeys(filter(None, nodes), time.monotonic())

    @retry_on_disconnect
    def _read_ended(self, job_ids: Sequence[int]) -> list[Ended]:
        """Return what depends on each; on PostgreSQL, rows on which nothing depends are settled at once."""
        rows = self._database.execute_directly(settle_or_select(), params(ids=list(job_ids)))
        if rows is not None:
            return [Ended(*row)._replace(status=JobStatus.from_id(row[3])) for row in rows]
        with self._database.autocommit() as db:
            return [Ended(*row) for row in db.execute(select_ended(BY_IDS), params(ids=job_ids))]

    def _settle_dependents(self, row: Ended) -> list[PendingMessage]:
        ready = _messages(self._apply_to_dependents(make_ready(BY_NEED), row.id))
        if row.has_unusual_dependents or row.status is not JobStatus.FINISHED:
            self._apply_to_dependents(finish_empty(BY_NEED), row.id)
            self._cancel_dependents(row.id, row.status)
        return ready

    def _apply_to_dependents(
        self, transition: Transition, needs_id: int, **values: Any
    ) -> Sequence[Row[Any]]:
        """Apply a transition of rows by `BY_NEED`, some thousand at a time; return the changed rows."""
        changed: list[Row[Any]] = []
        after_id = 0
        while True:
            rows = self._apply(transition, needs_id=needs_id, after_id=after_id, **values)
            changed += sorted(rows, key=attrgetter("id"))
            if transition.most is None or len(rows) < transition.most:
                return changed
            after_id = changed[-1].id

    def _cancel_dependents(self, needs_id: int, status: JobStatus | None) -> None:
        message = why_cancelled(needs_id, status)
        changed = self._apply_to_dependents(cancel_dependents(status), needs_id, message=message)
        if 0 < len(changed) <= MAX_PARAMETERS:
            # Else each of them is settled by itself: mostly nothing depends on so many.
            self._cancel_unstartable([row.id for row in changed])

    def _cancel_unstartable(self, job_ids: Sequence[int]) -> None:
        """Cancel what needs these cancelled rows, what needs that in turn, and so on, at once.

        Else each step of a long chain would be settled for the next one to be cancelled. Who may have been
        there first: another settle, a cancel, or a resubmit of one of these rows, also while this waits for
        locks. So the rows are looked up again once they are locked.
        """
        unstartable = select_unstartable(MAX_PARAMETERS)
        if not self._read(unstartable, ids=job_ids):
            return
        self._cancel_unstartable_locked(unstartable, job_ids)

    @retry_on_disconnect
    def _cancel_unstartable_locked(self, unstartable: Any, job_ids: Sequence[int]) -> None:
        with self._database.transaction() as db:
            db.begin_writing()
            found = db.execute(unstartable, params(ids=job_ids)).all()
            locked = sorted({row.job_id for row in found})
            db.lock_in_order(job.c.id.in_(locked), BLOCKED)
            needs: dict[int, int] = {}
            for row in db.execute(unstartable, params(ids=job_ids)):
                # In the order in which they are found: what a row needs comes before it.
                if row.job_id in locked and (row.needs_id in job_ids or row.needs_id in needs):
                    needs.setdefault(row.job_id, row.needs_id)
            if needs:
                db.apply(cancel_unstartable(), ids=sorted(needs), needs=sorted(set(needs.values())))

    def _end_node(self, node_id: int) -> None:
        """End a node whose children are all final.

        Who may have been there first: the settle of another child, or a resubmit.
        """
        children = self._read(select_deciding_child(), id=node_id)
        transition, values = end_by_child(children[0] if children else None)
        self._apply(transition, id=node_id, **values)

    @retry_on_disconnect
    def _clear_flags(self, ended: Sequence[Ended]) -> None:
        """Clear the unsettled flags of rows that are as they were read: a resubmit begins another round."""
        ids, task_ids, attempts = ([getattr(row, name) for row in ended] for name in Ended._fields[:3])
        rows = params(ids=ids, task_ids=task_ids, attempts=attempts)
        if self._database.execute_directly(clear_flags(), rows) is not None:
            return
        with self._database.single_statement() as db:
            each = [params(id=row.id, task_id=row.task_id, attempt=row.attempt) for row in sorted(ended)]
            db.execute(clear_flag(), [db.settings | row for row in each])

    def start_ancestors(self, job_id: int, actor: str) -> None:
        """Make all nodes above a job Running, because it was started; those that are Running already stay.

        Who may have been there first: the start of another member.
        """
        while above := self._read(select_parent(), id=job_id):
            (node,) = above
            if node.status_id in UNSTARTED_NODE:
                self._apply(start_node(), id=node.id, actor=actor)
            job_id = node.id

    # Rows that need existing jobs, and nodes without members.

    def arm(self, job_ids: Sequence[int]) -> list[int]:
        """Arm blocked rows that are committed: from now on, the ends of jobs that they need are settled.

        Return the ids of those that may be published. Who may have been there first: another call for the
        same rows.

        An existing job would end without an unsettled flag: its row does not show that another job needs it.
        So the needed flag of the row is set first, and then the needs are checked: an end either sees the
        flag, or is seen by the check. The needed flag of a member of another tree is set even if it is set
        already, for the lock: the cancel of that tree locks its rows before it looks for jobs that need them.
        A row that is locked is not waited for; the sweeper tries again.
        """
        ready: list[int] = []
        for part in slices(job_ids, MAX_PARAMETERS):
            ready += self._arm(part)
        return ready

    def _arm(self, job_ids: Sequence[int]) -> list[int]:
        needs = self._read(select_needs(), ids=job_ids)
        adopting = [row for row in needs if is_adopting(row)]
        self._adopt(adopting)
        unflagged = sorted({row.needs_id for row in needs if _lacks_needed_flag(row)})
        flagged = self._flag_needed(unflagged) if unflagged else set()
        if unflagged:
            needs = self._read(select_needs(), ids=job_ids)
        ready = [message.job_id for message in _messages(self._apply(make_ready(BY_IDS), ids=job_ids))]
        if any(row.kind is not None for row in needs):
            self._apply(finish_empty(BY_IDS), ids=job_ids)
        for needs_id, status in dict.fromkeys(
            (row.needs_id, row.status_id)
            for row in needs
            if row.needs_id is not None and is_impossible(row.needs_when, row.status_id)
        ):
            self._cancel_dependents(needs_id, status)
        later = {row.id for row in needs if _lacks_needed_flag(row) and row.needs_id not in flagged}
        self._rest([row_id for row_id in dict.fromkeys(row.id for row in needs) if row_id not in later])
        return ready

    @retry_on_disconnect
    def _flag_needed(self, job_ids: Sequence[int]) -> set[int]:
        """Set the needed flag of rows that are neither final nor locked; return their ids."""
        flagged: set[int] = set()
        with self._database.transaction() as db:
            for part in slices(job_ids, MAX_PARAMETERS):
                these = job.c.id.in_(part)
                unlocked = select_unlocked(these, job.c.status_id.not_in(FINAL))
                if free := db.execute(unlocked).scalars().all():
                    db.execute(update(job).where(job.c.id.in_(free)).values(needed=True))
                    flagged.update(free)
        return flagged

    @retry_on_disconnect
    def _rest(self, job_ids: Sequence[int]) -> None:
        """Make rows that are still blocked due when they expire."""
        if job_ids:
            with self._database.single_statement() as db:
                db.execute(update(job).where(job.c.id.in_(job_ids), BLOCKED).values(due_at=job.c.expires))

    def _adopt(self, adopting: Sequence[Row[Any]]) -> None:
        """Make existing jobs children of nodes, because they have the unique keys of members."""
        for row in adopting:
            self._adopt_one(row)
        for node_id in dict.fromkeys(row.id for row in adopting):
            self._end_node(node_id)
            self._unblock(node_id)

    @retry_on_disconnect
    def _adopt_one(self, row: Row[Any]) -> None:
        with self._database.transaction() as db:
            adopt(db, row)

    @retry_on_disconnect
    def _unblock(self, node_id: int) -> None:
        with self._database.single_statement() as db:
            unblock(db, node_id)

    # The sweep's part.

    @retry_on_disconnect
    def reserve_unsettled(self, limit: int, since: datetime | None = None) -> Due:
        """Reserve rows for the publish grace: those to settle, and those to arm.

        The process that ended or inserted them has died, or lost its connection, before it could do so. Who
        may have been there first: another pass, whose rows are skipped.
        """
        due = (
            select(job.c.id, job.c.unsettled)
            .where(due_since(since), or_(job.c.unsettled, BLOCKED))
            .order_by(job.c.due_at)
            .limit(limit)
        )
        with self._database.transaction() as db:
            rows = db.reschedule(due, clock(setting("publish_grace")))
        return Due([row.id for row in rows if row.unsettled], [row.id for row in rows if not row.unsettled])

    # Statements that are committed by themselves.

    @retry_on_disconnect
    def _read(self, /, statement: Any, **values: Any) -> Sequence[Row[Any]]:
        with self._database.autocommit() as db:
            rows: Sequence[Row[Any]] = db.execute(statement, params(**values)).all()
            return rows

    @retry_on_disconnect
    def _apply(self, /, transition: Transition, **values: Any) -> Sequence[Row[Any]]:
        with self._database.single_statement() as db:
            return db.apply(transition, **values)


def _lacks_needed_flag(row: Row[Any]) -> bool:
    unfinished = row.status_id is not None and not row.status_id.final
    of_another_tree = row.needs_root_id not in (None, row.root_id)
    return unfinished and (not row.needed or of_another_tree) and not is_adopting(row)


def _messages(rows: Sequence[Row[Any]]) -> list[PendingMessage]:
    """Return the messages of rows that became ready, except of those that wait for their time."""
    return [message_of(row) for row in rows if row.status_id is JobStatus.SUBMITTED]
