"""Tests of a service in a database on a server, which its own tables need."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from datetime import timedelta
from typing import Any

import pytest
from celery import chain
from sqlalchemy import create_engine, text
from sqlalchemy.orm import Session

from jobhandle_celery import ConfigurationError, DatabaseUnavailableError, Job, JobStatus
from jobhandle_celery.testing import JobsKit
from jobhandle_celery.testing.database import GivenDatabase
from jobhandle_celery.testing.redirect import redirected
from tests.database_fixtures import fresh_database
from tests.servers import execute
from tests.testing import service
from tests.testing.service import add, note, steps

empty_postgresql_of_module = fresh_database("postgresql", "module", empty=True)
empty_mariadb_of_module = fresh_database("mariadb", "module", empty=True)


@pytest.fixture(scope="module", params=["postgresql", "mariadb"])
def jobhandle_database(request: pytest.FixtureRequest) -> Any:
    """An empty database."""
    return request.getfixturevalue(f"empty_{request.param}_of_module")


@pytest.fixture
def session(jobs: JobsKit) -> Iterator[Session]:
    engine = create_engine(jobs.database_url)
    with Session(engine) as session:
        yield session
    engine.dispose()


@pytest.mark.parametrize("number", [1, 2])
def test_each_test_sees_its_own_jobs(jobs: JobsKit, session: Session, number: int) -> None:
    service.jobs.submit(note.s(number), session=session)
    session.rollback()
    jobs.refute_submitted(note)
    service.jobs.submit(note.s(number), session=session)
    session.commit()
    (job,) = jobs.run_jobs()
    assert (job.result, [job.id for job in jobs.find()]) == (number, [job.id])


@contextmanager
def in_a_test(database: GivenDatabase) -> Iterator[JobsKit]:
    with database.opened(), redirected(service.jobs, database, {}) as (runtime, mailbox):
        yield JobsKit(service.jobs, runtime, mailbox, database)


def test_nothing_is_left_behind(jobhandle_database: Any) -> None:
    database = GivenDatabase(jobhandle_database)
    with in_a_test(database) as jobs:
        jobs.submit(chain(add.s(1, 2), add.s(3)))
        jobs.run_jobs()
    for table in ("job", "job_event", "job_need", "worker", "sweep"):
        assert execute(jobhandle_database, f"SELECT count(*) FROM jobhandle_{table}") == [(0,)], table


def test_rows_become_older_as_the_clock_advances(jobs: JobsKit, advance: Callable[..., None]) -> None:
    job_id = jobs.submit(Job(task=note.name, args=[1], scheduled_for=timedelta(hours=1)))
    before = jobs.attach(job_id).get_job()
    advance(minutes=59)
    assert jobs.run_jobs() == []
    advance(minutes=1)
    assert len(jobs.run_jobs()) == 1
    after = jobs.attach(job_id).get_job()
    assert before.submitted - after.submitted == timedelta(hours=1)
    assert steps == [1]


def test_faults_are_those_of_the_other_tests(
    jobs: JobsKit,
    lose_worker: Callable[[int], JobStatus],
    database_away: Callable[[], AbstractContextManager[None]],
) -> None:
    with database_away(), pytest.raises(DatabaseUnavailableError, match="the database is away"):
        jobs.submit(add.s(1, 2))
    job_id = jobs.submit(Job(task=add.name, args=[1, 2], max_attempts=2))
    assert lose_worker(job_id) is JobStatus.REQUEUED
    jobs.run_jobs()
    assert jobs.attach(job_id).result(timeout=0) == 3


def test_first_use_may_be_while_the_database_is_away(jobhandle_database: Any) -> None:
    database = GivenDatabase(jobhandle_database)
    with in_a_test(database) as jobs:
        database.is_away = True
        with pytest.raises(DatabaseUnavailableError, match="the database is away"):
            jobs.submit(add.s(1, 2))
        database.is_away = False
        jobs.submit(add.s(1, 2))


def test_row_that_a_table_of_the_service_needs_stays(jobhandle_database: Any) -> None:
    database = GivenDatabase(jobhandle_database)
    engine = create_engine(jobhandle_database)
    with in_a_test(database) as jobs:
        job_id = jobs.submit(note.s(1))
        with engine.begin() as connection:
            key = "FOREIGN KEY (job) REFERENCES jobhandle_job (id)"
            connection.execute(text(f"CREATE TABLE orders (job BIGINT, {key})"))
            connection.execute(text("INSERT INTO orders VALUES (:job)"), {"job": job_id})
    with in_a_test(database) as jobs:
        assert jobs.find() == []
    with engine.begin() as connection:
        assert connection.execute(text("SELECT job FROM orders")).scalar() == job_id
        # For the other tests in this database.
        connection.execute(text("DROP TABLE orders"))
        connection.execute(text("DELETE FROM jobhandle_job_event"))
        connection.execute(text("DELETE FROM jobhandle_job"))
    engine.dispose()


def test_sqlite_is_refused(tmp_path: Any) -> None:
    with pytest.raises(ConfigurationError, match=r"make your own engine of jobs\.database_url"):
        GivenDatabase(f"sqlite:///{tmp_path}/jobs.sqlite3")
