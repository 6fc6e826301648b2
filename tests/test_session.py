"""`session=`: the row joins the caller's SQLAlchemy transaction, the message goes out after its commit."""

from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
import sqlalchemy
from sqlalchemy import event
from sqlalchemy.orm import Session, scoped_session, sessionmaker

from jobhandle_celery import (
    ApiUsageError,
    Job,
    JobStatus,
    SchemaError,
    UnknownJobError,
    ValidationError,
)
from jobhandle_celery.broker.messages import MessageBuilder
from jobhandle_celery.status import UNFINISHED
from tests.apps import make_app
from tests.shop import Shop, engine_of

ADD = Job(task="tests.add", args=[1, 2])


def test_job_exists_and_is_published_after_the_commit_only(shop: Shop) -> None:
    handle = shop.jobs.handle(username="ann", groupname="lab")
    with Session(shop.engine) as session:
        shop.order(session, 1)
        job_id = handle.submit(ADD, session=session)
        assert handle.job_id == job_id
        assert shop.jobs.find() == []
        assert shop.sent() == []
        with pytest.raises(UnknownJobError):
            handle.job_status()
        session.commit()
        assert handle.job_status() is JobStatus.QUEUED
    assert shop.sent() == [job_id]
    assert shop.orders() == [1]
    job = handle.get_job()
    assert (job.username, job.groupname) == ("ann", "lab")
    assert [event.status for event in shop.jobs.events(job_id)] == ["Submitted"]


def test_submit_many_joins_a_session_too(shop: Shop) -> None:
    with Session(shop.engine) as session:
        ids = shop.jobs.submit_many([ADD, ADD], username="ann", session=session)
        assert shop.sent() == []
        session.commit()
    assert shop.sent() == ids
    with Session(shop.engine) as session:
        with pytest.raises(ValidationError):
            shop.jobs.submit_many([ADD, Job(task="")], session=session)
        session.commit()
    assert shop.statuses() == [JobStatus.QUEUED] * 2


def test_held_and_scheduled_jobs_are_not_published_at_commit(shop: Shop) -> None:
    handle = shop.jobs.handle()
    with Session(shop.engine) as session:
        handle.submit(Job(task="tests.add", args=[1, 2], status=JobStatus.WAITING), session=session)
        handle.submit(shop.app.tasks["tests.add"].s(1, 2).set(countdown=60), session=session)
        session.commit()
    assert shop.sent() == []
    assert shop.statuses() == [JobStatus.WAITING] * 2


def test_cancel_between_commit_and_publish_publishes_nothing(shop: Shop) -> None:
    def cancel(_session: Session) -> None:
        shop.jobs.cancel_many(status=UNFINISHED)

    handle = shop.jobs.handle()
    with Session(shop.engine) as session:
        handle.submit(ADD, session=session)
        event.listen(session, "after_transaction_end", lambda s, _transaction: cancel(s), insert=True)
        session.commit()
    assert handle.job_status() is JobStatus.CANCELLED
    assert shop.sent() == []


def test_publish_error_does_not_reach_the_callers_commit(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any, **__: Any) -> Any:
        raise RuntimeError("out of order")

    handle = shop.jobs.handle()
    for owner, method in (
        (MessageBuilder, "build"),
        (shop.jobs._runtime.store.outbox, "reserve"),
        (shop.jobs._runtime.publisher, "publish"),
        (shop.jobs._runtime.store.outbox, "mark_queued"),
    ):
        with monkeypatch.context() as patched, Session(shop.engine) as session:
            patched.setattr(owner, method, broken)
            handle.submit(ADD, session=session)
            session.commit()
            shop.order(session, handle.job_id)
            session.commit()
            shop.jobs._runtime.submitter.queued_marker.flush()  # the mark fails by itself, a moment later
        assert handle.job_status() is JobStatus.SUBMITTED
    assert len(shop.orders()) == 4


def test_bad_input_leaves_the_callers_transaction_usable(shop: Shop) -> None:
    handle = shop.jobs.handle()
    with Session(shop.engine) as session:
        shop.order(session, 1)
        for bad in (Job(task=""), Job(task="tests.add", args=[1]), "no job"):
            with pytest.raises(ApiUsageError):
                handle.submit(bad, session=session)
        shop.order(session, 2)
        session.commit()
    assert (shop.orders(), shop.jobs.find(), shop.sent()) == ([1, 2], [], [])


def test_what_is_no_session_is_refused(shop: Shop) -> None:
    with shop.engine.connect() as connection:
        for wrong in (object(), shop.engine, connection, sessionmaker(shop.engine), "session", 5):
            with pytest.raises(ApiUsageError, match="Session"):
                shop.jobs.handle().submit(ADD, session=wrong)
            with pytest.raises(ApiUsageError, match="Session"):
                shop.jobs.submit_many([ADD], session=wrong)
    assert shop.jobs.find() == []


def test_scoped_session_is_a_session(shop: Shop) -> None:
    session = scoped_session(sessionmaker(shop.engine))
    job_id = shop.jobs.handle().submit(ADD, session=session)
    assert shop.sent() == []
    session.commit()
    session.remove()
    assert shop.sent() == [job_id]


def test_session_without_our_tables_raises_with_the_command(
    empty_database_url: str,
) -> None:
    app: Any = make_app("memory://", empty_database_url)
    engine = engine_of(empty_database_url)
    with Session(engine) as session, pytest.raises(SchemaError, match="upgrade_schema"):
        app.jobs.handle().submit(ADD, session=session)
    engine.dispose()
    app.jobs.close()


@pytest.mark.parametrize("settings", [{}, {"task_eager_propagates": True}])
def test_eager_job_runs_after_the_commit(database_url: str, settings: dict[str, Any]) -> None:
    shop = Shop(database_url, task_always_eager=True, **settings)
    handle = shop.jobs.handle()
    with Session(shop.engine) as session:
        handle.submit(ADD, session=session)
        assert shop.jobs.find() == []
        session.commit()
        assert handle.result(timeout=0) == 3
        handle.submit(Job(task="tests.fail", args=["no good"]), session=session)
        session.rollback()
        handle.submit(Job(task="tests.fail", args=["no good"]), session=session)
        session.commit()
    assert handle.job_status() is JobStatus.ERROR
    assert len(shop.jobs.find()) == 2
    shop.close()


ASYNC_DRIVERS: dict[str, Callable[[str], str]] = {
    "aiosqlite": lambda url: url.replace("sqlite:", "sqlite+aiosqlite:"),
    "psycopg": lambda url: url.replace("postgresql:", "postgresql+psycopg:"),
}


@pytest.mark.parametrize(("driver", "kind"), [("aiosqlite", "sqlite"), ("psycopg", "postgresql")])
def test_async_session_joins_through_run_sync(driver: str, kind: str, request: pytest.FixtureRequest) -> None:
    import asyncio

    pytest.importorskip(driver)
    pytest.importorskip("greenlet")
    from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine

    url = request.getfixturevalue(f"{kind}_url")
    shop = Shop(url)
    handle = shop.jobs.handle()

    async def submit() -> list[int]:
        engine = create_async_engine(ASYNC_DRIVERS[driver](url))
        async with AsyncSession(engine) as session:
            with pytest.raises(ApiUsageError, match="run_sync"):
                handle.submit(ADD, session=session)
            job_id = await session.run_sync(lambda sync: handle.submit(ADD, session=sync))
            assert shop.sent() == []
            await session.commit()
            await session.run_sync(lambda sync: handle.submit(ADD, session=sync))
            await session.rollback()
        await engine.dispose()
        return [job_id]

    ids = asyncio.run(submit())
    shop.jobs._runtime.submitter.drain()
    assert ids == shop.sent()
    assert shop.statuses() == [JobStatus.QUEUED]
    shop.close()


HERE = {
    "postgresql": {"options": "-c timezone=America/New_York"},
    "mariadb": {"init_command": "SET time_zone = '-05:00'"},
}
"""Ways in which a caller's connections get a time zone."""


@pytest.mark.parametrize("database", HERE)
def test_times_are_right_in_any_session_time_zone(database: str, request: pytest.FixtureRequest) -> None:
    shop = Shop(request.getfixturevalue(f"{database}_url"))
    ahead = timedelta(hours=1)
    engine = sqlalchemy.create_engine(shop.engine.url, connect_args=HERE[database])
    with Session(engine) as session, session.begin():
        handle = shop.jobs.handle()
        handle.submit(Job(task="tests.add", args=[1, 2], scheduled_for=ahead), session=session)
    by_ours = shop.jobs.attach(shop.jobs.handle().submit(ADD)).get_job()
    job = handle.get_job()
    assert job.status is JobStatus.WAITING
    assert job.scheduled_for - job.submitted == pytest.approx(ahead, abs=timedelta(minutes=1))
    assert job.submitted == pytest.approx(by_ours.submitted, abs=timedelta(minutes=30))
    engine.dispose()
    shop.close()
