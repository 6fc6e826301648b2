"""``list`` and ``show``. May import desk and below."""

from collections.abc import Iterator
from typing import Any

import click

from ..errors import UnknownJobError
from ..status import JobStatus
from ..store import Page, Sight
from . import json_output, params
from .context import Desk, verb
from .describe import COLUMNS, row, why
from .formatting import arguments, as_json, moment, progress, span
from .output.layout import Fields, Line, Table
from .selection import Chosen, filters

PAGE = 50
"""Jobs of one list, unless told otherwise."""

READ_AT_ONCE = 200
"""Rows asked for in one statement: a row may hold a megabyte."""


@verb(
    "list",
    examples={
        "list": "the newest",
        "list --status Error --since 1d": "what failed in the last day",
        "list --task shop.thumbnail --user ann": "",
        "list --before 4200": "the next page",
        "list --status Error --ids | xargs celery -A shop jobs resubmit": "",
    },
    exits="0 also for an empty list, 2 wrong input, 5 database away.",
)
@filters(*JobStatus)
@click.option(
    "--limit", type=click.IntRange(1, 10_000), default=PAGE, show_default=True, help="At most so many."
)
@click.option("--before", type=params.JOB_ID, help="Only ids below this one: the next page.")
@click.option("--all", "everything", is_flag=True, help="All pages, one after the other.")
@click.option("--ids", "only_ids", is_flag=True, help="Print the ids alone, for xargs.")
def list_jobs(
    desk: Desk, chosen: Chosen, limit: int, before: int | None, everything: bool, only_ids: bool
) -> None:
    """List jobs, newest first.

    Statuses and ages are found by an index. With --task or --user it looks through a million ids at most, and
    says where to go on.
    """
    now = desk.store.now()
    for number, page in enumerate(_pages(desk, chosen, before, None if everything else limit)):
        before = page.before
        if desk.out.json:
            for job in page.jobs:
                desk.out.document(json_output.job(job))
        elif only_ids:
            for job in page.jobs:
                click.echo(job.id)
        elif page.jobs or not number:
            desk.out.show(Table(COLUMNS, [row(job, now) for job in page.jobs]))
    if before is not None:
        desk.out.note(f"more: --before {before}")


def _pages(desk: Desk, chosen: Chosen, before: int | None, limit: int | None) -> Iterator[Page]:
    """Read so many jobs, or all; where the last page has a `before`, there may be more."""
    while True:
        wanted = READ_AT_ONCE if limit is None else min(limit, READ_AT_ONCE)
        page = desk.store.page(chosen.selection(), chosen.window(before), wanted)
        yield page
        before = page.before
        if before is None:
            return
        if limit is not None:
            limit -= len(page.jobs)
            if (
                not limit or len(page.jobs) < wanted
            ):  # all that was asked for; a million ids were looked through
                return


@verb(
    "show",
    examples={"show 42": "", "show 42 --json | jq .events": "", "show 42 --full": "the whole traceback, too"},
    exits="0 found, 2 wrong input, 3 no such job, 5 database away.",
)
@click.argument("job_id", type=params.JOB_ID, metavar="ID")
@click.option("--full", is_flag=True, help="Long values in full.")
def show(desk: Desk, job_id: int, full: bool) -> None:
    """Show everything about a job, and what has happened to it."""
    sight = desk.store.sight(job_id)
    if sight is None:
        raise UnknownJobError(f"no job {job_id}")
    if desk.out.json:
        desk.out.document(_document(sight))
        return
    desk.out.show(
        Fields([(name, _cut(value, full)) for name, value in _fields(sight) if value]), _timeline(sight)
    )


def _document(sight: Sight) -> dict[str, Any]:
    job, inside = sight.job, sight.inside
    args, kwargs = arguments(job, inside.routing)
    document = json_output.job(job) | {
        "args": args,
        "kwargs": kwargs,
        "result": job.result,
        "meta": job.meta,
        "time_limit": job.time_limit,
        "soft_time_limit": job.soft_time_limit,
        "not_before": json_output.moment(inside.not_before),
        "due_at": json_output.moment(inside.due_at),
        "publish_count": inside.publish_count,
        "lost_count": inside.lost_count,
        "pid": inside.pid,
        "lease_until": json_output.moment(inside.lease_until),
        "why": why(sight),
    }
    if document["error"] and job.error:
        document["error"]["traceback"] = job.error.traceback
    return json_output.with_events(document, sight.events)


def _fields(sight: Sight) -> list[tuple[str, str]]:
    job, inside = sight.job, sight.inside
    args, kwargs = arguments(job, inside.routing)
    limits = [
        f"{name} {span(value)}"
        for name, value in (("hard", job.time_limit), ("soft", job.soft_time_limit))
        if value
    ]
    error = job.error
    return [
        ("job", str(job.id)),
        ("status", str(job.status)),
        ("why", why(sight)),
        ("message", job.message),
        ("task", job.task),
        ("task id", job.task_id or ""),
        ("args", args),
        ("kwargs", kwargs),
        ("user", job.username or ""),
        ("group", job.groupname or ""),
        ("queue", job.queue or ""),
        ("priority", "" if job.priority is None else str(job.priority)),
        ("unique key", job.unique_key or ""),
        ("limits", ", ".join(limits)),
        ("submitted", moment(job.submitted)),
        ("scheduled for", moment(job.scheduled_for) if job.scheduled_for else ""),
        ("expires", moment(job.expires) if job.expires else ""),
        ("started", moment(job.started) if job.started else ""),
        ("finished", moment(job.finished) if job.finished else ""),
        ("ran for", span(job.finished - job.started) if job.finished and job.started else ""),
        ("attempt", str(job.attempt)),
        ("lost", "" if not inside.lost_count else f"{inside.lost_count} attempts, with their workers"),
        ("max attempts", "" if job.max_attempts == 1 else str(job.max_attempts)),
        ("worker", job.worker or ""),
        ("process", "" if inside.pid is None else str(inside.pid)),
        ("stop asked", moment(job.cancel_requested) if job.cancel_requested else ""),
        ("progress", progress(job.progress) if job.progress else ""),
        ("result", "" if job.status is not JobStatus.FINISHED else as_json(job.result)),
        ("error", f"{error.type}: {error.message} ({error.kind})" if error else ""),
        ("traceback", error.traceback.rstrip() if error else ""),
        ("meta", "" if job.meta is None else as_json(job.meta)),
    ]


LONG = 2_000
"""Characters of a value that are shown, unless all are asked for."""


def _cut(value: str, full: bool) -> str:
    # The end is where a traceback says what it was.
    return value if full or len(value) <= LONG else f"… (--full) {value[-LONG:]}"


def _timeline(sight: Sight) -> Table | Line:
    if not sight.events:
        return Line("no events")
    rows, before = [], sight.events[0].at
    for event in sight.events:
        rows.append(
            [
                event.at.strftime("%Y-%m-%d %H:%M:%S.%f")[:-3] + "Z",
                f"+{span(event.at - before)}",
                str(event.status),
                str(event.attempt),
                event.actor,
                event.message,
            ]
        )
        before = event.at
    return Table(("AT", "AFTER", "STATUS", "TRY", "BY", "WHAT"), rows)
