"""What ten idle workers cost the database."""

import time
from collections.abc import Iterator

import psutil

from tests.servers import execute

from ..peers import Ours
from ..peers.celery_app import READY, environment
from ..result import Goal, Result, Series
from ..stage import Stage

METHOD = """Ten workers with nothing to do, at the default settings: leases are renewed, stop requests looked
for, and a pass of the sweep is made each second. Database time is what PostgreSQL itself counts as spent on
statements (`active_time` of `pg_stat_database`), which holds what a commit waits for the disk, and its
processes' processor time, which does not; in windows of 20 s."""


def run(stage: Stage) -> Result:
    """Measure."""
    result = Result("idle", "Ten idle workers", METHOD)
    workers, seconds = stage.amount(10, 2), stage.amount(20, 12)
    active: list[float] = []
    processor: list[float] = []
    statements: list[float] = []
    with stage.place("idle") as place:
        peer = Ours(place)
        peer.prepare()
        command = ["celery", "-A", "benchmarks.peers.worker_app", "worker", "--concurrency=1"]
        for number in range(workers):
            stage.progress.say(f"starts worker {number + 1} of {workers}")
            peer.start(
                [*command, f"--hostname=idle-{number}@localhost", "--loglevel=WARNING"],
                READY,
                **environment("ours", place),
            )
        time.sleep(12)  # until what the start has cost is counted
        for number in range(stage.rounds or stage.amount(4, 1)):
            stage.progress.say(f"window {number + 1}, {seconds} s")
            before = _counted(stage, peer)
            time.sleep(seconds)
            after = _counted(stage, peer)
            for values, one, other in zip((active, processor, statements), before, after, strict=True):
                values.append((other - one) / seconds)
        peer.close()
    result.goals = [
        Goal(f"idle sweep, database time per second for {workers} workers", active, 5, "ms", at_least=False)
    ]
    result.series = [
        Series("time on statements, per second", active, "ms"),
        Series("processor time of all its processes, per second", processor, "ms"),
        Series("transactions per second", statements, ""),
    ]
    return result


def _counted(stage: Stage, peer: Ours) -> tuple[float, float, float]:
    """Return milliseconds on statements, milliseconds of processor time, and transactions, so far."""
    name = peer.place.database_url.rpartition("/")[2]
    asked = f"SELECT active_time, xact_commit + xact_rollback FROM pg_stat_database WHERE datname = '{name}'"
    [(active, transactions)] = execute(stage.servers.postgresql.url, asked)
    return float(active), sum(_processor(stage)) * 1000, float(transactions)


def _processor(stage: Stage) -> Iterator[float]:
    for process in stage.servers.postgresql.processes():
        try:
            times = process.cpu_times()
        except psutil.NoSuchProcess:
            continue
        yield times.user + times.system
