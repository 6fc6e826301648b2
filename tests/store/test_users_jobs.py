"""A user's jobs are found by an index, however many other users have (fault 23)."""

import uuid
from typing import Any

import pytest
from sqlalchemy import create_engine, event, insert, select, text

from jobhandle_celery.schema import job
from jobhandle_celery.status import JobStatus
from jobhandle_celery.store import Selection
from tests.store.harness import TASK, Harness

SELECTIONS = [
    Selection(username="ann"),
    Selection(username="ann", statuses=(JobStatus.FINISHED,)),
    Selection(username="ann", statuses=(JobStatus.FINISHED, JobStatus.ERROR)),
    Selection(username="ann", task=TASK),
]
OTHERS = 3_000


@pytest.fixture
def crowded(own_harness: Harness) -> Harness:
    """Three of ann's jobs beside thousands of others', all finished."""
    harness = own_harness
    job_id = harness.submit(username="ann")
    assert harness.store.runs.finish(harness.run(job_id), "1")
    engine = create_engine(harness.url)  # without the library's limits for locks and idle transactions
    with engine.begin() as connection:
        row = dict(connection.execute(select(job).where(job.c.id == job_id)).mappings().one())
    del row["id"]
    users = ["ann", "ann", *(f"user {number % 100}" for number in range(OTHERS))]
    copies = [{**row, "username": user, "task_id": str(uuid.uuid4())} for user in users]
    with engine.begin() as connection:
        connection.execute(insert(job), copies)
    with engine.begin() as connection:
        if connection.dialect.name == "postgresql":
            connection.execute(text("ANALYZE jobhandle_job"))
        elif connection.dialect.name != "sqlite":
            connection.execute(text("ANALYZE TABLE jobhandle_job"))
    engine.dispose()
    return harness


def test_users_jobs_are_found_by_their_index(crowded: Harness) -> None:
    executed: list[Any] = []

    def note(_c: Any, _cursor: Any, statement: str, parameters: Any, _context: Any, _many: Any) -> None:
        if statement.startswith("SELECT jobhandle_job."):
            executed.append((statement, parameters))

    event.listen(crowded.database.engine, "before_cursor_execute", note)
    for selection in SELECTIONS:
        assert len(crowded.store.pages.find(selection, None, 100)) == 3
        assert len(crowded.store.pages.page(selection, None, 2).jobs) == 2
    event.remove(crowded.database.engine, "before_cursor_execute", note)
    assert len(executed) == 2 * len(SELECTIONS)
    explain = "EXPLAIN QUERY PLAN" if crowded.database.engine.dialect.name == "sqlite" else "EXPLAIN"
    with crowded.database.autocommit() as connection:
        for statement, parameters in executed:
            plan = connection.connection.exec_driver_sql(f"{explain} {statement}", parameters).all()
            assert "jobhandle_job_user_index" in str(plan), statement


def test_users_page_goes_on_where_the_last_one_ended(crowded: Harness) -> None:
    first = crowded.store.pages.page(SELECTIONS[0], None, 2)
    second = crowded.store.pages.page(SELECTIONS[0], first.before, 2)
    assert len({found.id for found in [*first.jobs, *second.jobs]}) == 3
    assert second.before is None
    assert {found.username for found in [*first.jobs, *second.jobs]} == {"ann"}
