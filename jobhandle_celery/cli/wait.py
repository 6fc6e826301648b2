"""``wait`` and ``watch``. May import desk and below."""

import sys
import time
from collections.abc import Sequence
from datetime import timedelta

import click

from ..errors import DatabaseUnavailableError, UnknownJobError, WaitTimeoutError
from ..handle import JobHandle
from ..models import JobRecord
from ..status import JobStatus
from ..store import Selection
from . import json_output, params
from .context import Desk, verb
from .describe import COLUMNS, ended, row
from .exit_codes import Exit
from .formatting import progress, span
from .output.layout import Table

LOOK = 0.5
"""Seconds between two looks of a watch."""

AT_ONCE = 30
"""Jobs that a watch without ids shows."""


def wait_for(handle: JobHandle, timeout: timedelta | float | None) -> JobRecord:
    """Wait until a job is final and return it.

    Raises:
        WaitTimeoutError: it is not yet.
    """
    handle.wait(timeout)
    return handle.get_job()


@verb(
    "wait",
    examples={"wait 42": "", "wait 42 43 --timeout 10m && echo both have Finished": ""},
    exits="0 all Finished, 1 one ended in Error or Cancelled, 3 no such job, 4 not within the timeout.",
)
@click.argument("ids", nargs=-1, required=True, type=params.JOB_ID, metavar="ID...")
@click.option("--timeout", type=params.DURATION, help="Wait no longer than that, for all of them.")
def wait(desk: Desk, ids: tuple[int, ...], timeout: timedelta | None) -> None:
    """Wait until jobs have ended, and say how."""
    until = None if timeout is None else time.monotonic() + timeout.total_seconds()

    def one(job_id: int) -> Exit:
        try:
            job = wait_for(desk.attach(job_id), None if until is None else max(until - time.monotonic(), 0.0))
        except WaitTimeoutError as error:
            # With the time that was given, not with what of it was left for this one.
            desk.out.note(f"Error: {str(error).partition(' after ')[0]} after {span(timeout)}")
            return Exit.TIMEOUT
        desk.out.say(json_output.job(job), ended(job))
        return Exit.OK if job.status is JobStatus.FINISHED else Exit.BAD

    desk.each(ids, one)


@verb(
    "watch",
    examples={
        "watch": "all that run, until Ctrl-C",
        "watch 42 43": "these, until they have ended",
        "watch 42 --json": "a line whenever it changes",
    },
    exits="0 all Finished, or Ctrl-C without ids; 1 one ended in Error or Cancelled; 3 no such job.",
)
@click.argument("ids", nargs=-1, type=params.JOB_ID, metavar="[ID]...")
def watch(desk: Desk, ids: tuple[int, ...]) -> None:
    """Watch jobs: their progress and messages, as they go on."""
    try:
        _watch(desk, ids)
    except KeyboardInterrupt:
        # Without ids that is how it ends, with ids it ends before they have.
        if ids:
            raise


def _watch(desk: Desk, ids: tuple[int, ...]) -> None:
    seen: dict[int, dict[str, object]] = {}
    jobs: list[JobRecord] = []
    with desk.out.live() as screen:
        while True:
            try:
                jobs, now = _look(desk, ids, jobs), desk.store.now()
            except DatabaseUnavailableError as error:
                if not jobs:
                    raise
                desk.out.note(str(error))
                time.sleep(LOOK * 4)
                continue
            if desk.out.draws:
                screen.show([Table(COLUMNS, [row(job, now) for job in jobs])])
            else:
                _changes(desk, jobs, seen)
            if ids and all(job.status is not None and job.status.final for job in jobs):
                break
            time.sleep(LOOK)
    sys.exit(Exit.OK if all(job.status is JobStatus.FINISHED for job in jobs) else Exit.BAD)


def _look(desk: Desk, ids: tuple[int, ...], before: Sequence[JobRecord]) -> list[JobRecord]:
    if ids:
        found = {job.id: job for job in desk.store.find(Selection(ids=ids), None, len(ids))}
        for job_id in ids:
            if job_id not in found:
                raise UnknownJobError(f"no job {job_id}")
        return [found[job_id] for job_id in ids]
    running = desk.store.running(AT_ONCE)
    # Those that ran at the last look and do not now stay on the screen, with how they ended.
    known = {job.id for job in running}
    left = [job.id for job in before if job.id not in known]
    gone = desk.store.find(Selection(ids=tuple(left)), None, len(left)) if left else []
    return [*running, *gone][:AT_ONCE]


def _changes(desk: Desk, jobs: Sequence[JobRecord], seen: dict[int, dict[str, object]]) -> None:
    for job in jobs:
        document = json_output.job(job)
        if seen.get(job.id) == document:
            continue
        seen[job.id] = document
        far = f" {progress(job.progress)}" if job.progress else ""
        said = f": {job.message}" if job.message else ""
        desk.out.say(document, f"job {job.id} {job.status}{far}{said}")
