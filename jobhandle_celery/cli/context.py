"""The context of a command, and the decorator that declares one."""

import functools
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import click
from celery.bin.base import CeleryCommand, handle_preload_options

from ..errors import ConfigurationError, DatabaseUnavailableError, UnknownJobError
from ..handle import JobHandle
from ..runtime import Runtime, runtime_of
from ..store import Store
from .deadline import BackgroundCall, NoAnswerError
from .exit_codes import CommandError, ExitCode, errors_as_one_line
from .output import Output

if TYPE_CHECKING:
    from ..jobs import Jobs


DATABASE_TIMEOUT = 7.0
"""Seconds for the first answer of the database."""


@dataclass
class CommandContext:
    """The app of ``-A``, its jobs, and the output."""

    app: Any
    output: Output

    @cached_property
    def runtime(self) -> Runtime:
        """The runtime of the app's jobs. Connects to nothing.

        Raises:
            CommandError: the app has no `Jobs`.
        """
        try:
            runtime = runtime_of(self.app)
        except ConfigurationError:
            # "default" is the name of the app that Celery creates when -A is missing.
            name = getattr(self.app, "main", None)
            problem = "no app is given" if name == "default" else f"the app {name or ''} has no Jobs"
            hint = "run celery -A APP jobs … with an app for which Jobs(app, …) is created"
            raise CommandError(f"{problem}; {hint}", ExitCode.USAGE) from None
        # Commands look up tasks, and those may be in modules that only a worker imports.
        self.app.loader.import_default_modules()
        return runtime

    def require_jobs(self) -> None:
        """Check that the app has `Jobs`, before anything else is reported or done.

        Raises:
            CommandError: it has none.
        """
        _ = self.runtime

    @cached_property
    def connected_runtime(self) -> Runtime:
        """The runtime, after the database has answered once.

        Raises:
            DatabaseUnavailableError: no answer within `DATABASE_TIMEOUT`; a driver may wait for ever.
        """
        runtime = self.runtime
        call = BackgroundCall(runtime.store.stats.now)
        try:
            call.result(DATABASE_TIMEOUT)
        except NoAnswerError as error:
            raise DatabaseUnavailableError(f"the database did not answer: {error}") from None
        except Exception:
            pass  # the command meets the same error, and reports it
        return runtime

    @property
    def jobs(self) -> "Jobs":
        """The app's `Jobs`."""
        _ = self.connected_runtime
        jobs: Jobs = self.app.jobs
        return jobs

    @property
    def store(self) -> Store:
        """The app's store."""
        return self.connected_runtime.store

    def attach(self, job_id: int) -> JobHandle:
        """Return a handle attached to a job."""
        return self.jobs.attach(job_id)

    def for_each(self, job_ids: Sequence[int], action: Callable[[int], ExitCode]) -> None:
        """Apply an action to each job, unknown ids included; exit with the first code that is not OK."""
        exit_code = ExitCode.OK
        for job_id in job_ids:
            try:
                code = action(job_id)
            except UnknownJobError as error:
                self.output.error(error)
                code = ExitCode.UNKNOWN_JOB
            exit_code = exit_code or code
        if exit_code:
            sys.exit(exit_code)

    def confirm(self, question: str, yes: bool) -> None:
        """Ask for confirmation, unless ``--yes`` was given.

        Raises:
            CommandError: the answer was no, or standard input is not a terminal.
        """
        if yes:
            return
        if not (sys.stdin.isatty() and sys.stderr.isatty()):
            raise CommandError(f"{question} This is not a terminal: add --yes", ExitCode.USAGE)
        if not click.confirm(question, err=True):
            raise CommandError("declined; nothing was changed", ExitCode.FAILED)


class JobsGroup(click.Group):
    """The group ``jobs``, which reports errors in one line."""

    def make_context(self, *args: Any, **kwargs: Any) -> click.Context:
        """Parse the arguments before the command's name."""
        with errors_as_one_line():
            return super().make_context(*args, **kwargs)

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command."""
        with errors_as_one_line():
            return super().invoke(ctx)


def command(
    name: str, *, examples: Mapping[str, str], exit_codes: str, json: str
) -> Callable[[Callable[..., None]], click.Command]:
    """Declare a command. Its function gets a `CommandContext` and its own options.

    ``--help`` shows the examples, the exit codes and what ``--json``, an option of every command, prints.
    """

    def declare(function: Callable[..., None]) -> click.Command:
        @handle_preload_options
        @functools.wraps(function)
        def run(ctx: click.Context, *, as_json: bool, **options: Any) -> None:
            context = CommandContext(ctx.obj.app, Output(json=as_json, colour=not ctx.obj.no_color))
            try:
                function(context, **options)
            except KeyboardInterrupt:
                sys.exit(130)  # as shells report an interrupted program

        # `wraps` has copied the function's own options; Click lists the last of these first.
        options = vars(run).setdefault("__click_params__", [])
        options.insert(0, click.Option(["--json", "as_json"], is_flag=True, help=f"Print JSON: {json}."))
        return click.command(name, cls=CeleryCommand, epilog=_epilog(examples, exit_codes))(
            click.pass_context(run)
        )

    return declare


def _epilog(examples: Mapping[str, str], exit_codes: str) -> str:
    width = max(map(len, examples))
    lines = [
        f"  celery -A shop jobs {arguments:<{width}}  {comment}".rstrip()
        for arguments, comment in examples.items()
    ]
    return "\n".join(["\b", "Examples:", *lines, "", "\b", f"Exit codes: {exit_codes}"])
