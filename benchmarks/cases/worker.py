"""How many no-op jobs a worker with two processes does in a second."""

import time
from collections.abc import Callable

from ..arithmetic import ratios
from ..marks import clock
from ..peers import ALL, Bare, Ours, Peer, RedisResults, SqlalchemyResults
from ..result import Goal, Result, Series
from ..stage import Stage

TITLE = "Run jobs"
METHOD = """Jobs are submitted beforehand, then a worker with two processes starts. Its bodies note when they
end (two microseconds); the rate is that of the last four fifths of the jobs, so that nobody's start counts.
Before the worker is killed, whoever keeps a state must show every job as finished."""

SETTLING = 60.0


def run(stage: Stage) -> Result:
    """Measure."""
    result = Result("worker", TITLE, METHOD)
    jobs = stage.amount(2_000, 300)
    with stage.peers(ALL, result.missing) as peers:
        contestants = {name: throughput(peer, jobs) for name, peer in peers.items()}
        measured = stage.contest(contestants, 4, quick_rounds=1, warm_up=False)
        settings = [[peer.name, peer.settings] for peer in peers.values()]
    ours = measured[Ours.name]
    result.goals = [
        Goal(f"jobs per second against {what}", ratios(ours, measured[name]), bound, "×")
        for what, name, bound in (
            ("Celery with Redis results", RedisResults.name, 1),
            ("Celery with SQLAlchemy results and track_started", SqlalchemyResults.name, 3),
            ("Celery without results", Bare.name, 0),
        )
    ]
    result.series = [Series(name, values, "jobs/s") for name, values in measured.items()]
    result.tables = {"Settings of the contestants": [["contestant", "settings, and who says so"], *settings]}
    return result


def throughput(peer: Peer, jobs: int, workers: int = 1) -> Callable[[], float]:
    """Return a measurement of the jobs that a contestant's workers do in a second."""

    def measure() -> float:
        peer.purge()
        peer.place.marks.clear()
        peer.submit_many(range(jobs))
        try:
            peer.start_workers(workers)
            marks = peer.place.marks.wait_for(jobs)
            _settle(peer, jobs)
        finally:
            peer.stop_workers()
        first = marks[jobs // 5]
        return (jobs - jobs // 5 - 1) / (marks[-1].ended - first.ended)

    return measure


def _settle(peer: Peer, jobs: int) -> None:
    deadline = clock() + SETTLING
    while not peer.settled(jobs):
        if clock() > deadline:
            raise TimeoutError(f"{peer.name}: not all of {jobs} jobs stand as finished")
        time.sleep(0.05)
