"""The time from the end of a body to the return of `result()`, and the queries of a wait."""

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

from sqlalchemy import Engine, event

from ..arithmetic import percentile
from ..harness import Harness
from ..marks import clock
from ..peers import Ours, RedisResults
from ..peers.celery_app import TASK
from ..peers.celery_peers import CeleryPeer
from ..result import Goal, Result, Series

METHOD = """Threads of one process wait, each for a job of its own, by `handle.result()`, or by `get()` of
Celery's Redis results, which Redis pushes. The time is from the body's last reading of the clock, before
the worker writes the row or the result, to the return of the call. One waiter: bodies of 50 ms, 500 ms and
2 s. 100 waiters: 100 bodies of 20 ms, which a worker with two processes starts when all threads wait. The
queries are those of the waiting process."""

WAIT_TIMEOUT = 60.0


@dataclass
class Waits:
    """The waits of one round."""

    delays: list[float]
    """Seconds from the end of each body to the return of its wait."""
    queries: float
    """Queries per job."""
    failed: int
    """Waits that raised an error, or did not return in time."""


def run(harness: Harness) -> Result:
    """Measure one waiter and 100 waiters."""
    result = Result("waiting", "From the end of a body to its waiters", METHOD)
    with harness.peers([Ours, RedisResults], result.missing) as peers:
        ready = {name: peer for name, peer in peers.items() if isinstance(peer, CeleryPeer)}
        for peer in ready.values():
            harness.progress.show(f"start the worker of {peer.name}")
            peer.start_workers()
        single = _single(harness, ready, result)
        many = harness.measure(
            {name: many_waiters(peer, harness.amount(100, 20)) for name, peer in ready.items()}, 5
        )
    ours, one_waiter = many[Ours.name], _delays(single[Ours.name], 50)
    result.goals = [
        Goal("body ends → `result()` returns, p50, one waiter", one_waiter, 20, "ms", False),
        Goal("body ends → `result()` returns, p50, 100 waiters", _delays(ours, 50), 20, "ms", False),
        Goal("body ends → `result()` returns, p99, 100 waiters", _delays(ours, 99), 100, "ms", False),
        Goal("queries per job of 100 waiters", [waits.queries for waits in ours], 0, "", False),
    ]
    for waiters, measured in (("one waiter, all lengths", single), ("100 waiters", many)):
        for percent in (50, 99):
            result.series += [
                Series(
                    f"{name}, {waiters}, p{percent}", _delays(rounds, percent), f"ms (p{percent}, {waiters})"
                )
                for name, rounds in measured.items()
            ]
        queries = [waits.queries for waits in measured[Ours.name]]
        result.series.append(Series(f"{Ours.name}, {waiters}", queries, "queries per job"))
        for name, rounds in measured.items():
            if failed := sum(waits.failed for waits in rounds):
                result.missing[f"{name}, {waiters}"] = f"{failed} waits failed or did not return in time"
    return result


def _single(harness: Harness, peers: dict[str, CeleryPeer], result: Result) -> dict[str, list[Waits]]:
    """Measure one waiter: add the p50 of each length of bodies to the result; return all lengths together."""
    lengths = (0.05, 0.5) if harness.quick else (0.05, 0.5, 2.0)
    jobs = harness.amount(2, 2)
    measured = harness.measure(
        {
            f"{name}, one waiter, a body of {seconds:g} s": single_waiter(peer, jobs, seconds)
            for name, peer in peers.items()
            for seconds in lengths
        },
        3,
        warm_up=False,
    )
    result.series += [
        Series(f"{label}, p50", _delays(rounds, 50), "ms (p50)") for label, rounds in measured.items()
    ]
    together: dict[str, list[Waits]] = {}
    for name in peers:
        lists = [rounds for label, rounds in measured.items() if label.startswith(f"{name}, one waiter")]
        together[name] = [_joined(waits) for waits in zip(*lists, strict=True)]
    return together


def _joined(items: Sequence[Waits]) -> Waits:
    return Waits(
        [delay for waits in items for delay in waits.delays],
        sum(waits.queries for waits in items) / len(items),
        sum(waits.failed for waits in items),
    )


def single_waiter(peer: CeleryPeer, jobs: int, seconds: float) -> Callable[[], Waits]:
    """Return a measurement: one waiter waits for one job after the other."""
    return lambda: _joined([_wait(peer, [(number, seconds)]) for number in range(jobs)])


def many_waiters(peer: CeleryPeer, waiters: int, seconds: float = 0.02) -> Callable[[], Waits]:
    """Return a measurement: each of many waiters waits for a job of its own."""
    return lambda: _wait(peer, [(number, seconds) for number in range(waiters)])


def _wait(peer: CeleryPeer, jobs: Sequence[tuple[int, float]]) -> Waits:
    peer.purge()
    peer.sandbox.marks.clear()
    returned: dict[int, float] = {}
    # No body ends before all threads wait.
    stopped = peer.workers if len(jobs) > 1 else []
    for worker in stopped:
        worker.pause()
    with _queries() as queries:
        threads = [
            threading.Thread(target=_wait_for, args=(wait, number, returned), daemon=True)
            for number, wait in zip([number for number, _ in jobs], _submitted(peer, jobs), strict=True)
        ]
        queries.clear()  # without those of the submit
        for thread in threads:
            thread.start()
        for worker in stopped:
            worker.resume()
        deadline = time.monotonic() + WAIT_TIMEOUT
        for thread in threads:
            thread.join(max(deadline - time.monotonic(), 0))
        sent = len(queries)
    ended = {mark.number: mark.ended for mark in peer.sandbox.marks.wait_for(len(jobs))}
    delays = [at - ended[number] for number, at in returned.items()]
    return Waits(delays or [WAIT_TIMEOUT], sent / len(jobs), len(jobs) - len(returned))


def _submitted(peer: CeleryPeer, jobs: Sequence[tuple[int, float]]) -> list[Callable[[], object]]:
    """Submit jobs; return a function that waits for it, for each."""
    task: Any = peer.app.tasks[TASK]
    if isinstance(peer, Ours):
        ids = peer.jobs.submit_many([task.s(number, seconds) for number, seconds in jobs])
        return [partial(peer.jobs.attach(job_id).result, WAIT_TIMEOUT) for job_id in ids]
    results = [task.apply_async((number, seconds)) for number, seconds in jobs]
    return [partial(item.get, timeout=WAIT_TIMEOUT) for item in results]


def _wait_for(wait: Callable[[], object], number: int, returned: dict[int, float]) -> None:
    wait()
    returned[number] = clock()


@contextmanager
def _queries() -> Iterator[list[str]]:
    """Collect the statements that this process sends within the block."""
    sent: list[str] = []

    def note(_connection: Any, _cursor: Any, statement: str, *_: Any) -> None:
        sent.append(statement)

    event.listen(Engine, "before_cursor_execute", note)
    try:
        yield sent
    finally:
        event.remove(Engine, "before_cursor_execute", note)


def _delays(rounds: Sequence[Waits], percent: float) -> list[float]:
    return [percentile(waits.delays, percent) * 1000 for waits in rounds]
