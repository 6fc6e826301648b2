"""Trees of jobs: a chord, a chain, a large group and its cancel, beside Celery's canvas."""

from collections.abc import Callable
from typing import Any

from celery import chain, chord, group

from jobhandle_celery import JobStatus

from ..arithmetic import differences, ratios
from ..clone_rows import clone
from ..harness import Harness
from ..marks import clock
from ..peers import Bare, Ours, RedisResults
from ..peers.celery_app import TASK
from ..peers.celery_peers import CeleryPeer
from ..result import Goal, Result, Series
from .bulk import empty

METHOD = """The same canvas of no-op tasks with immutable signatures is submitted to an idle worker with two
processes. A chord is timed from the call to the end of its body. A chain is timed from the end of its first
body to that of its last, per step; a job alone is submitted after the one before has ended. A group is
submitted by one call while no worker runs. A tree of queued jobs is cancelled by its root; its members are
copies of one that was submitted. Celery's chord and chain use results in Redis; its group has none."""


def run(harness: Harness) -> Result:
    """Measure chords, chains, groups and the cancel of a tree."""
    result = Result("trees", "Chains, groups and chords", METHOD)
    _run_canvases(harness, result)
    _submit_groups(harness, result)
    return result


def _run_canvases(harness: Harness, result: Result) -> None:
    members, steps = harness.amount(1_000, 100), harness.amount(100, 20)
    with harness.peers([RedisResults, Ours], result.missing) as peers:
        ready = {name: peer for name, peer in peers.items() if isinstance(peer, CeleryPeer)}
        for peer in ready.values():
            peer.start_workers()
        chords = harness.measure({name: _chord(peer, members) for name, peer in ready.items()}, 5)
        alone = f"{Ours.name}: a job alone"
        chains = harness.measure(
            {f"{name}: step of a chain": _chain(peer, steps) for name, peer in ready.items()}
            | {alone: _singles(ready[Ours.name], steps)},
            5,
        )
    result.goals += [
        Goal(
            f"time of a chord of {members:,} from submit to the end of its body: Celery's against ours",
            ratios(chords[RedisResults.name], chords[Ours.name]),
            1,
            "×",
        ),
        Goal(
            f"a step of a chain of {steps}, beyond a job alone",
            differences(chains[f"{Ours.name}: step of a chain"], chains[alone]),
            5,
            "ms",
            at_least=False,
        ),
    ]
    result.series += [Series(f"{name}: chord of {members:,}", values, "s") for name, values in chords.items()]
    result.series += [Series(label, values, "ms") for label, values in chains.items()]


def _submit_groups(harness: Harness, result: Result) -> None:
    members, of_tree = harness.amount(10_000, 500), harness.amount(100_000, 2_000)
    with harness.peers([Bare, Ours], result.missing) as peers:
        ready = {name: peer for name, peer in peers.items() if isinstance(peer, CeleryPeer)}
        groups = harness.measure(
            {name: _group(peer, members) for name, peer in ready.items()}, 3, quick_rounds=1, warm_up=False
        )
        ours = ready[Ours.name]
        assert isinstance(ours, Ours)
        cancels = harness.measure({Ours.name: _cancel(ours, of_tree)}, 3, quick_rounds=1, warm_up=False)
    result.goals += [
        Goal(
            f"time of the submit of a group of {members:,}: `group.apply_async` against ours",
            ratios(groups[Bare.name], groups[Ours.name]),
            3,
            "×",
        ),
        Goal(f"cancel of a tree of {of_tree:,}", cancels[Ours.name], 5, "s", at_least=False),
    ]
    result.series += [Series(f"{name}: submit of a group", values, "s") for name, values in groups.items()]


def _submit(peer: CeleryPeer, canvas: Any) -> None:
    if isinstance(peer, Ours):
        peer.handle.submit(canvas)
    else:
        canvas.apply_async()


def _chord(peer: CeleryPeer, members: int) -> Callable[[], float]:
    """Return a measurement: seconds from the submit of a chord to the end of its body."""
    task = peer.app.tasks[TASK]

    def measure() -> float:
        peer.sandbox.marks.clear()
        canvas = chord(group(task.si(number) for number in range(members)), task.si(members))
        started = clock()
        _submit(peer, canvas)
        last = peer.sandbox.marks.wait_for(members + 1)[-1]
        if last.number != members:
            raise AssertionError(f"{peer.name}: the body of the chord was not the last")
        return last.ended - started

    return measure


def _chain(peer: CeleryPeer, steps: int) -> Callable[[], float]:
    """Return a measurement: milliseconds of a step of a chain."""
    task = peer.app.tasks[TASK]

    def measure() -> float:
        peer.sandbox.marks.clear()
        _submit(peer, chain(*(task.si(number) for number in range(steps))))
        marks = peer.sandbox.marks.wait_for(steps)
        return (marks[-1].ended - marks[0].ended) * 1000 / (steps - 1)

    return measure


def _singles(peer: CeleryPeer, jobs: int) -> Callable[[], float]:
    """Return a measurement: milliseconds from a submit to the end of the body, one job after the other."""

    def measure() -> float:
        taken = []
        for number in range(jobs):
            peer.sandbox.marks.clear()
            started = clock()
            peer.submit(number)
            taken.append(peer.sandbox.marks.wait_for(1, pause=0.001)[0].ended - started)
        return sum(taken) * 1000 / jobs

    return measure


def _group(peer: CeleryPeer, members: int) -> Callable[[], float]:
    """Return a measurement: seconds of the submit of a group that nothing runs."""
    task = peer.app.tasks[TASK]

    def measure() -> float:
        canvas = group(task.si(number) for number in range(members))
        started = clock()
        _submit(peer, canvas)
        taken = clock() - started
        peer.purge()
        return taken

    return measure


def _cancel(peer: Ours, members: int) -> Callable[[], float]:
    """Return a measurement: seconds of the cancel of a tree by its root."""
    task = peer.app.tasks[TASK]

    def measure() -> float:
        with peer.jobs.handle() as handle:
            root_id = handle.submit(group(task.si(number) for number in range(2)))
            handle.job_status()  # which first writes the pending marks Queued
            # Not by `submit`: to publish so many messages would take longer than the measurement.
            member_id = peer.jobs.find(root=root_id, limit=1)[0].id
            clone(peer.sandbox.database_url, member_id, members - 3)
            started = clock()
            handle.cancel_job()
            taken = clock() - started
        cancelled = peer.jobs.count_by_status(root=root_id)[JobStatus.CANCELLED]
        if cancelled != members - 1:
            raise AssertionError(f"{cancelled} of {members - 1} members were cancelled")
        empty(peer)
        return taken

    return measure
