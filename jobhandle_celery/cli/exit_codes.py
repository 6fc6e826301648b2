"""How a command ends: its exit code, and one line for what went wrong. May import errors.

A traceback tells the author of a program something; whoever types a command, or a script, wants to know
what to do. So everything that is expected to go wrong becomes one line on standard error.
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


class Exit(IntEnum):
    """The exit codes of all commands; they are part of the interface."""

    OK = 0
    BAD = 1
    INPUT = 2
    UNKNOWN = 3
    TIMEOUT = 4
    AWAY = 5


MEANINGS = {
    Exit.OK: "done; the job Finished",
    Exit.BAD: "a job ended in Error or Cancelled, or does not allow the move; doctor found something BAD; "
    "you said no",
    Exit.INPUT: "wrong input: nothing was done",
    Exit.UNKNOWN: "there is no such job",
    Exit.TIMEOUT: "not within the time given; the job goes on",
    Exit.AWAY: "the database or the broker cannot be reached, or the tables are missing",
}

_CODES: tuple[tuple[type[Exception], Exit], ...] = (
    (UnknownJobError, Exit.UNKNOWN),
    (ApiUsageError, Exit.INPUT),
    (ConfigurationError, Exit.INPUT),
    (WaitTimeoutError, Exit.TIMEOUT),
    (SchemaError, Exit.AWAY),
    (DatabaseUnavailableError, Exit.AWAY),
    (InvalidTransitionError, Exit.BAD),
    (JobHandleError, Exit.BAD),
)


class Said(click.ClickException):
    """An end with one line on standard error."""

    def __init__(self, message: str, code: Exit) -> None:
        super().__init__(one_line(message))
        self.exit_code = code  # type: ignore[misc]  # that is how Click's own do it, too

    def show(self, file: IO[Any] | None = None) -> None:
        """Print the line."""
        click.echo(f"Error: {self.message}", file=file, err=file is None)


def code_of(error: JobHandleError) -> Exit:
    """Return the exit code of an error of ours."""
    return next(code for kind, code in _CODES if isinstance(error, kind))


@contextmanager
def in_one_line() -> Iterator[None]:
    """Turn what is expected to go wrong into one line and an exit code."""
    try:
        yield
    except click.UsageError as error:
        if type(error).__name__ == "NoArgsIsHelpError":  # the help itself; older Clicks have no such error
            raise
        raise Said(_usage(error), Exit.INPUT) from None
    except JobHandleError as error:
        raise Said(str(error), code_of(error)) from None
    except BrokerError as error:
        raise Said(f"the broker cannot be reached: {error}", Exit.AWAY) from None


def _usage(error: click.UsageError) -> str:
    if getattr(error, "option_name", None) in ("-A", "--app"):
        return "the app goes before the word jobs: celery -A APP jobs …"
    path = error.ctx.command_path if error.ctx else ""
    hint = f" (see {path} --help)" if path else ""
    return error.format_message().rstrip(".") + hint
