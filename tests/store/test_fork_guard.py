"""`forks`: a fork waits for the operations under way."""

import asyncio
import os
import threading

from jobhandle_celery.store import fork_guard, forks
from jobhandle_celery.store.fork_guard import Operation
from tests.support import eventually


def operation() -> Operation | None:
    """Return the operation that the caller is in, or was."""
    return fork_guard._operation.get()


def delays_a_fork(operation: Operation | None) -> bool:
    """Return whether a fork waits for it. Threads of earlier tests may have operations of their own."""
    return operation in forks._inside


class Holding:
    """A task that is inside until it is told to leave."""

    def __init__(self) -> None:
        self._entered, self._leave = asyncio.Event(), asyncio.Event()
        self._task = asyncio.create_task(self._hold())
        self.operation: Operation | None = None

    async def enter(self) -> None:
        await self._entered.wait()

    async def leave(self) -> None:
        self._leave.set()
        await self._task

    async def _hold(self) -> None:
        with forks.hold(), forks.hold():
            self.operation = operation()
            self._entered.set()
            await self._leave.wait()


def test_coroutines_inside_at_once_each_delay_a_fork() -> None:
    """Each leaves for itself: the second one was inside for ever, and later operations were not counted."""

    async def main() -> None:
        first = Holding()
        await first.enter()
        second = Holding()
        await second.enter()
        assert first.operation is not second.operation
        assert delays_a_fork(first.operation)
        await first.leave()
        assert not delays_a_fork(first.operation)
        assert delays_a_fork(second.operation)
        await second.leave()
        assert not delays_a_fork(second.operation)

    asyncio.run(main())
    with forks.hold():
        assert delays_a_fork(operation())


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

    async def operate(ended: asyncio.Event) -> Operation | None:
        await ended.wait()
        with forks.hold():
            assert delays_a_fork(operation())
            return operation()

    async def main() -> None:
        ended = asyncio.Event()
        with forks.hold():
            task = asyncio.create_task(operate(ended))
            await asyncio.sleep(0)
        ended.set()
        assert not delays_a_fork(await task)

    asyncio.run(main())


def test_block_within_an_outer_one_that_ends_first_delays_a_fork() -> None:

    async def main() -> None:
        with forks.hold():
            inner = Holding()
            await inner.enter()
        assert delays_a_fork(inner.operation)
        await inner.leave()
        assert not delays_a_fork(inner.operation)

    asyncio.run(main())


def test_child_that_is_forked_within_a_block_leaves_it() -> None:
    """Its forks wait for its own operations alone, and for all of these."""
    parent = os.getpid()
    try:
        with forks.hold():
            child = os.fork()
        if child == 0:
            outside = len(forks._inside)
            with forks.hold():
                os._exit(0 if (outside, len(forks._inside)) == (0, 1) else 1)
    finally:
        if os.getpid() != parent:
            os._exit(2)
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 0
