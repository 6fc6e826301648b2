"""`tasks.run_script`: runs a program from one folder, with its last line of output as the job's message."""

import contextlib
import os
import selectors
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any

from .application import app
from .progress import ProgressReporter

TERM_TIMEOUT = 3.0
"""Seconds between SIGTERM and SIGKILL."""

MAX_LINE, MAX_STDERR = 10_000, 2_000
"""Bytes kept of a line, within the limit of a message; and of the end of standard error."""

_SUPERVISOR = Path(__file__).with_name("supervisor.py")


class ScriptError(RuntimeError):
    """A program failed; the text has its exit code and the end of its standard error."""


class ScriptTimeoutError(ScriptError):
    """A program was ended by its timeout."""


@app.task(name="tasks.run_script")
def run_script(path: str, arguments: Sequence[str] = (), timeout: float | None = None) -> dict[str, Any]:
    """Run a program; the last line of its output is the job's message, while it runs and afterwards.

    No shell is involved. A cancel, a time limit, or the end of this process, by any cause, ends the program
    and its process group. The program has no standard input and no ``JOBHANDLE_`` environment variables.

    Args:
        path: Within the folder of ``JOBHANDLE_SCRIPTS``, after symbolic links and `..` are resolved.
        arguments: File names that are not UTF-8 are passed as `os.fsdecode` represents them.
        timeout: Seconds; None for no limit.

    Returns:
        The exit code, 0, and the last line.

    Raises:
        ValueError: the path is not a program of the folder, or the arguments are not a list of text.
        ScriptError: the exit code was not 0.
        ScriptTimeoutError: the timeout expired.
    """
    program = _resolve(app.conf.get("scripts_folder"), path)
    output = _Output()
    with _supervised([str(program), *_checked(arguments)], program.parent) as process:
        code = _follow(process, output, timeout)
    if code:
        raise ScriptError(f"{path!r} {_describe_exit(code)}{output.error}")
    return {"exit_code": code, "output": output.last_line}


def _resolve(folder: str | None, path: str) -> Path:
    if not folder:
        raise ValueError("no program may be run: the environment variable JOBHANDLE_SCRIPTS is not set")
    allowed = Path(folder).resolve()
    try:
        program = (allowed / path).resolve(strict=True)
    except (OSError, RuntimeError, ValueError):  # missing; a loop of links; a NUL
        program = None
    if program is None or not program.is_relative_to(allowed) or not program.is_file():
        # The same error for a file that exists elsewhere: submitters must not learn which files exist.
        raise ValueError(f"path: {path!r} is not a program of the folder of scripts")
    if not os.access(program, os.X_OK):
        raise ValueError(f"path: {path!r} is not executable")
    return program


def _checked(arguments: Sequence[str]) -> list[str]:
    if isinstance(arguments, str) or not all(
        isinstance(argument, str) and "\0" not in argument for argument in arguments
    ):
        raise ValueError(f"arguments: {arguments!r:.200}; accepted: a list of text")
    return list(arguments)


@contextlib.contextmanager
def _supervised(command: list[str], folder: Path) -> "Iterator[subprocess.Popen[bytes]]":
    """Run a command, which ends with the block at the latest."""
    process = subprocess.Popen(
        [sys.executable, "-I", "-S", str(_SUPERVISOR), str(TERM_TIMEOUT), *command],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        cwd=folder,
        env={name: value for name, value in os.environ.items() if not name.startswith("JOBHANDLE_")},
        # Signals to the worker's process group are for the worker.
        start_new_session=True,
    )
    try:
        yield process
    finally:
        # Closing standard input ends the program; closing its output keeps it from blocking on a full pipe.
        for pipe in (process.stdin, process.stdout, process.stderr):
            assert pipe
            pipe.close()
        process.wait()


def _follow(process: "subprocess.Popen[bytes]", output: "_Output", timeout: float | None) -> int:
    report, deadline = ProgressReporter(), None if timeout is None else time.monotonic() + timeout
    with selectors.DefaultSelector() as selector:
        for pipe, add in ((process.stdout, output.add_stdout), (process.stderr, output.add_stderr)):
            assert pipe
            os.set_blocking(pipe.fileno(), False)
            selector.register(pipe, selectors.EVENT_READ, add)
        while True:
            exited = process.poll() is not None
            received = _read_ready(selector, 0.0 if exited else 0.1)
            if exited and not received:
                break
            report(output.last_line)
            if deadline is not None and time.monotonic() >= deadline:
                raise ScriptTimeoutError(f"ended by its timeout of {timeout:g} s{output.error}")
    report.set_message(output.last_line)
    assert process.returncode is not None
    return process.returncode


def _read_ready(selector: selectors.BaseSelector, seconds: float) -> bool:
    """Read what the pipes have; return False if that was nothing."""
    if not selector.get_map():
        time.sleep(seconds)
        return False
    received = False
    for key, _ in selector.select(seconds):
        chunk = _read(key.fileobj)
        if chunk:
            key.data(chunk)
            received = True
        else:
            selector.unregister(key.fileobj)
    return received


def _read(pipe: IO[bytes] | Any) -> bytes:
    return os.read(pipe.fileno(), 65536)


class _Output:
    """The last line of a program's output and the end of its standard error, in bounded memory."""

    def __init__(self) -> None:
        self._line = b""
        self._unfinished = b""
        self._stderr = b""

    def add_stdout(self, chunk: bytes) -> None:
        # A carriage return ends a line, too: progress bars use it.
        *lines, unfinished = (self._unfinished + chunk).replace(b"\r", b"\n").split(b"\n")
        self._unfinished = unfinished[:MAX_LINE]
        for line in reversed(lines):
            if line.strip():
                self._line = line[:MAX_LINE]
                break

    def add_stderr(self, chunk: bytes) -> None:
        self._stderr = (self._stderr + chunk)[-MAX_STDERR:]

    @property
    def last_line(self) -> str:
        """The last line that is not blank, complete or not."""
        line = self._unfinished if self._unfinished.strip() else self._line
        return line.decode("utf-8", "backslashreplace").strip()

    @property
    def error(self) -> str:
        """The end of standard error, to be appended to a message."""
        text = self._stderr.decode("utf-8", "backslashreplace").strip()
        return f": {text}" if text else ""


def _describe_exit(code: int) -> str:
    if code > 0:
        return f"ended with exit code {code}"
    return f"was ended by signal {-code} ({signal.strsignal(-code)})"
