"""Exit codes, and how an error becomes one line on standard error.

A user of the command line needs the next step, not a traceback: every expected error is reported in one line.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from enum import IntEnum
from typing import IO, Any

import click
from kombu.exceptions import OperationalError as BrokerError

from ..errors import (
    ApiUsageError,
    ConfigurationError,
    DatabaseUnavailableError,
    InvalidTransitionError,
    JobHandleError,
    SchemaError,
    UnknownJobError,
    WaitTimeoutError,
)
from .formatting import one_line


class ExitCode(IntEnum):
    """The exit codes of all commands. They are public."""

    OK = 0
    FAILED = 1
    USAGE = 2
    UNKNOWN_JOB = 3
    TIMEOUT = 4
    UNAVAILABLE = 5


DESCRIPTIONS = {
    ExitCode.OK: "success; a job that was waited for is Finished",
    ExitCode.FAILED: "a job ended in Error or Cancelled, or its status forbids the operation; "
    "doctor found a BAD; the confirmation was declined",
    ExitCode.USAGE: "wrong usage or input; nothing was changed",
    ExitCode.UNKNOWN_JOB: "no such job",
    ExitCode.TIMEOUT: "the timeout expired; the job continues",
    ExitCode.UNAVAILABLE: "the database or the broker is unavailable, or the tables are missing",
}

# The first match counts: an UnknownJobError is an ApiUsageError.
_CODES: tuple[tuple[type[Exception], ExitCode], ...] = (
    (UnknownJobError, ExitCode.UNKNOWN_JOB),
    (ApiUsageError, ExitCode.USAGE),
    (ConfigurationError, ExitCode.USAGE),
    (WaitTimeoutError, ExitCode.TIMEOUT),
    (SchemaError, ExitCode.UNAVAILABLE),
    (DatabaseUnavailableError, ExitCode.UNAVAILABLE),
    (InvalidTransitionError, ExitCode.FAILED),
    (JobHandleError, ExitCode.FAILED),
)


class CommandError(click.ClickException):
    """Ends the command with one line on standard error."""

    def __init__(self, message: str, code: ExitCode) -> None:
        super().__init__(one_line(message))
        self.exit_code = code  # type: ignore[misc]  # Click's own exceptions assign it, too

    def show(self, file: IO[Any] | None = None) -> None:
        """Print the line."""
        click.echo(f"Error: {self.message}", file=file, err=file is None)


def exit_code_of(error: JobHandleError) -> ExitCode:
    """Return the exit code of an error of this library."""
    return next(code for kind, code in _CODES if isinstance(error, kind))


@contextmanager
def errors_as_one_line() -> Iterator[None]:
    """Turn every expected error into a `CommandError`."""
    try:
        yield
    except click.UsageError as error:
        if (
            type(error).__name__ == "NoArgsIsHelpError"
        ):  # carries the help itself; older Clicks do not have it
            raise
        raise CommandError(_usage_message(error), ExitCode.USAGE) from None
    except JobHandleError as error:
        raise CommandError(str(error), exit_code_of(error)) from None
    except BrokerError as error:
        raise CommandError(f"the broker is unavailable: {error}", ExitCode.UNAVAILABLE) from None


def _usage_message(error: click.UsageError) -> str:
    if getattr(error, "option_name", None) in ("-A", "--app"):
        return "-A goes before the word jobs: celery -A APP jobs …"
    path = error.ctx.command_path if error.ctx else ""
    hint = f" (see {path} --help)" if path else ""
    return error.format_message().rstrip(".") + hint
