"""Checks of the workers: who is there, who knows and hears what. By their rows, and by Celery's inspect."""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from ...status import STARTABLE
from ..formatting import span
from .findings import Finding, Patient, bad, ok, unknown, warn

_NOBODY = "no worker has answered Celery's inspect"


def alive(patient: Patient) -> Finding:
    """Look whether any worker has a lease."""
    names = [one.name for one in patient.workers if one.alive]
    if names:
        return ok(f"{len(names)} workers have a lease: {_some(names)}")
    waiting = sum(patient.store.count(sorted(STARTABLE), "task").values())
    if waiting:
        return bad(f"no worker has a lease, and {waiting:,} jobs wait for one", "celery -A app worker")
    return warn("no worker has a lease; no job waits for one", "celery -A app worker")


def lapsed(patient: Patient) -> Iterator[Finding]:
    """Look for workers whose lease has ended and whose jobs nobody has settled yet."""
    lost = [one for one in patient.workers if not one.alive]
    now = patient.store.now() if lost else None
    for one in lost:
        assert now is not None
        yield warn(
            f"the lease of {one.name} ended {span(now - one.lease_until)} ago, {len(one.jobs)} jobs in hand; "
            "the sweep settles them when it has passed closely for one lease",
            "nothing; if it stays, see sweeps",
        )
    if not lost:
        yield ok("no worker is lost")


def step(patient: Patient) -> Iterator[Finding]:
    """Look for workers that answer and have no row: they would run bodies without a claim."""
    answering = set(patient.answers["tasks"])
    if not answering:
        yield unknown(_NOBODY, "start workers; or let them answer: worker_enable_remote_control = True")
        return
    known = {one.name for one in patient.workers if one.alive}
    for name in sorted(answering - known):
        yield bad(
            f"{name} answers on this broker and has no lease: what it takes of jobs it runs unclaimed",
            "make it a worker of the app with Jobs, on the same database; or another broker or queues",
        )
    for name in sorted(known - answering):
        yield warn(
            f"{name} has a lease and does not answer: it is busy (solo), or cut off from the broker",
            "see its log",
        )
    if answering == known:
        yield ok(f"every worker that answers has its lease: {_some(sorted(answering))}")


def check_internal_errors(patient: Patient) -> Iterator[Finding]:
    """Look for workers that have met bugs of this library: they are logged there, once each kind."""
    told = patient.answers["faults"]
    for name, fault in sorted(told.items()):
        if fault["count"]:
            yield warn(
                f"{name} has had {fault['count']:,} internal errors, the last: {fault['last']}",
                "see its log for the traceback, and report it",
            )
    if not any(fault["count"] for fault in told.values()):
        yield ok("no worker tells of internal errors") if told else unknown(_NOBODY)


def tasks(patient: Patient) -> Iterator[Finding]:
    """Look for jobs whose task no worker knows."""
    wanted = patient.store.count(sorted(STARTABLE), "task")
    said = patient.answers["tasks"]
    known = {line.partition(" [")[0] for lines in said.values() for line in lines}
    yield from _missing(
        wanted,
        known,
        said,
        "{count:,} jobs of the task {name}, which no worker knows",
        "start a worker that knows it; or celery -A app jobs cancel --task {name}",
        "every task that a job waits for is known",
    )


def queues(patient: Patient) -> Iterator[Finding]:
    """Look for queues that jobs were sent to and nobody consumes."""
    wanted = {name: n for name, n in patient.store.count(sorted(STARTABLE), "queue").items() if name}
    said = patient.answers["queues"]
    known = {str(queue["name"]) for queues in said.values() for queue in queues or ()}
    yield from _missing(
        wanted,
        known,
        said,
        "{count:,} jobs for the queue {name}, which nobody consumes",
        "celery -A app worker -Q {name}",
        "every queue that a job waits in is consumed",
    )


def _missing(
    wanted: Mapping[str, int], known: set[str], said: Mapping[str, Any], says: str, set_: str, fine: str
) -> Iterator[Finding]:
    if wanted and not said:
        yield unknown(f"{_NOBODY}; jobs wait for {_some(sorted(wanted))}")
        return
    missing = sorted(set(wanted) - known)
    for name in missing:
        yield bad(says.format(name=name, count=wanted[name]), set_.format(name=name))
    if not missing:
        yield ok(fine if wanted else "no job waits")


def _some(names: Iterable[str], most: int = 5) -> str:
    names = list(names)
    more = f" and {len(names) - most:,} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more
