"""``upgrade``, ``sweep``, ``prune``: what keeps the tables in order. May import desk and below."""

import signal
import threading
from datetime import timedelta
from types import FrameType

import click

from ..errors import DatabaseUnavailableError, SchemaError
from ..migrations import REVISIONS
from . import params
from .context import Desk, verb
from .formatting import span
from .output.layout import Line

PAUSE = 2.0
"""Seconds after which a sweeping process asks a database again that was away."""


@verb(
    "upgrade",
    examples={"upgrade": "", "upgrade --sql > tables.sql": "for somebody else to run"},
    exits="0 done, 5 database away.",
)
@click.option("--sql", is_flag=True, help="Print the statements, from an empty database on; do nothing.")
def upgrade(desk: Desk, sql: bool) -> None:
    """Make the tables, or bring them up to date."""
    desk.jobs.upgrade_schema(sql=sql)
    if not sql:
        desk.out.say({"revision": REVISIONS[-1]}, f"the tables are at revision {REVISIONS[-1]}")


@verb(
    "sweep",
    examples={"sweep": "one pass", "sweep --forever": "a process of its own, until SIGTERM"},
    exits="0 done, also after SIGTERM; 5 database away.",
)
@click.option("--forever", is_flag=True, help="Go on until SIGTERM or Ctrl-C.")
def sweep(desk: Desk, forever: bool) -> None:
    """Send what is due, settle what is lost or expired.

    Workers do it by themselves. A process of its own is for services whose workers may all be away.
    """
    if not forever:
        made = desk.jobs.sweep()
        somebody = "no pass was made: somebody made one less than an interval ago"
        desk.out.say({"made": made}, "one pass was made" if made else somebody)
        return
    ended = threading.Event()

    def end(_signal: int, _frame: FrameType | None) -> None:
        ended.set()

    for which in (signal.SIGTERM, signal.SIGINT):
        signal.signal(which, end)
    interval = desk.runtime.settings.pass_interval.total_seconds()
    if not desk.out.json:
        desk.out.show(Line(f"sweeping every {span(interval)}, until SIGTERM"))
    pause = 0.0
    while not ended.wait(pause):
        try:
            made = desk.jobs.sweep()
            pause = interval
        except (DatabaseUnavailableError, SchemaError) as error:
            desk.out.note(str(error))
            pause = max(interval, PAUSE)
        else:
            if made and desk.out.json:
                desk.out.document({"made": True})
    desk.jobs.close()


@verb(
    "prune",
    examples={"prune --older-than 30d": "asks first", "prune --older-than 30d --yes": "for cron"},
    exits="0 done, 1 you said no, 2 wrong input, 5 database away.",
)
@click.option(
    "--older-than", required=True, type=params.DURATION, help="Delete what ended longer ago than that: 30d."
)
@click.option("--yes", "-y", is_flag=True, help="Do not ask.")
def prune(desk: Desk, older_than: timedelta, yes: bool) -> None:
    """Delete jobs that ended long ago, and their events."""
    desk.expect_jobs()
    desk.confirm(f"Delete the jobs that ended more than {span(older_than)} ago?", yes)
    pruned = desk.jobs.prune(older_than)
    desk.out.say({"pruned": pruned}, f"{pruned:,} jobs were deleted")
