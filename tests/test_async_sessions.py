"""`AsyncJobHandle.submit(session=…)`: the job joins an `AsyncSession`, with each driver."""

import asyncio
import gc
import threading
from collections.abc import Awaitable, Callable, Iterator
from contextvars import ContextVar
from datetime import timedelta
from typing import Any

import pytest
import sqlalchemy
from celery.signals import before_task_publish
from sqlalchemy import event, text
from sqlalchemy.ext.asyncio import (
    AsyncEngine,
    AsyncSession,
    async_scoped_session,
    async_sessionmaker,
    create_async_engine,
)

from jobhandle_celery import ApiUsageError, AsyncJobHandle, Job, NotAttachedError
from jobhandle_celery.store.call_threads import MAX_THREADS
from tests.async_handles import StatementsInLoop, call_threads, run_with_engine
from tests.job_factory import ADD, HELD
from tests.shop import Shop
from tests.support import eventually

LONG = 120

DRIVERS = {
    "aiosqlite": "sqlite",
    "psycopg": "postgresql",
    "asyncpg": "postgresql",
    "asyncmy": "mariadb",
    "aiomysql": "mariadb",
}


class AsyncShop(Shop):
    """A shop whose requests have asynchronous sessions."""

    def __init__(self, url: str, driver: str, **settings: Any) -> None:
        super().__init__(url, **settings)
        parsed = sqlalchemy.make_url(url)
        # Some options of the URL are those of the other driver.
        self.async_url = parsed.set(
            drivername=f"{parsed.get_backend_name()}+{driver}"
        ).difference_update_query(["ssl_disabled"])

    def run(self, work: Callable[[AsyncEngine], Awaitable[Any]]) -> Any:
        return run_with_engine(self.async_url, work)

    def messages(self, count: int) -> list[int]:
        """Take the messages that the thread behind the event loop publishes."""
        sent: list[int] = []

        def all_sent() -> bool:
            sent.extend(self.sent())
            return len(sent) >= count

        eventually(all_sent, LONG, f"{count} are published")
        self.jobs.close()  # publishes what is pending
        return sent + self.sent()

    def connections(self) -> int:
        """Return how many connections to the database there are, without those that were idle here."""
        self.engine.dispose()
        with self.engine.connect() as connection:
            count: int = connection.exec_driver_sql(CONNECTIONS[connection.dialect.name]).scalar_one()
            return count


CONNECTIONS = {
    "sqlite": "SELECT 1",
    "postgresql": "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()",
    "mariadb": "SELECT count(*) FROM information_schema.processlist WHERE db = DATABASE()",
}


@pytest.fixture(params=DRIVERS)
def shop(request: pytest.FixtureRequest) -> Iterator[AsyncShop]:
    pytest.importorskip(request.param)
    shop = AsyncShop(request.getfixturevalue(f"{DRIVERS[request.param]}_url"), request.param)
    yield shop
    shop.close()


async def place(session: AsyncSession, number: int) -> None:
    await session.execute(text(f"INSERT INTO shop_order VALUES ({number})"))


def test_message_follows_the_commit_and_not_a_rollback(shop: AsyncShop) -> None:
    async def requests(engine: AsyncEngine) -> list[int]:
        handle = shop.jobs.async_handle(username="ann")
        async with AsyncSession(engine) as session:
            await place(session, 1)
            kept = await handle.submit(ADD, session=session)
            assert handle.job_id == kept
            assert shop.sent() == []
            await session.commit()
        async with AsyncSession(engine) as session:
            await place(session, 2)
            await handle.submit(ADD, session=session)
            await session.rollback()
            with pytest.raises(NotAttachedError):
                _ = handle.job_id
        async with AsyncSession(engine) as session:
            await place(session, 3)
            late = await handle.submit(ADD, session=session)
            await session.commit()
        assert await handle.job_status() in ("Submitted", "Queued")
        return [kept, late]

    ids = shop.run(requests)
    assert shop.messages(2) == ids
    assert shop.orders() == [1, 3]
    assert [job.id for job in shop.jobs.find(username="ann")] == ids[::-1]


# aiosqlite needs SQLAlchemy's recipe for savepoints.
@pytest.mark.parametrize("shop", [name for name in DRIVERS if name != "aiosqlite"], indirect=True)
def test_savepoint_that_is_rolled_back_leaves_no_job(shop: AsyncShop) -> None:
    async def request(engine: AsyncEngine) -> Any:
        handle, other = shop.jobs.async_handle(), shop.jobs.async_handle()
        async with AsyncSession(engine) as session, session.begin():
            await place(session, 1)
            job_id = await handle.submit(ADD, session=session)
            nested = await session.begin_nested()
            await other.submit(ADD, session=session)
            await nested.rollback()
        with pytest.raises(NotAttachedError):
            _ = other.job_id
        return job_id

    job_id = shop.run(request)
    assert shop.messages(1) == [job_id]


def test_scoped_session_is_joined(shop: AsyncShop) -> None:
    async def request(engine: AsyncEngine) -> Any:
        scoped = async_scoped_session(async_sessionmaker(engine), scopefunc=asyncio.current_task)
        async with shop.jobs.async_handle() as handle:
            job_id = await handle.submit(ADD, session=scoped)
        await scoped.commit()
        await scoped.remove()
        return job_id

    job_id = shop.run(request)
    assert shop.messages(1) == [job_id]


def test_jobs_of_every_kind_join(shop: AsyncShop) -> None:
    """With times, with needs, and trees: what they read of the database is not read in the event loop."""
    from celery import chain

    add = shop.app.tasks["tests.add"]
    ended = shop.jobs.attach(shop.jobs.submit(HELD))
    ended.set_status("Running")
    ended.set_status("Finished")
    kinds: list[Any] = [
        Job(task="tests.add", args=[1, 2], expires=timedelta(days=1)),
        Job(task="tests.add", args=[1, 2], after=[ended.job_id]),
        chain(add.si(1, 2), add.si(3, 4)),
        Job(task="tests.add", args=["ä", "漢"], unique_key="once"),
        Job(task="tests.add", args=["ä", "漢"], unique_key="once"),
    ]
    in_loop = StatementsInLoop(shop.jobs)

    async def request(engine: AsyncEngine) -> list[int]:
        handle = shop.jobs.async_handle()
        async with AsyncSession(engine) as session, session.begin():
            ids = [await handle.submit(kind, session=session) for kind in kinds]
        async with AsyncSession(engine) as session, session.begin():
            assert await handle.submit(kinds[-1], session=session) == ids[-1]
        return ids

    ids = shop.run(request)
    assert in_loop.seen == []
    assert ids[3] == ids[4]
    eventually(lambda: shop.jobs.attach(ids[1]).job_status() != "Waiting", LONG, "its need has ended")
    first = shop.jobs.find(root=ids[2])[-1].id
    assert sorted(set(shop.messages(4))) == sorted({ids[0], ids[1], first, ids[3]})


@pytest.mark.parametrize("shop", ["aiosqlite"], indirect=True)
def test_handlers_of_publish_signals_do_not_hold_up_the_loop(shop: AsyncShop) -> None:
    """They may read a database, and validation, routing and encoding take a while for large arguments."""
    threads: list[int] = []
    var: ContextVar[str] = ContextVar("var")

    def handler(headers: Any = None, **_: Any) -> None:
        threads.append(threading.get_ident())
        headers["of-request"] = var.get()

    async def request(engine: AsyncEngine) -> Any:
        var.set("the request's")
        handle = shop.jobs.async_handle()
        async with AsyncSession(engine) as session, session.begin():
            await handle.submit(ADD, session=session)
        return (await handle.get_job()).headers

    before_task_publish.connect(handler)
    try:
        assert shop.run(request)["of-request"] == "the request's"
    finally:
        before_task_publish.disconnect(handler)
    assert threads
    assert threading.get_ident() not in threads


@pytest.mark.faults
def test_submit_that_is_cancelled_at_any_statement_leaves_nothing(shop: AsyncShop) -> None:
    """The caller's transaction is rolled back, its connection is returned, and the handle is on no job.

    The job needs the database's clock, which is read in a thread, in the middle of the submit.
    """
    job = Job(task="tests.add", args=[1, 2], expires=timedelta(days=1))
    ours = shop.jobs._runtime.store.database.engine

    async def cancelled(engine: AsyncEngine, number: int) -> bool:
        handle, loop = shop.jobs.async_handle(), asyncio.get_running_loop()
        left = number

        def cancel(*_: Any) -> None:
            nonlocal left
            left -= 1
            if left == 0:
                loop.call_soon_threadsafe(task.cancel)

        async def request() -> None:
            async with AsyncSession(engine) as session:
                await place(session, number)
                for listened in (engine.sync_engine, ours):
                    event.listen(listened, "before_cursor_execute", cancel)
                try:
                    await handle.submit(job, session=session)
                finally:
                    for listened in (engine.sync_engine, ours):
                        event.remove(listened, "before_cursor_execute", cancel)
                await session.commit()

        task = asyncio.ensure_future(request())
        await asyncio.wait([task])
        if not task.cancelled():
            await task
            return False
        with pytest.raises(NotAttachedError):
            _ = handle.job_id
        pool: Any = engine.pool
        assert pool.checkedout() == 0
        return True

    async def main(engine: AsyncEngine) -> int:
        number = 1
        while await cancelled(engine, number):
            # SQLAlchemy has closed the connection, which keeps its lock while an error refers to a cursor.
            gc.collect()
            number += 1
        return number

    number = shop.run(main)
    assert number > 2
    assert len(shop.messages(1)) == 1
    assert shop.orders() == [number]
    assert len(shop.jobs.find()) == 1
    shop.jobs.close()
    eventually(lambda: shop.connections() == 1, LONG, "the server has no connection but the one that asks")
    assert len(call_threads()) <= MAX_THREADS


def test_session_is_joined_in_uvloop(shop: AsyncShop) -> None:
    uvloop = pytest.importorskip("uvloop")

    async def request() -> int:
        engine = create_async_engine(shop.async_url)
        async with shop.jobs.async_handle() as handle, AsyncSession(engine) as session:
            job_id: int = await handle.submit(ADD, session=session)
            await session.commit()
        await engine.dispose()
        return job_id

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        job_id = runner.run(request())
    assert shop.messages(1) == [job_id]


def test_session_under_trio_is_refused(sqlite_url: str) -> None:
    pytest.importorskip("trio")
    anyio = pytest.importorskip("anyio")
    shop = AsyncShop(sqlite_url, "aiosqlite")

    async def submit() -> None:
        async with shop.jobs.async_handle() as handle:
            await handle.submit(ADD, session=AsyncSession(create_async_engine(shop.async_url)))

    with pytest.raises(ApiUsageError, match="needs asyncio's event loop"):
        anyio.run(submit, backend="trio")
    assert shop.jobs.find() == []
    shop.close()


def test_sessions_of_the_other_kind_are_refused(sqlite_url: str) -> None:
    shop = AsyncShop(sqlite_url, "aiosqlite")

    async def refused(_: AsyncEngine) -> None:
        handle: AsyncJobHandle = shop.jobs.async_handle()
        for wrong in (sqlalchemy.orm.Session(shop.engine), shop.engine):
            with pytest.raises(ApiUsageError, match=r"is not a sqlalchemy\.ext\.asyncio\.AsyncSession"):
                await handle.submit(ADD, session=wrong)  # type: ignore[arg-type]

    shop.run(refused)
    assert shop.jobs.find() == []
    shop.close()
