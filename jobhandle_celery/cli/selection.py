"""Which jobs a verb is about: ids, or filters. May import desk and below."""

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
from .context import Desk
from .formatting import span


@dataclass(frozen=True)
class Chosen:
    """Ids or filters, as they were typed."""

    ids: tuple[int, ...] = ()
    task: str | None = None
    statuses: tuple[JobStatus, ...] = ()
    username: str | None = None
    younger_than: timedelta | None = None
    older_than: timedelta | None = None
    yes: bool = False

    @property
    def filtered(self) -> bool:
        """True if a filter was given."""
        return any((self.task, self.statuses, self.username)) or self.aged

    @property
    def aged(self) -> bool:
        """True if an age was given."""
        return self.younger_than is not None or self.older_than is not None

    def selection(self, default: Sequence[JobStatus] | None = None) -> Selection:
        """Return the filters for the store, with the statuses that count if none was given."""
        return Selection(
            statuses=tuple(self.statuses or default or ()) or None,
            task=validation.name("task", self.task),
            username=validation.name("user", self.username),
        )

    def window(self, before: int | None = None) -> Window:
        """Return the ages for the store."""
        return Window(before=before, younger_than=self.younger_than, older_than=self.older_than)

    def check(self) -> None:
        """Make sure that it is one or the other.

        Raises:
            UsageError: both or none were given; to mean everything, name the statuses.
        """
        if self.ids and self.filtered:
            raise click.UsageError("give ids or filters, not both")
        if not self.ids and not self.filtered:
            raise click.UsageError("give ids, or filters (--task, --status, --user, --since, --older-than)")

    def ids_or_found(self, desk: Desk, verb: str, default: Sequence[JobStatus]) -> tuple[int, ...]:
        """Return the ids that were given, or those that the filters find."""
        self.check()
        return self.ids or self.found(desk, verb, default)

    def found(self, desk: Desk, verb: str, default: Sequence[JobStatus]) -> tuple[int, ...]:
        """Return the ids that the filters find, oldest first, after asking."""
        found = tuple(reversed(desk.store.ids(self.selection(default), self.window())))
        desk.confirm(f"{verb} {len(found):,} jobs ({self.words(default)})?", self.yes or not found)
        if not found:
            desk.out.note("no job fits")
        return found

    def words(self, default: Sequence[JobStatus] = ()) -> str:
        """Return the filters in words, for a question."""
        parts = {
            "task": self.task,
            "status": ", ".join(self.statuses or default),
            "user": self.username,
            "submitted within": None if self.younger_than is None else span(self.younger_than),
            "submitted longer ago than": None if self.older_than is None else span(self.older_than),
        }
        return "; ".join(f"{name} {value}" for name, value in parts.items() if value)


def filters(*statuses: JobStatus) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Add the filters to a command, which gets them as `chosen`."""

    def declare(function: Callable[..., None]) -> Callable[..., None]:
        @functools.wraps(function)
        def run(
            desk: Desk,
            task: str | None,
            username: str | None,
            younger_than: timedelta | None,
            older_than: timedelta | None,
            statuses: tuple[JobStatus, ...] = (),
            ids: tuple[int, ...] = (),
            yes: bool = False,
            **options: Any,
        ) -> None:
            chosen = Chosen(ids, task, statuses, username, younger_than, older_than, yes)
            function(desk, chosen=chosen, **options)

        options = [
            click.option("--task", type=params.TASK, help="Of that task."),
            click.option("--user", "username", help="Of that user."),
            click.option("--since", "younger_than", type=params.DURATION, help="Submitted within: 1h, 30d."),
            click.option("--older-than", type=params.DURATION, help="Submitted longer ago than that."),
        ]
        if statuses:
            words = ", ".join(status for status in JobStatus if status in statuses)
            options.append(
                click.option(
                    "--status",
                    "statuses",
                    multiple=True,
                    type=params.Status(*(status for status in JobStatus if status in statuses)),
                    help=f"One of {words}; may be given again.",
                )
            )
        for option in reversed(options):
            option(run)
        return run

    return declare


def choosing(*statuses: JobStatus) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Add ids, filters and ``--yes`` to a command that changes jobs."""

    def declare(function: Callable[..., None]) -> Callable[..., None]:
        run = click.option("--yes", "-y", is_flag=True, help="Do not ask before many are changed.")(function)
        run = filters(*statuses)(run)
        return click.argument("ids", nargs=-1, type=params.JOB_ID, metavar="[ID]...")(run)

    return declare
