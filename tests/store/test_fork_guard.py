"""`gate`: a fork waits for the operations under way."""

import asyncio
import os
import threading

from jobhandle_celery.store import gate
from tests.support import eventually


def test_coroutines_inside_at_once_each_delay_a_fork() -> None:
    """Each leaves for itself: the second one was inside for ever, and later operations were not counted."""
    before = gate._inside

    async def hold(entered: asyncio.Event, leave: asyncio.Event) -> None:
        with gate.inside(), gate.inside():
            entered.set()
            await leave.wait()

    async def main() -> None:
        events = [asyncio.Event() for _ in range(4)]
        first = asyncio.create_task(hold(events[0], events[1]))
        await events[0].wait()
        second = asyncio.create_task(hold(events[2], events[3]))
        await events[2].wait()
        assert gate._inside == before + 2
        events[1].set()
        await first
        assert gate._inside == before + 1
        events[3].set()
        await second

    asyncio.run(main())
    assert gate._inside == before
    with gate.inside():
        assert gate._inside == before + 1


def test_call_for_a_coroutine_inside_passes_a_pending_fork() -> None:
    """The fork waits for the coroutine, and the coroutine for the call."""
    passed: list[int] = []

    async def main() -> None:
        with gate.inside():
            forking = threading.Thread(target=fork)
            forking.start()
            await asyncio.to_thread(eventually, lambda: gate._closed, 20, "a fork is pending")
            await asyncio.wait_for(asyncio.to_thread(operate), 20)
        await asyncio.to_thread(forking.join, 20)

    def operate() -> None:
        with gate.inside():
            passed.append(1)

    def fork() -> None:
        child = os.fork()
        if child == 0:
            os._exit(0)
        os.waitpid(child, 0)

    asyncio.run(main())
    assert passed == [1]
