"""How soon those who wait for a job hear of its end, and what their waiting costs the database."""

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

from sqlalchemy import Engine, event

from ..arithmetic import percentile
from ..marks import clock
from ..peers import Ours, RedisResults
from ..peers.celery_app import TASK
from ..peers.celery_peers import CeleryPeer
from ..result import Goal, Result, Series
from ..stage import Stage

METHOD = """Threads of one process wait, each for a job of its own, by `handle.result()`, or by `.get()` of
Celery's Redis results, which are pushed. From the body's last look at the clock (before its row is written,
or its result) to the return of the call. One waiter: bodies of 50 ms, 500 ms and 2 s. 100 waiters: as many
bodies of 20 ms, which a worker with two processes takes one after the other, once all of them wait. Queries
are those that the waiting process sends."""

PATIENCE = 60.0


@dataclass
class Heard:
    """What became of the waits of one round."""

    late: list[float]
    """Seconds from each body's end to the return of its wait."""
    queries: float
    """A job."""
    failed: int
    """Waits that raised an error, or did not return in time."""


def run(stage: Stage) -> Result:
    """Measure."""
    result = Result("waiting", "From the end of a body to its waiters", METHOD)
    with stage.peers([Ours, RedisResults], result.missing) as peers:
        ready = {name: peer for name, peer in peers.items() if isinstance(peer, CeleryPeer)}
        for peer in ready.values():
            stage.progress.say(f"starts the worker of {peer.name}")
            peer.start_workers()
        alone = _alone(stage, ready, result)
        crowd = stage.contest(
            {name: crowd_for(peer, stage.amount(100, 20)) for name, peer in ready.items()}, 5
        )
    ours = crowd[Ours.name]
    result.goals = [
        Goal("body ends → `result()` returns, p50, one waiter", _late(alone[Ours.name], 50), 20, "ms", False),
        Goal("body ends → `result()` returns, p50, 100 waiters", _late(ours, 50), 20, "ms", False),
        Goal("body ends → `result()` returns, p99, 100 waiters", _late(ours, 99), 100, "ms", False),
        Goal("queries a job that 100 waiters cost", [each.queries for each in ours], 0, "", False),
    ]
    for many, measured in (("one waiter, all lengths", alone), ("100 waiters", crowd)):
        for percent in (50, 99):
            result.series += [
                Series(f"{name}, {many}, p{percent}", _late(each, percent), f"ms (p{percent}, {many})")
                for name, each in measured.items()
            ]
        queries = [each.queries for each in measured[Ours.name]]
        result.series.append(Series(f"{Ours.name}, {many}", queries, "queries a job"))
        for name, rounds in measured.items():
            if failed := sum(each.failed for each in rounds):
                result.missing[f"{name}, {many}"] = f"{failed} waits failed or did not return in time"
    return result


def _alone(stage: Stage, peers: dict[str, CeleryPeer], result: Result) -> dict[str, list[Heard]]:
    """Measure one waiter; the rounds of all lengths of bodies together, each length also by itself."""
    lengths = (0.05, 0.5) if stage.quick else (0.05, 0.5, 2.0)
    jobs = stage.amount(4, 3)
    measured = stage.contest(
        {
            f"{name}, one waiter, a body of {seconds:g} s": alone_for(peer, jobs, seconds)
            for name, peer in peers.items()
            for seconds in lengths
        },
        5,
        warm_up=False,
    )
    result.series += [Series(f"{what}, p50", _late(each, 50), "ms (p50)") for what, each in measured.items()]
    together: dict[str, list[Heard]] = {}
    for name in peers:
        those = [each for what, each in measured.items() if what.startswith(f"{name}, one waiter")]
        together[name] = [_joined(each) for each in zip(*those, strict=True)]
    return together


def _joined(every: Sequence[Heard]) -> Heard:
    return Heard(
        [late for each in every for late in each.late],
        sum(each.queries for each in every) / len(every),
        sum(each.failed for each in every),
    )


def alone_for(peer: CeleryPeer, jobs: int, seconds: float) -> Callable[[], Heard]:
    """Return a measurement of one waiter, one job after the other."""
    return lambda: _joined([_wait(peer, [(number, seconds)]) for number in range(jobs)])


def crowd_for(peer: CeleryPeer, waiters: int, seconds: float = 0.02) -> Callable[[], Heard]:
    """Return a measurement of many waiters at once."""
    return lambda: _wait(peer, [(number, seconds) for number in range(waiters)])


def _wait(peer: CeleryPeer, jobs: Sequence[tuple[int, float]]) -> Heard:
    peer.purge()
    peer.place.marks.clear()
    returned: dict[int, float] = {}
    # Nobody's body ends before all of them wait.
    stopped = peer.workers if len(jobs) > 1 else []
    for worker in stopped:
        worker.pause()
    with _queries() as queries:
        threads = [
            threading.Thread(target=_one, args=(wait, number, returned), daemon=True)
            for number, wait in zip([number for number, _ in jobs], _submitted(peer, jobs), strict=True)
        ]
        queries.clear()  # those of the submit are not the waiters'
        for thread in threads:
            thread.start()
        for worker in stopped:
            worker.resume()
        deadline = time.monotonic() + PATIENCE
        for thread in threads:
            thread.join(max(deadline - time.monotonic(), 0))
        asked = len(queries)
    ended = {mark.number: mark.ended for mark in peer.place.marks.wait_for(len(jobs))}
    late = [when - ended[number] for number, when in returned.items()]
    return Heard(late or [PATIENCE], asked / len(jobs), len(jobs) - len(returned))


def _submitted(peer: CeleryPeer, jobs: Sequence[tuple[int, float]]) -> list[Callable[[], object]]:
    """Submit jobs, and return for each what waits for it."""
    task: Any = peer.app.tasks[TASK]
    if isinstance(peer, Ours):
        ids = peer.jobs.submit_many([task.s(number, seconds) for number, seconds in jobs])
        return [partial(peer.jobs.attach(job_id).result, PATIENCE) for job_id in ids]
    results = [task.apply_async((number, seconds)) for number, seconds in jobs]
    return [partial(item.get, timeout=PATIENCE) for item in results]


def _one(wait: Callable[[], object], number: int, returned: dict[int, float]) -> None:
    wait()
    returned[number] = clock()


@contextmanager
def _queries() -> Iterator[list[str]]:
    """Collect the statements that this process sends meanwhile."""
    sent: list[str] = []

    def note(_connection: Any, _cursor: Any, statement: str, *_: Any) -> None:
        sent.append(statement)

    event.listen(Engine, "before_cursor_execute", note)
    try:
        yield sent
    finally:
        event.remove(Engine, "before_cursor_execute", note)


def _late(rounds: Sequence[Heard], percent: float) -> list[float]:
    return [percentile(each.late, percent) * 1000 for each in rounds]
