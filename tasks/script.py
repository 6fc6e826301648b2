"""`tasks.run_script`: run a program from one folder, and speak for it."""

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
from .report import Report

GRACE = 3.0
"""Seconds from the SIGTERM that a program's group is told to end by to the SIGKILL that ends it."""

LINE, TAIL = 10_000, 2_000
"""Bytes that are kept: of a line, as a message has room for; and of the end of the standard error."""

_LEASH = Path(__file__).with_name("leash.py")


class ScriptError(RuntimeError):
    """A program ended badly; the text has its exit code and the end of its standard error."""


class ScriptTimeoutError(ScriptError):
    """A program was ended because its time was over."""


@app.task(name="tasks.run_script")
def run_script(path: str, arguments: Sequence[str] = (), timeout: float | None = None) -> dict[str, Any]:
    """Run a program; the last line that it printed is the job's message, while it runs and afterwards.

    No shell is involved. A cancel, a time limit, or the end of this process, however it comes, ends the
    program and all of its process group. It finds neither standard input nor our URLs in its environment.

    Args:
        path: Within the folder that ``JOBHANDLE_SCRIPTS`` names, also after symbolic links and `..`.
        arguments: Names of files that are not UTF-8 arrive as they are (`os.fsdecode`).
        timeout: Seconds; None: as long as it takes.

    Returns:
        The exit code, 0, and the last line.

    Raises:
        ValueError: not a program of that folder, or not arguments.
        ScriptError: its exit code was not 0.
        ScriptTimeoutError: it was not over in time.
    """
    program = _program(app.conf.get("scripts_folder"), path)
    output = _Output()
    with _on_leash([str(program), *_checked(arguments)], program.parent) as process:
        code = _follow(process, output, timeout)
    if code:
        raise ScriptError(f"{path!r} {_ending(code)}{output.complaint}")
    return {"exit_code": code, "output": output.last_line}


def _program(folder: str | None, path: str) -> Path:
    if not folder:
        raise ValueError("no program may be run here: JOBHANDLE_SCRIPTS names no folder")
    allowed = Path(folder).resolve()
    try:
        program = (allowed / path).resolve(strict=True)
    except (OSError, RuntimeError, ValueError):  # missing; a loop of links; a NUL
        program = None
    if program is None or not program.is_relative_to(allowed) or not program.is_file():
        # Whether there is such a file elsewhere is not for whoever submits jobs to know.
        raise ValueError(f"path: {path!r} is not a program of the folder of scripts")
    if not os.access(program, os.X_OK):
        raise ValueError(f"path: {path!r} is not executable")
    return program


def _checked(arguments: Sequence[str]) -> list[str]:
    if isinstance(arguments, str) or not all(isinstance(one, str) and "\0" not in one for one in arguments):
        raise ValueError(f"arguments: {arguments!r:.200}; accepted: a list of text")
    return list(arguments)


@contextlib.contextmanager
def _on_leash(command: list[str], folder: Path) -> "Iterator[subprocess.Popen[bytes]]":
    """Run it; whatever takes us out of here, it does not outlive us."""
    process = subprocess.Popen(
        [sys.executable, "-I", "-S", str(_LEASH), str(GRACE), *command],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        cwd=folder,
        env={name: value for name, value in os.environ.items() if not name.startswith("JOBHANDLE_")},
        # What is sent to the worker's group is the worker's to answer.
        start_new_session=True,
    )
    try:
        yield process
    finally:
        # It writes to nobody from now on; a full pipe must not keep it.
        for pipe in (process.stdin, process.stdout, process.stderr):
            assert pipe
            pipe.close()
        process.wait()


def _follow(process: "subprocess.Popen[bytes]", output: "_Output", timeout: float | None) -> int:
    report, deadline = Report(), None if timeout is None else time.monotonic() + timeout
    with selectors.DefaultSelector() as selector:
        for pipe, hear in ((process.stdout, output.hear), (process.stderr, output.hear_complaint)):
            assert pipe
            os.set_blocking(pipe.fileno(), False)
            selector.register(pipe, selectors.EVENT_READ, hear)
        while True:
            over = process.poll() is not None
            heard = _hear(selector, 0.0 if over else 0.1)
            if over and not heard:
                break
            report(output.last_line)
            if deadline is not None and time.monotonic() >= deadline:
                raise ScriptTimeoutError(f"not over within {timeout:g} s, and ended{output.complaint}")
    report.message(output.last_line)
    assert process.returncode is not None
    return process.returncode


def _hear(selector: selectors.BaseSelector, seconds: float) -> bool:
    """Read what there is; False if there was nothing."""
    if not selector.get_map():
        time.sleep(seconds)
        return False
    heard = False
    for key, _ in selector.select(seconds):
        read = _read(key.fileobj)
        if read:
            key.data(read)
            heard = True
        else:
            selector.unregister(key.fileobj)
    return heard


def _read(pipe: IO[bytes] | Any) -> bytes:
    return os.read(pipe.fileno(), 65536)


class _Output:
    """What a program has said: its last line, and the end of its complaints; however much it says."""

    def __init__(self) -> None:
        self._line = b""
        self._unfinished = b""
        self._complaint = b""

    def hear(self, said: bytes) -> None:
        """Take in a piece of its standard output."""
        # A carriage return ends a line as well: that is how progress bars are drawn.
        *lines, unfinished = (self._unfinished + said).replace(b"\r", b"\n").split(b"\n")
        self._unfinished = unfinished[:LINE]
        for line in reversed(lines):
            if line.strip():
                self._line = line[:LINE]
                break

    def hear_complaint(self, said: bytes) -> None:
        """Take in a piece of its standard error."""
        self._complaint = (self._complaint + said)[-TAIL:]

    @property
    def last_line(self) -> str:
        """The last line that is not blank, whole or not."""
        line = self._unfinished if self._unfinished.strip() else self._line
        return line.decode("utf-8", "backslashreplace").strip()

    @property
    def complaint(self) -> str:
        """The end of its standard error, as the end of a sentence."""
        said = self._complaint.decode("utf-8", "backslashreplace").strip()
        return f": {said}" if said else ""


def _ending(code: int) -> str:
    if code > 0:
        return f"ended with exit code {code}"
    return f"was ended by signal {-code} ({signal.strsignal(-code)})"
