"""Checks of the workers, by their rows and by Celery's `inspect`."""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from ..formatting import format_duration
from .findings import Deployment, Finding, bad, ok, unknown, warn

_NO_ANSWER = "no worker has answered Celery's inspect"
_LET_ANSWER = "start workers; or set worker_enable_remote_control = True"


def alive(deployment: Deployment) -> Finding:
    """Check that a worker has a valid lease."""
    names = [worker.name for worker in deployment.workers if worker.alive]
    if names:
        return ok(f"{len(names)} workers have a valid lease: {_list(names)}")
    unstarted = sum(deployment.store.stats.count_startable("task").values())
    next_step = "start one: celery -A app worker"
    if unstarted:
        return bad(f"no worker has a valid lease, and {unstarted:,} jobs are to be run", next_step)
    return warn("no worker has a valid lease; no job is to be run", next_step)


def lost(deployment: Deployment) -> Iterator[Finding]:
    """Look for workers with an expired lease whose jobs are not recovered yet."""
    expired = [worker for worker in deployment.workers if not worker.alive]
    now = deployment.store.stats.now() if expired else None
    for worker in expired:
        assert now is not None
        yield warn(
            f"the lease of {worker.name} expired {format_duration(now - worker.lease_until)} ago; "
            f"the sweeper recovers its {len(worker.jobs)} running jobs after one lease of uninterrupted "
            "passes",
            "none; if this finding stays, see sweeps",
        )
    if not expired:
        yield ok("no worker is lost")


def bootstep(deployment: Deployment) -> Iterator[Finding]:
    """Look for workers that answer and have no row: they cannot claim the jobs that they receive."""
    answering = set(deployment.answers["tasks"])
    if not answering:
        yield unknown(_NO_ANSWER, _LET_ANSWER)
        return
    leased = {worker.name for worker in deployment.workers if worker.alive}
    for name in sorted(answering - leased):
        yield bad(
            f"{name} consumes from this broker and has no lease: it cannot claim the jobs that it receives",
            "start it with the app that has Jobs, on the same database; or give it other queues",
        )
    for name in sorted(leased - answering):
        yield warn(
            f"{name} has a valid lease and does not answer inspect: "
            "it is busy (solo pool) or cut off from the broker",
            "read its log",
        )
    if answering == leased:
        yield ok(f"every worker that answers has a valid lease: {_list(sorted(answering))}")


def check_internal_errors(deployment: Deployment) -> Iterator[Finding]:
    """Look for workers that have met errors of this library's own code; each kind is logged once."""
    errors = deployment.answers["errors"]
    for name, error in sorted(errors.items()):
        if error["count"]:
            yield warn(
                f"{name} has had {error['count']:,} internal errors, the last: {error['last']}",
                "report it, with the traceback from its log",
            )
    if not any(error["count"] for error in errors.values()):
        yield ok("no worker has had an internal error") if errors else unknown(_NO_ANSWER, _LET_ANSWER)


def tasks(deployment: Deployment) -> Iterator[Finding]:
    """Look for jobs whose task no worker registers."""
    answers = deployment.answers["tasks"]
    # An answer is the task's name, with its rate limit in brackets behind it.
    known = {line.partition(" [")[0] for lines in answers.values() for line in lines}
    yield from _missing(
        deployment.store.stats.count_startable("task"),
        known,
        answers,
        "{count:,} jobs are to run the task {name}, which no worker registers",
        "start a worker that has it; or celery -A app jobs cancel --task {name}",
        "every task that a job is to run is registered by a worker",
    )


def queues(deployment: Deployment) -> Iterator[Finding]:
    """Look for queues of jobs that no worker consumes from."""
    answers = deployment.answers["queues"]
    known = {str(queue["name"]) for queues in answers.values() for queue in queues or ()}
    counts = deployment.store.stats.count_startable("queue")
    yield from _missing(
        {name: count for name, count in counts.items() if name},
        known,
        answers,
        "{count:,} jobs are routed to the queue {name}, which no worker consumes from",
        "start one: celery -A app worker -Q {name}",
        "every queue with jobs is consumed by a worker",
    )


def _missing(
    wanted: Mapping[str, int],
    known: set[str],
    answers: Mapping[str, Any],
    message: str,
    next_step: str,
    success: str,
) -> Iterator[Finding]:
    if wanted and not answers:
        yield unknown(f"{_NO_ANSWER}; jobs need {_list(sorted(wanted))}", _LET_ANSWER)
        return
    missing = sorted(set(wanted) - known)
    for name in missing:
        yield bad(message.format(name=name, count=wanted[name]), next_step.format(name=name))
    if not missing:
        yield ok(success if wanted else "no job is to be run")


def _list(names: Iterable[str], maximum: int = 5) -> str:
    names = list(names)
    more = f" and {len(names) - maximum:,} more" if len(names) > maximum else ""
    return ", ".join(names[:maximum]) + more
