"""A thousand coroutines of one event loop that wait for jobs."""

import asyncio
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

from ..arithmetic import differences, percentile
from ..harness import Harness
from ..marks import clock
from ..peers import Ours
from ..peers.celery_app import TASK
from ..result import Goal, Result, Series
from ..stalls import Stalls, freeze_garbage, recorded_stalls

METHOD = """1,000 coroutines of one event loop wait, each for a job of its own, by
`await async_handle.result()`. A worker with two processes, which is stopped until all wait, runs their
bodies, which do nothing. The time is from a body's last reading of the clock, before the worker writes the
row, to the return of the coroutine's call. Another coroutine sleeps for a millisecond repeatedly; the longest
stall of a round is its longest delay, from the start of the coroutines to the end of the last. In the same
rounds, the same worker runs the same jobs beside 1,000 coroutines that wait for plain futures, which a thread
sets at the pace of the jobs: the goal is for the difference. By processor time, a stall is what the process
itself spent while the coroutine was late, so that it does not depend on what else runs on the machine.
Threads are those of the waiting process, at their highest number. Objects that exist before a round are left
out of garbage collections (`gc.freeze()`)."""

WAIT_TIMEOUT = 300.0

SET_INTERVAL = 0.01
"""Seconds between two looks of the thread that sets plain futures."""


@dataclass
class Round:
    """One round; times in seconds."""

    delays: list[float]
    stalls: Stalls
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
                f"{count:,} waits for jobs": _round(peer, count, plain=False),
                f"{count:,} waits for plain futures": _round(peer, count, plain=True),
            },
            5,
        )
    ours, _ = measured.values()
    stalls = {name: [it.stalls.elapsed * 1000 for it in rounds] for name, rounds in measured.items()}
    beyond = differences(*stalls.values())
    processor = {name: [it.stalls.processor * 1000 for it in rounds] for name, rounds in measured.items()}
    own = differences(*processor.values())
    waits = f"body ends → `await result()` returns, {count:,} waiters"
    result.goals = [
        Goal(f"{waits}, p50", [percentile(it.delays, 50) * 1000 for it in ours], 0, "ms", False),
        Goal(f"{waits}, p99", [percentile(it.delays, 99) * 1000 for it in ours], 100, "ms", False),
        Goal("longest stall of their event loop, beyond that with plain futures", beyond, 20, "ms", False),
        Goal("… by processor time of the process", own, 20, "ms", False),
        Goal("threads of their process", [float(it.threads) for it in ours], 36, "", False),
    ]
    result.series = [Series(f"longest stall, {name}", values, "ms") for name, values in stalls.items()]
    result.series += [
        Series(f"longest stall by processor time, {name}", values, "ms") for name, values in processor.items()
    ]
    return result


def _round(peer: Ours, count: int, *, plain: bool) -> Callable[[], Round]:
    def measure() -> Round:
        peer.purge()
        peer.sandbox.marks.clear()
        for worker in peer.workers:
            worker.pause()
        task: Any = peer.app.tasks[TASK]
        ids = peer.jobs.submit_many([task.s(number) for number in range(count)])
        freeze_garbage()
        return asyncio.run(_wait_for_all(peer, ids, plain=plain))

    return measure


async def _wait_for_all(peer: Ours, ids: list[int], *, plain: bool) -> Round:
    returned: dict[int, float] = {}
    begun: set[int] = set()
    marks, waits = peer.sandbox.marks, peer.jobs._runtime.completion._waits
    futures = [Future[None]() for _ in ids]

    async def wait_for_job(number: int, job_id: int) -> None:
        handle = peer.jobs.async_handle()
        await handle.attach(job_id)
        await handle.result(WAIT_TIMEOUT)
        returned[number] = clock()

    async def wait_for_future(number: int, _job_id: int) -> None:
        begun.add(number)
        await asyncio.wrap_future(futures[number])

    def set_futures() -> None:
        done = 0
        while done < len(futures):
            ended = marks.count()
            for future in futures[done:ended]:
                future.set_result(None)
            done = ended
            time.sleep(SET_INTERVAL)

    async with recorded_stalls() as stalls:
        wait = wait_for_future if plain else wait_for_job
        tasks = [asyncio.create_task(wait(*it)) for it in enumerate(ids)]
        while len(begun if plain else waits) < len(tasks):
            await asyncio.sleep(0.02)
        if plain:
            threading.Thread(target=set_futures, daemon=True).start()
        for worker in peer.workers:
            worker.resume()
        threads = 0
        deadline = time.monotonic() + WAIT_TIMEOUT
        while not all(task.done() for task in tasks):
            if time.monotonic() > deadline:
                raise TimeoutError(f"{sum(task.done() for task in tasks)} of {len(ids)} waits have returned")
            threads = max(threads, threading.active_count())
            await asyncio.sleep(0.02)
        for task in tasks:
            task.result()
    ended = {mark.number: mark.ended for mark in marks.all()}
    return Round([at - ended[number] for number, at in returned.items()], stalls, threads)
