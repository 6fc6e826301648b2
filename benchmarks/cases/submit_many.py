"""Many durable jobs at once by `submit_many`, on Redis and on RabbitMQ."""

from collections.abc import Callable
from contextlib import ExitStack

from ..arithmetic import ratios
from ..paced import Producer
from ..peers import Bare, Dramatiq, Ours, Peer, Procrastinate, Rq
from ..result import Goal, Result, Series
from ..stage import Stage

LOOP = "an `apply_async` loop"


def run_redis(stage: Stage) -> Result:
    """Measure on Redis."""
    result = Result(
        "submit_many",
        "Submit many jobs, on Redis",
        "10,000 jobs in one call, against as many by plain Celery's `apply_async` in a loop (without results;"
        " Celery has nothing for many) and by what the peers have for many. No worker; each contestant has a"
        " process of its own, and they take turns.",
    )
    jobs = stage.amount(10_000, 1_000)
    with stage.peers([Bare, Ours, Procrastinate, Rq, Dramatiq], result.missing) as peers:
        return _measure(stage, result, peers, jobs, 5.0)


def run_rabbitmq(stage: Stage) -> Result:
    """Measure on RabbitMQ, with publisher confirms."""
    result = Result(
        "submit_many_rabbitmq",
        "Submit many jobs, on RabbitMQ with publisher confirms",
        "The same on RabbitMQ, where Celery's loop has `broker_transport_options={'confirm_publish': True}`: "
        "without it a publish can vanish without an error. This library confirms always.",
    )
    jobs = stage.amount(10_000, 1_000)
    with stage.peers([Bare, Ours], result.missing, rabbitmq=True) as peers:
        return _measure(stage, result, peers, jobs, 5.0)


def _measure(stage: Stage, result: Result, peers: dict[str, Peer], jobs: int, bound: float) -> Result:
    with ExitStack() as stack:
        producers = {name: Producer(name, peer.place) for name, peer in peers.items()}
        for producer in producers.values():
            stack.callback(producer.close)
        measured = stage.contest(
            {name: _many(producers[name], peer, jobs) for name, peer in peers.items()}, 15, quick_rounds=1
        )
    broker = "RabbitMQ" if "rabbitmq" in result.name else "Redis"
    what = f"rate of `submit_many` on {broker}, {jobs:,} jobs, against {LOOP}"
    result.goals = [Goal(what, ratios(measured[Ours.name], measured[Bare.name]), bound, "×")]
    result.series = [Series(name, values, "jobs/s") for name, values in measured.items()]
    return result


def _many(producer: Producer, peer: Peer, jobs: int) -> Callable[[], float]:
    def many() -> float:
        rate = producer.together(jobs).rate
        peer.purge()
        return rate

    return many
