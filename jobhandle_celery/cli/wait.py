"""``wait`` and ``watch``."""

import sys
import time
from collections.abc import Sequence
from datetime import timedelta

import click

from ..errors import DatabaseUnavailableError, UnknownJobError, WaitTimeoutError
from ..models import JobRecord
from ..status import JobStatus
from ..store import Selection
from . import json_output, params
from .context import CommandContext, command
from .describe import COLUMNS, job_row, status_line
from .exit_codes import ExitCode
from .formatting import format_duration, format_progress
from .output.layout import Table

INTERVAL = 0.5
"""Seconds between two reads of ``watch``."""

RUNNING_SHOWN = 30
"""Jobs shown by ``watch`` without ids."""


@command(
    "wait",
    examples={"wait 42": "", "wait 42 43 --timeout 10m && echo both are Finished": ""},
    exit_codes="0 all Finished, 1 one ended in Error or Cancelled, 3 no such job, 4 timeout.",
    json="each job, in the given order, as soon as it has ended",
)
@click.argument("ids", nargs=-1, required=True, type=params.JOB_ID, metavar="ID...")
@click.option("--timeout", type=params.DURATION, help="Maximum time for all jobs together.")
def wait(context: CommandContext, ids: tuple[int, ...], timeout: timedelta | None) -> None:
    """Wait until jobs have ended, and print how."""
    deadline = None if timeout is None else time.monotonic() + timeout.total_seconds()

    def wait_for(job_id: int) -> ExitCode:
        handle = context.attach(job_id)
        try:
            handle.wait(None if deadline is None else max(deadline - time.monotonic(), 0.0))
        except WaitTimeoutError as error:
            # Name the timeout of the command, not what was left of it for this job.
            context.output.error(f"{str(error).partition(' after ')[0]} after {format_duration(timeout)}")
            return ExitCode.TIMEOUT
        job = handle.get_job()
        context.output.result(json_output.job_document(job), status_line(job))
        return ExitCode.OK if job.status is JobStatus.FINISHED else ExitCode.FAILED

    context.for_each(ids, wait_for)


@command(
    "watch",
    examples={
        "watch": "all running jobs, until Ctrl-C",
        "watch 42 43": "these jobs, until they have ended",
        "watch 42 --json": "a line for each change",
    },
    exit_codes="0 all Finished, or Ctrl-C without ids; 1 one ended in Error or Cancelled; 3 no such job.",
    json="a job whenever it has changed",
)
@click.argument("ids", nargs=-1, type=params.JOB_ID, metavar="[ID]...")
def watch(context: CommandContext, ids: tuple[int, ...]) -> None:
    """Show status, progress and message of jobs as they change."""
    try:
        _watch(context, ids)
    except KeyboardInterrupt:
        # The regular end without ids; with ids the jobs have not ended yet.
        if ids:
            raise


def _watch(context: CommandContext, ids: tuple[int, ...]) -> None:
    printed: dict[int, dict[str, object]] = {}
    jobs: list[JobRecord] = []
    with context.output.live() as display:
        while True:
            try:
                jobs, now = _read(context, ids, jobs), context.store.stats.now()
            except DatabaseUnavailableError as error:
                if not jobs:
                    raise
                context.output.note(error)
                time.sleep(INTERVAL * 4)
                continue
            if context.output.redraws:
                display.show([Table(COLUMNS, [job_row(job, now) for job in jobs])])
            else:
                _print_changes(context, jobs, printed)
            if ids and all(job.status.final for job in jobs):
                break
            time.sleep(INTERVAL)
    sys.exit(ExitCode.OK if all(job.status is JobStatus.FINISHED for job in jobs) else ExitCode.FAILED)


def _read(context: CommandContext, ids: tuple[int, ...], previous: Sequence[JobRecord]) -> list[JobRecord]:
    if ids:
        jobs = context.store.pages.find(Selection(ids=ids), None, len(ids), of_ended=True)
        found = {job.id: job for job in jobs}
        for job_id in ids:
            if job_id not in found:
                raise UnknownJobError(f"no job {job_id}")
        return [found[job_id] for job_id in ids]
    running = context.store.stats.running(RUNNING_SHOWN)
    # Jobs that have ended since the last read stay on the display, with their final status.
    still_running = {job.id for job in running}
    left = tuple(job.id for job in previous if job.id not in still_running)
    ended = context.store.pages.find(Selection(ids=left), None, len(left)) if left else []
    return [*running, *ended][:RUNNING_SHOWN]


def _print_changes(
    context: CommandContext, jobs: Sequence[JobRecord], printed: dict[int, dict[str, object]]
) -> None:
    for job in jobs:
        document = json_output.job_document(job)
        if printed.get(job.id) == document:
            continue
        printed[job.id] = document
        progress = f" {format_progress(job.progress)}" if job.progress else ""
        message = f": {job.message}" if job.message else ""
        context.output.result(document, f"job {job.id} {job.status}{progress}{message}")
