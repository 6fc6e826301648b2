"""``upgrade``, ``sweep`` and ``prune``."""

import signal
import threading
from datetime import timedelta
from types import FrameType

import click

from ..errors import DatabaseUnavailableError, SchemaError
from ..migrations import EMPTY, REVISIONS
from . import params
from .context import CommandContext, command
from .formatting import format_duration
from .output.layout import Line

RETRY_INTERVAL = 2.0
"""Seconds before ``sweep --forever`` tries an unavailable database again."""


@command(
    "upgrade",
    examples={
        "upgrade": "",
        "upgrade --sql > tables.sql": "for a database administrator",
        "upgrade --sql --from base": "for an empty database, which is not asked",
    },
    exit_codes="0 done, 2 wrong usage, 5 database unavailable.",
    json='{"revision"}',
)
@click.option("--sql", is_flag=True, help="Only print the statements, for the tables that the database has.")
@click.option(
    "--from",
    "from_revision",
    type=click.Choice((EMPTY, *REVISIONS)),
    help="With --sql: for tables of this revision; the database is not asked.",
)
def upgrade(context: CommandContext, sql: bool, from_revision: str | None) -> None:
    """Create the tables, or migrate them to the revision of this version."""
    if from_revision is not None and not sql:
        raise click.UsageError("--from needs --sql")
    context.jobs.upgrade_schema(sql=sql, from_revision=from_revision)
    if not sql:
        revision = REVISIONS[-1]
        context.output.result({"revision": revision}, f"the tables are at revision {revision}")


@command(
    "sweep",
    examples={"sweep": "one pass", "sweep --forever": "a process of its own, until SIGTERM"},
    exit_codes="0 done, also after SIGTERM; 5 database unavailable.",
    json='{"made": true}, or false if another process made a pass just before; '
    'with --forever {"made": true} for each pass',
)
@click.option("--forever", is_flag=True, help="Sweep until SIGTERM or Ctrl-C.")
def sweep(context: CommandContext, forever: bool) -> None:
    """Publish due jobs, recover lost jobs, cancel expired jobs.

    Workers do this themselves. A sweeping process helps services whose workers may all be stopped.
    """
    if not forever:
        made = context.jobs.sweep()
        skipped = "skipped: another process made a pass less than an interval ago"
        context.output.result({"made": made}, "one pass was made" if made else skipped)
        return
    stopped = threading.Event()

    def stop(_signal: int, _frame: FrameType | None) -> None:
        stopped.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, stop)
    interval = context.runtime.settings.pass_interval.total_seconds()
    if not context.output.json:
        context.output.show(Line(f"sweeping every {format_duration(interval)} until SIGTERM"))
    pause = 0.0
    while not stopped.wait(pause):
        try:
            made = context.jobs.sweep()
            pause = interval
        except (DatabaseUnavailableError, SchemaError) as error:
            context.output.note(error)
            pause = max(interval, RETRY_INTERVAL)
        else:
            if made and context.output.json:
                context.output.document({"made": True})
    context.jobs.close()


@command(
    "prune",
    examples={
        "prune --older-than 30d": "asks for confirmation",
        "prune --older-than 30d --yes": "for cron",
    },
    exit_codes="0 done, 1 declined, 2 wrong usage, 5 database unavailable.",
    json='{"pruned": N}',
)
@click.option(
    "--older-than",
    required=True,
    type=params.DURATION,
    help="Delete jobs that ended longer ago than this: 30d.",
)
@click.option("--yes", "-y", is_flag=True, help="Do not ask for confirmation.")
def prune(context: CommandContext, older_than: timedelta, yes: bool) -> None:
    """Delete jobs that ended long ago, and their events."""
    context.require_jobs()
    context.confirm(f"Delete the jobs that ended more than {format_duration(older_than)} ago?", yes)
    pruned = context.jobs.prune(older_than)
    context.output.result({"pruned": pruned}, f"{pruned:,} jobs were deleted")
