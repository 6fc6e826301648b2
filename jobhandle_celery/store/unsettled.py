"""What a settle reads, in SQL: rows that have ended, and the needs of rows that are blocked."""

from functools import cache
from typing import Any, NamedTuple

from sqlalchemy import (
    ARRAY,
    BigInteger,
    Select,
    Text,
    Update,
    and_,
    any_,
    bindparam,
    case,
    exists,
    false,
    func,
    null,
    or_,
    select,
    update,
)

from ..schema import clock, job, job_need
from ..status import FINAL, JobStatus
from .dependencies import BLOCKED, BY_IDS, DEPENDENT, NEEDED, in_statuses, is_needed_by
from .nodes import PARENT, UNSTARTED_NODE, has_unfinished_child, is_crowded
from .statements import NO_FLUSH, Guard, is_locked_in_order, param, setting, status_literal
from .transitions import OF_NAMESPACE, THIS_JOB, WAS_SENT

_HAS_DEPENDENTS = is_needed_by(DEPENDENT.c.blocked)
_HAS_UNUSUAL_DEPENDENTS = is_needed_by(
    DEPENDENT.c.blocked, or_(DEPENDENT.c.kind.is_not(None), DEPENDENT.c.needs_when == "failed")
)
_UNSTARTED_PARENT = (
    select(PARENT.c.id)
    .where(PARENT.c.id == job.c.parent_id, in_statuses(PARENT.c.status_id, UNSTARTED_NODE))
    .correlate(job)
)
_IS_LAST = and_(job.c.parent_id.is_not(None), ~has_unfinished_child(job.c.parent_id))
_IS_UNSETTLED = and_(OF_NAMESPACE, job.c.unsettled, in_statuses(job.c.status_id, FINAL))

SETTLED: dict[str, Any] = {
    "unsettled": false(),
    "due_at": case(
        (
            and_(
                job.c.status_id == status_literal(JobStatus.CANCELLED),
                WAS_SENT,
                job.c.revoke_reported.is_(False),
            ),
            clock(setting("republish_after")),
        ),
        else_=null(),
    ),
}
"""The columns of a settled row: the sweeper reads it again only if its cancel is to be reported."""


class Ended(NamedTuple):
    """An unsettled row, and what depends on it."""

    id: int
    task_id: str
    attempt: int
    status: JobStatus
    parent_id: int | None
    started: bool
    has_dependents: bool
    has_unusual_dependents: bool
    is_last: bool
    """No sibling is unfinished."""
    parent_is_unstarted: bool
    parent_is_crowded: bool
    """Many siblings wait for a worker, or run, see `nodes.is_crowded`."""
    is_settled: bool = False
    """The statement that has read it has cleared its unsettled flag."""

    @property
    def changes_nothing(self) -> bool:
        """True if no other row changes by its end: the next sibling to end sees that this one has."""
        return not (self.has_dependents or self.is_last or self.parent_is_unstarted)


@cache
def select_ended(which: Guard) -> Select[Any]:
    """Return a select of unsettled rows, for `Ended`."""
    return select(
        job.c.id,
        job.c.task_id,
        job.c.attempt,
        job.c.status_id,
        job.c.parent_id,
        job.c.started.is_not(None).label("started"),
        _HAS_DEPENDENTS.label("has_dependents"),
        _HAS_UNUSUAL_DEPENDENTS.label("has_unusual_dependents"),
        _IS_LAST.label("is_last"),
        exists(_UNSTARTED_PARENT).label("parent_is_unstarted"),
        is_crowded(job.c.parent_id).label("parent_is_crowded"),
    ).where(which, _IS_UNSETTLED)


@cache
def settle_or_select() -> Select[Any]:
    """Return the select of the ended rows `ids`, which settles those by whose end no other row changes.

    Most members of a group end so. For PostgreSQL.
    """
    ids = bindparam("param_ids", type_=ARRAY(BigInteger))
    seen = select_ended(job.c.id == any_(ids)).cte("seen")
    # As this statement has seen it: while it waits for the row, another round of the job may have ended.
    as_seen = and_(job.c.id == seen.c.id, job.c.task_id == seen.c.task_id, job.c.attempt == seen.c.attempt)
    changes_nothing = and_(~seen.c.has_dependents, ~seen.c.is_last, ~seen.c.parent_is_unstarted)
    alone = job.c.id.in_(select(seen.c.id).where(changes_nothing))
    settled = (
        update(job)
        .where(as_seen, changes_nothing, _IS_UNSETTLED, is_locked_in_order(alone), NO_FLUSH)
        .values(**SETTLED)
        .returning(job.c.id)
        .cte("settled")
    )
    return select(seen, seen.c.id.in_(select(settled.c.id)))


@cache
def clear_flag() -> Update:
    """Return the update of a row that is settled, as it was read: a resubmit begins another round."""
    as_read = (THIS_JOB, job.c.task_id == param(job.c.task_id), job.c.attempt == param(job.c.attempt))
    return update(job).where(*as_read, _IS_UNSETTLED).values(**SETTLED)


@cache
def clear_flags() -> Update:
    """Return the update of the settled rows `ids`, with their `task_ids` and `attempts`. For PostgreSQL.

    The commit does not wait for the disk: a lost one costs another settle.
    """
    given = {"ids": job.c.id.type, "task_ids": Text(), "attempts": job.c.attempt.type}
    lists = [bindparam(f"param_{name}", type_=ARRAY(kind)) for name, kind in given.items()]
    read = func.unnest(*lists).table_valued("id", "task_id", "attempt").render_derived(name="read")
    as_read = select(read.c.id).where(
        job.c.id == read.c.id, job.c.task_id == read.c.task_id, job.c.attempt == read.c.attempt
    )
    guards = (exists(as_read.correlate(job)), job.c.id == any_(lists[0]), _IS_UNSETTLED)
    return update(job).where(is_locked_in_order(*guards), NO_FLUSH).values(**SETTLED).returning(job.c.id)


@cache
def select_needs() -> Select[Any]:
    """Return a select of the needs of the blocked rows `ids`; one row without a need if there is none."""
    return (
        select(
            job.c.id,
            job.c.kind,
            job.c.root_id,
            job.c.needs_when,
            job_need.c.needs_id,
            job_need.c.position,
            NEEDED.c.status_id,
            NEEDED.c.needed,
            NEEDED.c.root_id.label("needs_root_id"),
        )
        .select_from(job)
        .outerjoin(job_need, job_need.c.job_id == job.c.id)
        .outerjoin(NEEDED, NEEDED.c.id == job_need.c.needs_id)
        .where(BY_IDS, OF_NAMESPACE, BLOCKED)
        .order_by(job.c.id, job_need.c.needs_id)
    )
