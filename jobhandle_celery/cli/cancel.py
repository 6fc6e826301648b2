"""``cancel``. May import desk and below."""

import click

from ..status import UNFINISHED, JobStatus
from .context import Desk, verb
from .exit_codes import Exit
from .selection import Chosen, choosing

_OUTCOMES = {
    JobStatus.CANCELLED: (Exit.OK, "is Cancelled: no worker will run it"),
    JobStatus.RUNNING: (Exit.OK, "is Running: it was asked to stop"),
    JobStatus.FINISHED: (Exit.BAD, "is Finished: too late"),
    JobStatus.ERROR: (Exit.BAD, "is in Error: too late"),
}

CHUNK = 10_000
"""Jobs cancelled in one transaction."""


@verb(
    "cancel",
    examples={
        "cancel 42 43": "",
        "cancel 42 --terminate": "and end its process",
        "cancel --task shop.thumbnail --status Queued": "asks first",
        "cancel --user ann --older-than 2h --yes": "",
    },
    exits="0 cancelled or asked to stop, 1 too late, 2 wrong input, 3 no such job.",
)
@choosing(*UNFINISHED)
@click.option("--terminate", is_flag=True, help="Have the process of a body that runs ended.")
def cancel(desk: Desk, chosen: Chosen, terminate: bool) -> None:
    """Cancel jobs, by ids or by filters.

    By filters every unfinished one, or those of --status.
    """
    chosen.check()
    if chosen.ids:
        desk.each(chosen.ids, lambda job_id: _cancel(desk, job_id, terminate))
        return
    statuses = chosen.statuses or tuple(sorted(UNFINISHED))
    ids = chosen.found(desk, "Cancel", statuses)
    cancelled = 0
    for start in range(0, len(ids), CHUNK):
        # The statuses again: a job that has left them since is not what was asked about.
        cancelled += desk.jobs.cancel_many(
            status=statuses, ids=ids[start : start + CHUNK], terminate=terminate
        )
    desk.out.say({"cancelled": cancelled}, f"{cancelled:,} jobs were cancelled or asked to stop")


def _cancel(desk: Desk, job_id: int, terminate: bool) -> Exit:
    status = desk.attach(job_id).cancel_job(terminate=terminate)
    code, says = _OUTCOMES[status]
    desk.out.say({"id": job_id, "status": str(status)}, f"job {job_id} {says}")
    return code
