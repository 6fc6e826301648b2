"""The stalls of an event loop: how late a coroutine wakes that sleeps for a millisecond repeatedly."""

import asyncio
import gc
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass

PAUSE = 0.001


@dataclass
class Stalls:
    """The longest delays of a loop, in seconds."""

    elapsed: float = 0.0
    processor: float = 0.0
    """By the processor time of the process: other processes of a busy machine have no part in it."""


@asynccontextmanager
async def recorded_stalls() -> AsyncIterator[Stalls]:
    """Record the longest delays of the running loop within the block."""
    stalls = Stalls()
    watcher = asyncio.create_task(_record(stalls))
    try:
        yield stalls
    finally:
        watcher.cancel()
        with suppress(asyncio.CancelledError):
            await watcher


async def _record(stalls: Stalls) -> None:
    while True:
        started, spent = time.perf_counter(), time.process_time()
        await asyncio.sleep(PAUSE)
        elapsed = time.perf_counter() - started - PAUSE
        # What other threads spend within the pause is no delay.
        processor = min(elapsed, time.process_time() - spent - PAUSE)
        stalls.elapsed = max(stalls.elapsed, elapsed)
        stalls.processor = max(stalls.processor, processor)


def freeze_garbage() -> None:
    """Leave what exists now out of garbage collections.

    The benchmarks import several systems, so that one full collection takes 30 ms and more.
    """
    gc.collect()
    gc.freeze()
