"""``cancel``."""

import click

from ..batching import slices
from ..status import UNFINISHED, JobStatus
from .context import CommandContext, command
from .exit_codes import ExitCode
from .selection import JobSelection, select_jobs

_RESULTS = {
    JobStatus.CANCELLED: (ExitCode.OK, "is Cancelled: no worker will run it"),
    JobStatus.RUNNING: (ExitCode.OK, "is Running: stop requested"),
    JobStatus.FINISHED: (ExitCode.FAILED, "is Finished: too late to cancel"),
    JobStatus.ERROR: (ExitCode.FAILED, "is in Error: too late to cancel"),
}

_RESULTS_OF_NODES = {
    JobStatus.CANCELLED: "is Cancelled: no member will start",
    JobStatus.RUNNING: "is Running: no other member will start, and those that run were asked to stop",
}

CHUNK = 10_000
"""Jobs cancelled in one transaction."""


@command(
    "cancel",
    examples={
        "cancel 42 43": "",
        "cancel 42 --terminate": "and terminate the process that runs it",
        "cancel --task shop.thumbnail --status Queued": "asks for confirmation",
        "cancel --user ann --until 2h --yes": "submitted more than 2 hours ago",
    },
    exit_codes="0 cancelled or stop requested, 1 too late, 2 wrong usage, 3 no such job.",
    json='{"id", "status"} for each id, or {"cancelled": N} with filters',
)
@select_jobs(*UNFINISHED)
@click.option("--terminate", is_flag=True, help="Terminate the process that runs the job.")
def cancel(context: CommandContext, selection: JobSelection, terminate: bool) -> None:
    """Cancel jobs, given by ids or by filters.

    A job that has not started never will; a running job is asked to stop. The same goes for the members of a
    chain, group or chord. Filters without --status select all unfinished jobs.
    """
    selection.require_ids_or_filters()
    if selection.ids:
        context.for_each(selection.ids, lambda job_id: _cancel(context, job_id, terminate))
        return
    statuses = selection.statuses or tuple(status for status in JobStatus if status in UNFINISHED)
    ids = selection.find_ids(context, "Cancel", statuses)
    cancelled = 0
    for part in slices(ids, CHUNK):
        # The statuses are given again: a job that has moved on since was not part of the question.
        cancelled += context.jobs.cancel_many(status=statuses, ids=part, terminate=terminate)
    context.output.result({"cancelled": cancelled}, f"{cancelled:,} jobs were cancelled or asked to stop")


def _cancel(context: CommandContext, job_id: int, terminate: bool) -> ExitCode:
    status = context.attach(job_id).cancel_job(terminate=terminate)
    code, result = _RESULTS[status]
    record = context.store.queries.stored_job(job_id)
    if record is not None and record.kind is not None:
        result = _RESULTS_OF_NODES.get(status, result)
    context.output.result({"id": job_id, "status": str(status)}, f"job {job_id} {result}")
    return code
