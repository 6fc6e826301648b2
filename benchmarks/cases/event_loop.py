"""How long an event loop stands still while a hundred requests submit through an AsyncSession."""

import asyncio
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import sqlalchemy
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, create_async_engine
from sqlalchemy.orm import Session

from ..arithmetic import differences
from ..peers.celery_app import TASK, make_app, urls
from ..result import Goal, Result, Series
from ..stage import Stage

METHOD = """One process with an event loop, 100 coroutines at once, five requests each: a transaction of an
AsyncSession that inserts a row of the caller's, and, of those with jobs, `await session.run_sync(submit)`. A
coroutine beside them looks at the clock each millisecond; the longest stall of a round is how late it was at
most. What the requests themselves cost the loop is measured with the same requests without jobs, in the same
rounds; the goal is for the difference. The broker is Redis."""


INSERT = text("INSERT INTO callers_row (number) VALUES (:number)")


def run(stage: Stage) -> Result:
    """Measure."""
    result = Result("event_loop", "The longest stall of an event loop", METHOD)
    requests = stage.amount(100, 20)
    for database in ("PostgreSQL", "aiosqlite"):
        with stage.place("event-loop") as place:
            url = place.database_url if database == "PostgreSQL" else f"sqlite:///{place.folder}/jobs.sqlite3"
            app: Any = make_app("ours", {**urls(place), "database": url})
            app.jobs.upgrade_schema()
            app.jobs.handle().submit(app.tasks[TASK].s(0))  # what is made on first use
            contestants = {
                f"with jobs, {database}": _crowd(app, url, requests, submits=True),
                f"without, {database}": _crowd(app, url, requests, submits=False),
            }
            measured = stage.contest(contestants, 9)
            app.jobs.close()
        ours, without = measured.values()
        label = f"longest stall of an event loop, beyond that without jobs, {database}"
        result.goals.append(Goal(label, differences(ours, without), 20, "ms", False))
        result.series += [Series(name, rounds, "ms") for name, rounds in measured.items()]
    return result


def _crowd(app: Any, url: str, requests: int, *, submits: bool) -> Callable[[], float]:
    driver = "sqlite+aiosqlite" if url.startswith("sqlite") else "postgresql+psycopg"
    async_url = sqlalchemy.make_url(url).set(drivername=driver)

    patient = {"timeout": 60} if url.startswith("sqlite") else {}  # its writers go one by one

    def crowd() -> float:
        engine = create_async_engine(async_url, connect_args=patient, pool_timeout=120)
        return asyncio.run(_longest_stall(app, engine, requests, submits=submits))

    return crowd


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
    # To open the caller's own connections takes the loop longer than all else.
    await asyncio.gather(*(request(number, 1) for number in range(requests)))
    stalls: list[float] = []
    looking = asyncio.create_task(_look(stalls))
    await asyncio.gather(*(request(number) for number in range(requests)))
    looking.cancel()
    with suppress(asyncio.CancelledError):
        await looking
    await engine.dispose()
    return max(stalls) * 1000


async def _look(stalls: list[float], pause: float = 0.001) -> None:
    while True:
        begun = time.perf_counter()
        await asyncio.sleep(pause)
        stalls.append(time.perf_counter() - begun - pause)
