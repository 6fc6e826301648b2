"""Faults of the workers of a workload, and the check that every attempt of its jobs is accounted for."""

import functools
import os
import random
import signal
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any

from sqlalchemy import Engine, NullPool, create_engine, func, select

from jobhandle_celery import JobRecord, JobStatus
from jobhandle_celery.models import Event
from jobhandle_celery.schema import job_event
from jobhandle_celery.status import UNFINISHED
from tests.faults.workload import BODIES, BodyTrace, WorkerSupervisor, Workload, repeating_fault
from tests.rng import stretched
from tests.support import eventually
from tests.worker.cluster import Cluster

FEW = 15
"""Below this number of unfinished jobs more are submitted."""

RESULTS = {
    "work": "worked",
    "work_late": "worked",
    "listen": "listened",
    "may_be_killed": "worked",
    "again": "at last",
    "long_at_first": "worked",
    "listen_at_first": "listened",
    "known_to_few": "known",
    "submit_later": "submitted",
}
"""By task; `speak` returns the number of its attempt."""
_LOST = ("was lost", "does not run it any more")
_GIVEN_BACK = ("cut it off", "shut down", "its claim was not answered")


def ends_of_attempts(events: list[Event]) -> list[Event | None]:
    """Return the event that ended each attempt, in order; None for a running attempt."""
    ends: list[Event | None] = []
    running = False
    for event in events:
        if event.message == "started":
            assert not running, events
            ends.append(None)
            running = True
        elif running and event.status is not JobStatus.RUNNING:
            ends[-1] = event
            running = False
    return ends


def is_loss(end: Event) -> bool:
    return any(words in end.message for words in _LOST)


def is_given_back(end: Event) -> bool:
    return any(words in end.message for words in _GIVEN_BACK)


def account_for_attempts(workload: Workload, rows: Mapping[int, JobRecord]) -> Counter[str]:
    """Check that each attempt ended by its body or by recovery; return how often which.

    A job may end in Error by its own body, or for want of attempts; as Cancelled if a client asked for
    it; otherwise it has finished, with the result of its task.
    """
    body_traces, tally = workload.body_traces(), Counter[str]()
    for job_id, row in rows.items():
        events = workload.cluster.jobs.events(job_id)
        details = f"job {job_id}: {row}; {events}; its bodies: {body_traces.get(job_id)}"
        ends = ends_of_attempts(events)
        assert len(ends) == row.attempt, details
        by_attempt = {trace.attempt: trace for trace in body_traces.get(job_id, [])}
        lost_count = 0
        for attempt, end in enumerate(ends, start=1):
            assert end is not None, details
            lost_count += is_loss(end)
            tally[_account(by_attempt.get(attempt), end, details)] += 1
        _judge(row, lost_count, details)
    return tally


def _account(trace: BodyTrace | None, end: Event, details: str) -> str:
    if is_loss(end):
        return "lost"
    if is_given_back(end):
        return "given back"
    if end.status is JobStatus.CANCELLED:
        return "stopped"
    assert trace is not None, f"{end} without a body; {details}"
    assert trace.ended, f"{end} before the body's end; {details}"
    return "ended"


def _judge(row: JobRecord, lost_count: int, details: str) -> None:
    task = row.task.removeprefix("worker.")
    assert lost_count <= row.max_attempts, details
    match row.status:
        case JobStatus.FINISHED:
            assert row.result == RESULTS.get(task, row.attempt), details
        case JobStatus.CANCELLED:
            assert row.cancel_requested is not None, details
        case _:
            assert row.error is not None, details
            if row.error.kind == "system":
                assert lost_count == row.max_attempts, details
            else:
                assert (task, row.error.type) == ("fail", "ValueError"), details


# Faults of workers.

Fault = Callable[[WorkerSupervisor, random.Random], bool]
"""Returns whether the fault was injected."""


def supervise(cluster: Cluster, count: int = 2, **options: Any) -> WorkerSupervisor:
    """Start workers that are replaced when they end."""
    options = {"concurrency": 3, **options}
    return WorkerSupervisor(lambda: cluster.start(BODIES, ready=False, **options), count)


def kill_a_child(supervisor: WorkerSupervisor, rng: random.Random) -> bool:
    children = [pid for worker in supervisor.workers for pid in worker.children()]
    if not children or not all_ready(supervisor):
        return False
    with suppress(ProcessLookupError):
        os.kill(rng.choice(children), signal.SIGKILL)
    return True


def send(which: signal.Signals) -> Fault:
    """Return a fault that sends a signal to a worker's main process and starts another worker at once."""

    def inject(supervisor: WorkerSupervisor, rng: random.Random) -> bool:
        if not all_ready(supervisor):
            return False
        worker = rng.choice(supervisor.workers)
        worker.process.send_signal(which)
        supervisor.replace(worker)
        return True

    return inject


def one_of(*faults: Fault) -> Fault:
    """Return a fault that injects one of `faults` at random."""
    return lambda supervisor, rng: rng.choice(faults)(supervisor, rng)


def all_ready(supervisor: WorkerSupervisor) -> bool:
    """Return whether every worker has started; a worker that is killed before that runs no body."""
    return all(f"{worker.nodename} ready." in worker.log for worker in supervisor.workers)


def run_under_faults(
    workload: Workload,
    supervisor: WorkerSupervisor,
    inject: Fault,
    pause: tuple[float, float],
    *,
    submit_more: Callable[[], object],
    reasons: Sequence[str],
    jobs: int,
    times: int = 0,
) -> None:
    """Inject faults into a workload, cancel a job or two with each, then wait for final states.

    Args:
        workload: The workload.
        supervisor: The workers that are hit.
        inject: The fault.
        pause: Seconds between two faults, at least and at most.
        submit_more: Submits more jobs; called whenever few are unfinished.
        reasons: The faults go on until each of these texts is in the messages of two events.
        jobs: And until this many jobs were submitted.
        times: And until this many faults were injected.
    """
    submit_more()

    struck = 0

    def inject_once() -> None:
        nonlocal struck
        if inject(supervisor, workload.rng):
            struck += 1
            for job_id in workload.rng.sample(workload.ids, 2):
                workload.cancel(job_id, terminate=workload.rng.random() < 0.5)

    def is_over() -> bool:
        if _unfinished(workload.cluster) < FEW:
            submit_more()
        enough = len(workload.ids) >= jobs and struck >= times
        return enough and all(count_events(workload.cluster, words) >= 2 for words in reasons)

    with repeating_fault(inject_once, pause, workload.rng):
        eventually(is_over, stretched(150), f"no event has the message of {reasons}")
    workload.wait_until_final()


def count_events(cluster: Cluster, words: str) -> int:
    """Return how many of this cluster's events match a message; `%` matches any text."""
    with _engine(cluster.database_url).connect() as connection:
        details = job_event.c.message.like(f"%{words}%")
        return connection.execute(select(func.count()).select_from(job_event).where(details)).scalar_one()


@functools.cache
def _engine(url: str) -> Engine:
    return create_engine(url, poolclass=NullPool)


def _unfinished(cluster: Cluster) -> int:
    counts = cluster.jobs.count_by_status()
    return sum(counts[status] for status in UNFINISHED)
