"""What a row needs, in SQL: the conditions and the transitions of rows that need others.

A row is blocked until all its needs are met. The statement that changes it reads the rows of its needs: no
counter is kept.
"""

from collections.abc import Collection
from functools import cache
from typing import Any

from sqlalchemy import (
    BindParameter,
    ColumnElement,
    Integer,
    Select,
    String,
    and_,
    bindparam,
    case,
    cast,
    exists,
    false,
    func,
    literal,
    literal_column,
    null,
    or_,
    select,
)

from ..schema import clock, job, job_need, statement_clock
from ..status import FINAL, JobStatus
from .records import MESSAGE_CONTENT
from .statements import MAX_CHANGED, Guard, Transition, param, setting, status_literal
from .transitions import NO_PROCESS, THIS_JOB, WAITING_WITHOUT_TIME, cancelled

ACTOR = "settle"
"""The actor of changes that follow from the end of another job."""

NEEDED = job.alias("needed_job")
DEPENDENT = job.alias("dependent")

_SEEN = job.alias("seen")

BLOCKED = and_(job.c.blocked, WAITING_WITHOUT_TIME)
IS_NODE = job.c.kind.is_not(None)

_ENDS = {
    "finished": frozenset({JobStatus.FINISHED}),
    "ended": FINAL,
    "failed": frozenset({JobStatus.ERROR}),
}
"""The statuses that meet a need, by `needs_when`."""


def in_statuses(column: ColumnElement[Any], statuses: Collection[JobStatus]) -> Guard:
    """Return the condition: the status is one of these."""
    return column.in_([status_literal(status) for status in sorted(statuses, key=lambda status: status.id)])


def is_impossible(when: str | None, status: JobStatus | None) -> bool:
    """Return True if a need in that status (None: deleted) can no longer be met."""
    return when is not None and (status is None or (status.final and status not in _ENDS[when]))


_IS_MET = or_(
    *(and_(job.c.needs_when == when, in_statuses(NEEDED.c.status_id, ends)) for when, ends in _ENDS.items())
)
# A deleted need is unmet, too: the comparison with NULL is not true.
_IS_UNMET = case((_IS_MET, 0), else_=1) == 1


def needs_that(*conditions: Guard) -> Guard:
    """Return the condition: a need of the row passes these conditions on `NEEDED`, NULL if it is deleted."""
    needs = select(job_need.c.job_id).outerjoin(NEEDED, NEEDED.c.id == job_need.c.needs_id)
    return exists(needs.where(job_need.c.job_id == job.c.id, *conditions).correlate(job))


def is_needed_by(*conditions: Guard, row: Any = job) -> Guard:
    """Return the condition: a job that passes these conditions on `DEPENDENT` needs the row."""
    dependents = select(job_need.c.job_id).join(DEPENDENT, DEPENDENT.c.id == job_need.c.job_id)
    return exists(dependents.where(job_need.c.needs_id == row.c.id, *conditions).correlate(row))


HAS_UNMET_NEED = and_(job.c.needs_when.is_not(None), needs_that(NEEDED.c.id.is_not(None), _IS_UNMET))
"""A need is not met. A deleted need does not count: it was met before it was deleted."""

ALL_MET = ~needs_that(_IS_UNMET)

SAME_ROUND = job.c.task_id == (
    select(_SEEN.c.task_id).where(_SEEN.c.id == job.c.id).correlate(job).scalar_subquery()
)
"""The row is of the same round as when the statement began.

While the statement waits for the lock of the row, the tree may end and be resubmitted. PostgreSQL then reads
this row anew, but the other rows as they were when the statement began.
"""

BY_NEED = and_(
    job.c.id.in_(select(job_need.c.job_id).where(job_need.c.needs_id == param(job_need.c.needs_id))),
    job.c.id > param(job.c.id, "after_id"),
)
"""The guard: the rows that need the job `needs_id`, in the order of their ids those after `after_id`."""
_IDS: BindParameter[Any] = bindparam("param_ids", expanding=True)
BY_IDS = job.c.id.in_(_IDS)
"""The guard: the rows `ids`."""

MANY: dict[str, Any] = {"many": True, "most": MAX_CHANGED}
"""Any number of rows may depend on one."""


@cache
def make_ready(which: Guard) -> Transition:
    """Return the transition of blocked tasks whose needs are all met: their countdowns begin."""
    has_countdown = job.c.countdown > 0
    # The clock at the start of the statement: all columns must agree whether the time lies ahead.
    is_ahead = job.c.scheduled_for > statement_clock()
    start = case((has_countdown, clock(job.c.countdown)), (is_ahead, job.c.scheduled_for), else_=null())
    expires = case((job.c.expires_in.is_not(None), clock(job.c.expires_in)), else_=job.c.expires)
    later = or_(has_countdown, is_ahead)
    return Transition(
        which,
        BLOCKED,
        ~IS_NODE,
        ALL_MET,
        SAME_ROUND,
        to={
            "blocked": false(),
            "status_id": case(
                (later, status_literal(JobStatus.WAITING)), else_=status_literal(JobStatus.SUBMITTED)
            ),
            "not_before": start,
            "expires": expires,
            "due_at": case(
                (and_(later, expires < start), expires),
                (later, start),
                else_=clock(setting("publish_grace")),
            ),
        },
        reason="what it needs has ended",
        actor=ACTOR,
        flush=False,
        also=MESSAGE_CONTENT,
        **MANY,
    )


@cache
def cancel_dependents(status: JobStatus | None) -> Transition:
    """Return the transition of blocked rows that need the job `needs_id`, which is in that status.

    A status of None: it is deleted. The statement checks the status: the job may have been resubmitted
    meanwhile.
    """
    whens = [when for when in _ENDS if is_impossible(when, status)]
    need = select(NEEDED.c.id).where(NEEDED.c.id == param(job_need.c.needs_id))
    if status is not None:
        need = need.where(NEEDED.c.status_id == status_literal(status))
    return Transition(
        BY_NEED,
        BLOCKED,
        job.c.needs_when.in_(whens),
        ~exists(need) if status is None else exists(need),
        SAME_ROUND,
        to=cancelled(setting("republish_after"), message=param(job.c.message), **NO_PROCESS),
        reason=param(job.c.message),
        actor=ACTOR,
        **MANY,
    )


MAX_LEVELS = 500
"""How far `select_unstartable` looks. MariaDB reads all of it, whatever the LIMIT is."""


@cache
def select_unstartable(limit: int) -> Select[Any]:
    """Return a select of rows that can no longer start because the rows `ids` are Cancelled.

    Those that need these, those that need them in turn, and so on, each with its need. What is beyond the
    limits is found when the last of these are settled.
    """
    in_turn = and_(
        DEPENDENT.c.blocked,
        DEPENDENT.c.status_id == status_literal(JobStatus.WAITING),
        DEPENDENT.c.needs_when.in_([when for when in _ENDS if is_impossible(when, JobStatus.CANCELLED)]),
    )
    pairs = select(job_need.c.job_id, job_need.c.needs_id)
    pairs = pairs.join(DEPENDENT, DEPENDENT.c.id == job_need.c.job_id).where(in_turn)
    unstartable = (
        pairs.add_columns(literal_column("1", Integer).label("level"))
        .join(NEEDED, NEEDED.c.id == job_need.c.needs_id)
        .where(job_need.c.needs_id.in_(_IDS), in_statuses(NEEDED.c.status_id, {JobStatus.CANCELLED}))
        .cte("unstartable", recursive=True)
    )
    unstartable = unstartable.union(
        pairs.add_columns(unstartable.c.level + literal_column("1", Integer))
        .join(unstartable, unstartable.c.job_id == job_need.c.needs_id)
        .where(unstartable.c.level < literal_column(str(MAX_LEVELS), Integer))
    )
    return select(unstartable.c.job_id, unstartable.c.needs_id).limit(limit)


@cache
def cancel_unstartable() -> Transition:
    """Return the transition of blocked rows `ids`, each of which needs one of the rows `needs`.

    These are Cancelled, or become so by the same transition.
    """
    need = select(func.min(job_need.c.needs_id)).where(
        job_need.c.job_id == job.c.id, job_need.c.needs_id.in_(bindparam("param_needs", expanding=True))
    )
    before, after = why_cancelled(0, JobStatus.CANCELLED).split("0")
    message = literal(before, String).concat(cast(need.correlate(job).scalar_subquery(), String(20)))
    return Transition(
        BY_IDS,
        BLOCKED,
        to=cancelled(setting("republish_after"), message=message.concat(after), **NO_PROCESS),
        reason=job.c.message,
        actor=ACTOR,
    )


@cache
def select_failed_need() -> Select[Any]:
    """Return a select of a need of the job `id` that has ended otherwise than it must."""
    ended = in_statuses(NEEDED.c.status_id, FINAL)
    needs = select(NEEDED.c.id, NEEDED.c.status_id).select_from(job)
    needs = needs.join(job_need, job_need.c.job_id == job.c.id)
    needs = needs.join(NEEDED, NEEDED.c.id == job_need.c.needs_id)
    return needs.where(THIS_JOB, job.c.needs_when.is_not(None), ended, _IS_UNMET).limit(1)


def why_cancelled(needs_id: int, status: JobStatus | None) -> str:
    """Return the message of a job that is cancelled because of a need in that status (None: deleted)."""
    match status:
        case None:
            return f"needs job {needs_id}, which was deleted"
        case JobStatus.FINISHED:
            return f"needs job {needs_id} to fail, which has finished"
        case _:
            return f"needs job {needs_id}, which ended in {status}"
