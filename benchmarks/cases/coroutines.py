"""A thousand coroutines of one event loop that wait for jobs."""

import asyncio
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ..arithmetic import differences, percentile
from ..harness import Harness
from ..marks import clock
from ..peers import Ours
from ..peers.celery_app import TASK
from ..result import Goal, Result, Series
from ..stalls import freeze_garbage, recorded_stalls

METHOD = """1,000 coroutines of one event loop wait, each for a job of its own, by
`await async_handle.result()`. A worker with two processes, which is stopped until all wait, runs their
bodies, which do nothing. The time is from a body's last reading of the clock, before the worker writes the
row, to the return of the coroutine's call. Another coroutine sleeps for a millisecond repeatedly; the longest
stall of a round is its longest delay, from the start of the coroutines to the end of the last. In the same
rounds, the same worker runs the same jobs beside a loop in which only that coroutine runs; the goal is for
the difference. Threads are those of the waiting process, at their highest number. Objects that exist before a
round are left out of garbage collections (`gc.freeze()`)."""

WAIT_TIMEOUT = 300.0


@dataclass
class Round:
    """One round; times in seconds."""

    delays: list[float]
    stall: float
    threads: int


def run(harness: Harness) -> Result:
    """Measure delays, stalls and threads."""
    result = Result("coroutines", "1,000 coroutines that wait", METHOD)
    count = harness.amount(1000, 100)
    with harness.peers([Ours], result.missing) as peers:
        peer = peers[Ours.name]
        assert isinstance(peer, Ours)
        peer.start_workers()
        measured = harness.measure(
            {
                f"{count} waiting coroutines": _round(peer, count, waits=True),
                "an idle loop beside the same jobs": _round(peer, count, waits=False),
            },
            5,
        )
    ours, _ = measured.values()
    stalls = {name: [it.stall * 1000 for it in rounds] for name, rounds in measured.items()}
    beyond = differences(*stalls.values())
    waits = f"body ends → `await result()` returns, {count:,} waiters"
    result.goals = [
        Goal(f"{waits}, p50", [percentile(it.delays, 50) * 1000 for it in ours], 0, "ms", False),
        Goal(f"{waits}, p99", [percentile(it.delays, 99) * 1000 for it in ours], 100, "ms", False),
        Goal("longest stall of their event loop, beyond an idle one's", beyond, 20, "ms", False),
        Goal("threads of their process", [float(it.threads) for it in ours], 36, "", False),
    ]
    result.series = [Series(f"longest stall, {name}", values, "ms") for name, values in stalls.items()]
    return result


def _round(peer: Ours, count: int, *, waits: bool) -> Callable[[], Round]:
    def measure() -> Round:
        peer.purge()
        peer.sandbox.marks.clear()
        for worker in peer.workers:
            worker.pause()
        task: Any = peer.app.tasks[TASK]
        ids = peer.jobs.submit_many([task.s(number) for number in range(count)])
        freeze_garbage()
        return asyncio.run(_wait_for_all(peer, ids, waiting=waits))

    return measure


async def _wait_for_all(peer: Ours, ids: list[int], *, waiting: bool) -> Round:
    returned: dict[int, float] = {}
    waits = peer.jobs._runtime.completion._waits

    async def wait(number: int, job_id: int) -> None:
        handle = peer.jobs.async_handle()
        await handle.attach(job_id)
        await handle.result(WAIT_TIMEOUT)
        returned[number] = clock()

    async with recorded_stalls() as stalls:
        tasks = [asyncio.create_task(wait(*it)) for it in enumerate(ids)] if waiting else []
        while len(waits) < len(tasks):
            await asyncio.sleep(0.02)
        for worker in peer.workers:
            worker.resume()
        threads = 0
        deadline = time.monotonic() + WAIT_TIMEOUT
        while peer.sandbox.marks.count() < len(ids) or not all(task.done() for task in tasks):
            if time.monotonic() > deadline:
                raise TimeoutError(f"{len(returned)} of {len(ids)} waits have returned")
            threads = max(threads, threading.active_count())
            await asyncio.sleep(0.02)
        for task in tasks:
            task.result()
    ended = {mark.number: mark.ended for mark in peer.sandbox.marks.all()}
    return Round([at - ended[number] for number, at in returned.items()], max(stalls), threads)
