"""The jobs that a command applies to: ids or filters, and the options for them."""

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from datetime import datetime, timedelta
from typing import Any

import click

from .. import validation
from ..status import JobStatus
from ..store import Selection
from . import params
from .context import CommandContext
from .formatting import format_duration, format_time


@dataclass(frozen=True)
class JobSelection:
    """Ids or filters, as given on the command line. The filters are those of `Jobs.find`."""

    ids: tuple[int, ...] = ()
    statuses: tuple[JobStatus, ...] = ()
    task: str | None = None
    username: str | None = None
    groupname: str | None = None
    since: datetime | timedelta | None = None
    until: datetime | timedelta | None = None
    root: int | None = None
    yes: bool = False

    @property
    def has_filters(self) -> bool:
        """True if a filter was given."""
        return replace(self, ids=(), yes=False) != JobSelection()

    def selection(
        self, default: Sequence[JobStatus] = (), *, folded: bool = False, blocked: bool = True
    ) -> Selection:
        """Return the store's filters.

        Args:
            default: The statuses if none was given.
            folded: Leave out members of trees, except of the tree whose root was given.
            blocked: False: leave out jobs that wait for others.
        """
        return Selection(
            statuses=tuple(self.statuses or default) or None,
            task=validation.name("task", self.task),
            username=validation.name("user", self.username),
            groupname=validation.name("group", self.groupname),
            since=self.since,
            until=self.until,
            root=self.root,
            members=not folded or self.root is not None,
            blocked=blocked,
        )

    def require_ids_or_filters(self) -> None:
        """Check that either ids or filters were given.

        Raises:
            UsageError: both or none; all jobs are selected by their statuses.
        """
        if self.ids and self.has_filters:
            raise click.UsageError("give ids or filters, not both")
        if not self.ids and not self.has_filters:
            raise click.UsageError(
                "give ids, or filters (--status, --task, --user, --group, --since, --until, --root)"
            )

    def ids_or_matches(
        self, context: CommandContext, action: str, default: Sequence[JobStatus]
    ) -> tuple[int, ...]:
        """Return the given ids, or those of jobs that match the filters and depend on no other job."""
        self.require_ids_or_filters()
        return self.ids or self.find_ids(context, action, default, folded=True, blocked=False)

    def find_ids(
        self, context: CommandContext, action: str, default: Sequence[JobStatus], **narrowing: bool
    ) -> tuple[int, ...]:
        """Return the ids that match the filters, oldest first, after a confirmation; see `selection`."""
        ids = tuple(reversed(context.store.pages.ids(self.selection(default, **narrowing))))
        context.confirm(f"{action} {len(ids):,} jobs ({self.describe(default)})?", self.yes or not ids)
        if not ids:
            context.output.note("no job matches the filters")
        return ids

    def describe(self, default: Sequence[JobStatus] = ()) -> str:
        """Return the filters as text, for the confirmation."""
        parts = {
            "task": self.task,
            "status": ", ".join(self.statuses or default),
            "user": self.username,
            "group": self.groupname,
            "submitted since": _format_limit(self.since),
            "submitted until": _format_limit(self.until),
            "member of": None if self.root is None else str(self.root),
        }
        return "; ".join(f"{name} {value}" for name, value in parts.items() if value)


def _format_limit(limit: datetime | timedelta | None) -> str | None:
    if isinstance(limit, timedelta):
        return f"{format_duration(limit)} ago"
    return None if limit is None else format_time(limit)


def filter_options(*statuses: JobStatus) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Add the filters to a command, which gets them as `selection`; ``--status`` takes these statuses."""
    accepted = [status for status in JobStatus if status in statuses]
    options = [
        click.option("--task", type=params.TASK, help="Jobs of this task."),
        click.option("--user", "username", help="Jobs of this user."),
        click.option("--group", "groupname", help="Jobs of this group."),
        click.option(
            "--since", type=params.PAST_TIME, help="Submitted within (1d), or since an ISO 8601 time."
        ),
        click.option(
            "--until", type=params.PAST_TIME, help="Submitted longer ago (30d), or before an ISO 8601 time."
        ),
        click.option("--root", type=params.JOB_ID, help="Members of this chain, group or chord."),
    ]
    if statuses:
        options.insert(
            0,
            click.option(
                "--status",
                "statuses",
                multiple=True,
                type=params.StatusType(*accepted),
                help=f"One of {', '.join(accepted)}; may be repeated.",
            ),
        )

    def declare(function: Callable[..., None]) -> Callable[..., None]:
        @functools.wraps(function)
        def run(context: CommandContext, **options: Any) -> None:
            given = {
                field.name: options.pop(field.name) for field in fields(JobSelection) if field.name in options
            }
            function(context, selection=JobSelection(**given), **options)

        for option in reversed(options):
            option(run)
        return run

    return declare


def select_jobs(*statuses: JobStatus) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Add ids, filters and ``--yes`` to a command that changes jobs."""

    def declare(function: Callable[..., None]) -> Callable[..., None]:
        run = click.option(
            "--yes", "-y", is_flag=True, help="Do not ask for confirmation when filters are given."
        )(function)
        run = filter_options(*statuses)(run)
        return click.argument("ids", nargs=-1, type=params.JOB_ID, metavar="[ID]...")(run)

    return declare
