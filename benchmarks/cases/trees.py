"""Trees of jobs: a chord, a chain, a large group and its cancel, beside Celery's own canvas."""

from collections.abc import Callable
from typing import Any

from celery import chain, chord, group

from ..arithmetic import differences, ratios
from ..marks import clock
from ..peers import Bare, Ours, RedisResults
from ..peers.celery_app import TASK
from ..peers.celery_peers import CeleryPeer
from ..result import Goal, Result, Series
from ..stage import Stage

METHOD = """The same canvas of no-op tasks with immutable signatures, submitted to an idle worker with two
processes: a chord, from the call to the end of its body; a chain, from the end of its first body to that of
its last, for each step, against one job submitted after the other has ended. A group is submitted without a
worker, by one call, and then cancelled. Celery's chord and chain use results in Redis; its group has none."""


def run(stage: Stage) -> Result:
    """Measure."""
    result = Result("trees", "Chains, groups and chords", METHOD)
    members, steps = stage.amount(1_000, 100), stage.amount(100, 20)
    with stage.peers([RedisResults, Ours], result.missing) as peers:
        ready = {name: peer for name, peer in peers.items() if isinstance(peer, CeleryPeer)}
        for peer in ready.values():
            peer.start_workers()
        chords = stage.contest({name: _chord(peer, members) for name, peer in ready.items()}, 8)
        chains = stage.contest({name: _chain(peer, steps) for name, peer in ready.items()}, 8)
        singles = stage.contest({Ours.name: _singles(ready[Ours.name], steps)}, 8)
    with stage.peers([Bare, Ours], result.missing) as peers:
        large = stage.amount(10_000, 500)
        ready = {name: peer for name, peer in peers.items() if isinstance(peer, CeleryPeer)}
        groups = stage.contest({name: _group(peer, large) for name, peer in ready.items()}, 6, quick_rounds=1)
        ours = peers[Ours.name]
        assert isinstance(ours, Ours)
        many = stage.amount(100_000, 2_000)
        cancels = stage.contest({Ours.name: _cancel(ours, many)}, 3, quick_rounds=1, warm_up=False)
    result.goals = [
        Goal(
            f"a chord of {members:,}, from submit to the end of its body: time of Celery's against ours",
            ratios(chords[RedisResults.name], chords[Ours.name]),
            1,
            "×",
        ),
        Goal(
            f"a step of a chain of {steps}, beyond a job alone",
            differences(chains[Ours.name], singles[Ours.name]),
            5,
            "ms",
            at_least=False,
        ),
        Goal(
            f"submit of a group of {large:,}: time of `group.apply_async` against ours",
            ratios(groups[Bare.name], groups[Ours.name]),
            3,
            "×",
        ),
        Goal(f"cancel of a tree of {many:,}", cancels[Ours.name], 5, "s", at_least=False),
    ]
    result.series = [
        *(Series(f"{name}: chord of {members:,}", values, "s") for name, values in chords.items()),
        *(Series(f"{name}: step of a chain", values, "ms") for name, values in chains.items()),
        Series(f"{Ours.name}: a job alone", singles[Ours.name], "ms"),
        *(Series(f"{name}: submit of a group", values, "s") for name, values in groups.items()),
    ]
    return result


def _submit(peer: CeleryPeer, canvas: Any) -> None:
    if isinstance(peer, Ours):
        peer.handle.submit(canvas)
    else:
        canvas.apply_async()


def _chord(peer: CeleryPeer, members: int) -> Callable[[], float]:
    """Return a measurement: seconds from the submit of a chord to the end of its body."""
    task = peer.app.tasks[TASK]

    def measure() -> float:
        peer.place.marks.clear()
        canvas = chord(group(task.si(number) for number in range(members)), task.si(members))
        begun = clock()
        _submit(peer, canvas)
        last = peer.place.marks.wait_for(members + 1)[-1]
        if last.number != members:
            raise AssertionError(f"{peer.name}: the body of the chord was not the last")
        return last.ended - begun

    return measure


def _chain(peer: CeleryPeer, steps: int) -> Callable[[], float]:
    """Return a measurement: milliseconds of a step of a chain."""
    task = peer.app.tasks[TASK]

    def measure() -> float:
        peer.place.marks.clear()
        _submit(peer, chain(*(task.si(number) for number in range(steps))))
        marks = peer.place.marks.wait_for(steps)
        return (marks[-1].ended - marks[0].ended) * 1000 / (steps - 1)

    return measure


def _singles(peer: CeleryPeer, jobs: int) -> Callable[[], float]:
    """Return a measurement: milliseconds from a submit to the end of the body, one job after the other."""

    def measure() -> float:
        taken = []
        for number in range(jobs):
            peer.place.marks.clear()
            begun = clock()
            peer.submit(number)
            taken.append(peer.place.marks.wait_for(1, pause=0.001)[0].ended - begun)
        return sum(taken) * 1000 / jobs

    return measure


def _group(peer: CeleryPeer, members: int) -> Callable[[], float]:
    """Return a measurement: seconds of the submit of a group that nothing runs."""
    task = peer.app.tasks[TASK]

    def measure() -> float:
        canvas = group(task.si(number) for number in range(members))
        begun = clock()
        _submit(peer, canvas)
        taken = clock() - begun
        peer.purge()
        return taken

    return measure


def _cancel(peer: Ours, members: int) -> Callable[[], float]:
    """Return a measurement: seconds of the cancel of a tree by its root."""
    task = peer.app.tasks[TASK]

    def measure() -> float:
        with peer.jobs.handle() as handle:
            handle.submit(group(task.si(number) for number in range(members)))
            begun = clock()
            handle.cancel_job()
            taken = clock() - begun
        peer.purge()
        return taken

    return measure
