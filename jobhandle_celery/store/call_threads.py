"""The threads that make blocking calls for event loops."""

import asyncio
import contextvars
import functools
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, ParamSpec, TypeVar
from weakref import WeakKeyDictionary

from sqlalchemy import Connection

from ..errors import ApiUsageError
from .fork_guard import Forkable, forks

P = ParamSpec("P")
T = TypeVar("T")

MAX_THREADS = 4
"""Threads of a process that call the database for coroutines.

They compete with the event loop for the interpreter: each may keep it for 5 ms (`sys.getswitchinterval`)."""

CALLS_BEGUN = 2 * MAX_THREADS
"""Calls of an event loop that the threads have, or find when they have ended one. Others wait in the loop: it
could not begin a thousand calls without a stall while threads compete with it."""


class CallThreads(Forkable):
    """The threads of this process, made when they are needed."""

    def __init__(self) -> None:
        self.after_fork()
        forks.register(self)

    def after_fork(self) -> None:
        self._pool = ThreadPoolExecutor(MAX_THREADS, "jobhandle-call")
        self._begun: WeakKeyDictionary[asyncio.AbstractEventLoop, asyncio.Semaphore] = WeakKeyDictionary()

    async def call(self, function: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T:
        """Call a function in a thread, with the context of this coroutine.

        A cancelled coroutine does not wait for the call: it ends in its thread, or it never begins.

        Raises:
            ApiUsageError: this is no event loop of asyncio.
        """
        loop = running_loop()
        begun = self._begun.get(loop)
        if begun is None:
            begun = self._begun[loop] = asyncio.Semaphore(CALLS_BEGUN)
        call = functools.partial(contextvars.copy_context().run, function, *args, **kwargs)
        async with begun:
            return await loop.run_in_executor(self._pool, call)


threads = CallThreads()


def runs_event_loop() -> bool:
    """Return True if this thread runs an event loop of asyncio."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True


def running_loop() -> asyncio.AbstractEventLoop:
    """Return the running event loop of asyncio.

    Raises:
        ApiUsageError: there is none.
    """
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        raise ApiUsageError(
            "an AsyncJobHandle needs asyncio's event loop, or uvloop's; under trio, use a JobHandle in a "
            "thread: await trio.to_thread.run_sync(handle.job_status)"
        ) from None


def call_blocking(connection: Connection, function: Callable[[], T]) -> T:
    """Call a function that blocks, beside a caller's connection.

    If the driver of that is asynchronous, this is the thread of an event loop: the call is made in another
    one, and the event loop continues meanwhile.
    """
    driver: Any = connection.connection.dbapi_connection
    run_async = getattr(driver, "run_async", None)
    if run_async is None:
        return function()
    called: T = run_async(lambda _: threads.call(function))
    return called
