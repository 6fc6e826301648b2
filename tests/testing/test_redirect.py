"""An app is redirected for a test, reaches none of its servers, and is afterwards as it was."""

import socket
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from celery import Celery
from celery.backends.cache import CacheBackend
from sqlalchemy import create_engine, text
from sqlalchemy.orm import Session

from jobhandle_celery import ApiUsageError, Job, Jobs, JobStatus
from jobhandle_celery.runtime import runtime_of
from jobhandle_celery.testing import JobsKit
from jobhandle_celery.testing.redirect import redirected
from jobhandle_celery.testing.sqlite import SqliteFiles
from tests.testing import service
from tests.testing.service import note, steps


def nothing() -> None: ...


def done() -> str:
    return "done"


@pytest.fixture
def listening() -> Iterator[socket.socket]:
    """A server that would see a connection, and accepts none."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(0)
        yield server


@pytest.fixture
def make_app(listening: socket.socket) -> Callable[..., Celery]:
    def make(**settings: Any) -> Celery:
        host = "{}:{}".format(*listening.getsockname())
        app = Celery("guarded", broker=f"redis://{host}/0", backend=f"redis://{host}/1", set_as_current=False)
        app.conf.update(settings)
        Jobs(app, f"postgresql+psycopg://{host}/service")
        app.task(name="plain", shared=False)(nothing)
        app.task(name="durable", shared=False, durable=True)(done)
        return app

    return make


@pytest.fixture
def jobhandle_app(make_app: Callable[..., Celery], request: pytest.FixtureRequest) -> Any:
    return make_app() if request.node.name.startswith("test_no_server") else service.app


def test_no_server_is_reached(jobhandle_app: Any, jobs: JobsKit, listening: socket.socket) -> None:
    """By whatever a service may call."""
    app = jobhandle_app
    result = app.tasks["durable"].delay()
    plain = app.tasks["plain"].delay()
    jobs.submit(Job(task="plain"))
    assert len(jobs.run_jobs()) == 2
    assert (result.get(), plain.state) == ("done", "PENDING")
    assert app.control.ping(timeout=0) == []
    app.control.revoke(plain.id)
    app.jobs.sweep()
    app.jobs.upgrade_schema()
    app.jobs.close()
    assert app.jobs.count_by_status()[JobStatus.FINISHED] == 2
    with pytest.raises(BlockingIOError):
        listening.accept()


@pytest.mark.jobhandle(jobhandle_schema="jobs")
def test_schema_is_that_of_sqlite(jobs: JobsKit) -> None:
    assert jobs.perform(note.s(1)) == 1


def test_object_of_the_service_is_redirected(jobs: JobsKit) -> None:
    job_id = service.jobs.submit(note.s(1))
    assert [job.id for job in jobs.find()] == [job_id]
    assert (service.app.jobs, isinstance(jobs, Jobs)) == (service.jobs, True)  # type: ignore[attr-defined]
    assert service.jobs.attach(job_id).job_status() is JobStatus.QUEUED


@pytest.mark.parametrize("value", [1, 2])
def test_each_test_has_a_fresh_database(jobs: JobsKit, value: int) -> None:
    assert jobs.submit(note.s(value)) == 1
    jobs.run_jobs()
    assert steps == [value]


def test_joined_session_commits_or_rolls_back(jobs: JobsKit) -> None:
    engine = create_engine(jobs.database_url)
    with engine.begin() as connection:
        connection.execute(text("CREATE TABLE orders (path TEXT)"))
    with Session(engine) as session:
        session.execute(text("INSERT INTO orders VALUES ('a.tif')"))
        service.jobs.submit(note.s("rolled back"), session=session)
        session.rollback()
        session.execute(text("INSERT INTO orders VALUES ('b.tif')"))
        service.jobs.submit(note.s("committed"), session=session)
        jobs.refute_submitted(note)
        with pytest.raises(pytest.fail.Exception, match="1 job was submitted in a session that has not"):
            jobs.assert_submitted(note)
        session.commit()
    engine.dispose()
    jobs.assert_submitted(note.s("committed"))
    jobs.run_jobs()
    assert steps == ["committed"]


def test_session_of_another_database_is_refused(jobs: JobsKit, sqlite_url: str, postgresql_url: str) -> None:
    """Nothing would publish the job, though its row is there."""
    for url in (sqlite_url, postgresql_url):
        engine = create_engine(url)
        with Session(engine) as session, pytest.raises(ApiUsageError, match="not that of the test"):
            jobs.submit(note.s(1), session=session)
        engine.dispose()


def test_app_is_left_as_it_was(
    make_app: Callable[..., Celery], jobhandle_sqlite: SqliteFiles, listening: socket.socket
) -> None:
    app: Any = make_app(jobhandle_lease=30)
    app.finalize()
    pool, producers, backend = app.pool, app.producer_pool, app.backend
    runtime, changes = runtime_of(app), dict(app.conf.changes)
    before = dict(vars(app))
    conf = {"jobhandle_lease": 5, "jobhandle_durable": True}
    with jobhandle_sqlite.opened(), redirected(app.jobs, jobhandle_sqlite, conf) as (inside, mailbox):
        assert runtime_of(app) is inside
        assert inside.settings.lease.total_seconds() == 5
        assert app.connection_for_write().transport.driver_type == "memory"
        assert isinstance(app.backend, CacheBackend)
        assert app.tasks["plain"].delay().job_id == 1
        app.conf.task_default_queue = "changed by the test"
        JobsKit(app.jobs, inside, mailbox, jobhandle_sqlite).perform(Job(task="plain"))
    assert runtime_of(app) is runtime
    assert app.jobs._runtime is runtime
    assert (app.pool, app.producer_pool, app.backend) == (pool, producers, backend)
    assert app.conf.changes == changes
    assert {name: value for name, value in vars(app).items() if name in before} == before
    assert app.connection_for_write().as_uri().startswith("redis://")
    assert app.tasks["plain"].__trace__ is None  # it would store results where the test did
    assert not app.jobs._durable.include("plain", app.tasks["plain"])
    with pytest.raises(BlockingIOError):
        listening.accept()


def test_result_backend_of_jobs_stays(make_app: Callable[..., Celery], jobhandle_sqlite: SqliteFiles) -> None:
    app: Any = make_app(result_backend="jobhandle")
    with jobhandle_sqlite.opened(), redirected(app.jobs, jobhandle_sqlite, {}):
        task_id = app.tasks["durable"].delay().id
        assert app.AsyncResult(task_id).state == "PENDING"
        assert type(app.backend).__name__ == "JobBackend"


def test_wait_in_another_thread_ends(jobs: JobsKit) -> None:
    """As in a service that waits in a thread of its own, while its test runs the jobs."""
    handle = jobs.handle()
    handle.submit(note.s("waited for"))
    results: list[Any] = []
    waiting = threading.Thread(target=lambda: results.append(handle.result(timeout=60)))
    waiting.start()
    jobs.run_jobs()
    waiting.join()
    assert results == ["waited for"]


@pytest.mark.jobhandle(jobhandle_namespace="outer", jobhandle_durable=["*.plain"])
class TestSettings:
    def test_of_the_class_hold(self, jobs: JobsKit) -> None:
        assert jobs._runtime.settings.namespace == "outer"
        service.plain.delay(1)
        jobs.assert_submitted(service.plain, args=[1])

    @pytest.mark.jobhandle(jobhandle_namespace="inner")
    def test_of_the_test_go_over_them(self, jobs: JobsKit) -> None:
        assert jobs._runtime.settings.namespace == "inner"
        service.plain.delay(1)
        jobs.assert_submitted(service.plain, args=[1])


@pytest.mark.jobhandle(task_always_eager=True)
def test_eager_jobs_run_where_they_are_submitted(jobs: JobsKit) -> None:
    job_id = jobs.submit(note.s(1))
    assert jobs.attach(job_id).result(timeout=0) == 1
    assert jobs.run_jobs() == []


def test_settings_set_by_a_test_hold_until_its_first_use(jobs: JobsKit) -> None:
    service.app.conf.jobhandle_lease = 7
    assert jobs._runtime.settings.lease.total_seconds() == 7


def test_settings_of_other_tests_are_gone(jobs: JobsKit) -> None:
    assert jobs._runtime.settings.namespace == "default"
    assert jobs._runtime.settings.lease.total_seconds() == 60
    jobs.submit(note.s(1))
    assert steps == []
    service.plain.delay(1)
    jobs.refute_submitted(service.plain)
