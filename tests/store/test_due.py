"""A pass of the sweep reads due rows only, not all waiting or final ones."""

from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any

import pytest
import sqlalchemy

from jobhandle_celery.status import JobStatus
from jobhandle_celery.store import Selection
from jobhandle_celery.sweeper import sweep
from tests.publishers import Recorder
from tests.servers import execute
from tests.store.explain import explained, looked_at, pages_read
from tests.store.harness import Harness, new_job

ASKS: dict[str, Callable[[Harness], object]] = {
    "first_due": lambda harness: harness.store.sweep.first_due(),
    "expire": lambda harness: harness.store.sweep.expire(),
    "reserve_due": lambda harness: harness.store.outbox.reserve_due(500),
    "unreported_cancels": lambda harness: harness.store.sweep.unreported_cancels(500),
    "settling": lambda harness: harness.store.settling.reserve_unsettled(500),
}
"""A pass's queries of the job table."""


@pytest.fixture(scope="module")
def crowded(postgresql_databases: Any) -> Iterator[Harness]:
    """A harness with thousands of jobs that are Queued or Waiting, and as many that were cancelled."""
    url = postgresql_databases.create()
    harness = Harness(url)
    for ended in (True, False):
        harness.store.inserter.submit(
            [new_job(scheduled_for=timedelta(days=1 + number)) for number in range(2_000)]
        )
        sent = harness.store.inserter.submit([new_job() for _ in range(2_000)])
        for start in range(0, len(sent), 500):
            harness.store.outbox.mark_queued(
                harness.store.outbox.reserve([message.job_id for message in sent[start : start + 500]])
            )
        if ended:
            harness.store.control.cancel_selected(Selection(statuses=tuple(JobStatus)))
    execute(url, "ANALYZE")
    yield harness
    harness.close()
    postgresql_databases.drop(url)


@pytest.mark.parametrize("asked", ASKS)
def test_pass_that_finds_nothing_due_looks_at_no_job(crowded: Harness, asked: str) -> None:
    with explained(crowded) as plans:
        ASKS[asked](crowded)
    assert [looked_at(plan) for plan in plans] == [0]


@pytest.mark.parametrize("due", [0, 1])
def test_pass_reads_ended_jobs_in_the_index_once(postgresql_databases: Any, due: int) -> None:
    """While a transaction is open, the index keeps thousands of jobs that have ended (fault 58)."""
    url = postgresql_databases.create()
    harness = Harness(url)
    harness.store.inserter.submit([new_job() for _ in range(2_000)])
    harness.pass_time(hours=1)
    reader = sqlalchemy.create_engine(url, isolation_level="REPEATABLE READ")
    with reader.connect() as snapshot:
        snapshot.exec_driver_sql("SELECT 1 FROM jobhandle_job")
        harness.store.control.cancel_selected(Selection(statuses=tuple(JobStatus)))
        ids = [harness.submit() for _ in range(due)]
        harness.pass_time(minutes=2)
        execute(url, "ANALYZE")
        recorder = Recorder(depth=1000)
        with explained(harness) as plans:
            assert sweep(harness.store, recorder, lambda _: None)  # type: ignore[arg-type]  # a double
    assert recorder.published == ids
    first, *others = map(pages_read, plans)
    assert first > 40
    assert len(others) == 4 * due
    assert sum(others) < first / 3
    reader.dispose()
    harness.close()
    postgresql_databases.drop(url)
