"""Rows for a call of the store, and the comparison of what it leaves."""

import re
import uuid
from collections.abc import Callable
from datetime import datetime
from typing import Any, TypeVar

from sqlalchemy import Table, select

from jobhandle_celery.schema import job, job_event, job_need, sweep, worker
from jobhandle_celery.status import JobStatus
from jobhandle_celery.store import MessageKey, PendingMessage, Run, Store, Worker
from tests.store.harness import Harness

T = TypeVar("T")
Call = Callable[[Store], Any]
"""One call. Ids and tokens are made beforehand, so that a repeat returns the same."""
Scene = Callable[[Harness], Call]
"""Inserts the rows that a call needs; returns the call."""

_CHANCE = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}|[0-9a-f]{64}|(?<=job_id=)\d+|(?<=job )\d+")
_OF_THE_RUN = {"id", "job_id", "namespace"}
_OF_ANOTHER_ROW = {"root_id", "parent_id", "needs_id"}


def normalize(value: Any) -> str:
    """Return an answer as text, without the parts that differ in every run: ids, tokens, digests."""
    return _CHANCE.sub("…", repr(value))


def remaining_rows(harness: Harness) -> list[str]:
    """Return all rows of the harness's namespace, of every table, in any order; times only as null or not.

    Jobs with unique keys are inserted in the order of the keys' digests, which differ between namespaces.
    """
    with harness.database.autocommit() as connection:
        here = job.c.namespace == harness.settings.namespace
        rows: list[str] = []
        for table, which in (
            (job, here),
            (job_event, job_event.c.job_id.in_(select(job.c.id).where(here))),
            (job_need, job_need.c.job_id.in_(select(job.c.id).where(here))),
            (worker, worker.c.namespace == harness.settings.namespace),
            (sweep, sweep.c.namespace == harness.settings.namespace),
        ):
            found = connection.execute(select(table).where(which))
            rows += [_row(table, dict(row)) for row in found.mappings()]
        return sorted(rows)


def sibling_harness(base: Harness) -> Harness:
    """Return a harness with its own namespace over the same connections: a new engine takes time."""
    return Harness(base.url, base.database, namespace=str(uuid.uuid4()))


def _row(table: Table, row: dict[str, Any]) -> str:
    kept = {
        name: "a moment" if isinstance(value, datetime) else bool(value) if name in _OF_ANOTHER_ROW else value
        for name, value in row.items()
        if name not in _OF_THE_RUN
    }
    return normalize({table.name: kept})


def scene(prepare: Callable[[Harness], T], call: Callable[[Store, T], Any]) -> Scene:
    """Return a scene whose call gets what `prepare` returns."""

    def prepared(harness: Harness) -> Call:
        given = prepare(harness)
        return lambda store: call(store, given)

    return prepared


def of_job(state: str, call: Callable[[Store, int], Any], **given: Any) -> Scene:
    return scene(lambda harness: harness.place(state, **given).job_id, call)


def of_message(state: str, call: Callable[[Store, PendingMessage], Any], **given: Any) -> Scene:
    return scene(lambda harness: harness.message(harness.place(state, **given).job_id), call)


def running(harness: Harness, **given: Any) -> Run:
    run = harness.place(JobStatus.RUNNING, **given).run
    assert run is not None
    return run


def of_run(call: Callable[[Store, Run], Any], **given: Any) -> Scene:
    return scene(lambda harness: running(harness, **given), call)


def of_stopping_run(call: Callable[[Store, Run], Any]) -> Scene:
    def asked_to_stop(harness: Harness) -> Run:
        run = running(harness)
        harness.store.control.cancel(run.job_id, None, terminate=False)
        return run

    return scene(asked_to_stop, call)


def of_worker(call: Callable[[Store, Worker], Any]) -> Scene:
    return scene(Harness.worker, call)


def late(harness: Harness, **given: Any) -> int:
    """Return a job that was submitted twenty minutes ago."""
    job_id = harness.submit(**given)
    harness.pass_time(minutes=20)
    return job_id


def lapsed(harness: Harness) -> str:
    """Return the uid of a worker with a job, whose lease has ended."""
    run = running(harness, max_attempts=2)
    harness.pass_time(minutes=20)
    harness.trust_leases()
    return str(run.worker.worker_uid)


def received(harness: Harness, by: Worker, **given: Any) -> MessageKey:
    """Return a message that this worker has noted as received."""
    job_id = harness.place(JobStatus.QUEUED, **given).job_id
    message = harness.message(job_id)
    key = job_id, message.task_id, message.attempt
    harness.store.recovery.note_received([key], by)
    return key


def unstarted(call: Callable[[Store, MessageKey, Worker], Any]) -> Scene:
    """Deliver a message that a lost worker had received to the next worker."""
    return scene(
        lambda harness: (received(harness, harness.worker(), max_attempts=3), harness.worker()),
        lambda store, given: call(store, *given),
    )
