"""The stalls of an event loop: how late a coroutine wakes that sleeps for a millisecond repeatedly."""

import asyncio
import gc
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

PAUSE = 0.001


@asynccontextmanager
async def recorded_stalls() -> AsyncIterator[list[float]]:
    """Collect the delays of the running loop within the block, in seconds."""
    stalls: list[float] = []
    watcher = asyncio.create_task(_record(stalls))
    try:
        yield stalls
    finally:
        watcher.cancel()
        with suppress(asyncio.CancelledError):
            await watcher


async def _record(stalls: list[float]) -> None:
    while True:
        started = time.perf_counter()
        await asyncio.sleep(PAUSE)
        stalls.append(time.perf_counter() - started - PAUSE)


def freeze_garbage() -> None:
    """Leave what exists now out of garbage collections.

    The benchmarks import several systems, so that one full collection takes 30 ms and more.
    """
    gc.collect()
    gc.freeze()
