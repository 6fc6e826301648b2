"""Statements that name their jobs read these alone, also if PostgreSQL has no statistics of the table yet."""

import uuid
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from jobhandle_celery.store import PendingMessage, Run, RunResult, Selection, Worker
from jobhandle_celery.store.direct_psycopg import DirectPsycopg
from jobhandle_celery.store.outbox import _reserve_unsent
from tests.servers import execute
from tests.store.explain import explained, looked_at
from tests.store.harness import TASK, Harness, new_job

JOBS = 5_000
NAMED = 3
WORKER = Worker("w1@host", "a uid", 1)

Ask = Callable[[Harness, list[PendingMessage]], object]

ASKS: dict[str, Ask] = {
    "reserve": lambda harness, named: harness.store.outbox.reserve([job.job_id for job in named]),
    "note_received": lambda harness, named: harness.store.recovery.note_received(_keys(named), WORKER),
    "clear_received": lambda harness, named: harness.store.recovery.clear_received(_keys(named), WORKER),
    "superseded": lambda harness, named: harness.store.leases.superseded(_keys(named)),
    "ids_of_tasks": lambda harness, named: harness.store.queries.ids_of_tasks([job.task_id for job in named]),
    "details_of": lambda harness, named: harness.store.diagnostics.details_of([job.job_id for job in named]),
    "find": lambda harness, named: harness.store.pages.find(_selection(named), None, 100),
    "claim_many": lambda harness, named: _claim(harness, named),  # noqa: PLW0108  # defined below
    "finish_many": lambda harness, named: harness.store.runs.finish_many(
        dict.fromkeys(_claim(harness, named), RunResult("1", False)), WORKER
    ),
    "cancel_selected": lambda harness, named: harness.store.control.cancel_selected(_selection(named)),
}


def _keys(named: list[PendingMessage]) -> Any:
    return [(job.job_id, job.task_id, job.attempt) for job in named]


def _claim(harness: Harness, named: list[PendingMessage]) -> list[Run]:
    harness.store.leases.renew(WORKER)
    runs = [Run(job.job_id, job.task_id, job.attempt, str(uuid.uuid4()), WORKER) for job in named]
    harness.store.runs.claim_many(dict.fromkeys(runs, TASK), WORKER)  # EXPLAIN has made the claims already
    return runs


def _selection(named: list[PendingMessage]) -> Selection:
    return Selection(ids=tuple(job.job_id for job in named))


@pytest.fixture(scope="module")
def fresh(postgresql_databases: Any) -> Iterator[Harness]:
    """A harness with thousands of jobs in a table that was never analysed."""
    url = postgresql_databases.create()
    execute(url, "ALTER TABLE jobhandle_job SET (autovacuum_enabled = false)")
    harness = Harness(url)
    harness.store.inserter.submit([new_job() for _ in range(JOBS)])
    yield harness
    harness.close()
    postgresql_databases.drop(url)


@pytest.fixture
def named(fresh: Harness) -> list[PendingMessage]:
    jobs = fresh.store.inserter.submit([new_job() for _ in range(NAMED)])
    return fresh.store.outbox.reserve([job.job_id for job in jobs])


@pytest.mark.parametrize("asked", ASKS)
def test_named_jobs_alone_are_read(fresh: Harness, named: list[PendingMessage], asked: str) -> None:
    with explained(fresh, "jobhandle_job") as plans:
        ASKS[asked](fresh, named)
    assert plans
    assert max(map(looked_at, plans)) <= 4 * NAMED


def test_named_jobs_alone_are_reserved_by_direct_psycopg(fresh: Harness, named: list[PendingMessage]) -> None:
    """All jobs were read for each part of a tree of 100,000: its submit took 80 instead of 20 s."""
    prepared = DirectPsycopg(fresh.database.engine, None)._prepare(_reserve_unsent())
    parameters = {**fresh.database._setting_params, "ids": [job.job_id for job in named]}
    with fresh.database.engine.begin() as connection:
        statement = f"EXPLAIN (ANALYZE, FORMAT JSON) {prepared.text}"
        (plans,) = connection.exec_driver_sql(statement, prepared.parameters(parameters)).one()
    assert looked_at(plans[0]["Plan"]) <= 4 * NAMED
