"""The longest stall of an event loop while 100 requests submit through an `AsyncSession`."""

import asyncio
from collections.abc import Callable
from typing import Any

import sqlalchemy
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, create_async_engine
from sqlalchemy.orm import Session

from ..arithmetic import differences
from ..harness import Harness
from ..peers.celery_app import TASK, make_app, urls_of
from ..result import Goal, Result, Series
from ..stalls import freeze_garbage, recorded_stalls

METHOD = """One process with an event loop and 100 coroutines, each of which handles five requests: a
transaction of an `AsyncSession` that inserts a row of the caller's and, in the measurement with jobs,
submits one by `await session.run_sync(submit)`. Another coroutine sleeps for a millisecond repeatedly; the
longest stall of a round is its longest delay. The same requests without jobs are measured in the same
rounds, and the goal is for the difference. The broker is Redis. Objects that exist before a round are left
out of garbage collections (`gc.freeze()`)."""

INSERT = text("INSERT INTO callers_row (number) VALUES (:number)")


def run(harness: Harness) -> Result:
    """Measure the stalls on PostgreSQL and aiosqlite, with and without jobs."""
    result = Result("event_loop", "The longest stall of an event loop", METHOD)
    requests = harness.amount(100, 20)
    for database in ("PostgreSQL", "aiosqlite"):
        with harness.sandbox("event-loop") as sandbox:
            url = (
                sandbox.database_url
                if database == "PostgreSQL"
                else f"sqlite:///{sandbox.folder}/jobs.sqlite3"
            )
            app: Any = make_app("ours", {**urls_of(sandbox), "database": url})
            app.jobs.upgrade_schema()
            app.jobs.handle().submit(app.tasks[TASK].s(0))  # creates what is created at the first use
            measurements = {
                f"with jobs, {database}": _requests(app, url, requests, submits=True),
                f"without, {database}": _requests(app, url, requests, submits=False),
            }
            measured = harness.measure(measurements, 5)
            app.jobs.close()
        ours, without = measured.values()
        label = f"longest stall of an event loop, beyond that without jobs, {database}"
        result.goals.append(Goal(label, differences(ours, without), 20, "ms", False))
        result.series += [Series(name, rounds, "ms") for name, rounds in measured.items()]
    return result


def _requests(app: Any, url: str, requests: int, *, submits: bool) -> Callable[[], float]:
    driver = "sqlite+aiosqlite" if url.startswith("sqlite") else "postgresql+psycopg"
    async_url = sqlalchemy.make_url(url).set(drivername=driver)

    timeout = {"timeout": 60} if url.startswith("sqlite") else {}  # writers wait for each other

    def measure() -> float:
        engine = create_async_engine(async_url, connect_args=timeout, pool_timeout=120)
        return asyncio.run(_longest_stall(app, engine, requests, submits=submits))

    return measure


async def _longest_stall(app: Any, engine: AsyncEngine, requests: int, *, submits: bool) -> float:
    task = app.tasks[TASK]

    def submit(session: Session, number: int) -> None:
        app.jobs.handle().submit(task.s(number), session=session)

    async def request(number: int, times: int = 5) -> None:
        for _ in range(times):
            async with AsyncSession(engine) as session:
                await session.execute(INSERT, {"number": number})
                if submits:
                    await session.run_sync(submit, number)
                await session.commit()

    async with engine.begin() as connection:
        await connection.execute(text("CREATE TABLE IF NOT EXISTS callers_row (number INTEGER)"))
    # Opening the caller's connections would be the longest stall.
    await asyncio.gather(*(request(number, 1) for number in range(requests)))
    freeze_garbage()
    async with recorded_stalls() as stalls:
        await asyncio.gather(*(request(number) for number in range(requests)))
    await engine.dispose()
    return stalls.elapsed * 1000
