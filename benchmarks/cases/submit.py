"""The rate of `handle.submit`, beside the submits of other systems and a lower bound."""

from collections.abc import Callable
from contextlib import ExitStack

from ..arithmetic import ratios
from ..floor import FLOOR, FLOORS
from ..harness import Harness
from ..peers import ALL, Bare, Ours, Peer
from ..producer_process import Producer, ProducerRate
from ..result import Goal, Result, Series

TITLE = "Submit one job"
METHOD = """One producer per system, in a process of its own, submits one job at a time; no worker runs. The
floor is a lower bound of a durable submit, measured in the same rounds: SQLAlchemy Core inserts and commits
one row of the job table (one statement on one connection in autocommit mode, all columns that a submit
fills, no event row), and the functions that `apply_async` calls (`app.amqp.as_task_v2`,
`app.amqp.send_task_message`, with one producer that is kept) build and publish one message. It does not
check, route or encode the job, and does not mark it as sent. Processor time is that of the producer, all
its threads together."""


def run(harness: Harness) -> Result:
    """Measure the rates and the processor time of all systems and of the floor."""
    result = Result("submit", TITLE, METHOD)
    jobs = harness.amount(200, 50)
    with (
        harness.peers(ALL, result.missing) as peers,
        harness.sandbox("floor") as sandbox,
        ExitStack() as stack,
    ):
        measurements = {}
        for name in [*peers, *FLOORS]:
            peer = peers.get(name)
            producer = Producer(name, peer.sandbox if peer else sandbox)
            stack.callback(producer.close)
            measurements[name] = submits(producer.submit_each, jobs, peer)
        measured = harness.measure(measurements, 11)
    rates = {name: [item.rate for item in rounds] for name, rounds in measured.items()}
    ours, bare = rates[Ours.name], rates[Bare.name]
    result.goals = [
        Goal("rate of `submit` against bare `apply_async`", ratios(ours, bare), 0.6, "×"),
        Goal("rate of `submit` against the floor", ratios(ours, rates[FLOOR]), 0.85, "×"),
    ]
    result.series = [Series(name, values, "jobs/s") for name, values in rates.items()]
    result.series += [
        Series(f"{name}: processor", [item.processor for item in rounds], "µs per job")
        for name, rounds in measured.items()
    ]
    return result


def submits(
    submit: Callable[[int], ProducerRate], jobs: int, peer: Peer | None
) -> Callable[[], ProducerRate]:
    """Return a measurement: a producer submits jobs one after the other; they are deleted afterwards."""

    def measure() -> ProducerRate:
        measured = submit(jobs)
        if peer is not None:
            peer.purge()
        return measured

    return measure
