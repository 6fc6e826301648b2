"""``submit``, ``resubmit``, ``release``: jobs on their way. May import desk and below."""

import difflib
import sys
from datetime import datetime, timedelta
from typing import Any

import click

from ..errors import InvalidTransitionError
from ..models import Job
from ..status import FINAL, JobStatus
from . import json_output, params
from .context import Desk, verb
from .describe import ended
from .exit_codes import Exit, Said
from .selection import Chosen, choosing
from .wait import wait_for


@verb(
    "submit",
    examples={
        """submit shop.thumbnail --args '["a.tif"]' --kwargs '{"size": 96}'""": "",
        "submit shop.report --at 2030-01-31T18:00Z --queue slow": "",
        "submit shop.report --at +10m --wait --timeout 1h": "and wait for its end",
    },
    exits="0 submitted (with --wait: Finished), 1 with --wait: Error or Cancelled, 2 wrong input, "
    "4 with --wait: not yet, 5 database away.",
)
@click.argument("task", type=params.TASK)
@click.option("--args", type=params.JSON_LIST, default="[]", help="Its arguments, a JSON list.")
@click.option("--kwargs", type=params.JSON_OBJECT, default="{}", help="Its keyword arguments, a JSON object.")
@click.option("--at", type=params.MOMENT, help="Not before: ISO 8601, or +10m.")
@click.option("--expires", type=params.MOMENT, help="Cancelled if it has not started by then.")
@click.option("--hold", is_flag=True, help="Wait until somebody releases it.")
@click.option("--queue", help="Another queue than the task's own.")
@click.option("--priority", type=click.IntRange(0, 255), help="As the broker understands it.")
@click.option("--max-attempts", type=click.IntRange(1), default=1, help="Starts, should workers be lost.")
@click.option("--unique-key", help="At most one unfinished job has it; else that one's id is printed.")
@click.option("--user", "username", help="Whose job it is.")
@click.option("--group", "groupname", help="Kept with the job.")
@click.option("--message", default="", help="For people.")
@click.option(
    "--sensitive",
    multiple=True,
    help="An argument's name or position that is shown as ***; may be given again.",
)
@click.option("--unknown", is_flag=True, help="Also a task that this app does not know.")
@click.option("--wait", "waits", is_flag=True, help="Wait for its end, and exit as wait does.")
@click.option("--timeout", type=params.DURATION, help="Wait no longer than that.")
def submit(
    desk: Desk,
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
        _known(desk, task)
    status = JobStatus.WAITING if hold else None
    hidden = tuple(int(one) if one.isdecimal() else one for one in sensitive)
    job = Job(task=task, scheduled_for=at, status=status, sensitive=hidden, **fields)
    with desk.jobs.attach(desk.jobs.submit(job, username=username, groupname=groupname)) as handle:
        if not waits:
            record = handle.get_job()
            desk.out.say(json_output.standing(record), str(record.id))
            return
        record = wait_for(handle, timeout)
    desk.out.say(json_output.job(record), ended(record))
    sys.exit(Exit.OK if record.status is JobStatus.FINISHED else Exit.BAD)


def _known(desk: Desk, task: str) -> None:
    desk.expect_jobs()
    if task in desk.app.tasks:
        return
    near = difflib.get_close_matches(task, list(desk.app.tasks), 1)
    meant = f"; did you mean {near[0]}?" if near else ""
    raise Said(f"this app knows no task {task}{meant} (--unknown submits it for workers that do)", Exit.INPUT)


@verb(
    "resubmit",
    examples={
        "resubmit 42 43": "",
        "resubmit --task shop.thumbnail --since 1d": "those that ended in Error",
        "resubmit --status Cancelled --user ann --yes": "",
    },
    exits="0 sent round again, 1 not final or still running, 2 wrong input, 3 no such job.",
)
@choosing(*FINAL)
def resubmit(desk: Desk, chosen: Chosen) -> None:
    """Send final jobs round again, with the same arguments.

    By ids, or by filters; by filters those in Error, unless --status says otherwise.
    """
    job_ids = chosen.ids_or_found(desk, "Resubmit", default=(JobStatus.ERROR,))
    desk.each(job_ids, lambda job_id: _move(desk, job_id, "resubmit_job", "was resubmitted"))


@verb(
    "release",
    examples={"release 42": "", "release --task shop.report --yes": "all of them that wait"},
    exits="0 released, 1 not Waiting, 2 wrong input, 3 no such job.",
)
@choosing()
def release(desk: Desk, chosen: Chosen) -> None:
    """Let Waiting jobs go now.

    Those that are held, and those whose time lies ahead.
    """
    job_ids = chosen.ids_or_found(desk, "Release", default=(JobStatus.WAITING,))
    desk.each(job_ids, lambda job_id: _move(desk, job_id, "release_job", "was released"))


def _move(desk: Desk, job_id: int, how: str, says: str) -> Exit:
    handle = desk.attach(job_id)
    try:
        getattr(handle, how)()
    except InvalidTransitionError as error:
        desk.out.note(f"Error: {error}")
        return Exit.BAD
    job = handle.get_job()
    # A worker may have been faster than this second look.
    desk.out.say(json_output.standing(job), f"job {job_id} {says} and is {job.status}")
    return Exit.OK
