"""A pass of the sweep reads due rows only, not all waiting or final ones."""

from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import event

from jobhandle_celery.status import JobStatus
from jobhandle_celery.store import Selection
from tests.servers import execute
from tests.store.harness import Bench, new_job

ASKS: dict[str, Callable[[Bench], object]] = {
    "expire": lambda bench: bench.store.sweep.expire(),
    "reserve_due": lambda bench: bench.store.outbox.reserve_due(500),
    "unreported_cancels": lambda bench: bench.store.sweep.unreported_cancels(500),
}
"""A pass's queries of the job table."""


@pytest.fixture(scope="module")
def crowded(postgresql_databases: Any) -> Iterator[Bench]:
    """A bench with thousands of jobs that are Queued or Waiting, and as many that were cancelled."""
    url = postgresql_databases.create()
    bench = Bench(url)
    for ended in (True, False):
        bench.store.inserter.submit(
            [new_job(scheduled_for=timedelta(days=1 + number)) for number in range(2_000)]
        )
        sent = bench.store.inserter.submit([new_job() for _ in range(2_000)])
        for start in range(0, len(sent), 500):
            bench.store.outbox.mark_queued(
                bench.store.outbox.reserve([message.job_id for message in sent[start : start + 500]])
            )
        if ended:
            bench.store.control.cancel_selected(Selection(statuses=tuple(JobStatus)))
    execute(url, "ANALYZE")
    yield bench
    bench.close()
    postgresql_databases.drop(url)


def looked_at(plan: dict[str, Any]) -> float:
    """Return how many rows of the job table a plan has read."""
    rows = 0.0
    if plan.get("Relation Name") == "jobhandle_job" and "Scan" in plan["Node Type"]:
        rows = plan["Actual Loops"] * (plan["Actual Rows"] + plan.get("Rows Removed by Filter", 0))
    return rows + sum(map(looked_at, plan.get("Plans", [])))


@pytest.mark.parametrize("asked", ASKS)
def test_pass_that_finds_nothing_due_looks_at_no_job(crowded: Bench, asked: str) -> None:
    engine, read = crowded.database.engine, []

    def explain(_: Any, cursor: Any, statement: str, parameters: Any, *__: Any) -> None:
        if "due_at <=" in statement:
            cursor.execute(f"EXPLAIN (ANALYZE, FORMAT JSON) {statement}", parameters)
            read.append(looked_at(cursor.fetchone()[0][0]["Plan"]))

    event.listen(engine, "before_cursor_execute", explain)
    try:
        ASKS[asked](crowded)
    finally:
        event.remove(engine, "before_cursor_execute", explain)
    assert read == [0]
