"""The jobs that a command applies to: ids or filters, and the options for them."""

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import click

from .. import validation
from ..status import JobStatus
from ..store import Selection, Window
from . import params
from .context import CommandContext
from .formatting import format_duration


@dataclass(frozen=True)
class JobSelection:
    """Ids or filters, as given on the command line."""

    ids: tuple[int, ...] = ()
    task: str | None = None
    statuses: tuple[JobStatus, ...] = ()
    username: str | None = None
    younger_than: timedelta | None = None
    older_than: timedelta | None = None
    yes: bool = False

    @property
    def has_filters(self) -> bool:
        """True if a filter was given; an age of 0 s is one."""
        ages = (self.younger_than, self.older_than)
        return any((self.task, self.statuses, self.username)) or ages != (None, None)

    def selection(self, default: Sequence[JobStatus] | None = None) -> Selection:
        """Return the store's filters; `default` are the statuses if none was given."""
        return Selection(
            statuses=tuple(self.statuses or default or ()) or None,
            task=validation.name("task", self.task),
            username=validation.name("user", self.username),
        )

    def window(self, before: int | None = None) -> Window:
        """Return the ages for the store."""
        return Window(before=before, younger_than=self.younger_than, older_than=self.older_than)

    def require_ids_or_filters(self) -> None:
        """Check that either ids or filters were given.

        Raises:
            UsageError: both or none; whoever means all jobs names the statuses.
        """
        if self.ids and self.has_filters:
            raise click.UsageError("give ids or filters, not both")
        if not self.ids and not self.has_filters:
            raise click.UsageError("give ids, or filters (--task, --status, --user, --since, --older-than)")

    def ids_or_matches(
        self, context: CommandContext, action: str, default: Sequence[JobStatus]
    ) -> tuple[int, ...]:
        """Return the given ids, or the ids that match the filters."""
        self.require_ids_or_filters()
        return self.ids or self.find_ids(context, action, default)

    def find_ids(self, context: CommandContext, action: str, default: Sequence[JobStatus]) -> tuple[int, ...]:
        """Return the ids that match the filters, oldest first, after a confirmation."""
        ids = tuple(reversed(context.store.ids(self.selection(default), self.window())))
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
            "submitted within": self.younger_than and format_duration(self.younger_than),
            "submitted longer ago than": self.older_than and format_duration(self.older_than),
        }
        return "; ".join(f"{name} {value}" for name, value in parts.items() if value)


def filter_options(*statuses: JobStatus) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Add the filters to a command, which gets them as `selection`; ``--status`` takes these statuses."""

    def declare(function: Callable[..., None]) -> Callable[..., None]:
        @functools.wraps(function)
        def run(
            context: CommandContext,
            task: str | None,
            username: str | None,
            younger_than: timedelta | None,
            older_than: timedelta | None,
            statuses: tuple[JobStatus, ...] = (),
            ids: tuple[int, ...] = (),
            yes: bool = False,
            **options: Any,
        ) -> None:
            selection = JobSelection(ids, task, statuses, username, younger_than, older_than, yes)
            function(context, selection=selection, **options)

        options = [
            click.option("--task", type=params.TASK, help="Jobs of this task."),
            click.option("--user", "username", help="Jobs of this user."),
            click.option("--since", "younger_than", type=params.DURATION, help="Submitted within: 1h, 30d."),
            click.option("--older-than", type=params.DURATION, help="Submitted longer ago than this."),
        ]
        if statuses:
            accepted = [status for status in JobStatus if status in statuses]
            options.append(
                click.option(
                    "--status",
                    "statuses",
                    multiple=True,
                    type=params.StatusType(*accepted),
                    help=f"One of {', '.join(accepted)}; may be repeated.",
                )
            )
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
