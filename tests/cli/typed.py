"""Commands as somebody types them: within this process, as a process of its own, on a terminal."""

import json
import os
import pty
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from celery.bin.base import CLIContext
from click.testing import CliRunner

from jobhandle_celery.cli import jobs
from tests.workers import ROOT


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
    ran = CliRunner().invoke(jobs, [str(word) for word in words], obj=context, prog_name="celery jobs")
    if ran.exception is not None and not isinstance(ran.exception, SystemExit):
        raise ran.exception
    return Answer(ran.exit_code, ran.stdout, ran.stderr)


class Shell:
    """Runs `python -m celery -A tests.apps jobs …` as a process of its own, within one environment."""

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

    def command(self, *words: object) -> Sequence[str]:
        return [sys.executable, "-m", "celery", "-A", "tests.apps", "jobs", *map(str, words)]

    def start(self, *words: object, **options: Any) -> subprocess.Popen[str]:
        """Start a command; the caller ends it."""
        return subprocess.Popen(
            self.command(*words),
            cwd=ROOT,
            env=self.environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            **options,
        )

    def run(self, *words: object, timeout: float = 90) -> Answer:
        """Run a command, its output piped."""
        process = self.start(*words)
        try:
            out, err = process.communicate(timeout=timeout)
        finally:
            process.kill()
        return Answer(process.returncode, out, err)

    def on_terminal(self, *words: object, answer: str = "", timeout: float = 90) -> Answer:
        """Run a command on a terminal, and type an answer in it; both outputs are the terminal's."""
        main, terminal = pty.openpty()
        os.write(main, answer.encode())
        process = subprocess.Popen(
            self.command(*words),
            cwd=ROOT,
            env=self.environment,
            stdin=terminal,
            stdout=terminal,
            stderr=terminal,
            start_new_session=True,
        )
        os.close(terminal)
        try:
            said = _all_of(main)
            process.wait(timeout)
        finally:
            process.kill()
            os.close(main)
        return Answer(process.returncode, said.replace("\r\n", "\n"), "")


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
