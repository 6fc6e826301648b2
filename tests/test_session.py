"""`session=`: the row joins the caller's SQLAlchemy transaction, the message goes out after its commit."""

import uuid
from collections.abc import Callable, Iterator
from contextlib import suppress
from datetime import timedelta
from typing import Any

import pytest
import sqlalchemy
from sqlalchemy import Connection, Engine, event
from sqlalchemy.orm import Session, scoped_session, sessionmaker

from jobhandle_celery import (
    ApiUsageError,
    Job,
    JobStatus,
    NotAttachedError,
    SchemaError,
    UnknownJobError,
    ValidationError,
)
from jobhandle_celery.broker.messages import MessageBuilder
from jobhandle_celery.status import UNFINISHED
from tests.apps import make_app

ADD = Job(task="tests.add", args=[1, 2])


class Shop:
    """An application whose database holds the jobs' tables, and a broker that can be read."""

    def __init__(self, database_url: str, **settings: Any) -> None:
        self.queue = f"queue-{uuid.uuid4().hex}"
        app: Any = make_app("memory://", database_url, {"task_default_queue": self.queue, **settings})
        self.app, self.jobs = app, app.jobs
        self.engine = engine_of(database_url)
        with self.engine.begin() as connection:
            connection.exec_driver_sql("CREATE TABLE IF NOT EXISTS shop_order (id INTEGER PRIMARY KEY)")

    def order(self, session: Session, number: int) -> None:
        session.execute(sqlalchemy.text(f"INSERT INTO shop_order VALUES ({number})"))

    def orders(self) -> list[int]:
        with self.engine.connect() as connection:
            return list(connection.exec_driver_sql("SELECT id FROM shop_order ORDER BY id").scalars())

    def sent(self) -> list[int]:
        """Take the broker's messages; return their job ids, in order."""
        ids = []
        with self.app.connection() as connection:
            channel = connection.default_channel
            channel.queue_declare(queue=self.queue)
            while message := channel.basic_get(self.queue, no_ack=True):
                ids.append(message.headers["jobhandle"]["id"])
        return ids

    def statuses(self) -> list[JobStatus]:
        return [job.status for job in reversed(self.jobs.find())]

    def close(self) -> None:
        self.jobs.close()
        self.engine.dispose()


def engine_of(database_url: str) -> Engine:
    engine = sqlalchemy.create_engine(database_url)
    if engine.dialect.name == "sqlite":
        # SQLAlchemy's documented recipe for savepoints on SQLite.
        event.listen(engine, "connect", _leave_transactions_to_us)
        event.listen(engine, "begin", _begin)
    return engine


def _leave_transactions_to_us(connection: Any, _record: Any) -> None:
    connection.isolation_level = None


def _begin(connection: Connection) -> None:
    connection.exec_driver_sql("BEGIN")


@pytest.fixture
def shop(database_url: str) -> Iterator[Shop]:
    shop = Shop(database_url)
    yield shop
    shop.close()


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


def test_after_a_rollback_there_never_was_a_job(shop: Shop) -> None:
    handle = shop.jobs.handle()
    with Session(shop.engine) as session:
        shop.order(session, 1)
        handle.submit(ADD, session=session)
        session.rollback()
        assert shop.sent() == []
        session.commit()
    with suppress(ZeroDivisionError), Session(shop.engine) as session, session.begin():
        handle.submit(ADD, session=session)
        _ = 1 / 0
    with Session(shop.engine) as session:
        handle.submit(ADD, session=session)
    with pytest.raises(NotAttachedError):
        handle.job_status()
    assert (shop.sent(), shop.orders(), shop.jobs.find()) == ([], [], [])
    assert shop.jobs.sweep()
    assert shop.sent() == []


def test_session_goes_on_after_its_commits_and_rollbacks(shop: Shop) -> None:
    handle = shop.jobs.handle()
    with Session(shop.engine) as session:
        kept = [handle.submit(ADD, session=session)]
        session.commit()
        handle.submit(ADD, session=session)
        session.rollback()
        kept += [handle.submit(ADD, session=session), handle.submit(ADD, session=session)]
        session.commit()
        session.commit()
    assert shop.sent() == kept
    assert shop.statuses() == [JobStatus.QUEUED] * 3


def test_rolled_back_savepoint_removes_its_own_jobs_only(shop: Shop) -> None:
    handle = shop.jobs.handle()
    with Session(shop.engine) as session:
        before = handle.submit(ADD, session=session)
        with session.begin_nested():
            kept = handle.submit(ADD, session=session)
            assert shop.sent() == []
        assert shop.sent() == []
        savepoint = session.begin_nested()
        handle.submit(ADD, session=session)
        with session.begin_nested():
            handle.submit(ADD, session=session)
        savepoint.rollback()
        after = handle.submit(ADD, session=session)
        assert shop.sent() == []
        session.commit()
    assert shop.sent() == [before, kept, after]
    assert len(shop.jobs.find()) == 3


def test_released_savepoint_is_rolled_back_with_its_transaction(shop: Shop) -> None:
    handle = shop.jobs.handle()
    with Session(shop.engine) as session:
        with session.begin_nested(), session.begin_nested():
            handle.submit(ADD, session=session)
        session.rollback()
    assert (shop.sent(), shop.jobs.find()) == ([], [])


def test_joined_session_publishes_nothing_after_outer_rollback(shop: Shop) -> None:
    # As in test suites: the session's commit releases a savepoint, or does nothing.
    handle = shop.jobs.handle()
    for mode in ("create_savepoint", "rollback_only"):
        with shop.engine.connect() as connection:
            outer = connection.begin()
            with Session(connection, join_transaction_mode=mode) as session:
                handle.submit(ADD, session=session)
                session.commit()
            outer.rollback()
        assert (shop.sent(), shop.jobs.find()) == ([], [])
    with (
        shop.engine.begin() as connection,
        Session(connection, join_transaction_mode="create_savepoint") as session,
    ):
        handle.submit(ADD, session=session)
        session.commit()
    # The library does not see that commit; the sweep finds the row.
    assert shop.statuses() in ([JobStatus.SUBMITTED], [JobStatus.QUEUED])


def test_several_sessions_keep_their_jobs_apart(shop: Shop) -> None:
    handle = shop.jobs.handle()
    with Session(shop.engine) as session:
        first = handle.submit(ADD, session=session)
        session.commit()
        with Session(shop.engine) as other:
            handle.submit(ADD, session=other)
            other.rollback()
        second = handle.submit(ADD, session=session)
        session.commit()
    assert shop.sent() == [first, second]


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


def test_taken_unique_key_is_found_within_the_transaction(shop: Shop) -> None:
    keyed = Job(task="tests.add", args=[1, 2], unique_key="scan:1")
    handle = shop.jobs.handle()
    with Session(shop.engine) as session:
        first = handle.submit(keyed, session=session)
        assert handle.submit(keyed, session=session) == first
        shop.order(session, 1)
        session.commit()
    assert handle.submit(keyed) == first
    with Session(shop.engine) as session:
        assert handle.submit(keyed, session=session) == first
        session.commit()
    assert shop.sent() == [first]
    assert shop.orders() == [1]


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
