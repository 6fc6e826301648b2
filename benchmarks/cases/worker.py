"""The rate of no-op jobs of a worker with two processes."""

import time
from collections.abc import Callable
from dataclasses import dataclass

from ..arithmetic import ratios, summary
from ..harness import Harness
from ..marks import clock
from ..peers import (
    ALL,
    Bare,
    Claiming,
    DjangoResults,
    Ours,
    Peer,
    Procrastinate,
    RedisResults,
    Rq,
    SqlalchemyResults,
)
from ..processes import processor_time
from ..result import Goal, Result, Series

TITLE = "Run jobs"
METHOD = """1,600 jobs, 400 for the slowest systems, are submitted before a worker with two processes
starts. Each body records its end (two microseconds). The rate is that of the last four fifths of the jobs,
which excludes the start of the worker. Before the worker is killed, a system that stores states must show
each job as finished. Processor time is that of the worker's processes for the same jobs; it depends less
than the rate on other load of the machine. The floor is a lower bound of a job whose state is checked and
stored before its body starts: a task of plain Celery whose body first updates and commits a row by its key,
by psycopg, and stores nothing else."""

SLOW = (SqlalchemyResults, DjangoResults, Rq)
"""Systems that get fewer jobs, to save time."""
SETTLE_TIMEOUT = 60.0


def run(harness: Harness) -> Result:
    """Measure the rates and the processor time of all systems."""
    result = Result("worker", TITLE, METHOD)
    jobs, of_slow = harness.amount(1_600, 300), harness.amount(400, 100)
    with harness.peers([*ALL, Claiming], result.missing) as peers:
        measurements = {
            name: throughput(harness, peer, of_slow if isinstance(peer, SLOW) else jobs)
            for name, peer in peers.items()
        }
        measured = harness.measure(measurements, 4, quick_rounds=1, warm_up=False)
        settings = [[peer.name, peer.settings] for peer in peers.values()]
    rates = {name: [item.rate for item in rounds] for name, rounds in measured.items()}
    references = (
        ("Celery with Redis results", RedisResults.name),
        ("Procrastinate", Procrastinate.name),
    )
    result.goals = [
        Goal(f"jobs per second against {label}", ratios(rates[Ours.name], rates[name]), bound, "×")
        for label, name, bound in (
            *((label, name, bound) for (label, name), bound in zip(references, (1, 1.2), strict=True)),
            ("the floor", Claiming.name, 0),
            ("Celery with SQLAlchemy results and track_started", SqlalchemyResults.name, 3),
            ("Celery without results", Bare.name, 0),
        )
        if name in rates
    ]
    result.goals += [
        Goal(f"… of the floor against {label}", ratios(rates[Claiming.name], rates[name]), 0, "×")
        for label, name in references
        if name in rates
    ]
    result.series = [Series(name, values, "jobs/s") for name, values in rates.items()]
    result.series += [
        Series(f"{name}: processor", [item.processor for item in rounds], "µs per job")
        for name, rounds in measured.items()
    ]
    result.tables = {
        "Processor time per job, by process": costs(measured),
        "Settings": [["system", "settings, and the source"], *settings],
    }
    return result


def costs(measured: dict[str, list["Throughput"]]) -> list[list[str]]:
    """Return a table of medians: what one job costs each process, and what that allows on more processors."""
    rows = [["µs per job", "main process", "children", "PostgreSQL", "Redis", "all"]]
    for name, rounds in measured.items():
        medians = [
            summary([getattr(item, part) for item in rounds]).median
            for part in ("main", "children", "postgresql", "redis")
        ]
        rows.append([name, *(f"{value:,.0f}" for value in [*medians, sum(medians)])])
    return rows


@dataclass(frozen=True)
class Throughput:
    """Rate and cost of some jobs."""

    rate: float
    """Jobs per second."""
    main: float
    """Microseconds of processor time per job, of the first process of each worker."""
    children: float
    """Of the processes that it has started."""
    postgresql: float
    redis: float

    @property
    def processor(self) -> float:
        """Of all processes of the workers."""
        return self.main + self.children


def throughput(harness: Harness, peer: Peer, jobs: int, workers: int = 1) -> Callable[[], Throughput]:
    """Return a measurement: workers run jobs that were submitted before."""

    def measure() -> Throughput:
        peer.purge()
        peer.sandbox.marks.clear()
        peer.submit_many(range(jobs))
        try:
            peer.start_workers(workers)
            peer.sandbox.marks.wait_for(jobs // 5)
            first, before = peer.sandbox.marks.all()[-1], _spent(harness, peer)
            done = peer.sandbox.marks.count()
            marks = peer.sandbox.marks.wait_for(jobs)
            _settle(peer, jobs)
            after = _spent(harness, peer)
        finally:
            peer.stop_workers()
        if marks[-1] == first:
            raise RuntimeError(f"{peer.name}: {jobs} jobs ended before the workers were ready")
        rate = (jobs - marks.index(first) - 1) / (marks[-1].ended - first.ended)
        spent = [(new - old) * 1e6 / (jobs - done) for old, new in zip(before, after, strict=True)]
        return Throughput(rate, *spent)

    return measure


def _spent(harness: Harness, peer: Peer) -> tuple[float, float, float, float]:
    """Return seconds of processor time: of main processes and children of the workers, and of the servers."""
    families = [worker.family() for worker in peer.workers]
    return (
        processor_time(family[0] for family in families),
        processor_time(child for family in families for child in family[1:]),
        harness.servers.postgresql_processor_time(),
        processor_time(harness.servers.redis.processes()),
    )


def _settle(peer: Peer, jobs: int) -> None:
    deadline = clock() + SETTLE_TIMEOUT
    while not peer.settled(jobs):
        if clock() > deadline:
            raise TimeoutError(f"{peer.name}: not all of {jobs} jobs are stored as finished")
        time.sleep(0.05)
