"""Runs `celery -A app jobs …` in this process, as a process, or on a terminal."""

import json
import os
import pty
import signal
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from inspect import signature
from typing import IO, Any

from celery.bin.base import CLIContext
from click.testing import CliRunner

from jobhandle_celery.cli import jobs
from tests.fork_server import ForkedProcess, fork_server


@dataclass(frozen=True)
class CommandResult:
    """The exit code and the output of a command."""

    code: int
    out: str
    err: str

    @property
    def documents(self) -> list[Any]:
        """The JSON documents, one a line."""
        return [json.loads(line) for line in self.out.splitlines()]

    @property
    def document(self) -> Any:
        """The only JSON document."""
        (document,) = self.documents
        return document

    @property
    def error(self) -> str:
        """The only line on standard error, with nothing on standard output."""
        assert self.out == ""
        (line,) = self.err.splitlines()
        return line


def run_command(app: Any, *arguments: object) -> CommandResult:
    """Run `celery -A app jobs …` in this process."""
    context = CLIContext(app=app, no_color=True, workdir=None)
    # Click 8.2 always separates the two streams.
    separate: dict[str, Any] = (
        {"mix_stderr": False} if "mix_stderr" in signature(CliRunner).parameters else {}
    )
    result = CliRunner(**separate).invoke(
        jobs, [str(argument) for argument in arguments], obj=context, prog_name="celery jobs"
    )
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return CommandResult(result.exit_code, result.stdout, result.stderr)


class Shell:
    """Runs `python -m celery -A tests.apps jobs …` as a forked process, in one environment."""

    def __init__(
        self, database_url: str | None, broker_url: str, settings: Mapping[str, Any] | None = None
    ) -> None:
        variables = {
            "JOBHANDLE_TEST_DATABASE_URL": database_url,
            "JOBHANDLE_TEST_BROKER_URL": broker_url,
            "JOBHANDLE_TEST_SETTINGS": json.dumps(dict(settings or {})),
        }
        given = {name: value for name, value in variables.items() if value is not None}
        kept = {name: value for name, value in os.environ.items() if name not in variables}
        self.environment = {**kept, "PYTHONFAULTHANDLER": "1", "TERM": "xterm", "COLUMNS": "160", **given}

    @contextmanager
    def start(self, *arguments: object) -> Iterator["RunningCommand"]:
        """Start a command with its output piped; it is killed at the end of the block."""
        (out, to_out), (err, to_err) = os.pipe(), os.pipe()
        process = self._fork(arguments, stdout=to_out, stderr=to_err)
        os.close(to_out)
        os.close(to_err)
        with open(out) as stdout, open(err) as stderr:
            try:
                yield RunningCommand(process, stdout, stderr)
            finally:
                process.kill()
                process.wait(10)

    def run(self, *arguments: object, timeout: float = 300) -> CommandResult:
        """Run a command whose output is not a terminal."""
        with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
            process = self._fork(arguments, stdout=out, stderr=err)
            try:
                process.wait(timeout)
            finally:
                process.kill()
            outputs = [os.pread(file.fileno(), 2**24, 0).decode() for file in (out, err)]
        return CommandResult(process.wait(10), *outputs)

    def on_terminal(self, *arguments: object, answer: str = "", timeout: float = 300) -> CommandResult:
        """Run a command on a terminal and type an answer; `out` has both of its outputs."""
        main, terminal = pty.openpty()
        os.write(main, answer.encode())
        process = self._fork(arguments, stdin=terminal, stdout=terminal, stderr=terminal)
        os.close(terminal)
        try:
            output = _read_all(main)
            process.wait(timeout)
        finally:
            process.kill()
            os.close(main)
        return CommandResult(process.wait(10), output.replace("\r\n", "\n"), "")

    def _fork(self, arguments: Sequence[object], **files: Any) -> ForkedProcess:
        command = ["-A", "tests.apps", "jobs", *map(str, arguments)]
        return fork_server().start(command, env=self.environment, **files)


@dataclass(frozen=True)
class RunningCommand:
    """A running command and its pipes."""

    process: ForkedProcess
    stdout: IO[str]
    stderr: IO[str]

    def end(self, signal_number: signal.Signals) -> CommandResult:
        """Signal it, and return the output since the last read."""
        self.process.send_signal(signal_number)
        code = self.process.wait(60)
        return CommandResult(code, self.stdout.read(), self.stderr.read())


def _read_all(main: int) -> str:
    output = b""
    while True:
        try:
            chunk = os.read(main, 65536)
        except OSError:  # Linux: the last process has closed the terminal
            break
        if not chunk:
            break
        output += chunk
    return output.decode()
