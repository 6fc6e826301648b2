"""The rate of short jobs of a worker whose bodies share one process: threads, and greenlets."""

from contextlib import ExitStack

from ..harness import Harness
from ..peers import Bare, Ours, RedisResults
from ..peers.celery_peers import CeleryPeer
from ..result import Result, Series
from .worker import costs, throughput

METHOD = """Jobs are submitted before one worker starts, in the pool `threads` with 20 threads or in `gevent`
with 100 greenlets. Each body sleeps for 5 ms. The rate is that of the last four fifths of the jobs."""

POOLS = {"threads": 20, "gevent": 100}
"""The concurrency of each pool."""
SECONDS = 0.005


def run(harness: Harness) -> Result:
    """Measure the rates and the processor time in each pool."""
    result = Result("pools", "Run jobs in threads and greenlets", METHOD)
    jobs = harness.amount(700, 300)
    measurements = {}
    with ExitStack() as stack:
        kinds: list[type[CeleryPeer]] = [Ours, RedisResults, Bare]
        for pool, concurrency in POOLS.items():
            for kind in kinds:
                peer = kind(stack.enter_context(harness.sandbox(f"{kind.__name__}-{pool}")))
                peer.prepare()
                stack.callback(peer.close)
                peer.pool, peer.concurrency, peer.seconds = pool, concurrency, SECONDS
                name = f"{kind.name}, {concurrency} {pool if pool == 'threads' else 'greenlets'}"
                measurements[name] = throughput(harness, peer, jobs)
        measured = harness.measure(measurements, 3, quick_rounds=1, warm_up=False)
    result.series = [
        Series(name, [item.rate for item in rounds], "jobs/s") for name, rounds in measured.items()
    ]
    result.tables = {"Processor time per job, by process": costs(measured)}
    return result
