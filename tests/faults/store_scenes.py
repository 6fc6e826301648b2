"""Rows for a call of the store, and the comparison of what it leaves."""

import re
import uuid
from collections.abc import Callable
from datetime import datetime
from typing import Any, TypeVar

from sqlalchemy import Table, select

from jobhandle_celery.schema import job, job_event, job_need, sweep, worker
from jobhandle_celery.status import JobStatus
from jobhandle_celery.store import PendingMessage, Run, Store, Worker
from jobhandle_celery.store.recovery import Message
from tests.store.harness import Bench

T = TypeVar("T")
Call = Callable[[Store], Any]
"""One call. Ids and tokens are made beforehand, so that a repeat returns the same."""
Scene = Callable[[Bench], Call]
"""Inserts the rows that a call needs; returns the call."""

_CHANCE = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}|[0-9a-f]{64}|(?<=job_id=)\d+|(?<=job )\d+")
_OF_THE_RUN = {"id", "job_id", "namespace"}
_OF_ANOTHER_ROW = {"root_id", "parent_id", "needs_id"}


def normalize(value: Any) -> str:
    """Return an answer as text, without the parts that differ in every run: ids, tokens, digests."""
    return _CHANCE.sub("…", repr(value))


def remaining_rows(bench: Bench) -> list[str]:
    """Return all rows of the bench's namespace, of every table, in any order; times only as null or not.

    Jobs with unique keys are inserted in the order of the keys' digests, which differ between namespaces.
    """
    with bench.database.autocommit() as connection:
        here = job.c.namespace == bench.settings.namespace
        rows: list[str] = []
        for table, which in (
            (job, here),
            (job_event, job_event.c.job_id.in_(select(job.c.id).where(here))),
            (job_need, job_need.c.job_id.in_(select(job.c.id).where(here))),
            (worker, worker.c.namespace == bench.settings.namespace),
            (sweep, sweep.c.namespace == bench.settings.namespace),
        ):
            found = connection.execute(select(table).where(which))
            rows += [_row(table, dict(row)) for row in found.mappings()]
        return sorted(rows)


def sibling_bench(base: Bench) -> Bench:
    """Return a bench with its own namespace over the same connections: a new engine takes time."""
    return Bench(base.url, base.database, namespace=str(uuid.uuid4()))


def _row(table: Table, row: dict[str, Any]) -> str:
    kept = {
        name: "a moment" if isinstance(value, datetime) else bool(value) if name in _OF_ANOTHER_ROW else value
        for name, value in row.items()
        if name not in _OF_THE_RUN
    }
    return normalize({table.name: kept})


def scene(prepare: Callable[[Bench], T], call: Callable[[Store, T], Any]) -> Scene:
    """Return a scene whose call gets what `prepare` returns."""

    def prepared(bench: Bench) -> Call:
        given = prepare(bench)
        return lambda store: call(store, given)

    return prepared


def of_job(state: str, call: Callable[[Store, int], Any], **given: Any) -> Scene:
    return scene(lambda bench: bench.place(state, **given).job_id, call)


def of_message(state: str, call: Callable[[Store, PendingMessage], Any], **given: Any) -> Scene:
    return scene(lambda bench: bench.message(bench.place(state, **given).job_id), call)


def running(bench: Bench, **given: Any) -> Run:
    run = bench.place(JobStatus.RUNNING, **given).run
    assert run is not None
    return run


def of_run(call: Callable[[Store, Run], Any], **given: Any) -> Scene:
    return scene(lambda bench: running(bench, **given), call)


def of_stopping_run(call: Callable[[Store, Run], Any]) -> Scene:
    def asked_to_stop(bench: Bench) -> Run:
        run = running(bench)
        bench.store.control.cancel(run.job_id, None, terminate=False)
        return run

    return scene(asked_to_stop, call)


def of_worker(call: Callable[[Store, Worker], Any]) -> Scene:
    return scene(Bench.worker, call)


def late(bench: Bench, **given: Any) -> int:
    """Return a job that was submitted twenty minutes ago."""
    job_id = bench.submit(**given)
    bench.pass_time(minutes=20)
    return job_id


def lapsed(bench: Bench) -> str:
    """Return the uid of a worker with a job, whose lease has ended."""
    run = running(bench, max_attempts=2)
    bench.pass_time(minutes=20)
    bench.trust_leases()
    return str(run.worker.worker_uid)


def received(bench: Bench, by: Worker, **given: Any) -> Message:
    """Return a message that this worker has noted as received."""
    job_id = bench.place(JobStatus.QUEUED, **given).job_id
    message = bench.message(job_id)
    key = job_id, message.task_id, message.attempt
    bench.store.recovery.note_received([key], by)
    return key


def unstarted(call: Callable[[Store, Message, Worker], Any]) -> Scene:
    """Deliver a message that a lost worker had received to the next worker."""
    return scene(
        lambda bench: (received(bench, bench.worker(), max_attempts=3), bench.worker()),
        lambda store, given: call(store, *given),
    )
