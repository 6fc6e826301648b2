"""Checks of the jobs themselves: which stand where they should not, and why."""

from collections.abc import Iterator
from datetime import timedelta

from ...store import Trouble
from ..describe import why
from .findings import Finding, Level, Patient, ok

LATE = timedelta(seconds=30)
"""So late may a sweep be without anybody calling it stuck; more if its intervals are long."""

EXAMPLES = 3

_TROUBLES = {
    Trouble.OVERDUE: (Level.BAD, "see broker and sweeps"),
    Trouble.DESERTED: (
        Level.BAD,
        "see sweeps; the sweep settles it when it has passed closely for one lease",
    ),
    Trouble.UNTAKEN: (Level.WARN, "see queues and tasks; more workers, if all are busy"),
    Trouble.DEAF: (
        Level.WARN,
        "celery -A app jobs cancel ID --terminate; let the body call raise_if_cancelled()",
    ),
    Trouble.FORGOTTEN: (Level.WARN, "set_status('Finished') or ('Error') by whoever took it; or cancel it"),
}


def stuck(patient: Patient) -> Iterator[Finding]:
    """Look for jobs that stand still."""
    settings = patient.settings
    late = max(LATE, settings.pass_interval * 10, settings.publish_grace * 2)
    found = patient.store.stuck(late, EXAMPLES)
    for one in found:
        level, remedy = _TROUBLES[one.trouble]
        examples = "; ".join(
            f"job {sight.job.id} ({sight.job.status}): {why(sight)}" for sight in one.examples
        )
        yield Finding(level, f"{one.count:,} jobs: {one.trouble.value}. {examples}", remedy)
    if not found:
        yield ok("no job is stuck")


def held(patient: Patient) -> Finding:
    """Count the jobs that wait for a person."""
    count = patient.store.count_held()
    if not count:
        return ok("no job is held")
    return ok(f"{count:,} jobs are held", "celery -A app jobs release ID, for those that are to go")
