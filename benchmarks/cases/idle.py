"""The load of ten idle workers on the database."""

import time

from tests.servers import execute

from ..harness import Harness
from ..peers import Ours
from ..peers.celery_app import READY, environment
from ..result import Goal, Result, Series

METHOD = """Ten idle workers with default settings: they renew their leases, poll for stop requests, and
make a pass of the sweeper each second. Database time is `active_time` of `pg_stat_database`, the time that
PostgreSQL spends on statements, including a commit's wait for the disk. The processor time of its processes
excludes that wait. Both are read in windows of 8 s."""


def run(harness: Harness) -> Result:
    """Measure the time and the transactions of the database, in windows of some seconds."""
    result = Result("idle", "Ten idle workers", METHOD)
    workers, seconds = harness.amount(10, 2), harness.amount(8, 8)
    active: list[float] = []
    processor: list[float] = []
    transactions: list[float] = []
    with harness.sandbox("idle") as sandbox:
        peer = Ours(sandbox)
        peer.prepare()
        command = ["celery", "-A", "benchmarks.peers.worker_app", "worker"]
        options = ["--concurrency=1", "--loglevel=WARNING"]
        harness.progress.show(f"start {workers} workers")
        peer.start(
            [[*command, *options, f"--hostname=idle-{number}@localhost"] for number in range(workers)],
            READY,
            **environment("ours", sandbox),
        )
        time.sleep(12)  # the start of the workers is not measured
        for number in range(harness.rounds or harness.amount(3, 1)):
            harness.progress.show(f"window {number + 1}, {seconds} s")
            before = _counted(harness, peer)
            time.sleep(seconds)
            after = _counted(harness, peer)
            for values, first, last in zip((active, processor, transactions), before, after, strict=True):
                values.append((last - first) / seconds)
        peer.close()
    result.goals = [
        Goal(f"idle sweep, database time per second for {workers} workers", active, 5, "ms", at_least=False)
    ]
    result.series = [
        Series("time on statements, per second", active, "ms"),
        Series("processor time of all its processes, per second", processor, "ms"),
        Series("transactions per second", transactions, ""),
    ]
    return result


def _counted(harness: Harness, peer: Ours) -> tuple[float, float, float]:
    """Return PostgreSQL's totals: ms on statements, ms of processor time, and transactions."""
    name = peer.sandbox.database_url.rpartition("/")[2]
    statement = (
        f"SELECT active_time, xact_commit + xact_rollback FROM pg_stat_database WHERE datname = '{name}'"
    )
    [(active, transactions)] = execute(harness.servers.postgresql.url, statement)
    return float(active), harness.servers.postgresql_processor_time() * 1000, float(transactions)
