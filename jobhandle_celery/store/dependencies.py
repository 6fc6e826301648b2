"""What depends on what, in SQL: the conditions and the transitions of rows that need others, and of nodes.

A row that needs others is blocked until its needs are met. Whether they are is read from their rows in the
statement that changes it, and never counted.
"""

from collections.abc import Collection
from functools import cache
from typing import Any, NamedTuple

from sqlalchemy import (
    ColumnElement,
    Integer,
    Select,
    Update,
    and_,
    bindparam,
    case,
    exists,
    false,
    literal_column,
    null,
    or_,
    select,
    tuple_,
    update,
)

from ..models import Failure
from ..schema import clock, job, job_event, job_need, statement_clock
from ..serialization import clip_message
from ..status import FINAL, UNFINISHED, JobStatus
from .records import MESSAGE_CONTENT, encode_failure
from .statements import NAMESPACE, NO_FLUSH, Guard, Transition, param, setting, status_literal
from .transitions import HELD, MINE, NO_PROCESS, WAS_SENT, cancelled, final

ACTOR = "service"
"""The actor of what follows from the end of another job."""

NEEDED = job.alias("needed_job")
CHILD = job.alias("child")
DEPENDENT = job.alias("dependent")
PARENT = job.alias("parent")

_SEEN = job.alias("seen")

BLOCKED = and_(job.c.blocked, HELD)
IS_NODE = job.c.kind.is_not(None)
UNSTARTED_NODE = (JobStatus.SUBMITTED, JobStatus.RESUBMITTED)

_ENDS = {
    "finished": frozenset({JobStatus.FINISHED}),
    "ended": FINAL,
    "failed": frozenset({JobStatus.ERROR}),
}
"""By `needs_when`, the statuses with which a need is met."""


def in_statuses(column: ColumnElement[Any], statuses: Collection[JobStatus]) -> Guard:
    """Return the condition: the status is one of these."""
    return column.in_([status_literal(status) for status in sorted(statuses, key=lambda status: status.id)])


def is_impossible(when: str | None, status: JobStatus | None) -> bool:
    """Return True if a need in that status (None: it is deleted) can no longer be met."""
    return when is not None and (status is None or (status.final and status not in _ENDS[when]))


_IS_MET = or_(
    *(and_(job.c.needs_when == when, in_statuses(NEEDED.c.status_id, ends)) for when, ends in _ENDS.items())
)
_NEEDS = select(job_need.c.job_id).outerjoin(NEEDED, NEEDED.c.id == job_need.c.needs_id)
_UNMET = _NEEDS.where(
    job_need.c.job_id == job.c.id, NEEDED.c.id.is_not(None), case((_IS_MET, 0), else_=1) == 1
).correlate(job)
HAS_UNMET_NEED = and_(job.c.needs_when.is_not(None), exists(_UNMET))
"""A need is not met. One that is deleted does not count: it has been met before."""

_ALL_MET = ~exists(
    # A comparison with NULL, of a need that is deleted, does not count as met.
    _NEEDS.where(job_need.c.job_id == job.c.id, case((_IS_MET, 0), else_=1) == 1).correlate(job)
)

_AS_SEEN = job.c.task_id == (
    select(_SEEN.c.task_id).where(_SEEN.c.id == job.c.id).correlate(job).scalar_subquery()
)
"""The row is of the round that the statement has seen at its start, as the other rows that it reads are.

While it waits for the row, the tree may end and be resubmitted. PostgreSQL then reads the row again, and the
others as they were.
"""

BY_NEED = job.c.id.in_(select(job_need.c.job_id).where(job_need.c.needs_id == param(job_need.c.needs_id)))
"""The guard: the rows that need the job `needs_id`."""
BY_IDS = job.c.id.in_(bindparam("param_ids", expanding=True))
"""The guard: the rows `ids`."""


@cache
def make_ready(which: Guard) -> Transition:
    """Return the transition of blocked tasks whose needs are all met: their times begin."""
    has_countdown = job.c.countdown > 0
    # The clock of the statement: the columns must not disagree about whether the time lies ahead.
    is_ahead = job.c.scheduled_for > statement_clock()
    start = case((has_countdown, clock(job.c.countdown)), (is_ahead, job.c.scheduled_for), else_=null())
    expires = case((job.c.expires_in.is_not(None), clock(job.c.expires_in)), else_=job.c.expires)
    later = or_(has_countdown, is_ahead)
    return Transition(
        which,
        BLOCKED,
        ~IS_NODE,
        _ALL_MET,
        _AS_SEEN,
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
    )


@cache
def finish_empty(which: Guard) -> Transition:
    """Return the transition of blocked nodes without members whose needs, if any, are all met."""
    no_child = ~exists(select(CHILD.c.id).where(CHILD.c.parent_id == job.c.id).correlate(job))
    to = final(JobStatus.FINISHED)
    guards = (which, BLOCKED, IS_NODE, _ALL_MET, no_child, _AS_SEEN)
    return Transition(*guards, to=to, reason="no members", actor=ACTOR)


@cache
def cancel_dependents(status: JobStatus | None) -> Transition:
    """Return the transition of blocked rows that need the job `needs_id`, which is in that status.

    None: it is deleted. The statement reads the status again: the job may have been resubmitted meanwhile.
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
        _AS_SEEN,
        to=cancelled(setting("republish_after"), message=param(job.c.message), **NO_PROCESS),
        reason=param(job.c.message),
        actor=ACTOR,
    )


@cache
def select_lost_need() -> Select[Any]:
    """Return a select of a need of the job `id` that has ended, and not as it must have."""
    ended = in_statuses(NEEDED.c.status_id, FINAL)
    lost = (
        select(NEEDED.c.id, NEEDED.c.status_id).select_from(job).join(job_need, job_need.c.job_id == job.c.id)
    )
    lost = lost.join(NEEDED, NEEDED.c.id == job_need.c.needs_id)
    return lost.where(MINE, job.c.needs_when.is_not(None), ended, case((_IS_MET, 0), else_=1) == 1).limit(1)


def why_cancelled(needs_id: int, status: JobStatus | None) -> str:
    """Return the message of a job that is cancelled because of such a need."""
    match status:
        case None:
            return f"needs job {needs_id}, which was deleted"
        case JobStatus.FINISHED:
            return f"needs job {needs_id} to fail, which has finished"
        case _:
            return f"needs job {needs_id}, which ended in {status}"


# Nodes.


@cache
def select_parent() -> Select[Any]:
    """Return a select of the node above the job `id`."""
    above = select(PARENT.c.id, PARENT.c.status_id).join(CHILD, CHILD.c.parent_id == PARENT.c.id)
    return above.where(CHILD.c.id == param(job.c.id))


@cache
def start_node() -> Transition:
    """Return the transition of the node `id`, of which the first member was started."""
    return Transition(
        MINE,
        IS_NODE,
        in_statuses(job.c.status_id, UNSTARTED_NODE),
        to={"status_id": status_literal(JobStatus.RUNNING), "started": clock()},
        reason="a member was started",
        actor=param(job_event.c.actor),
    )


def _has_unfinished_child(node_id: ColumnElement[Any]) -> Guard:
    """Return the condition: a child of the node is not final; however many children there are.

    Each range of statuses is read in the order of the index. The planner of PostgreSQL may believe that so
    many rows are children that it reads the table; but it sorts none to find the first.
    """
    ids = sorted(status.id for status in UNFINISHED)
    firsts = [literal_column(str(number), Integer) for number in ids if number - 1 not in ids]
    lasts = [literal_column(str(number), Integer) for number in ids if number + 1 not in ids]
    found = [
        select(CHILD.c.status_id)
        .where(
            CHILD.c.parent_id == node_id,
            CHILD.c.status_id.between(first, last),
        )
        .order_by(CHILD.c.status_id)
        .limit(1)
        .correlate(job)
        .scalar_subquery()
        for first, last in zip(firsts, lasts, strict=True)
    ]
    return or_(*(status.is_not(None) for status in found))


_CHILDREN = select(CHILD.c.id).where(CHILD.c.parent_id == job.c.id).correlate(job)
COUNTING_CHILDREN = _CHILDREN.where(CHILD.c.position.is_not(None))
NO_UNFINISHED_CHILD = ~_has_unfinished_child(job.c.id)
_ALL_ADOPTED = ~exists(
    select(job_need.c.job_id)
    .join(NEEDED, NEEDED.c.id == job_need.c.needs_id)
    .where(
        job_need.c.job_id == job.c.id,
        or_(NEEDED.c.parent_id.is_(None), NEEDED.c.parent_id != job.c.id),
    )
    .correlate(job)
)
"""Jobs that become members by their unique keys have become children, see `Settling.arm`."""


@cache
def end_node(outcome: JobStatus) -> Transition:
    """Return the transition of a node `id` whose children are all final.

    Error and Cancelled are those of the child `child_id`; the statement reads the children again.
    """
    named = COUNTING_CHILDREN.where(CHILD.c.id == param(CHILD.c.id, "child_id"))
    failed, stopped = (
        COUNTING_CHILDREN.where(CHILD.c.status_id == status_literal(status))
        for status in (JobStatus.ERROR, JobStatus.CANCELLED)
    )
    guards: list[Guard]
    columns: dict[str, Any] = {}
    match outcome:
        case JobStatus.ERROR:
            guards = [exists(named.where(CHILD.c.status_id == status_literal(JobStatus.ERROR)))]
            columns = {"error": param(job.c.error), "message": param(job.c.message)}
        case JobStatus.CANCELLED:
            guards = [exists(named.where(CHILD.c.status_id == status_literal(outcome))), ~exists(failed)]
            columns = {"message": param(job.c.message)}
        case _:
            guards = [~exists(failed), ~exists(stopped)]
    return Transition(
        MINE,
        IS_NODE,
        in_statuses(job.c.status_id, UNFINISHED),
        NO_UNFINISHED_CHILD,
        _ALL_ADOPTED,
        *guards,
        _AS_SEEN,
        to=final(outcome, **columns),
        reason=param(job.c.message),
        actor=ACTOR,
    )


@cache
def select_deciding_child() -> Select[Any]:
    """Return a select of the child that decides the outcome of the node `id`; no row: all have finished."""
    return (
        select(CHILD.c.id, CHILD.c.task, CHILD.c.kind, CHILD.c.status_id, CHILD.c.message)
        .where(
            CHILD.c.parent_id == param(job.c.id),
            CHILD.c.position.is_not(None),
            in_statuses(CHILD.c.status_id, (JobStatus.ERROR, JobStatus.CANCELLED)),
        )
        .order_by(case((CHILD.c.status_id == status_literal(JobStatus.ERROR), 0), else_=1), CHILD.c.position)
        .limit(1)
    )


def end_by_child(child: Any) -> tuple[Transition, dict[str, Any]]:
    """Return the transition of a node, by its deciding child or None, and the values of its parameters."""
    if child is None:
        return end_node(JobStatus.FINISHED), {"message": "all members have finished"}
    # A node's message names the task already.
    text = child.message
    if child.kind is None:
        how = "ended in Error" if child.status_id is JobStatus.ERROR else "was cancelled"
        text = f"job {child.id} ({child.task}) {how}" + (f": {text}" if text else "")
    values = {"child_id": child.id, "message": clip_message(text)}
    if child.status_id is JobStatus.ERROR:
        values["error"] = encode_failure(Failure("system", "MemberFailedError", text))
    return end_node(child.status_id), values


# What a settle reads.


_DEPENDENTS = (
    select(job_need.c.job_id)
    .join(DEPENDENT, DEPENDENT.c.id == job_need.c.job_id)
    .where(job_need.c.needs_id == job.c.id, DEPENDENT.c.blocked)
    .correlate(job)
)
_UNUSUAL = _DEPENDENTS.where(or_(DEPENDENT.c.kind.is_not(None), DEPENDENT.c.needs_when == "failed"))
_UNSTARTED_PARENT = (
    select(PARENT.c.id)
    .where(PARENT.c.id == job.c.parent_id, in_statuses(PARENT.c.status_id, UNSTARTED_NODE))
    .correlate(job)
)
_IS_LAST = and_(job.c.parent_id.is_not(None), ~_has_unfinished_child(job.c.parent_id))
_IS_UNSETTLED = and_(job.c.namespace == NAMESPACE, job.c.unsettled, in_statuses(job.c.status_id, FINAL))

NO_MARK: dict[str, Any] = {
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
"""A row that is settled: the sweep looks at it again only if its cancel is to be reported."""


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


@cache
def select_ended(which: Guard) -> Select[Any]:
    """Return a select of unsettled rows, for `Ended`."""
    return select(
        job.c.id,
        job.c.task_id,
        job.c.attempt,
        job.c.status_id,
        job.c.parent_id,
        job.c.started.is_not(None),
        exists(_DEPENDENTS),
        exists(_UNUSUAL),
        _IS_LAST,
        exists(_UNSTARTED_PARENT),
    ).where(which, _IS_UNSETTLED)


@cache
def settle_or_select() -> Select[Any]:
    """Return the same select of the row `id`, which is settled instead if its end changes no other row.

    Most members of a group end so: the next sibling to end sees that this one has. For PostgreSQL.
    """
    nothing_follows = (~exists(_DEPENDENTS), ~_IS_LAST, ~exists(_UNSTARTED_PARENT))
    # As this statement has seen it: while it waits for the row, another round of the job may have ended.
    seen = select(job.c.id, job.c.task_id, job.c.attempt).where(MINE, _IS_UNSETTLED).subquery("seen")
    is_seen = tuple_(job.c.id, job.c.task_id, job.c.attempt) == tuple_(*seen.c)
    settled = (
        update(job)
        .where(is_seen, MINE, _IS_UNSETTLED, *nothing_follows, NO_FLUSH)
        .values(**NO_MARK)
        .returning(job.c.id)
        .cte("settled")
    )
    return select_ended(and_(MINE, ~exists(select(settled.c.id))))


@cache
def clear_mark() -> Update:
    """Return the update of a row that is settled, as it was read: a resubmit begins another round."""
    as_read = (MINE, job.c.task_id == param(job.c.task_id), job.c.attempt == param(job.c.attempt))
    return update(job).where(*as_read, _IS_UNSETTLED).values(**NO_MARK)


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
        .where(BY_IDS, job.c.namespace == NAMESPACE, BLOCKED)
        .order_by(job.c.id, job_need.c.needs_id)
    )
