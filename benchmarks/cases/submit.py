"""One durable job by `handle.submit`, beside what else a submit can cost."""

from collections.abc import Callable
from contextlib import ExitStack

from ..arithmetic import ratios
from ..floor import FLOOR, FLOORS
from ..paced import Pace, Producer
from ..peers import ALL, Bare, Ours, Peer
from ..result import Goal, Result, Series
from ..stage import Stage

TITLE = "Submit one job"
METHOD = """One producer, one job at a time, no worker; each contestant has a process of its own, and they
take turns. The floor is what no durable submit can avoid, measured in the same rounds: one row of the job
table inserted and committed by SQLAlchemy Core (one statement on one connection in autocommit mode, all
columns that a submit fills, no event row), and one message built and published by what `apply_async` itself
calls (`app.amqp.as_task_v2`, `app.amqp.send_task_message`, on one producer that is kept). It neither checks
nor routes nor encodes, and marks nothing as sent. Processor time is the producer's own, all its threads
together."""


def run(stage: Stage) -> Result:
    """Measure."""
    result = Result("submit", TITLE, METHOD)
    jobs = stage.amount(200, 50)
    with stage.peers(ALL, result.missing) as peers, stage.place("floor") as place, ExitStack() as stack:
        contestants = {}
        for name in [*peers, *FLOORS]:
            peer = peers.get(name)
            producer = Producer(name, peer.place if peer else place)
            stack.callback(producer.close)
            contestants[name] = _slot(producer, jobs, peer)
        measured = stage.contest(contestants, 27)
    rates = {name: [each.rate for each in rounds] for name, rounds in measured.items()}
    ours, bare = rates[Ours.name], rates[Bare.name]
    result.goals = [
        Goal("rate of `submit` against bare `apply_async`", ratios(ours, bare), 0.5, "×"),
        Goal("rate of `submit` against the floor", ratios(ours, rates[FLOOR]), 0.85, "×"),
    ]
    result.series = [Series(name, values, "jobs/s") for name, values in rates.items()]
    result.series += [
        Series(f"{name}: processor", [each.processor for each in rounds], "µs a job")
        for name, rounds in measured.items()
    ]
    return result


def _slot(producer: Producer, jobs: int, peer: Peer | None) -> Callable[[], Pace]:
    def slot() -> Pace:
        measured = producer.pace(jobs)
        if peer is not None:
            peer.purge()
        return measured

    return slot
