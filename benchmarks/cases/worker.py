"""How many no-op jobs a worker with two processes does in a second."""

import time
from collections.abc import Callable
from dataclasses import dataclass

from ..arithmetic import ratios
from ..marks import clock
from ..peers import ALL, Bare, Ours, Peer, RedisResults, SqlalchemyResults
from ..result import Goal, Result, Series
from ..stage import Stage

TITLE = "Run jobs"
METHOD = """Jobs are submitted beforehand, then a worker with two processes starts. Its bodies note when they
end (two microseconds); the rate is that of the last four fifths of the jobs, so that no start counts.
Before the worker is killed, a contestant that keeps states must show every job as finished. Processor time,
of the worker's processes alone, is that of the same jobs; it says what a job costs also where the machine is
busy with other things."""

SETTLING = 60.0


def run(stage: Stage) -> Result:
    """Measure."""
    result = Result("worker", TITLE, METHOD)
    jobs = stage.amount(2_000, 300)
    with stage.peers(ALL, result.missing) as peers:
        contestants = {name: throughput(peer, jobs) for name, peer in peers.items()}
        measured = stage.contest(contestants, 4, quick_rounds=1, warm_up=False)
        settings = [[peer.name, peer.settings] for peer in peers.values()]
    rates = {name: [each.rate for each in rounds] for name, rounds in measured.items()}
    result.goals = [
        Goal(f"jobs per second against {what}", ratios(rates[Ours.name], rates[name]), bound, "×")
        for what, name, bound in (
            ("Celery with Redis results", RedisResults.name, 1),
            ("Celery with SQLAlchemy results and track_started", SqlalchemyResults.name, 3),
            ("Celery without results", Bare.name, 0),
        )
    ]
    result.series = [Series(name, values, "jobs/s") for name, values in rates.items()]
    result.series += [
        Series(f"{name}: processor", [each.processor for each in rounds], "µs a job")
        for name, rounds in measured.items()
    ]
    result.tables = {"Settings of the contestants": [["contestant", "settings, and who says so"], *settings]}
    return result


@dataclass(frozen=True)
class Throughput:
    """What workers did."""

    rate: float
    """Jobs a second."""
    processor: float
    """Microseconds of processor time a job, of all their processes."""


def throughput(peer: Peer, jobs: int, workers: int = 1) -> Callable[[], Throughput]:
    """Return a measurement of the jobs that a contestant's workers do in a second."""

    def measure() -> Throughput:
        peer.purge()
        peer.place.marks.clear()
        peer.submit_many(range(jobs))
        try:
            peer.start_workers(workers)
            peer.place.marks.wait_for(jobs // 5)
            first, spent = peer.place.marks.all()[-1], processor_time(peer)
            done = peer.place.marks.count()
            marks = peer.place.marks.wait_for(jobs)
            _settle(peer, jobs)
            spent = processor_time(peer) - spent
        finally:
            peer.stop_workers()
        if marks[-1] == first:
            raise RuntimeError(f"{peer.name}: {jobs} jobs were done before its workers were up")
        rate = (jobs - marks.index(first) - 1) / (marks[-1].ended - first.ended)
        return Throughput(rate, spent * 1e6 / (jobs - done))

    return measure


def processor_time(peer: Peer) -> float:
    """Return the seconds that a processor has worked for a contestant's workers so far."""
    times = [process.cpu_times() for worker in peer.workers for process in worker.family()]
    return float(sum(each.user + each.system for each in times))


def _settle(peer: Peer, jobs: int) -> None:
    deadline = clock() + SETTLING
    while not peer.settled(jobs):
        if clock() > deadline:
            raise TimeoutError(f"{peer.name}: not all of {jobs} jobs stand as finished")
        time.sleep(0.05)
