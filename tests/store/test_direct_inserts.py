"""Many jobs inserted in one transaction through psycopg directly: the same rows, or none."""

import logging
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import pytest
from billiard.exceptions import SoftTimeLimitExceeded
from sqlalchemy import create_engine

from jobhandle_celery import DatabaseRefusedError, ValidationError
from jobhandle_celery.settings import Settings
from jobhandle_celery.status import JobStatus
from jobhandle_celery.store import Database, NewJob, connections, engine_maker, retrying
from jobhandle_celery.store.insert import MAX_ROWS
from tests.databases import MARIADB_WITH_FAULTS
from tests.servers import execute
from tests.store.harness import Harness, new_job, through
from tests.support import a_soft_limit, eventually

MANY = 2 * MAX_ROWS + 3
"""More jobs than two statements hold."""
LONG = f'{{"text": "{"x" * 7_000}"}}'
"""Kwargs with which not even two statements fit into the buffers of a connection."""
ROWS = "SELECT count(*) FROM jobhandle_job"


@pytest.fixture
def own_harness(postgresql_url: str) -> Iterator[Harness]:
    """A harness on its own database."""
    harness = Harness(postgresql_url)
    yield harness
    harness.close()


class Making:
    """Jobs made lazily; `then` is called before the last one."""

    def __init__(self, then: Callable[[], object], count: int = MANY, **given: Any) -> None:
        self._then = then
        self._count = count
        self._given = given

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[NewJob]:
        for number in range(1, self._count + 1):
            if number == self._count:
                self._then()
            yield new_job(args=f"[{number}]", **(self._given if number == self._count else {}))


@pytest.mark.parametrize(
    ("given", "direct"),
    [
        ({}, True),
        ({"unique_key": "k", "username": "ann"}, False),
        ({"scheduled_for": timedelta(hours=1)}, False),
        ({"expires": timedelta(hours=1)}, False),
    ],
    ids=["plain", "unique", "scheduled", "expiring"],
)
@pytest.mark.parametrize("database_url", MARIADB_WITH_FAULTS, indirect=True)
def test_many_jobs_are_inserted_in_their_order(
    crowded_harness: Harness, monkeypatch: pytest.MonkeyPatch, given: dict[str, Any], direct: bool
) -> None:
    """The last job fails, after those before it were sent to the server."""
    harness = crowded_harness
    gone = through(harness, monkeypatch, "execute_each_directly")
    jobs = [*(new_job(args=f"[{number}]") for number in range(1, MANY)), new_job(args=f"[{MANY}]", **given)]
    ids = [job.job_id for job in harness.store.inserter.submit(jobs)]
    assert gone == [direct and harness.database.engine.dialect.name == "postgresql"]
    assert ids == sorted(set(ids))
    for number in (1, MAX_ROWS, MAX_ROWS + 1, MANY):
        job_id = ids[number - 1]
        assert harness.row(job_id)["args"] == f"[{number}]"
        became = JobStatus.WAITING if number == MANY and "scheduled_for" in given else JobStatus.SUBMITTED
        assert harness.events(job_id) == [became]


def test_existing_job_among_many_is_found(harness: Harness, monkeypatch: pytest.MonkeyPatch) -> None:
    first, there = new_job(), harness.submit(task_id="11111111-0000-4000-8000-000000000000")
    gone = through(harness, monkeypatch, "execute_each_directly")
    submitted = harness.store.inserter.submit(
        [first, new_job(task_id="11111111-0000-4000-8000-000000000000")]
    )
    assert gone == [False]
    assert submitted[1].job_id == there
    assert harness.events(submitted[0].job_id) == [JobStatus.SUBMITTED]


@contextmanager
def table_locked(url: str) -> Iterator[None]:
    """Lock the job table against inserts."""
    engine = create_engine(url)
    with engine.begin() as connection:
        connection.exec_driver_sql("LOCK TABLE jobhandle_job IN EXCLUSIVE MODE")
        yield
    engine.dispose()


def test_error_while_jobs_are_prepared_leaves_no_trace(own_harness: Harness) -> None:
    harness = own_harness

    def refuse() -> None:
        raise ValidationError("args", "the last", "something else")

    harness.submit()
    others = "FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"
    url, backends = harness.url, f"SELECT pid {others}"
    before = execute(url, backends)
    with pytest.raises(ValidationError):
        harness.store.inserter.submit(Making(refuse))
    assert execute(url, ROWS) == [(1,)]
    assert execute(url, backends) == before  # its connection is unchanged


def test_refused_row_among_many_is_its_own_error(own_harness: Harness) -> None:
    """The jobs after it raise nothing."""
    jobs = [new_job(task="x" * 300 if number == 1 else "t") for number in range(MANY)]
    with pytest.raises(DatabaseRefusedError, match="value too long"):
        own_harness.store.inserter.submit(jobs)
    assert execute(own_harness.url, ROWS) == [(0,)]
    assert len(own_harness.store.inserter.submit([new_job(), new_job()])) == 2


def test_connection_broken_between_statements_costs_a_retry(own_harness: Harness) -> None:
    broken = Counter[str]()

    def cut_once() -> None:
        broken["times"] += 1
        if broken["times"] == 1:
            execute(
                own_harness.url,
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
                "WHERE datname = current_database() AND pid <> pg_backend_pid()",
            )

    own_harness.submit()
    submitted = own_harness.store.inserter.submit(Making(cut_once))
    assert broken["times"] == 2
    assert len({job.job_id for job in submitted}) == MANY
    assert execute(own_harness.url, ROWS) == [(MANY + 1,)]


@pytest.mark.parametrize("given", [{}, {"unique_key": "k"}], ids=["direct", "by SQLAlchemy"])
def test_first_jobs_are_prepared_before_a_connection_is_taken(
    harness: Harness, monkeypatch: pytest.MonkeyPatch, given: dict[str, Any]
) -> None:
    """The jobs of the first statement are prepared before a connection is taken; by SQLAlchemy, all."""
    open_now = Counter[str]()
    seen: list[int] = []

    def counted(name: str) -> None:
        opened = getattr(harness.database, name)

        @contextmanager
        def noted(*args: Any) -> Iterator[Any]:
            open_now["connections"] += 1
            try:
                with opened(*args) as connection:
                    yield connection
            finally:
                open_now["connections"] -= 1

        monkeypatch.setattr(harness.database, name, noted)

    counted("ready")
    making = Making(lambda: seen.append(open_now["connections"]), count=3, **given)
    assert len(harness.store.inserter.submit(making)) == 3
    assert set(seen) == {0}


def test_slow_preparation_blocks_no_other_process(own_harness: Harness) -> None:
    """In a pipeline the server's limit for idle transactions does not run."""
    other = Harness(own_harness.url)
    lived: list[list[JobStatus]] = []

    def live() -> None:
        job_id = other.submit()
        other.pass_time(hours=1)
        assert other.store.sweep.begin_pass() is not None
        assert [message.job_id for message in other.store.outbox.reserve_due(10)] == [job_id]
        other.store.runs.finish(other.run(job_id), "1")
        lived.append(other.events(job_id))

    assert len(own_harness.store.inserter.submit(Making(live))) == MANY
    assert lived == [[JobStatus.SUBMITTED, JobStatus.RUNNING, JobStatus.FINISHED]]
    other.close()


def test_time_limit_is_raised_while_the_server_blocks(
    own_harness: Harness, caplog: pytest.LogCaptureFixture
) -> None:
    own_harness.submit()
    with a_soft_limit() as comes_in, table_locked(own_harness.url), pytest.raises(SoftTimeLimitExceeded):
        own_harness.store.inserter.submit(Making(lambda: comes_in(0.3)))
    # Only psycopg logs: the connection was closed at once, not by the pool at its next use.
    (warning,) = [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert warning.name == "psycopg"
    assert warning.getMessage().endswith("the connection is closed")
    assert len(own_harness.store.inserter.submit([new_job(), new_job()])) == 2
    assert execute(own_harness.url, ROWS) == [(3,)]


def test_briefly_locked_table_is_inserted_into_directly(
    postgresql_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first statement's lock wait times out, and the call is retried on the same connection."""
    monkeypatch.setattr(connections, "LOCK_WAIT", 0.2)
    harness = Harness(postgresql_url)
    harness.submit()
    asked: list[int] = []
    straight_each = harness.database.execute_each_directly

    def counted(*given: Any) -> bool:
        asked.append(len(asked))
        return straight_each(*given)

    monkeypatch.setattr(harness.database, "execute_each_directly", counted)
    with ThreadPoolExecutor() as pool:
        with table_locked(postgresql_url):
            submitted = pool.submit(
                harness.store.inserter.submit, [new_job(kwargs=LONG) for _ in range(MANY)]
            )
            eventually(lambda: len(asked) > 1 or submitted.done())
        assert len(submitted.result(60)) == MANY
    assert len(asked) > 1
    harness.close()
    assert execute(postgresql_url, ROWS) == [(MANY + 1,)]


def test_server_that_reads_nothing_gets_statements_in_turn(
    postgresql_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The client closes a connection that accepts no bytes; the retry sends one statement at a time."""
    monkeypatch.setattr(retrying, "_RETRIES_FOR", 600.0)  # until the test has seen one
    # The deadline is shorter than a wait for a lock.
    database = Database(engine_maker(postgresql_url), Settings(), deadline=1.0)
    harness = Harness(postgresql_url, database)
    harness.submit()
    waits = "SELECT pid FROM pg_locks WHERE NOT granted AND relation = 'jobhandle_job'::regclass"
    waiting = set[int]()

    def has_come_again() -> bool:
        waiting.update(pid for (pid,) in execute(postgresql_url, waits))
        return len(waiting) > 1

    jobs = [new_job(kwargs=LONG) for _ in range(MANY)]
    with ThreadPoolExecutor() as pool:
        with table_locked(postgresql_url):
            submitted = pool.submit(harness.store.inserter.submit, jobs)
            eventually(lambda: has_come_again() or submitted.done())
        assert len({job.job_id for job in submitted.result(60)}) == MANY
    assert len(waiting) > 1
    database.close()
    assert execute(postgresql_url, ROWS) == [(MANY + 1,)]
