"""A soft time limit raised in a store call reaches the body, and leaves no broken connection."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
from billiard.exceptions import SoftTimeLimitExceeded
from sqlalchemy import create_engine, select

from jobhandle_celery.schema import job
from jobhandle_celery.store import Run
from jobhandle_celery.store.connections import PREPARED_AFTER
from tests.servers import execute
from tests.store.harness import Harness
from tests.support import a_soft_limit_of


@contextmanager
def locked(harness: Harness, job_id: int) -> Iterator[None]:
    """Lock that row against writes."""
    engine = create_engine(harness.database.engine.url)
    with engine.begin() as connection:
        connection.execute(select(job.c.id).where(job.c.id == job_id).with_for_update())
        yield
    engine.dispose()


VERBS: dict[str, Callable[[Harness, Run], object]] = {
    "a transaction": lambda harness, run: harness.store.runs.note_progress(run, 1, 2),
    "a move": lambda harness, run: harness.store.control.set_message(run.job_id, "a message", None, run),
    "direct": lambda harness, run: harness.store.runs.finish(run, "1"),
}


@pytest.mark.parametrize("verb", VERBS)
def test_time_limit_in_a_statement_discards_the_connection(
    server_harness: Harness, verb: str, caplog: pytest.LogCaptureFixture
) -> None:
    harness = server_harness
    run = harness.run(harness.submit())
    before = harness.row(run.job_id)
    with locked(harness, run.job_id), pytest.raises(SoftTimeLimitExceeded), a_soft_limit_of(0.5):
        VERBS[verb](harness, run)
    assert caplog.messages == []  # closed at once, not by the pool at its next use
    VERBS[verb](harness, run)  # the server may have executed it
    assert harness.row(run.job_id) != before


def test_statement_is_prepared_again_after_table_change(postgresql_url: str) -> None:
    """After a migration a connection kept failing: "cached plan must not change result type"."""
    harness = Harness(postgresql_url)
    job_id = harness.submit()
    for _ in range(2 * PREPARED_AFTER):
        assert harness.store.queries.job(job_id, None)
    execute(postgresql_url, "ALTER TABLE jobhandle_job ALTER COLUMN groupname TYPE varchar(250)")
    assert harness.store.queries.job(job_id, None)
    harness.close()
