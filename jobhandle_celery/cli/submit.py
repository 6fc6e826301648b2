"""``submit``, ``resubmit`` and ``release``."""

import difflib
import sys
from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Any

import click

from ..errors import InvalidTransitionError
from ..handle import JobHandle
from ..models import Job
from ..status import FINAL, JobStatus
from . import json_output, params
from .context import CommandContext, command
from .describe import status_line
from .exit_codes import CommandError, ExitCode
from .selection import JobSelection, select_jobs


@command(
    "submit",
    examples={
        """submit shop.thumbnail --args '["a.tif"]' --kwargs '{"size": 96}'""": "",
        "submit shop.report --at 2030-01-31T18:00Z --queue slow": "",
        "submit shop.report --at +10m --wait --timeout 1h": "and wait until it has ended",
    },
    exit_codes="0 submitted (with --wait: Finished), 1 with --wait: Error or Cancelled, 2 wrong usage, "
    "4 with --wait: timeout, 5 database unavailable.",
    json='{"id", "status"}; with --wait the job',
)
@click.argument("task", type=params.TASK)
@click.option("--args", type=params.JSON_LIST, default="[]", help="Positional arguments, a JSON list.")
@click.option("--kwargs", type=params.JSON_OBJECT, default="{}", help="Keyword arguments, a JSON object.")
@click.option("--at", type=params.TIME, help="Do not start before: ISO 8601, or +10m.")
@click.option("--expires", type=params.TIME, help="Cancel the job if it has not started by then.")
@click.option("--hold", is_flag=True, help="Do not start before `release`.")
@click.option("--queue", help="Publish to this queue instead of the task's.")
@click.option(
    "--priority", type=click.IntRange(0, 255), help="Priority of the message, as the broker defines it."
)
@click.option(
    "--max-attempts", type=click.IntRange(1), default=1, help="Maximum of starts if workers are lost."
)
@click.option("--unique-key", help="If an unfinished job has this key, print its id instead of submitting.")
@click.option("--user", "username", help="Owner of the job.")
@click.option("--group", "groupname", help="Group of the job.")
@click.option("--message", default="", help="Initial message.")
@click.option(
    "--sensitive",
    multiple=True,
    help="Name or position of an argument that is shown as ***; may be repeated.",
)
@click.option("--unknown", is_flag=True, help="Accept a task that this app does not register.")
@click.option("--wait", "waits", is_flag=True, help="Wait until the job has ended, and exit as wait does.")
@click.option("--timeout", type=params.DURATION, help="Maximum time for --wait.")
def submit(
    context: CommandContext,
    task: str,
    at: datetime | timedelta | None,
    hold: bool,
    username: str | None,
    groupname: str | None,
    sensitive: tuple[str, ...],
    unknown: bool,
    waits: bool,
    timeout: timedelta | None,
    **fields: Any,
) -> None:
    """Submit a job and print its id."""
    if timeout is not None and not waits:
        raise click.UsageError("--timeout is for --wait")
    if not unknown:
        _require_task(context, task)
    status = JobStatus.WAITING if hold else None
    redacted = tuple(int(name) if name.isdecimal() else name for name in sensitive)
    job = Job(task=task, scheduled_for=at, status=status, sensitive=redacted, **fields)
    job_id = context.jobs.submit(job, username=username, groupname=groupname)
    handle = context.attach(job_id)
    if waits:
        handle.wait(timeout)
    record = handle.get_job()
    if not waits:
        context.output.result(json_output.status_document(record), str(record.id))
        return
    context.output.result(json_output.job_document(record), status_line(record))
    sys.exit(ExitCode.OK if record.status is JobStatus.FINISHED else ExitCode.FAILED)


def _require_task(context: CommandContext, task: str) -> None:
    context.require_jobs()
    if task in context.app.tasks:
        return
    similar = difflib.get_close_matches(task, list(context.app.tasks), 1)
    suggestion = f"; did you mean {similar[0]}?" if similar else ""
    raise CommandError(
        f"this app has no task {task}{suggestion} (--unknown submits it for workers that have it)",
        ExitCode.USAGE,
    )


@command(
    "resubmit",
    examples={
        "resubmit 42 43": "",
        "resubmit --task shop.thumbnail --since 1d": "the jobs in Error",
        "resubmit --status Cancelled --user ann --yes": "",
    },
    exit_codes="0 resubmitted, 1 not final or still running, 2 wrong usage, 3 no such job.",
    json='{"id", "status"} for each job',
)
@select_jobs(*FINAL)
def resubmit(context: CommandContext, selection: JobSelection) -> None:
    """Run final jobs again with the same arguments.

    Of a chain, group or chord what has not Finished runs again; the results of what has are kept. Filters
    without --status select the jobs in Error. They select no members, for which their roots are run again.
    """
    job_ids = selection.ids_or_matches(context, "Resubmit", default=(JobStatus.ERROR,))
    context.for_each(
        job_ids, lambda job_id: _apply(context, job_id, JobHandle.resubmit_job, "was resubmitted")
    )


@command(
    "release",
    examples={"release 42": "", "release --task shop.report --yes": "all Waiting jobs of the task"},
    exit_codes="0 released, 1 not Waiting, 2 wrong usage, 3 no such job.",
    json='{"id", "status"} for each job',
)
@select_jobs()
def release(context: CommandContext, selection: JobSelection) -> None:
    """Start Waiting jobs now, whether they are held or scheduled; not those that wait for other jobs."""
    job_ids = selection.ids_or_matches(context, "Release", default=(JobStatus.WAITING,))
    context.for_each(job_ids, lambda job_id: _apply(context, job_id, JobHandle.release_job, "was released"))


def _apply(
    context: CommandContext, job_id: int, operation: Callable[[JobHandle], object], result: str
) -> ExitCode:
    handle = context.attach(job_id)
    try:
        operation(handle)
    except InvalidTransitionError as error:
        context.output.error(error)
        return ExitCode.FAILED
    job = handle.get_job()
    # A worker may have claimed it meanwhile: the status is that of this read.
    context.output.result(json_output.status_document(job), f"job {job_id} {result} and is {job.status}")
    return ExitCode.OK
