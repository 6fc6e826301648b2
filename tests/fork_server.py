"""Starts Celery's programs by fork, from a process that has imported what they import.

Celery's command line imports the commands of every installed package, which takes a second of a processor's
time; a fork takes some milliseconds. A forked program has its own session, environment, output and
`sys.argv`, and ends as a program does. Programs of gevent, whose patches must come before all imports, are
not started here. This module imports the standard library alone, since forks start with its imports.
"""

import atexit
import contextlib
import functools
import gc
import importlib
import io
import json
import os
import runpy
import select
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any, NoReturn

_ROOT = Path(__file__).resolve().parent.parent
IMPORTED = (
    "celery.apps.worker",
    "celery.bin.celery",
    "celery.concurrency.prefork",
    "celery.concurrency.solo",
    "celery.concurrency.thread",
    "celery.worker.components",
    "celery.worker.consumer",
    "celery.worker.loops",
    "kombu.transport.memory",
    "kombu.transport.pyamqp",
    "kombu.transport.redis",
    "celery.backends.redis",
    "jobhandle_celery.cli",
    "jobhandle_celery.jobs",
    "jobhandle_celery.migrations",
    "jobhandle_celery.worker.bootstep",
    "psycopg",
    "pymysql",
    "sqlalchemy.dialects.mysql.pymysql",
    "sqlalchemy.dialects.postgresql.psycopg",
    "sqlalchemy.dialects.sqlite",
)
UNBUFFERED = {"PYTHONUNBUFFERED": "1", "PYTHONFAULTHANDLER": "1"}
"""Makes Python write its output at once, and where it crashed."""


class ForkedProcess:
    """A program that runs `python -m celery`, with the interface of `subprocess.Popen`."""

    def __init__(self, link: socket.socket) -> None:
        self._link = link
        self.returncode: int | None = None
        self.pid = int(self._next_line())

    def poll(self, timeout: float = 0) -> int | None:
        if self.returncode is None and select.select([self._link], [], [], timeout)[0]:
            self.returncode = int(self._next_line())
            self._link.close()
        return self.returncode

    def wait(self, timeout: float) -> int:
        if (code := self.poll(timeout)) is None:
            raise subprocess.TimeoutExpired(f"process {self.pid}", timeout)
        return code

    def send_signal(self, which: int) -> None:
        if self.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, which)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def _next_line(self) -> bytes:
        line = b""
        while not line.endswith(b"\n"):
            read = self._link.recv(1)
            assert read, "the fork server has ended"
            line += read
        return line


class ForkServer:
    """The test run's side. The server ends with the test run; its forks do not."""

    def __init__(self) -> None:
        self._control, theirs = _pair()
        with theirs:
            command = [sys.executable, "-m", "tests.fork_server"]
            self._process = subprocess.Popen(
                command,
                stdin=theirs.fileno(),
                cwd=_ROOT,
                env={**os.environ, **UNBUFFERED},
                start_new_session=True,
            )

    def start(
        self,
        arguments: Sequence[str],
        *,
        env: Mapping[str, str],
        stdout: IO[Any] | int,
        stderr: IO[Any] | int,
        stdin: IO[Any] | int | None = None,
        module: str = "celery",
        cwd: Path = _ROOT,
    ) -> ForkedProcess:
        """Start `python -m MODULE` with these arguments, as the leader of a session."""
        link, theirs = _pair()
        with theirs, open(os.devnull, "rb") as nothing:
            files = (nothing if stdin is None else stdin, stdout, stderr)
            numbers = [file if isinstance(file, int) else file.fileno() for file in files]
            socket.send_fds(self._control, [b"f"], [theirs.fileno(), *numbers])
        link.sendall(json.dumps([module, str(cwd), arguments, dict(env)]).encode() + b"\n")
        return ForkedProcess(link)


def _pair() -> tuple[socket.socket, socket.socket]:
    """Return two connected sockets that wait, whatever `socket.setdefaulttimeout` another thread has set.

    kombu sets it while it closes a connection. A socket with a timeout does not block, and the process that
    gets it would read an end of file before the data.
    """
    pair = socket.socketpair()
    for end in pair:
        end.settimeout(None)
    return pair


def start_anew(
    arguments: Sequence[str], *, env: Mapping[str, str], stdout: IO[Any], stderr: IO[Any]
) -> "subprocess.Popen[bytes]":
    """Start `python -m celery` with these arguments, not by fork, as the leader of a session."""
    return subprocess.Popen(
        [sys.executable, "-m", "celery", *arguments],
        stdin=subprocess.DEVNULL,
        stdout=stdout,
        stderr=stderr,
        cwd=_ROOT,
        env=env,
        start_new_session=True,
    )


@functools.cache
def fork_server() -> ForkServer:
    """Return the server of this process, started at the first call."""
    return ForkServer()


def _serve(control: socket.socket) -> list[str] | None:
    """Fork until the test run has ended; return only in a fork, with its module and arguments."""
    awake, wake = os.pipe()
    os.set_blocking(wake, False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.set_wakeup_fd(wake)
    links: dict[int, socket.socket] = {}
    while True:
        ready = select.select([control.fileno(), awake], [], [])[0]
        if awake in ready:
            os.read(awake, 512)
            _report_the_ended(links)
        if control.fileno() in ready:
            asked, descriptors, _, _ = socket.recv_fds(control, 1, 4)
            if not asked:
                return None
            link = socket.socket(fileno=descriptors[0])
            if not (pid := os.fork()):
                signal.set_wakeup_fd(-1)
                signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                for other in links.values():
                    other.close()
                for descriptor in (awake, wake):
                    os.close(descriptor)
                return _become(link, descriptors[1:])
            for descriptor in descriptors[1:]:
                os.close(descriptor)
            links[pid] = link
            _send(link, pid)


def _report_the_ended(links: dict[int, socket.socket]) -> None:
    for pid in list(links):
        ended, status = os.waitpid(pid, os.WNOHANG)
        if ended:
            with links.pop(pid) as link:
                _send(link, os.waitstatus_to_exitcode(status))


def _send(link: socket.socket, number: int) -> None:
    with contextlib.suppress(OSError):  # a killed test run reads no more
        link.sendall(b"%d\n" % number)


def _become(link: socket.socket, descriptors: list[int]) -> list[str]:
    """Apply the program's environment, output and `sys.argv`; return its module and arguments."""
    os.setsid()
    with link, link.makefile("rb") as request:
        module, folder, arguments, environment = json.loads(request.readline())
    os.chdir(folder)
    for place, descriptor in enumerate(descriptors):
        os.dup2(descriptor, place)
        os.close(descriptor)
    os.environ.clear()
    os.environ.update(environment)
    sys.stdin = open(0, closefd=False)  # noqa: SIM115  # for all its life, as the others
    sys.stdout = _output(sys.stdout, 1, bool(environment.get("PYTHONUNBUFFERED")))
    sys.stderr = _output(sys.stderr, 2, True)
    sys.path[1:1] = filter(None, environment.get("PYTHONPATH", "").split(os.pathsep))
    return [module, *arguments]


def _output(former: Any, number: int, unbuffered: bool) -> io.TextIOWrapper:
    """Return a stream as Python opens it at start; the old one keeps its old settings."""
    binary = open(number, "wb", 0 if unbuffered else -1, closefd=False)  # noqa: SIM115  # for all its life
    return io.TextIOWrapper(
        binary,
        encoding=former.encoding,
        errors=former.errors,
        line_buffering=unbuffered or os.isatty(number),
        write_through=unbuffered,
    )


def _main() -> None:
    control = socket.socket(fileno=os.dup(0))
    for name in IMPORTED:
        with contextlib.suppress(ImportError):  # an extra that is not installed
            importlib.import_module(name)
    gc.freeze()  # a collection in a fork need not copy all that was imported
    arguments = _serve(control)
    control.close()
    if arguments is not None:
        sys.argv = arguments
        try:
            runpy.run_module(arguments[0], run_name="__main__", alter_sys=True)
        except SystemExit as end:
            _end(end.code)
        _end(None)


def _end(code: int | str | None) -> NoReturn:
    """End as a program does, but leave its memory to the kernel: to free it would copy all that it shares."""
    threading._shutdown()  # type: ignore[attr-defined]  # waits for the threads that are no daemons
    atexit._run_exitfuncs()
    if isinstance(code, str):
        print(code, file=sys.stderr)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(1 if isinstance(code, str) else code or 0)


if __name__ == "__main__":
    _main()
