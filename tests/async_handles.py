"""Handles and waits in an event loop, for tests of `AsyncJobHandle`."""

import asyncio
import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

from sqlalchemy import URL, event
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from jobhandle_celery import AsyncJobHandle, JobHandle, JobStatus
from tests.job_factory import HELD, JobFactory
from tests.support import eventually

LONG = 120
"""Seconds; no test waits as long."""


def prepare(handle: JobHandle, status: str) -> int:
    job_id = handle.submit(HELD)
    if status != JobStatus.WAITING:
        handle.set_status(status)
    return job_id


@asynccontextmanager
async def attached(factory: JobFactory, job_id: int) -> AsyncIterator[AsyncJobHandle]:
    async with factory.jobs.async_handle() as handle:
        await handle.attach(job_id)
        yield handle


async def eventually_in_loop(condition: Callable[[], object], message: str) -> None:
    await asyncio.to_thread(eventually, condition, LONG, message)


def run_with_engine(url: URL, work: Callable[[AsyncEngine], Awaitable[Any]]) -> Any:
    """Run a coroutine function with an asynchronous engine, and leave no connection behind."""

    async def main() -> Any:
        engine = create_async_engine(url)
        try:
            return await work(engine)
        finally:
            await engine.dispose()

    return asyncio.run(main())


class StatementsInLoop:
    """The statements of the library's own engine in threads that run an event loop."""

    def __init__(self, jobs: Any) -> None:
        self.seen: list[str] = []
        event.listen(jobs._runtime.store.database.engine, "before_cursor_execute", self._note)

    def _note(self, _connection: Any, _cursor: Any, statement: str, *_: Any) -> None:
        try:
            asyncio.get_running_loop()
        except RuntimeError:
            return
        self.seen.append(statement)


def call_threads() -> set[threading.Thread]:
    return {thread for thread in threading.enumerate() if thread.name.startswith("jobhandle-call")}
