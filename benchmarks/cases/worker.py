"""The rate of no-op jobs of a worker with two processes."""

import time
from collections.abc import Callable
from dataclasses import dataclass

from ..arithmetic import ratios
from ..harness import Harness
from ..marks import clock
from ..peers import ALL, Bare, DjangoResults, Ours, Peer, RedisResults, Rq, SqlalchemyResults
from ..result import Goal, Result, Series

TITLE = "Run jobs"
METHOD = """1,200 jobs, 400 for the slowest systems, are submitted before a worker with two processes
starts. Each body records its end (two microseconds). The rate is that of the last four fifths of the jobs,
which excludes the start of the worker. Before the worker is killed, a system that stores states must show
each job as finished. Processor time is that of the worker's processes for the same jobs; it depends less
than the rate on other load of the machine."""

SLOW = (SqlalchemyResults, DjangoResults, Rq)
"""Systems that get fewer jobs, to save time."""
SETTLE_TIMEOUT = 60.0


def run(harness: Harness) -> Result:
    """Measure the rates and the processor time of all systems."""
    result = Result("worker", TITLE, METHOD)
    jobs, of_slow = harness.amount(1_200, 300), harness.amount(400, 100)
    with harness.peers(ALL, result.missing) as peers:
        measurements = {
            name: throughput(peer, of_slow if isinstance(peer, SLOW) else jobs)
            for name, peer in peers.items()
        }
        measured = harness.measure(measurements, 4, quick_rounds=1, warm_up=False)
        settings = [[peer.name, peer.settings] for peer in peers.values()]
    rates = {name: [item.rate for item in rounds] for name, rounds in measured.items()}
    result.goals = [
        Goal(f"jobs per second against {label}", ratios(rates[Ours.name], rates[name]), bound, "×")
        for label, name, bound in (
            ("Celery with Redis results", RedisResults.name, 1),
            ("Celery with SQLAlchemy results and track_started", SqlalchemyResults.name, 3),
            ("Celery without results", Bare.name, 0),
        )
    ]
    result.series = [Series(name, values, "jobs/s") for name, values in rates.items()]
    result.series += [
        Series(f"{name}: processor", [item.processor for item in rounds], "µs per job")
        for name, rounds in measured.items()
    ]
    result.tables = {"Settings": [["system", "settings, and the source"], *settings]}
    return result


@dataclass(frozen=True)
class Throughput:
    """Rate and cost of some jobs."""

    rate: float
    """Jobs per second."""
    processor: float
    """Microseconds of processor time per job, of all processes of the workers."""


def throughput(peer: Peer, jobs: int, workers: int = 1) -> Callable[[], Throughput]:
    """Return a measurement: workers run jobs that were submitted before."""

    def measure() -> Throughput:
        peer.purge()
        peer.sandbox.marks.clear()
        peer.submit_many(range(jobs))
        try:
            peer.start_workers(workers)
            peer.sandbox.marks.wait_for(jobs // 5)
            first, spent = peer.sandbox.marks.all()[-1], processor_time(peer)
            done = peer.sandbox.marks.count()
            marks = peer.sandbox.marks.wait_for(jobs)
            _settle(peer, jobs)
            spent = processor_time(peer) - spent
        finally:
            peer.stop_workers()
        if marks[-1] == first:
            raise RuntimeError(f"{peer.name}: {jobs} jobs ended before the workers were ready")
        rate = (jobs - marks.index(first) - 1) / (marks[-1].ended - first.ended)
        return Throughput(rate, spent * 1e6 / (jobs - done))

    return measure


def processor_time(peer: Peer) -> float:
    """Return the seconds of processor time of all processes of a system's workers."""
    times = [process.cpu_times() for worker in peer.workers for process in worker.family()]
    return float(sum(item.user + item.system for item in times))


def _settle(peer: Peer, jobs: int) -> None:
    deadline = clock() + SETTLE_TIMEOUT
    while not peer.settled(jobs):
        if clock() > deadline:
            raise TimeoutError(f"{peer.name}: not all of {jobs} jobs are stored as finished")
        time.sleep(0.05)
