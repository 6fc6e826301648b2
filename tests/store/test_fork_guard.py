"""`forks`: a fork waits for the operations under way."""

import asyncio
import os
import threading

from jobhandle_celery.store import forks
from tests.support import eventually


def inside() -> int:
    """Return how many operations a fork waits for."""
    return len(forks._inside)


def test_coroutines_inside_at_once_each_delay_a_fork() -> None:
    """Each leaves for itself: the second one was inside for ever, and later operations were not counted."""
    before = inside()

    async def hold(entered: asyncio.Event, leave: asyncio.Event) -> None:
        with forks.hold(), forks.hold():
            entered.set()
            await leave.wait()

    async def main() -> None:
        events = [asyncio.Event() for _ in range(4)]
        first = asyncio.create_task(hold(events[0], events[1]))
        await events[0].wait()
        second = asyncio.create_task(hold(events[2], events[3]))
        await events[2].wait()
        assert inside() == before + 2
        events[1].set()
        await first
        assert inside() == before + 1
        events[3].set()
        await second

    asyncio.run(main())
    assert inside() == before
    with forks.hold():
        assert inside() == before + 1


def test_call_for_a_coroutine_inside_passes_a_pending_fork() -> None:
    """The fork waits for the coroutine, and the coroutine for the call."""
    passed: list[int] = []

    async def main() -> None:
        with forks.hold():
            forking = threading.Thread(target=fork)
            forking.start()
            await asyncio.to_thread(eventually, lambda: forks._closed, 20, "a fork is pending")
            await asyncio.wait_for(asyncio.to_thread(operate), 20)
        await asyncio.to_thread(forking.join, 20)

    def operate() -> None:
        with forks.hold():
            passed.append(1)

    def fork() -> None:
        child = os.fork()
        if child == 0:
            os._exit(0)
        os.waitpid(child, 0)

    asyncio.run(main())
    assert passed == [1]


def test_task_that_outlives_the_block_it_began_in_delays_a_fork() -> None:
    """It inherits the context of the block, as does a thread by `asyncio.to_thread`."""
    before = inside()

    async def operate(ended: asyncio.Event) -> int:
        await ended.wait()
        with forks.hold():
            return inside()

    async def main() -> list[int]:
        ended = asyncio.Event()
        with forks.hold():
            task = asyncio.create_task(operate(ended))
            await asyncio.sleep(0)
        ended.set()
        return [await task, inside()]

    assert asyncio.run(main()) == [before + 1, before]


def test_block_within_an_outer_one_that_ends_first_delays_a_fork() -> None:
    before = inside()

    async def operate(entered: asyncio.Event, leave: asyncio.Event) -> None:
        with forks.hold():
            entered.set()
            await leave.wait()

    async def main() -> None:
        entered, leave = asyncio.Event(), asyncio.Event()
        with forks.hold():
            task = asyncio.create_task(operate(entered, leave))
            await entered.wait()
        assert inside() == before + 1
        leave.set()
        await task
        assert inside() == before

    asyncio.run(main())


def test_child_that_is_forked_within_a_block_leaves_it() -> None:
    """Its forks wait for its own operations alone, and for all of these."""
    with forks.hold():
        child = os.fork()
    if child == 0:
        outside = inside()
        with forks.hold():
            os._exit(0 if (outside, inside()) == (0, 1) else 1)
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 0
