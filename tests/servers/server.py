"""A server process of a test run, on a free port, which a test can end and restart."""

import contextlib
import os
import secrets
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import psutil
import sqlalchemy

from tests.reaper import Reaper
from tests.servers.places import fast_folder, free_port, session_of
from tests.servers.sql import execute
from tests.support import eventually

S = TypeVar("S", bound="Server")


class ServerMissing(Exception):
    """No program of this server was found that runs here."""


@dataclass(frozen=True)
class Reached:
    """How a server is reached; JSON can hold it."""

    url: str
    management: Sequence[str] = ()
    """The URL, user and password of a RabbitMQ's management plugin."""


class Server:
    """A server process of the test run, on one port; a test can end and restart it."""

    name: str
    end_signal: signal.Signals
    last_signal: signal.Signals | None = None
    """The signal that ends it when its data is not needed any more; None: its `end_signal`."""
    user: str | None = None
    starts_within = 30.0
    """Seconds, on a busy machine."""

    def __init__(self, programs: Path, folder: Path, reaper: Reaper) -> None:
        self.programs = programs
        self.folder = folder
        self.port = 0
        self.password = secrets.token_hex(8)  # this machine's other users reach the port too
        self._process: subprocess.Popen[bytes] | None = None
        self._reaper = reaper

    @property
    def url(self) -> str:
        raise NotImplementedError

    @property
    def command(self) -> list[str]:
        raise NotImplementedError

    def answers(self) -> bool:
        raise NotImplementedError

    def prepare(self) -> None:
        """Make its data, once, before the first start."""

    @property
    def log(self) -> str:
        return (self.folder / "log").read_text(errors="replace")

    def start(self) -> None:
        """Start it, on the port that it had if it ran before, and wait until it answers."""
        if self.port:
            self._start_on_port()
            return
        for attempt in range(5):  # another process may take the port before the server binds it
            self.port = free_port()
            try:
                self._start_on_port()
                return
            except AssertionError:
                self.kill()
                if attempt == 4:
                    raise

    def stop(self) -> None:
        """Shut it down in an orderly way; its clients are disconnected."""
        self._end(self.end_signal)

    def kill(self) -> None:
        """End it at once, with all its processes."""
        self._end(signal.SIGKILL)

    def discard(self) -> None:
        """End it and remove its data."""
        self._end(self.last_signal or self.end_signal)
        for folder in self.folders:
            shutil.rmtree(folder, ignore_errors=True)

    @property
    def folders(self) -> list[Path]:
        """The folders to remove after its end."""
        return [self.folder]

    @property
    def reached(self) -> "Reached":
        return Reached(self.url)

    @property
    def left_to_reaper(self) -> dict[str, Any]:
        """The note for the reaper of another process."""
        assert self._process is not None, f"{self.name} does not run"
        return {
            "pid": self._process.pid,
            "signal": self.last_signal or self.end_signal,
            "folders": list(map(str, self.folders)),
        }

    def leave(self) -> None:
        """Leave it running, to the reaper of another process."""
        assert self._process is not None, f"{self.name} does not run"
        self._reaper.forget(self._process.pid)
        for folder in self.folders:
            self._reaper.keep_folder(folder)
        self._process.returncode = 0  # or Popen warns that it runs

    def pause(self) -> None:
        """Pause its processes until `resume()`: connections stay open, without answers."""
        for process in self.processes():
            with contextlib.suppress(psutil.NoSuchProcess):  # a connection's process ends with it
                process.suspend()

    def resume(self) -> None:
        for process in self.processes():
            with contextlib.suppress(psutil.NoSuchProcess):
                process.resume()

    def _start_on_port(self) -> None:
        assert self._process is None, f"{self.name} runs already"
        with (self.folder / "log").open("ab") as log:
            process = self._process = subprocess.Popen(
                self.command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, **session_of(self.user)
            )
        self._reaper.watch(process.pid, self.end_signal)
        eventually(
            lambda: process.poll() is not None or self.answers(),
            self.starts_within,
            f"{self.name} does not answer",
        )
        assert process.poll() is None, f"{self.name} ended with {process.returncode}:\n{self.log[-2000:]}"

    def _end(self, how: signal.Signals) -> None:
        if self._process is None:
            return
        processes = self.processes()
        self.resume()
        if how != signal.SIGKILL:
            self._process.send_signal(how)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(timeout=10)
        for process in processes:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        self._process.wait(timeout=10)
        self._reaper.forget(self._process.pid)
        self._process = None

    def processes(self) -> list[psutil.Process]:
        """The server's process and its descendants; empty if it does not run."""
        if self._process is None or self._process.poll() is not None:
            return []
        leader = psutil.Process(self._process.pid)
        return [leader, *leader.children(recursive=True)]


class DatabaseServer(Server):
    """A server of SQL, as `nobody` under root."""

    def __init__(self, programs: Path, folder: Path, reaper: Reaper) -> None:
        super().__init__(programs, folder, reaper)
        self.user = "nobody" if os.geteuid() == 0 else None
        self.data = Path(
            tempfile.mkdtemp(prefix=f"jobhandle-test-{self.name.lower()}-data-", dir=self.place())
        )
        reaper.remove_folder(self.data)

    @staticmethod
    def place() -> str | None:
        """The parent of its data folder; None for the default temporary folder."""
        return fast_folder()

    @property
    def folders(self) -> list[Path]:
        return [*super().folders, self.data]

    def answers(self) -> bool:
        try:
            execute(self.url, "SELECT 1")
        except sqlalchemy.exc.OperationalError:
            return False
        return True

    def make_data(self, command: list[str], **options: Any) -> None:
        """Run its program that makes a data folder."""
        made = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, **options)
        if made.returncode != 0:
            raise ServerMissing(f"{command[0]} ended with {made.returncode}: {made.stderr.strip()}")


def start_first(kind: type[S], reaper: Reaper, places: list[Path]) -> S:
    """Start a server with the programs of the first of these folders with which one starts.

    Raises:
        ServerMissing: with the reasons of all.
    """
    reasons = [] if places else ["its programs are neither on the PATH nor among the installed wheels"]
    for programs in places:
        folder = Path(tempfile.mkdtemp(prefix=f"jobhandle-test-{kind.name.lower()}-"))
        reaper.remove_folder(folder)
        server = kind(programs, folder, reaper)
        try:
            server.prepare()
            server.start()
        except (ServerMissing, AssertionError, OSError) as error:
            reasons.append(f"{programs}: {error}")
            server.discard()
        else:
            return server
    raise ServerMissing(f"no {kind.name} for the tests: " + "; ".join(reasons))
