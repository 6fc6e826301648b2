"""The parts of transitions: guards, and the columns of a row in each status."""

from collections.abc import Callable, Iterable, Sequence
from datetime import datetime, timedelta
from functools import cache
from itertools import groupby
from typing import Any

from sqlalchemy import (
    Column,
    ColumnElement,
    Row,
    String,
    and_,
    case,
    exists,
    false,
    literal,
    literal_column,
    null,
    or_,
    select,
    true,
    tuple_,
)

from ..errors import InvalidTransitionError
from ..models import Failure
from ..schema import clock, job, job_event, statement_clock
from ..schema import worker as worker_table
from ..serialization import clip_message
from ..status import MOVES, UNFINISHED, JobStatus
from ..validation import NAME_LENGTH
from .records import MessageKey, PendingMessage, ProcessRef, Run, Selection, Worker, encode_failure
from .statements import NAMESPACE, Guard, Transition, param, setting, status_literal

OF_NAMESPACE = job.c.namespace.concat(literal_column("''", String)) == NAMESPACE
"""A row that is found by its id is of this namespace.

No index can serve this condition: of a new table PostgreSQL has no statistics, and would find the row among
all jobs of the namespace in the index of the statuses.
"""

THIS_JOB = and_(job.c.id == param(job.c.id), OF_NAMESPACE)
"""The job of the call, in this namespace."""

NEVER_STARTED = job.c.started.is_(None)
STOP_REQUESTED = job.c.cancel_requested.is_not(None)
NO_STOP_REQUESTED = job.c.cancel_requested.is_(None)
DUE = or_(job.c.not_before.is_(None), job.c.not_before <= clock())
WAITING_WITHOUT_TIME = and_(job.c.status_id == status_literal(JobStatus.WAITING), job.c.not_before.is_(None))
"""Held, or blocked by needs."""
EARLY = or_(STOP_REQUESTED, WAITING_WITHOUT_TIME, ~DUE)
"""Not to be started now: it is asked to stop, held or blocked by needs, or its time has not come."""
IS_TASK = job.c.kind.is_(None)
"""Not a node of a tree, which is never published and runs no body."""
WAS_SENT = (job.c.publish_count > 0) | (job.c.attempt > 0)
EXPIRED = and_(NEVER_STARTED, job.c.expires <= clock())
NOT_EXPIRED = or_(job.c.expires.is_(None), ~NEVER_STARTED, job.c.expires > clock())


def claimed_as(value_of: Callable[[Column[Any]], Any]) -> Guard:
    """Return the guard: the row is Running, and the columns that name its claim have these values."""
    named = (job.c.id, job.c.task_id, job.c.attempt, job.c.claim_id)
    running = job.c.status_id == status_literal(JobStatus.RUNNING)
    return and_(*(place == value_of(place) for place in named), running)


CLAIMED_BY_RUN = claimed_as(param)
"""The guard of every write of a run: the row is Running and names its claim. For `run_params`."""


def run_params(run: Run) -> dict[str, Any]:
    """Return the values for `CLAIMED_BY_RUN`."""
    return {"id": run.job_id, "task_id": run.task_id, "attempt": run.attempt, "claim_id": run.claim_id}


def status_allows(name: str) -> Guard:
    """Return the guard: the statuses that `status.MOVES` allows as sources of this move."""
    sources = sorted(MOVES[name].sources, key=lambda status: status.id)
    return job.c.status_id.in_([status_literal(status) for status in sources])


def this_job(*, by_user: bool, by_task_id: bool = False) -> Guard:
    """Return the guard `THIS_JOB`, also of the user of the call, and of its task id."""
    conditions: list[Guard] = [THIS_JOB]
    if by_user:
        conditions.append(job.c.username == param(job.c.username))
    if by_task_id:
        conditions.append(job.c.task_id == param(job.c.task_id))
    return and_(*conditions)


@cache
def select_one(*columns: Any, by_user: bool, by_task_id: bool = False) -> Any:
    """Return a select of `this_job`."""
    return select(*columns).where(this_job(by_user=by_user, by_task_id=by_task_id))


def due_since(since: datetime | None) -> Guard:
    """Return the guard of the jobs of this namespace that are due, from `first_due` on (`Sweep`)."""
    due = and_(job.c.namespace == NAMESPACE, job.c.due_at <= statement_clock())
    return due if since is None else due & (job.c.due_at >= literal(since, job.c.due_at.type))


def mine(job_id: int, username: str | None = None) -> Guard:
    """Return the guard: this job, in this namespace, of this user if one is given."""
    conditions = [job.c.id == job_id, OF_NAMESPACE]
    if username is not None:
        conditions.append(job.c.username == username)
    return and_(*conditions)


def selected(selection: Selection) -> Guard:
    """Return the guard: the jobs of a selection, in this namespace."""
    conditions = [job.c.namespace == NAMESPACE if selection.ids is None else OF_NAMESPACE]
    if selection.statuses is not None:
        conditions.append(job.c.status_id.in_(selection.statuses))
    if selection.task is not None:
        conditions.append(job.c.task == selection.task)
    if selection.username is not None:
        conditions.append(job.c.username == selection.username)
    if selection.groupname is not None:
        conditions.append(job.c.groupname == selection.groupname)
    if selection.ids is not None:
        conditions.append(job.c.id.in_(selection.ids))
    if selection.root is not None:
        conditions.append(job.c.root_id == selection.root)
    if not selection.members:
        conditions.append(job.c.parent_id.is_(None))
    if not selection.blocked:
        conditions.append(~job.c.blocked)
    if selection.since is not None:
        conditions.append(job.c.submitted >= _moment(selection.since))
    if selection.until is not None:
        conditions.append(job.c.submitted < _moment(selection.until))
    return and_(*conditions)


def _moment(time: datetime | timedelta) -> Any:
    return clock(-time) if isinstance(time, timedelta) else time


def claimed_by(holder: Run | ProcessRef) -> Guard:
    """Return the guard: the row is Running and names this run, or this process."""
    by = (
        job.c.claim_id == holder.claim_id
        if isinstance(holder, Run)
        else and_(job.c.worker_uid == holder.worker_uid, job.c.pid == holder.pid)
    )
    return and_(
        job.c.id == holder.job_id,
        job.c.task_id == holder.task_id,
        job.c.attempt == holder.attempt,
        job.c.status_id == status_literal(JobStatus.RUNNING),
        by,
    )


def same_claim(run: Run) -> Guard:
    """Return the guard of a run's own handle: no other run has taken, ended or lost the job since.

    Unlike `claimed_by` it passes a row that the run itself has ended or requeued.
    """
    return and_(job.c.task_id == run.task_id, job.c.attempt == run.attempt, job.c.claim_id == run.claim_id)


CLAIM_COLUMNS = (job.c.task_id, job.c.attempt, job.c.claim_id)
"""The columns that `check_same_claim` reads."""


def check_same_claim(run: Run | None, row: Row[Any]) -> None:
    """Check in Python what `same_claim` checks in SQL; without a run there is nothing to check.

    Raises:
        InvalidTransitionError: the run is superseded.
    """
    if run is not None and (row.task_id, row.attempt, row.claim_id) != (
        run.task_id,
        run.attempt,
        run.claim_id,
    ):
        raise InvalidTransitionError(
            f"job {run.job_id}: attempt {run.attempt} on {run.worker.name} is superseded, and changes nothing"
        )


def for_messages(keys: Sequence[MessageKey]) -> Guard:
    """Return the guard: jobs that wait for these messages (job id, task id, attempt)."""
    waiting = [(job_id, task_id, attempt - 1) for job_id, task_id, attempt in keys]
    return and_(tuple_(job.c.id, job.c.task_id, job.c.attempt).in_(waiting), OF_NAMESPACE)


def for_these(messages: Sequence[PendingMessage]) -> Guard:
    """Return the guard of a publisher: each row still waits for this very message."""
    return tuple_(job.c.id, job.c.task_id, job.c.attempt, job.c.publish_count).in_(
        [
            (message.job_id, message.task_id, message.attempt - 1, message.publish_count)
            for message in messages
        ]
    )


def grouped(
    messages: Iterable[PendingMessage], key: Callable[[PendingMessage], int]
) -> Iterable[tuple[int, list[PendingMessage]]]:
    """Return messages grouped by a key: one statement serves a group."""
    return [(number, list(group)) for number, group in groupby(sorted(messages, key=key), key)]


def lease_alive(worker_uid: ColumnElement[Any] | str, *, locked: bool = False) -> Guard:
    """Return the guard: the lease of this worker has not ended.

    With `locked`, the worker's row is locked until our commit: it cannot be reaped should its lease end while
    we wait for another lock, but its lease can be renewed.
    """
    alive = select(worker_table.c.worker_uid).where(
        worker_table.c.worker_uid == worker_uid, worker_table.c.lease_until > clock()
    )
    return exists(alive.with_for_update(read=True, key_share=True) if locked else alive)


def unless_expired_before(later: clock) -> ColumnElement[Any]:
    """Return the `due_at` of a row: `later`, or when it expires if that is earlier."""
    return case((NEVER_STARTED & (job.c.expires < later), job.c.expires), else_=later)


def actor_of(username: str | None) -> str:
    """Return the actor of events that are caused through a handle."""
    return f"user {username}"[:NAME_LENGTH] if username else "service"


def worker_actor(worker: Worker) -> str:
    """Return the actor of events that are caused by a worker."""
    return f"worker {worker.name}"


FINAL_COLUMNS: dict[str, Any] = {"not_before": null(), "unique_hash": null(), "blocked": false()}
"""A final row: its unique key is free."""

_SETTLE_BY = clock(setting("publish_grace"))

NO_PROCESS: dict[str, Any] = {"worker_uid": null(), "pid": null()}
"""A row that no body runs for; `worker` and `claim_id` stay and name the last one."""

AWAITING_MESSAGE: dict[str, Any] = {**NO_PROCESS, "publish_count": 0, "republish_deferrals": 0}
"""A row that waits for its next message."""

REVOKE_REPORTED: dict[str, Any] = {"revoke_reported": True}
"""Set by the process that stops a body, which does Celery's bookkeeping of a revoked task itself."""

CLAIM_REVOKED: dict[str, Any] = {"claim_id": None}
"""Set by a process that ends a run in its place, so that the run's `_already_by` does not match."""


def final(status: JobStatus, **columns: Any) -> dict[str, Any]:
    """Return the columns of a row that ends.

    If other rows depend on it, the same statement sets its unsettled flag: a process may die before it
    settles them (`Settling.settle`), and the sweeper does so after the publish grace.
    """
    return {
        "status_id": status_literal(status),
        "finished": clock(),
        "unsettled": job.c.needed,
        "due_at": case((job.c.needed, _SETTLE_BY), else_=null()),
        **FINAL_COLUMNS,
        **columns,
    }


def finished(result: Any, *, ignored: ColumnElement[bool] | None = None) -> dict[str, Any]:
    """Return the columns of a row whose body has returned a result.

    An ignored one is stored only if another job may get it as an argument: the row is needed, or has a unique
    key, by which a member of a tree may be this job.
    """
    if ignored is not None:
        # Not by `unique_hash`: MariaDB has cleared it by the time it comes to this column.
        kept = or_(~ignored, job.c.needed, job.c.unique_key.is_not(None))
        result = case((kept, result), else_=null())
    return final(JobStatus.FINISHED, result=result, error=null(), **NO_PROCESS)


def cancelled(republish_after: timedelta | ColumnElement[float], **columns: Any) -> dict[str, Any]:
    """Return the columns of a job that is cancelled while no worker runs it.

    If a message was ever sent, Celery's events have mentioned the job. Usually a worker receives that message
    and reports the task revoked; after `republish_after` the sweeper does. Of an unsettled row that time
    begins when it is settled.
    """
    due_at = case((job.c.needed, _SETTLE_BY), (WAS_SENT, clock(republish_after)), else_=null())
    return final(JobStatus.CANCELLED, **{"due_at": due_at, **columns})


def requeued() -> dict[str, Any]:
    """Return the columns of a job whose run is gone, and that runs again at once."""
    return {
        "status_id": JobStatus.REQUEUED,
        "not_before": None,
        "due_at": clock(),
        **AWAITING_MESSAGE,
        **CLAIM_REVOKED,
    }


def failed(failure: Failure) -> tuple[dict[str, Any], str]:
    """Return the columns of a job that ends in Error, and the reason."""
    reason = failure_reason(failure)
    return final(JobStatus.ERROR, error=encode_failure(failure), message=reason, **NO_PROCESS), reason


def failure_reason(failure: Failure) -> str:
    """Return the message of a job that ends with this failure."""
    return clip_message(f"{failure.type}: {failure.message}" if failure.kind == "task" else failure.message)


STOPPED = "stopped on request"


def stopped(message: str) -> tuple[dict[str, Any], str]:
    """Return the columns of a job that was stopped, and the reason; without a message the body's stays."""
    reason = clip_message(message)
    to = final(JobStatus.CANCELLED, **NO_PROCESS)
    return (to | {"message": reason} if reason else to), reason or STOPPED


NEW_ROUND: dict[str, Any] = {
    **AWAITING_MESSAGE,
    **dict.fromkeys(
        (
            "cancel_requested",
            "started",
            "finished",
            "result",
            "error",
            "progress_current",
            "progress_total",
            "expires",
            "not_before",
            "retry",
            "claim_id",
            "worker",
        )
    ),
    # That of an end in Error or Cancelled is the library's. MariaDB assigns in the order of the table's
    # columns, in which the message comes before the status.
    "message": case((job.c.status_id == status_literal(JobStatus.FINISHED), job.c.message), else_=""),
    "terminate": False,
    "revoke_reported": False,
    "unsettled": False,
    "lost_count": 0,
    "status_id": JobStatus.RESUBMITTED,
    "due_at": clock(setting("publish_grace")),
}
"""A resubmitted row. `attempt` stays, and never decreases: the writes of the former round must not fit."""

ASKED_TO_STOP = "asked to stop"
_BEFORE_IT_STARTED = "cancelled before it was started"
_BETWEEN_ATTEMPTS = "cancelled between two attempts"


def not_requested(*, terminate: bool) -> Guard:
    """Return the guard of a stop request: a second one changes nothing, unless it adds termination."""
    return NO_STOP_REQUESTED | job.c.terminate.is_(False) if terminate else NO_STOP_REQUESTED


def cancelling(
    which: Guard, *, terminate: bool, many: bool = False, locked: bool = False, **columns: Any
) -> Transition:
    """Return the transition of a cancel: jobs that do not run end, with `columns`, bodies are asked to stop.

    `many` and `locked` are those of a `Transition`. One statement for both cases: between two, a job could
    change from one status to the other.
    """
    running = job.c.status_id == status_literal(JobStatus.RUNNING)
    stopped = cancelled(setting("republish_after"), claim_id=null(), **columns)
    ended = {name: case((running, job.c[name]), else_=value) for name, value in stopped.items()}
    return Transition(
        job.c.status_id.in_([status_literal(status) for status in sorted(UNFINISHED)]),
        not_requested(terminate=terminate),
        which,
        to=ended
        | {
            "cancel_requested": case((NO_STOP_REQUESTED, clock()), else_=job.c.cancel_requested),
            "terminate": true() if terminate else job.c.terminate,
        },
        reason=case(
            (running, literal(ASKED_TO_STOP)),
            (NEVER_STARTED, literal(_BEFORE_IT_STARTED)),
            else_=literal(_BETWEEN_ATTEMPTS),
        ),
        actor=param(job_event.c.actor),
        many=many,
        locked=locked,
    )
