"""What every command has at hand, and how a command is declared. May import the service and below."""

import functools
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import click
from celery.bin.base import CeleryCommand, handle_preload_options

from ..errors import ConfigurationError, DatabaseUnavailableError, UnknownJobError
from ..handle import JobHandle
from ..runtime import Runtime, runtime_of
from ..store import Store
from .deadline import Question, Silent
from .exit_codes import Exit, Said, in_one_line
from .output import Output

if TYPE_CHECKING:
    from ..jobs import Jobs


DATABASE_BOUND = 7.0
"""Seconds that a database has to say anything."""


@dataclass
class Desk:
    """The app of ``-A``, its jobs, and where the words go."""

    app: Any
    out: Output

    @cached_property
    def runtime(self) -> Runtime:
        """The service of the app.

        Raises:
            Said: the app has no `Jobs`.
        """
        try:
            runtime = runtime_of(self.app)
        except ConfigurationError:
            # Celery's own name for the app that it makes when none was named.
            name = getattr(self.app, "main", None)
            said = "no app was named" if name == "default" else f"{name or 'this app'} has no jobs"
            hint = "celery -A APP jobs …, with an app that has Jobs(app, …)"
            raise Said(f"{said}: {hint}", Exit.INPUT) from None
        # Its tasks are looked at, and they may be in modules that only a worker imports.
        self.app.loader.import_default_modules()
        return runtime

    def expect_jobs(self) -> None:
        """Make sure that the app has jobs, before something else is said or done.

        Raises:
            Said: it has none.
        """
        _ = self.runtime

    @cached_property
    def answering(self) -> Runtime:
        """The service of the app, when its database has answered anything at all.

        Raises:
            DatabaseUnavailableError: it is silent. Drivers may wait for it without an end.
        """
        runtime = self.runtime
        asked = Question(runtime.store.now)
        try:
            asked.answer(DATABASE_BOUND)
        except Silent as error:
            raise DatabaseUnavailableError(f"the database did not answer: {error}") from None
        except Exception:
            pass  # the command meets it too, and says what it is
        return runtime

    @property
    def jobs(self) -> "Jobs":
        """The app's `Jobs`."""
        _ = self.answering
        jobs: Jobs = self.app.jobs
        return jobs

    @property
    def store(self) -> Store:
        """The store of the app."""
        return self.answering.store

    def attach(self, job_id: int) -> JobHandle:
        """Open a handle on a job."""
        return self.jobs.attach(job_id)

    def each(self, job_ids: tuple[int, ...], deed: Callable[[int], Exit]) -> None:
        """Do something to each job, also if there is none of one id, and end with the first bad code."""
        worst = Exit.OK
        for job_id in job_ids:
            try:
                code = deed(job_id)
            except UnknownJobError as error:
                self.out.note(f"Error: {error}")
                code = Exit.UNKNOWN
            worst = worst or code
        if worst:
            sys.exit(worst)

    def confirm(self, question: str, yes: bool) -> None:
        """Ask before something that cannot be taken back; without a terminal nobody can answer.

        Raises:
            Said: the answer was no, or there is nobody to ask.
        """
        if yes:
            return
        if not (sys.stdin.isatty() and sys.stderr.isatty()):
            raise Said(f"{question} Nobody can be asked here: add --yes", Exit.INPUT)
        if not click.confirm(question, err=True):
            raise Said("nothing was done", Exit.BAD)


class JobsGroup(click.Group):
    """The group: whatever goes wrong below it is said in one line."""

    def make_context(self, *args: Any, **kwargs: Any) -> click.Context:
        """Read the words before the name of the command."""
        with in_one_line():
            return super().make_context(*args, **kwargs)

    def invoke(self, ctx: click.Context) -> Any:
        """Find the command and run it."""
        with in_one_line():
            return super().invoke(ctx)


def verb(
    name: str, *, examples: Mapping[str, str], exits: str = ""
) -> Callable[[Callable[..., None]], click.Command]:
    """Declare a command: its function gets a `Desk` and its own options; ``--json`` is everywhere."""

    def declare(function: Callable[..., None]) -> click.Command:
        @handle_preload_options
        @functools.wraps(function)
        def run(ctx: click.Context, *, as_json: bool, **options: Any) -> None:
            desk = Desk(ctx.obj.app, Output(json=as_json, colour=not ctx.obj.no_color))
            try:
                function(desk, **options)
            except KeyboardInterrupt:
                # As a shell says it of a program that was interrupted.
                sys.exit(130)

        # What the decorators of the function have noted, which `wraps` copies; the last is first there.
        noted = vars(run).setdefault("__click_params__", [])
        noted.insert(0, click.Option(["--json", "as_json"], is_flag=True, help="Print JSON documents."))
        return click.command(name, cls=CeleryCommand, epilog=_epilog(examples, exits))(
            click.pass_context(run)
        )

    return declare


def _epilog(examples: Mapping[str, str], exits: str) -> str:
    width = max(map(len, examples))
    lines = [f"  celery -A shop jobs {typed:<{width}}  {says}".rstrip() for typed, says in examples.items()]
    return "\n".join(["\b", "Examples:", *lines, *(["", "\b", f"Exit codes: {exits}"] if exits else [])])
