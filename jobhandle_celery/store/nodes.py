"""Nodes, the rows of chains, groups and chords: how they start and end with their children.

Whether all children of a node have ended is read from their rows in the statement that ends it, and never
counted.
"""

from functools import cache
from typing import Any

from sqlalchemy import ColumnElement, Integer, Select, case, exists, literal_column, or_, select

from ..models import Failure
from ..schema import clock, job, job_event
from ..serialization import clip_message
from ..status import UNFINISHED, JobStatus
from .dependencies import ACTOR, ALL_MET, BLOCKED, IS_NODE, MANY, NEEDED, SAME_ROUND, in_statuses, needs_that
from .records import encode_failure
from .statements import Guard, Transition, param, status_literal
from .transitions import THIS_JOB, final

CHILD = job.alias("child")
PARENT = job.alias("parent")

UNSTARTED_NODE = (JobStatus.SUBMITTED, JobStatus.RESUBMITTED)


@cache
def select_parent() -> Select[Any]:
    """Return a select of the node above the job `id`."""
    above = select(PARENT.c.id, PARENT.c.status_id).join(CHILD, CHILD.c.parent_id == PARENT.c.id)
    return above.where(CHILD.c.id == param(job.c.id))


@cache
def start_node() -> Transition:
    """Return the transition of the node `id` to Running, once its first member was started."""
    return Transition(
        THIS_JOB,
        IS_NODE,
        in_statuses(job.c.status_id, UNSTARTED_NODE),
        to={"status_id": status_literal(JobStatus.RUNNING), "started": clock()},
        reason="a member was started",
        actor=param(job_event.c.actor),
    )


def has_unfinished_child(node_id: ColumnElement[Any]) -> Guard:
    """Return the condition: a child of the node is not final; however many children there are.

    Each range of statuses is read in the order of the index. The planner of PostgreSQL may believe that so
    many rows are children that it reads the table; but it sorts none to find the first.
    """
    ids = sorted(status.id for status in UNFINISHED)
    firsts = (number for number in ids if number - 1 not in ids)
    lasts = (number for number in ids if number + 1 not in ids)
    return or_(*(_has_child(node_id, first, last) for first, last in zip(firsts, lasts, strict=True)))


CROWD = 50
"""Children that may run, see `is_crowded`."""


def is_crowded(node_id: ColumnElement[Any]) -> Guard:
    """Return the condition: many children of the node wait for a worker, or run."""
    ids = sorted(status.id for status in _STARTABLE)
    return _has_child(node_id, ids[0], ids[-1], after=CROWD)


_STARTABLE = UNFINISHED - {JobStatus.WAITING}


def _has_child(node_id: ColumnElement[Any], first: int, last: int, *, after: int = 0) -> Guard:
    """Return the condition: more than `after` children have a status from the first to the last, by id."""
    found = (
        select(CHILD.c.status_id)
        .where(
            CHILD.c.parent_id == node_id,
            CHILD.c.status_id.between(
                literal_column(str(first), Integer), literal_column(str(last), Integer)
            ),
        )
        .order_by(CHILD.c.status_id)
        .limit(1)
    )
    if after:
        found = found.offset(after)
    return found.correlate(job).scalar_subquery().is_not(None)


_CHILDREN = select(CHILD.c.id).where(CHILD.c.parent_id == job.c.id).correlate(job)
COUNTING_CHILDREN = _CHILDREN.where(CHILD.c.position.is_not(None))
NO_UNFINISHED_CHILD = ~has_unfinished_child(job.c.id)
_ALL_ADOPTED = ~needs_that(
    NEEDED.c.id.is_not(None), or_(NEEDED.c.parent_id.is_(None), NEEDED.c.parent_id != job.c.id)
)
"""All jobs that are to become members by their unique keys are children already, see `Settling.arm`."""


@cache
def end_node(outcome: JobStatus) -> Transition:
    """Return the transition of a node `id` whose children are all final.

    Error or Cancelled is the outcome of the child `child_id`; the statement checks the children itself.
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
        THIS_JOB,
        IS_NODE,
        in_statuses(job.c.status_id, UNFINISHED),
        NO_UNFINISHED_CHILD,
        _ALL_ADOPTED,
        *guards,
        SAME_ROUND,
        to=final(outcome, **columns),
        reason=param(job.c.message),
        actor=ACTOR,
    )


@cache
def select_deciding_child() -> Select[Any]:
    """Return a select of the child that decides the outcome of the node `id`; no row if all have finished."""
    return (
        select(CHILD.c.id, CHILD.c.task, CHILD.c.kind, CHILD.c.status_id, CHILD.c.message, CHILD.c.position)
        .where(
            CHILD.c.parent_id == param(job.c.id),
            CHILD.c.position.is_not(None),
            in_statuses(CHILD.c.status_id, (JobStatus.ERROR, JobStatus.CANCELLED)),
        )
        .order_by(case((CHILD.c.status_id == status_literal(JobStatus.ERROR), 0), else_=1), CHILD.c.position)
        .limit(1)
    )


def end_by_child(child: Any) -> tuple[Transition, dict[str, Any]]:
    """Return the transition that ends a node, and its parameters, by the child that decides its outcome."""
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


@cache
def finish_empty(which: Guard) -> Transition:
    """Return the transition of blocked nodes without members whose needs, if any, are all met."""
    no_child = ~exists(select(CHILD.c.id).where(CHILD.c.parent_id == job.c.id).correlate(job))
    to = final(JobStatus.FINISHED)
    guards = (which, BLOCKED, IS_NODE, ALL_MET, no_child, SAME_ROUND)
    return Transition(*guards, to=to, reason="no members", actor=ACTOR, **MANY)
