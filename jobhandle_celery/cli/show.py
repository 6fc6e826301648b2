"""``list`` and ``show``."""

from collections.abc import Iterator
from typing import Any

import click

from ..errors import UnknownJobError
from ..status import JobStatus
from ..store import JobDetails, Page, Selection
from . import json_output, params
from .context import CommandContext, command
from .describe import COLUMNS, explain_status, job_row
from .formatting import format_arguments, format_duration, format_progress, format_time, to_json
from .output.layout import Fields, Line, Table
from .selection import JobSelection, filter_options
from .tree import Tree

PAGE_SIZE = 50
"""Default of ``--limit``."""

BATCH_SIZE = 200
"""Rows read in one statement: a row may be a megabyte."""

NEEDS_SHOWN = 20
"""Jobs shown of those that a job needs, without ``--full``."""

MAX_VALUE_LENGTH = 2_000
"""Characters shown of a value without ``--full``."""


@command(
    "list",
    examples={
        "list": "the newest jobs",
        "list --status Error --since 1d": "failures of the last day",
        "list --task shop.thumbnail --user ann": "",
        "list --before 4200": "the next page",
        "list --root 42 --status Error": "what failed of a group",
        "list --status Error --ids | xargs celery -A shop jobs resubmit": "",
    },
    exit_codes="0 also for an empty list, 2 wrong usage, 5 database unavailable.",
    json="a job a line, without arguments and result",
)
@filter_options(*JobStatus)
@click.option(
    "--limit", type=click.IntRange(1, 10_000), default=PAGE_SIZE, show_default=True, help="Maximum of jobs."
)
@click.option("--before", type=params.JOB_ID, help="Only jobs with a lower id: the next page.")
@click.option("--all", "all_pages", is_flag=True, help="All pages, one after another.")
@click.option("--ids", "only_ids", is_flag=True, help="Print only the ids, for xargs.")
@click.option(
    "--members",
    is_flag=True,
    help="Also list the members of chains, groups and chords, not only their roots.",
)
def list_jobs(
    context: CommandContext,
    selection: JobSelection,
    limit: int,
    before: int | None,
    all_pages: bool,
    only_ids: bool,
    members: bool,
) -> None:
    """List jobs, newest first.

    A chain, group or chord is one job, with the progress of its members; --root lists those of one.
    Statuses, users and ages are found by an index. With --task or --group at most a million ids are searched;
    the next page continues from there.
    """
    now = context.store.stats.now()
    filters = selection.selection(folded=not members)
    for number, page in enumerate(_pages(context, filters, before, None if all_pages else limit)):
        before = page.before
        if context.output.json:
            for job in page.jobs:
                context.output.document(json_output.job_document(job))
        elif only_ids:
            for job in page.jobs:
                click.echo(job.id)
        elif page.jobs or not number:
            context.output.show(Table(COLUMNS, [job_row(job, now) for job in page.jobs]))
    if before is not None:
        context.output.note(f"more jobs: --before {before}")


def _pages(
    context: CommandContext, filters: Selection, before: int | None, limit: int | None
) -> Iterator[Page]:
    """Read up to `limit` jobs, or all for None. `before` of the last page is None if there are no more."""
    while True:
        size = BATCH_SIZE if limit is None else min(limit, BATCH_SIZE)
        page = context.store.pages.page(filters, before, size)
        yield page
        before = page.before
        if before is None:
            return
        if limit is not None:
            limit -= len(page.jobs)
            # A page that is not full has searched as many ids as one call may.
            if not limit or len(page.jobs) < size:
                return


@command(
    "show",
    examples={
        "show 42": "",
        "show 42 --json | jq .events": "",
        "show 42 --full": "with the whole traceback and tree",
    },
    exit_codes="0 found, 2 wrong usage, 3 no such job, 5 database unavailable.",
    json="the job with arguments, result, error, internal columns, needs, why, events and tree",
)
@click.argument("job_id", type=params.JOB_ID, metavar="ID")
@click.option("--full", is_flag=True, help="Do not shorten long values.")
def show(context: CommandContext, job_id: int, full: bool) -> None:
    """Show a job with its history, and why it has its status.

    Of a chain, group or chord it shows the tree, too; of a large group the failed, running and first members.
    """
    details = context.store.diagnostics.details(job_id)
    if details is None:
        raise UnknownJobError(f"no job {job_id}")
    tree = None
    if details.job.kind is not None:
        tree = Tree(details.job, context.store.diagnostics.tree(details.job), full)
    if context.output.json:
        context.output.document(_document(details) | {"tree": tree.document() if tree else None})
        return
    fields = Fields([(name, _shorten(value, full)) for name, value in _fields(details, full) if value])
    context.output.show(fields, *([tree.table()] if tree else []), _history(details))


def _document(details: JobDetails) -> dict[str, Any]:
    job, inside = details.job, details.internals
    args, kwargs = format_arguments(job, inside.routing)
    document = json_output.job_document(job) | {
        "args": args,
        "kwargs": kwargs,
        "result": job.result,
        "meta": job.meta,
        "time_limit": job.time_limit,
        "soft_time_limit": job.soft_time_limit,
        "not_before": json_output.time_value(inside.not_before),
        "due_at": json_output.time_value(inside.due_at),
        "publish_count": inside.publish_count,
        "lost_count": inside.lost_count,
        "pid": inside.pid,
        "lease_until": json_output.time_value(inside.lease_until),
        "needs": [{"id": need.job_id, "status": need.status} for need in details.needs],
        "why": explain_status(details),
        "events": [json_output.event_document(event) for event in details.events],
    }
    if document["error"] and job.error:
        document["error"]["traceback"] = job.error.traceback
    return document


def _fields(details: JobDetails, full: bool) -> list[tuple[str, str]]:
    job, inside, error = details.job, details.internals, details.job.error
    args, kwargs = format_arguments(job, inside.routing)
    limits = {"hard": job.time_limit, "soft": job.soft_time_limit}
    return [
        ("job", str(job.id)),
        ("status", str(job.status)),
        ("why", explain_status(details)),
        ("message", job.message),
        ("task", job.task),
        ("task id", job.task_id or ""),
        ("root", "" if job.root_id is None else str(job.root_id)),
        ("parent", "" if job.parent_id is None else str(job.parent_id)),
        ("needs", _describe_needs(details, full)),
        ("args", args),
        ("kwargs", kwargs),
        ("user", job.username or ""),
        ("group", job.groupname or ""),
        ("queue", job.queue or ""),
        ("priority", "" if job.priority is None else str(job.priority)),
        ("unique key", job.unique_key or ""),
        (
            "time limits",
            ", ".join(f"{name} {format_duration(value)}" for name, value in limits.items() if value),
        ),
        ("submitted", format_time(job.submitted)),
        ("scheduled for", format_time(job.scheduled_for) if job.scheduled_for else ""),
        ("expires", format_time(job.expires) if job.expires else ""),
        ("started", format_time(job.started) if job.started else ""),
        ("finished", format_time(job.finished) if job.finished else ""),
        ("ran for", format_duration(job.finished - job.started) if job.finished and job.started else ""),
        ("attempt", str(job.attempt)),
        ("lost attempts", str(inside.lost_count or "")),
        ("max attempts", "" if job.max_attempts == 1 else str(job.max_attempts)),
        ("worker", job.worker or ""),
        ("pid", "" if inside.pid is None else str(inside.pid)),
        ("stop requested", format_time(job.cancel_requested) if job.cancel_requested else ""),
        ("progress", format_progress(job.progress) if job.progress else ""),
        ("result", "" if job.status is not JobStatus.FINISHED else to_json(job.result)),
        ("error", f"{error.type}: {error.message} ({error.kind})" if error else ""),
        ("traceback", error.traceback.rstrip() if error else ""),
        ("meta", "" if job.meta is None else to_json(job.meta)),
    ]


def _describe_needs(details: JobDetails, full: bool) -> str:
    shown = details.needs if full else details.needs[:NEEDS_SHOWN]
    more = len(details.needs) - len(shown)
    described = [f"{need.job_id} ({need.status or 'gone'})" for need in shown]
    return ", ".join([*described, f"… (--full) {more:,} more"] if more else described)


def _shorten(value: str, full: bool) -> str:
    # The end is kept: the last line of a traceback names the error.
    return value if full or len(value) <= MAX_VALUE_LENGTH else f"… (--full) {value[-MAX_VALUE_LENGTH:]}"


def _history(details: JobDetails) -> Table | Line:
    if not details.events:
        return Line("no events")
    rows, previous = [], details.events[0].at
    for event in details.events:
        rows.append(
            [
                event.at.strftime("%Y-%m-%d %H:%M:%S.%f")[:-3] + "Z",
                f"+{format_duration(event.at - previous)}",
                str(event.status),
                str(event.attempt),
                event.actor,
                event.message,
            ]
        )
        previous = event.at
    return Table(("TIME", "AFTER", "STATUS", "ATTEMPT", "ACTOR", "MESSAGE"), rows)
