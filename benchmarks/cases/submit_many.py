"""The rate of `submit_many` on Redis and on RabbitMQ."""

from collections.abc import Callable
from contextlib import ExitStack

from ..arithmetic import ratios
from ..harness import Harness
from ..peers import Bare, Dramatiq, Ours, Peer, Procrastinate, Rq
from ..producer_process import Producer
from ..result import Goal, Result, Series

LOOP = "an `apply_async` loop"


def run_redis(harness: Harness) -> Result:
    """Measure on Redis."""
    result = Result(
        "submit_many",
        "Submit many jobs, on Redis",
        "10,000 jobs in one call, beside as many calls of plain Celery's `apply_async` (without results; "
        "Celery has no call for many) and the other systems' calls for many. No worker runs; each system has "
        "a producer in a process of its own. A loop is timed over 2,000 jobs: its rate does not depend on "
        "their number.",
    )
    jobs = harness.amount(10_000, 1_000)
    with harness.peers([Bare, Ours, Procrastinate, Rq, Dramatiq], result.missing) as peers:
        return _measure(harness, result, peers, jobs, 6.0)


def run_rabbitmq(harness: Harness) -> Result:
    """Measure on RabbitMQ, with publisher confirms."""
    result = Result(
        "submit_many_rabbitmq",
        "Submit many jobs, on RabbitMQ with publisher confirms",
        "The same on RabbitMQ. Celery's loop has `broker_transport_options={'confirm_publish': True}`: "
        "without it RabbitMQ may lose a message without an error. This library always uses confirms.",
    )
    jobs = harness.amount(10_000, 1_000)
    with harness.peers([Bare, Ours], result.missing, rabbitmq=True) as peers:
        return _measure(harness, result, peers, jobs, 4.0)


def _measure(harness: Harness, result: Result, peers: dict[str, Peer], jobs: int, bound: float) -> Result:
    with ExitStack() as stack:
        producers = {name: Producer(name, peer.sandbox) for name, peer in peers.items()}
        for producer in producers.values():
            stack.callback(producer.close)
        measured = harness.measure(
            {name: _submits(producers[name], peer, jobs) for name, peer in peers.items()}, 5, quick_rounds=1
        )
    broker = "RabbitMQ" if "rabbitmq" in result.name else "Redis"
    label = f"rate of `submit_many` on {broker}, {jobs:,} jobs, against {LOOP}"
    result.goals = [Goal(label, ratios(measured[Ours.name], measured[Bare.name]), bound, "×")]
    result.series = [Series(name, values, "jobs/s") for name, values in measured.items()]
    return result


def _submits(producer: Producer, peer: Peer, jobs: int) -> Callable[[], float]:
    is_loop = type(peer).submit_many is Peer.submit_many
    count = jobs // 5 if is_loop else jobs

    def measure() -> float:
        rate = producer.submit_together(count).rate
        peer.purge()
        return rate

    return measure
