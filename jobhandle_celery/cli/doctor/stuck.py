"""Checks of the jobs: which are stuck or held, and why."""

from collections.abc import Iterator
from datetime import timedelta

from ...store import Trouble
from ..describe import explain_status
from .findings import Deployment, Finding, Level, ok

LATE = timedelta(seconds=30)
"""A pass may be this late before a job counts as stuck; later if its intervals are long."""

EXAMPLES = 3
"""Jobs shown of one kind."""

_FINDINGS = {
    Trouble.OVERDUE: (Level.BAD, "not handled when due", "see broker and sweeps"),
    Trouble.NO_LEASE: (
        Level.BAD,
        "Running without a worker lease",
        "see sweeps; the sweeper recovers them after one lease of uninterrupted passes",
    ),
    Trouble.UNCLAIMED: (
        Level.WARN,
        "published several times, claimed by no worker",
        "see queues and tasks; start more workers if all are busy",
    ),
    Trouble.IGNORES_CANCEL: (
        Level.WARN,
        "still running long after a stop was requested",
        "celery -A app jobs cancel ID --terminate; have the task call raise_if_cancelled()",
    ),
    Trouble.SET_RUNNING_LONG_AGO: (
        Level.WARN,
        "set to Running by set_status() more than a day ago",
        "set_status('Finished') or set_status('Error') by the program that set it; or cancel them",
    ),
    Trouble.UNSETTLED: (
        Level.BAD,
        "ended, and what depends on them not settled when due",
        "see sweeps; every pass of the sweeper settles them",
    ),
    Trouble.NEEDS_ENDED: (
        Level.BAD,
        "waiting for jobs that have all ended or are gone",
        "report it; cancel the job or the root of its tree, then resubmit it",
    ),
    Trouble.NOT_ENDED: (
        Level.BAD,
        "chains, groups or chords that have not ended, though all their members have",
        "report it; cancel the root of the tree, then resubmit it",
    ),
}


def stuck(deployment: Deployment) -> Iterator[Finding]:
    """Look for jobs that do not proceed."""
    settings = deployment.settings
    late = max(LATE, settings.pass_interval * 10, settings.publish_grace * 2)
    found = deployment.store.diagnostics.stuck(late, EXAMPLES)
    for stuck in found:
        level, problem, next_step = _FINDINGS[stuck.trouble]
        examples = "; ".join(
            f"job {details.job.id} ({details.job.status}): {explain_status(details)}"
            for details in stuck.examples
        )
        yield Finding(level, f"{stuck.count:,} jobs: {problem}. {examples}", next_step)
    if not found:
        yield ok("no job is stuck")


def held(deployment: Deployment) -> Finding:
    """Count the jobs that are held until release."""
    count = deployment.store.diagnostics.count_held()
    if not count:
        return ok("no job is held")
    return ok(f"{count:,} jobs are held", "celery -A app jobs release ID starts one")
