"""Changes of a whole tree: cancel and resubmit, each in a transaction that the caller has begun."""

from collections.abc import Iterator, Sequence
from typing import Any

from sqlalchemy import Row, String, and_, case, cast, exists, func, literal, null, or_, select, true, update

from ..batching import slices
from ..errors import InvalidTransitionError
from ..schema import clock, job, random_uuid
from ..status import FINAL, UNFINISHED, JobStatus
from .adoption import adopt_all
from .dependencies import DEPENDENT, IS_NODE, NEEDED, in_statuses, is_needed_by, needs_that
from .executors import MAX_PARAMETERS, Executor
from .nodes import CHILD, COUNTING_CHILDREN, NO_UNFINISHED_CHILD
from .records import unique_hash
from .statements import MAX_CHANGED, NAMESPACE, Guard, Transition, setting, status_literal
from .transitions import (
    ASKED_TO_STOP,
    NEW_ROUND,
    NO_STOP_REQUESTED,
    WAS_SENT,
    cancelling,
    final,
    lease_alive,
    not_requested,
)

NODE = (job.c.status_id, job.c.id, job.c.kind, job.c.root_id)
"""The columns of a node that `cancel_tree` and `resubmit_tree` read."""

_OUTSIDE = is_needed_by(
    DEPENDENT.c.blocked, or_(DEPENDENT.c.root_id.is_(None), DEPENDENT.c.root_id != job.c.root_id)
)
"""A job outside of the tree of the row needs the row."""

_ENDED_WITH_ITS_TREE: dict[str, Any] = {
    "unsettled": _OUTSIDE,
    "due_at": case(
        (_OUTSIDE, clock(setting("publish_grace"))),
        (WAS_SENT & ~IS_NODE, clock(setting("republish_after"))),
        else_=null(),
    ),
}
"""The columns of a row that is ended by the cancel of its tree.

It needs no settle, except for jobs outside of the tree: rows of the tree that depend on it are ended by the
same cancel, or by the end of a body that still runs."""


def cancel_tree(db: Executor, node: Row[Any], actor: str, *, terminate: bool) -> JobStatus:
    """Cancel the jobs below a node, or ask them to stop; return the node's status: Running or a final one.

    A node that is final stays so. But a member of its tree may have been resubmitted by itself: the answer is
    Running as long as a body below the node runs.

    Who may have been there first: a claim of a member, which is then asked to stop; a settle, which has made
    a member ready or ended a node.

    All rows are locked before they are changed, and until the commit. So no body ends between the cancel of
    its row and the end of the nodes that have no unfinished child left; and `_OUTSIDE` sees every job that
    needs one of the rows and was armed earlier (`Settling.arm`).
    """
    adopt_all(db, node.root_id or node.id)
    unfinished = in_statuses(job.c.status_id, UNFINISHED)
    for below in _below(db, node):
        db.lock_in_order(below, unfinished)
        for part in _parts(db, below & ~IS_NODE & unfinished):
            cancel = cancelling(part, terminate=terminate, many=True, locked=True, **_ENDED_WITH_ITS_TREE)
            db.count_applied(cancel, actor=actor)
        asked = update(job).where(below, IS_NODE, unfinished, not_requested(terminate=terminate))
        db.execute(asked.values(**_requested(terminate=terminate)))
        _end_nodes(db, below, actor, **_ENDED_WITH_ITS_TREE)
    itself = job.c.id == node.id
    for end in _ends(itself, actor):
        db.count_applied(end)
    asked_to_stop = Transition(
        itself,
        unfinished,
        not_requested(terminate=terminate),
        to={
            "status_id": JobStatus.RUNNING,
            "started": case((job.c.started.is_(None), clock()), else_=job.c.started),
            **_requested(terminate=terminate),
        },
        reason=ASKED_TO_STOP,
        actor=actor,
    )
    db.count_applied(asked_to_stop)
    status: JobStatus = db.execute(select(job.c.status_id).where(itself)).scalar_one()
    if status.final and any(_runs(db, below) for below in _below(db, node)):
        return JobStatus.RUNNING
    return status


def _runs(db: Executor, which: Guard) -> bool:
    running = (job.c.namespace == NAMESPACE, in_statuses(job.c.status_id, {JobStatus.RUNNING}))
    return db.execute(select(job.c.id).where(which, *running).limit(1)).first() is not None


def _requested(*, terminate: bool) -> dict[str, Any]:
    requested = case((NO_STOP_REQUESTED, clock()), else_=job.c.cancel_requested)
    return {"cancel_requested": requested, "terminate": true() if terminate else job.c.terminate}


def _below(db: Executor, node: Row[Any]) -> Iterator[Guard]:
    """Yield guards of the rows below a node, in parts: the innermost rows first."""
    if node.root_id is None:
        yield job.c.root_id == node.id
        return
    levels: list[list[int]] = [[node.id]]
    while levels[-1]:
        nodes = (select(job.c.id).where(children, IS_NODE) for children in _children_of(levels[-1]))
        levels.append([child for statement in nodes for child in db.execute(statement).scalars()])
    for parents in reversed(levels):
        yield from _children_of(parents)


def _children_of(parents: Sequence[int]) -> Iterator[Guard]:
    for part in slices(parents, MAX_PARAMETERS):
        yield job.c.parent_id.in_(part)


def _parts(db: Executor, which: Guard) -> Iterator[Guard]:
    """Yield guards of `MAX_CHANGED` rows each, together all rows that pass a guard."""
    ids = db.execute(select(job.c.id).where(which).order_by(job.c.id)).scalars().all()
    for part in slices(ids, MAX_CHANGED):
        yield and_(which, job.c.id.between(part[0], part[-1]))


def _end_nodes(db: Executor, which: Guard, actor: str, **columns: Any) -> None:
    """End the nodes that have no unfinished child, until no more node ends: the innermost end first."""
    while sum(db.count_applied(end) for end in _ends(which, actor, **columns)):
        pass


def _ends(which: Guard, actor: str, **columns: Any) -> Iterator[Transition]:
    """Yield the transitions of nodes whose children are all final, one for each outcome of a node.

    A blocked node has no children; it is cancelled.
    """
    failed = COUNTING_CHILDREN.where(in_statuses(CHILD.c.status_id, {JobStatus.ERROR}))
    stopped = or_(
        exists(COUNTING_CHILDREN.where(in_statuses(CHILD.c.status_id, {JobStatus.CANCELLED}))), job.c.blocked
    )
    first_failed = failed.with_only_columns(func.min(CHILD.c.id)).scalar_subquery()
    why = literal("job ", String).concat(cast(first_failed, String(20))).concat(" ended in Error")
    failure = literal('{"kind": "system", "type": "MemberFailedError", "message": "', String)
    error = {"error": failure.concat(why).concat('", "traceback": ""}'), "message": why}
    for status, outcome, values in (
        (JobStatus.ERROR, exists(failed), error),
        (JobStatus.CANCELLED, and_(stopped, ~exists(failed)), {}),
        (JobStatus.FINISHED, and_(~stopped, ~exists(failed)), {}),
    ):
        yield Transition(
            which,
            IS_NODE,
            in_statuses(job.c.status_id, UNFINISHED),
            NO_UNFINISHED_CHILD,
            outcome,
            to=final(status, blocked=False, **_requested(terminate=False), **values, **columns),
            reason=values.get("message", f"the members are {status}"),
            actor=actor,
        )


def resubmit_tree(db: Executor, root: Row[Any], task_id: str, actor: str) -> list[int]:
    """Run again the jobs of a tree that did not finish; return the ids of those that may be published now.

    The caller has locked the row of the root. Who may have been there first: a resubmit of a single member.
    If that member is unfinished, it stays as it is; its row is locked, so that it does not end before other
    rows wait for it. If it has finished, its node may have no member that runs again, and ends here.

    Raises:
        InvalidTransitionError: the node is not a root, is not final or has Finished, or a body may be alive.
        IntegrityError: an unfinished job has the unique key of a member.
    """
    if root.root_id is not None:
        raise InvalidTransitionError(f"job {root.id} belongs to job {root.root_id}: resubmit that one")
    if not root.status_id.final:
        raise InvalidTransitionError(
            f"job {root.id} is {root.status_id}; only a final job can be resubmitted"
        )
    if root.status_id is JobStatus.FINISHED:
        raise InvalidTransitionError(f"job {root.id} is Finished: none of its members has to run again")
    below = job.c.root_id == root.id
    db.lock_in_order(below, ~IS_NODE, in_statuses(job.c.status_id, UNFINISHED))
    again = and_(below, in_statuses(job.c.status_id, FINAL - {JobStatus.FINISHED}))
    alive = and_(job.c.worker_uid.is_not(None), lease_alive(job.c.worker_uid))
    if found := db.execute(select(job.c.id).where(again, alive).limit(1)).scalar():
        raise InvalidTransitionError(
            f"job {root.id}: the last body of its member {found} may still run on its worker; try again later"
        )
    keyed = select(job.c.id, job.c.namespace, job.c.username, job.c.unique_key)
    for row in db.execute(keyed.where(again, job.c.unique_key.is_not(None))).all():
        key = unique_hash(row.namespace, row.username, row.unique_key)
        db.execute(update(job).where(job.c.id == row.id).values(unique_hash=key))
    tasks = {**_next_round(_MUST_WAIT), "task_id": random_uuid()}
    # A settle looks at an empty group that needs a job: its need may have ended already.
    nodes = {**_next_round(_HAS_NEEDS), "task_id": random_uuid()}
    nodes["due_at"] = case((_HAS_NEEDS, clock(setting("publish_grace"))), else_=null())
    itself = {**NEW_ROUND, "task_id": task_id, "due_at": null()}
    for which, to in ((again & ~IS_NODE, tasks), (again & IS_NODE, nodes)):
        for part in _parts(db, which):
            db.count_applied(Transition(part, to=to, reason="resubmitted", actor=actor))
    db.count_applied(Transition(job.c.id == root.id, to=itself, reason="resubmitted", actor=actor))
    for which in (below, job.c.id == root.id):
        _end_nodes(db, which & ~job.c.blocked, actor)
    return ready_again(db, root.id)


def ready_again(db: Executor, root_id: int) -> list[int]:
    """Return the ids of the tasks of a resubmitted tree whose messages may be published."""
    ready = select(job.c.id).where(
        job.c.root_id == root_id, ~IS_NODE, in_statuses(job.c.status_id, {JobStatus.RESUBMITTED})
    )
    return list(db.execute(ready.order_by(job.c.id)).scalars())


_IS_FINISHED = in_statuses(NEEDED.c.status_id, {JobStatus.FINISHED})
_HAS_NEEDS = job.c.needs_when.is_not(None)
# A need that is not Finished runs again, or has not ended: true before and after its row is changed.
_MUST_WAIT = and_(
    _HAS_NEEDS,
    or_(job.c.needs_when != "finished", needs_that(or_(NEEDED.c.id.is_(None), ~_IS_FINISHED))),
)
_NEEDS_A_SETTLE = and_(
    _HAS_NEEDS,
    or_(
        job.c.needs_when != "finished",
        needs_that(or_(NEEDED.c.root_id.is_(None), NEEDED.c.root_id != job.c.root_id)),
    ),
)
"""A need may have ended already, and no settle of it is to come."""


def _next_round(must_wait: Guard) -> dict[str, Any]:
    """Return the columns of a row that runs again: at once, or when its needs are met."""
    grace = clock(setting("publish_grace"))
    return {
        **NEW_ROUND,
        "blocked": must_wait,
        "status_id": case(
            (must_wait, status_literal(JobStatus.WAITING)), else_=status_literal(JobStatus.RESUBMITTED)
        ),
        "due_at": case((must_wait & ~_NEEDS_A_SETTLE, null()), else_=grace),
    }
