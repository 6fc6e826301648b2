"""What `Jobs` costs plain tasks of its app, and what a durable task's ``apply_async`` costs."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack

from ..arithmetic import ratios
from ..harness import Harness
from ..peers import Bare, Durable, Ours, Peer, PlainBeside
from ..producer_process import Producer
from ..result import Goal, Result, Series
from .submit import submits

TITLE = "Celery's own calls"
METHOD = """A plain task of an app with `Jobs` beside the same task of an app without: a producer in a
process of its own calls it by `apply_async`, and a worker with two processes, which has started before and
has run tasks, runs the messages of 400 calls. Goals are for processor time, of the producer with all its
threads, and of all processes of the worker, its sweeper among them. A durable task's `apply_async` is
measured beside `handle.submit` of the same task, both in one more producer: two processes differ by more
than these two calls."""


def run(harness: Harness) -> Result:
    """Measure the calls, and the runs of plain tasks."""
    result = Result("calls", TITLE, METHOD)
    number = harness.amount(400, 100)
    with harness.peers([Bare, PlainBeside, Durable], result.missing) as peers:
        with ExitStack() as stack:
            producers = {name: Producer(name, peer.sandbox) for name, peer in peers.items()}
            measurements = {}
            for name, producer in producers.items():
                stack.callback(producer.close)
                measurements[name] = submits(producer.submit_each, number, peers[name])
            by_handle = producers[Durable.name].submit_by_handle
            measurements[Ours.name] = submits(by_handle, number, peers[Durable.name])
            called = harness.measure(measurements, 25)
        plain = [peers[name] for name in (Bare.name, PlainBeside.name)]
        for peer in plain:
            peer.start_workers()
        spent_by_run = harness.measure({peer.name: _runs(peer, number) for peer in plain}, 15)
    rates = {name: [item.rate for item in rounds] for name, rounds in called.items()}
    spent = {name: [item.processor for item in rounds] for name, rounds in called.items()}

    def of_plain(times: Mapping[str, Sequence[float]]) -> list[float]:
        return ratios(times[PlainBeside.name], times[Bare.name])

    def of_durable(measured: Mapping[str, Sequence[float]]) -> list[float]:
        return ratios(measured[Durable.name], measured[Ours.name])

    result.goals = [
        Goal("processor time of a plain `apply_async`, beside `Jobs`", of_plain(spent), 1.05, "×", False),
        Goal(
            "processor time of a plain task in a worker, beside `Jobs`",
            of_plain(spent_by_run),
            1.05,
            "×",
            False,
        ),
        Goal("rate of a durable `apply_async` against `submit`", of_durable(rates), 0.95, "×"),
        Goal("… its processor time", of_durable(spent), 0, "×"),
    ]
    result.series = [Series(name, values, "calls/s") for name, values in rates.items()]
    result.series += [Series(f"{name}: processor", values, "µs per call") for name, values in spent.items()]
    result.series += [
        Series(f"{name}: processor of the worker", values, "µs per task")
        for name, values in spent_by_run.items()
    ]
    return result


def _runs(peer: Peer, tasks: int) -> Callable[[], float]:
    """Return a measurement: the microseconds of processor time of the worker, which runs, for a task."""

    def measure() -> float:
        peer.sandbox.marks.clear()
        spent = peer.processor_time()
        peer.submit_many(range(tasks))
        peer.sandbox.marks.wait_for(tasks)
        return (peer.processor_time() - spent) * 1e6 / tasks

    return measure
