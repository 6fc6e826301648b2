"""Assertions of the state machine: the expected row, and the moves that may follow each other."""

from dataclasses import dataclass
from datetime import timedelta

from sqlalchemy import bindparam, select

from jobhandle_celery.schema import clock, job, job_event, worker
from jobhandle_celery.status import MOVES, STARTABLE, JobStatus
from tests.store.harness import Harness, Row
from tests.store.model import Model
from tests.store.model_job import RUNNING, ModelJob

CLOSE = timedelta(seconds=25)
"""How far the database's clock may run ahead of the model's."""
EARLY = timedelta(seconds=10)
"""How far it may be behind, after `take_real_time_back`."""


def compare(row: Row, expected: ModelJob, now: float) -> None:
    found = {
        "status": row["status_id"],
        "task_id": row["task_id"],
        "attempt": row["attempt"],
        "lost_count": row["lost_count"],
        "stamped": row["cancel_requested"] is not None,
        "terminate": row["terminate"],
        "reported": row["revoke_reported"],
        "started": row["started"] is not None,
        "worker_uid": row["worker_uid"],
        "claim": row["claim_id"],
        "message": row["message"],
        "progress": row["progress_current"],
    }
    assert found == {name: getattr(expected, name) for name in found}
    assert (row["finished"] is not None) == row["status_id"].final
    assert (row["unique_hash"] is not None) == (expected.key is not None and not row["status_id"].final)
    for name, moment in (("due_at", expected.due), ("not_before", expected.not_before)):
        assert (row[name] is None) == (moment is None), name
        if moment is not None:
            assert_close(row, name, moment - now)


def assert_close(row: Row, name: str, minutes: float) -> None:
    """Assert that a time of a row lies `minutes` ahead of the time of its read."""
    difference = row[name] - row["now"] - timedelta(minutes=minutes)
    assert -CLOSE < difference < EARLY, name


@dataclass(frozen=True)
class Found:
    """The rows of a namespace: jobs and their events by task id, workers by worker_uid."""

    jobs: dict[str, Row]
    events: dict[str, list[JobStatus]]
    workers: dict[str, Row]


_NOW = clock().label("now")
_HERE = job.c.namespace == bindparam("here")
# Built once: to build a statement takes longer than to execute it.
_JOBS = select(job, _NOW).where(_HERE)
_EVENTS = (
    select(job.c.task_id, job_event.c.status_id)
    .join_from(job_event, job)
    .where(_HERE)
    .order_by(job_event.c.id)
)
_LEASES = select(worker, _NOW).where(worker.c.namespace == bindparam("here"))


def look(harness: Harness) -> Found:
    here = {"here": harness.settings.namespace}
    with harness.database.autocommit() as connection:
        jobs = {row.task_id: dict(row._mapping) for row in connection.execute(_JOBS, here)}
        events: dict[str, list[JobStatus]] = {task_id: [] for task_id in jobs}
        for task_id, status in connection.execute(_EVENTS, here):
            events[task_id].append(status)
        leases = {row.worker_uid: dict(row._mapping) for row in connection.execute(_LEASES, here)}
        return Found(jobs, events, leases)


def agree(found: Found, model: Model) -> None:
    """Assert that the rows equal the model."""
    expected = {job.task_id: job for job in model.jobs.values()}
    assert found.jobs.keys() == expected.keys()
    for task_id, row in found.jobs.items():
        compare(row, expected[task_id], model.now)
        assert found.events[task_id] == expected[task_id].events
    assert found.workers.keys() == model.leases.keys()
    for worker_uid, row in found.workers.items():
        assert_close(row, "lease_until", model.leases[worker_uid] - model.now)


def follows(before: Row | None, after: Row) -> None:
    """Assert the invariants that hold independently of the model."""
    if before is None:
        return
    assert after["attempt"] >= before["attempt"]
    if before["status_id"].final and after["status_id"] is not before["status_id"]:
        assert after["status_id"] is JobStatus.RESUBMITTED
        assert after["task_id"] != before["task_id"]


def legal(before: JobStatus, after: JobStatus, *, asked_to_stop: bool = True) -> bool:
    """Return whether `MOVES` leads from one event to the next; Queued in between has no event.

    Only a stop request leaves a job Running (`asked_to_stop`). A message that cannot be published leaves
    the status as it is, with an event.
    """
    if (before, after) == (RUNNING, RUNNING):
        return asked_to_stop
    if before is after and before in STARTABLE:
        return True
    sources = {before} | ({JobStatus.QUEUED} if before in STARTABLE else set())
    return any(move.sources & sources and after in move.targets for move in MOVES.values())
