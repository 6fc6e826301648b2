"""Commands as somebody types them: within this process, as a process of its own, on a terminal."""

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
class Answer:
    """What a command said, and its exit code."""

    code: int
    out: str
    err: str

    @property
    def documents(self) -> list[Any]:
        """The JSON documents, one a line."""
        return [json.loads(line) for line in self.out.splitlines()]

    @property
    def document(self) -> Any:
        """The one JSON document."""
        (document,) = self.documents
        return document

    @property
    def error(self) -> str:
        """The one line on standard error of a command that said nothing else."""
        assert self.out == ""
        (line,) = self.err.splitlines()
        return line


def typed(app: Any, *words: object) -> Answer:
    """Run `celery -A app jobs …` in this process."""
    context = CLIContext(app=app, no_color=True, workdir=None)
    # Click keeps the two apart by itself from 8.2 on.
    apart: dict[str, Any] = {"mix_stderr": False} if "mix_stderr" in signature(CliRunner).parameters else {}
    ran = CliRunner(**apart).invoke(jobs, [str(word) for word in words], obj=context, prog_name="celery jobs")
    if ran.exception is not None and not isinstance(ran.exception, SystemExit):
        raise ran.exception
    return Answer(ran.exit_code, ran.stdout, ran.stderr)


class Shell:
    """Runs `python -m celery -A tests.apps jobs …` as a forked process, within one environment."""

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
    def start(self, *words: object) -> Iterator["Running"]:
        """Start a command, its output piped; it is killed when the block ends."""
        (out, to_out), (err, to_err) = os.pipe(), os.pipe()
        process = self._fork(words, stdout=to_out, stderr=to_err)
        os.close(to_out)
        os.close(to_err)
        with open(out) as stdout, open(err) as stderr:
            try:
                yield Running(process, stdout, stderr)
            finally:
                process.kill()
                process.wait(10)

    def run(self, *words: object, timeout: float = 90) -> Answer:
        """Run a command, its output not a terminal."""
        with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
            process = self._fork(words, stdout=out, stderr=err)
            try:
                process.wait(timeout)
            finally:
                process.kill()
            said = [os.pread(file.fileno(), 2**24, 0).decode() for file in (out, err)]
        return Answer(process.wait(10), *said)

    def on_terminal(self, *words: object, answer: str = "", timeout: float = 90) -> Answer:
        """Run a command on a terminal, and type an answer in it; both outputs are the terminal's."""
        main, terminal = pty.openpty()
        os.write(main, answer.encode())
        process = self._fork(words, stdin=terminal, stdout=terminal, stderr=terminal)
        os.close(terminal)
        try:
            said = _all_of(main)
            process.wait(timeout)
        finally:
            process.kill()
            os.close(main)
        return Answer(process.wait(10), said.replace("\r\n", "\n"), "")

    def _fork(self, words: Sequence[object], **files: Any) -> ForkedProcess:
        arguments = ["-A", "tests.apps", "jobs", *map(str, words)]
        return fork_server().start(arguments, env=self.environment, **files)


@dataclass(frozen=True)
class Running:
    """A command that runs, and the ends of its pipes."""

    process: ForkedProcess
    stdout: IO[str]
    stderr: IO[str]

    def end(self, how: signal.Signals) -> Answer:
        """Signal it, and return what it has said since it was last read."""
        self.process.send_signal(how)
        code = self.process.wait(60)
        return Answer(code, self.stdout.read(), self.stderr.read())


def _all_of(main: int) -> str:
    said = b""
    while True:
        try:
            read = os.read(main, 65536)
        except OSError:  # Linux says so when the last process has closed the terminal
            break
        if not read:
            break
        said += read
    return said.decode()
