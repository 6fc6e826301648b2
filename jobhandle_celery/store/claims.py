"""The statements that claim: one run or, on PostgreSQL, several at once."""

import json
from collections.abc import Callable, Mapping
from functools import cache
from typing import Any

from sqlalchemy import Column, Text, and_, column, null, select, update

from ..schema import clock, job, job_event
from ..status import JobStatus
from .bulk_statements import KEY, document
from .records import Run
from .statements import IN_ARRAY, Guard, Transition, event_columns, param, status_literal, with_event
from .transitions import (
    DUE,
    NO_STOP_REQUESTED,
    NOT_EXPIRED,
    OF_NAMESPACE,
    WAITING_WITHOUT_TIME,
    lease_alive,
    run_params,
    status_allows,
)

_REASON = "started"
_ACTOR = param(job_event.c.actor)


def _claimable(value_of: Callable[[Column[Any]], Any]) -> Guard:
    """Return the guard: the row waits for the message that has these values, and the attempt before it."""
    return and_(
        status_allows("claim"),
        *(place == value_of(place) for place in (job.c.id, job.c.task_id, job.c.task)),
        job.c.attempt == value_of(job.c.attempt),
        OF_NAMESPACE,
        NO_STOP_REQUESTED,
        ~WAITING_WITHOUT_TIME,
        DUE,
        NOT_EXPIRED,
    )


def _lease_alive() -> Guard:
    """Return the guard of the worker's lease; a claim under one that has ended would be reaped."""
    return lease_alive(param(job.c.worker_uid), locked=True)


def _claimed(claim_id: Any) -> dict[str, Any]:
    return {
        "status_id": status_literal(JobStatus.RUNNING),
        "attempt": job.c.attempt + 1,
        "claim_id": claim_id,
        "worker": param(job.c.worker),
        "worker_uid": param(job.c.worker_uid),
        "pid": param(job.c.pid),
        "started": clock(),
        "due_at": null(),
        "not_before": null(),
    }


@cache
def claim_one(*, leased: bool) -> Transition:
    """Return the claim of one run."""
    guards = (_claimable(param), _lease_alive()) if leased else (_claimable(param),)
    return Transition(*guards, to=_claimed(param(job.c.claim_id)), reason=_REASON, actor=_ACTOR)


def to_claims(claims: Mapping[Run, str]) -> dict[str, Any]:
    """Return runs, and the names of their tasks, as the parameter of `claim_many`."""
    rows = [{**run_params(run), "attempt": run.attempt - 1, "task": task} for run, task in claims.items()]
    return {"document": json.dumps(rows), "ids": [run.job_id for run in claims]}


@cache
def claim_many() -> Any:
    """Return an update that claims the runs of a JSON document, with their events (PostgreSQL).

    Rows that are locked stay. It returns the claim ids that it has written: of two claims of one row only one
    is among them.
    """
    given = document("given", *KEY, column("task", Text), column("claim_id", Text))
    free = (
        select(*given.c)
        .join_from(given, job, _claimable(lambda place: given.c[place.name]))
        .where(IN_ARRAY, _lease_alive())
        .with_for_update(skip_locked=True, key_share=True, of=job)
        .cte("free")
    )
    columns = (*event_columns(_REASON, _ACTOR), job.c.claim_id)
    claimed = update(job).where(_claimable(lambda place: free.c[place.name]))
    claimed = claimed.values(**_claimed(free.c.claim_id)).returning(*columns)
    return with_event(claimed, lambda moved: [moved.c.claim_id])
