"""A real MariaDB of our own, and fresh databases on it; found on the PATH or where Debian puts its daemon.

Here and not in tests/servers.py: nobody's laptop needs one for the rest of the suite.
"""

import itertools
import os
import secrets
import shutil
import signal
import subprocess
import tempfile
from pathlib import Path

import sqlalchemy

from tests.databases import migrate
from tests.reaper import Reaper
from tests.servers import Server, ServerMissing, execute

_PLACES = os.pathsep.join((os.environ.get("PATH", os.defpath), "/usr/sbin", "/usr/local/sbin"))


class MariadbServer(Server):
    """One that keeps nothing from a crash of the machine, as our PostgreSQL; as `nobody` under root."""

    name = "MariaDB"
    end_signal = signal.SIGTERM

    def __init__(self, daemon: Path, folder: Path, reaper: Reaper) -> None:
        super().__init__(daemon.parent, folder, reaper)
        self.daemon = daemon
        self.user = "nobody" if os.geteuid() == 0 else None
        fast = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
        self.data = Path(tempfile.mkdtemp(prefix="jobhandle-test-mariadb-data-", dir=fast))
        reaper.remove_folder(self.data)

    @property
    def url(self) -> str:
        """Its server, without a database, as somebody who may do anything."""
        return f"mariadb+pymysql://tests:{self.password}@127.0.0.1:{self.port}/?charset=utf8mb4"

    @property
    def command(self) -> list[str]:
        options = {
            "datadir": self.data,
            "port": self.port,
            "bind-address": "127.0.0.1",
            "socket": self.folder / "socket",
            "pid-file": self.folder / "pid",
            "tmpdir": self.folder,
            "init-file": self.folder / "init.sql",
            "max-connections": 200,
            "innodb-flush-log-at-trx-commit": 0,
            "innodb-buffer-pool-size": "64M",
            "innodb-log-file-size": "32M",
        }
        return [
            str(self.daemon),
            *("--no-defaults", "--skip-name-resolve"),
            *(f"--{option}={value}" for option, value in options.items()),
        ]

    def prepare(self) -> None:
        installer = shutil.which("mariadb-install-db", path=_PLACES)
        if installer is None:
            raise ServerMissing("there is no mariadb-install-db")
        first = self.folder / "init.sql"
        first.write_text(
            f"CREATE USER IF NOT EXISTS tests@'127.0.0.1' IDENTIFIED BY '{self.password}';\n"
            "GRANT ALL ON *.* TO tests@'127.0.0.1' WITH GRANT OPTION;\n"
        )
        if self.user is not None:
            for path in (self.folder, self.data, first):
                shutil.chown(path, self.user)
        command = [
            installer,
            *("--no-defaults", "--skip-test-db", "--auth-root-authentication-method=normal"),
            f"--datadir={self.data}",
            *([f"--user={self.user}"] if self.user else []),
        ]
        # Its temporary tables are named after its process id, and /tmp may be shared with another machine's.
        environment = {**os.environ, "TMPDIR": str(self.folder)}
        made = subprocess.run(
            command, capture_output=True, text=True, timeout=60, check=False, env=environment
        )
        if made.returncode != 0:
            raise ServerMissing(f"{installer} ended with {made.returncode}: {made.stderr.strip()}")

    def discard(self) -> None:
        super().discard()
        shutil.rmtree(self.data, ignore_errors=True)

    def answers(self) -> bool:
        try:
            execute(self.url, "SELECT 1")
        except sqlalchemy.exc.OperationalError:
            return False
        return True


class MariadbDatabases:
    """Databases on one server. There are no templates to copy, so each is migrated anew."""

    def __init__(self, server_url: str) -> None:
        self.server_url = server_url
        self._prefix = f"jobhandle_test_{os.getpid()}_{secrets.token_hex(3)}"
        self._numbers = itertools.count(1)

    def create(self) -> str:
        """Make a migrated database and return its URL; `drop()` it afterwards."""
        url = self.create_empty()
        migrate(url)
        return url

    def create_empty(self) -> str:
        name = f"{self._prefix}_{next(self._numbers)}"
        execute(self.server_url, f"CREATE DATABASE `{name}` CHARACTER SET utf8mb4")
        return sqlalchemy.make_url(self.server_url).set(database=name).render_as_string(hide_password=False)

    def drop(self, url: str) -> None:
        execute(self.server_url, f"DROP DATABASE IF EXISTS `{sqlalchemy.make_url(url).database}`")


def own_mariadb(reaper: Reaper) -> MariadbServer:
    """Start a MariaDB of our own (about three seconds); the caller ends it with `discard()`.

    Raises:
        ServerMissing: with the reason.
    """
    daemon = shutil.which("mariadbd", path=_PLACES)
    if daemon is None:
        raise ServerMissing("no MariaDB for the tests: there is no mariadbd on the PATH, nor in /usr/sbin")
    folder = Path(tempfile.mkdtemp(prefix="jobhandle-test-mariadb-"))
    reaper.remove_folder(folder)
    server = MariadbServer(Path(daemon), folder, reaper)
    try:
        server.prepare()
        server.start()
    except (ServerMissing, AssertionError, OSError) as error:
        server.discard()
        raise ServerMissing(f"no MariaDB for the tests: {daemon}: {error}") from error
    return server
