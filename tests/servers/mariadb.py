"""A MariaDB of our own, from the PATH or where Debian puts its daemon; as `nobody` under root."""

import os
import shutil
import signal
from pathlib import Path

from tests.reaper import Reaper
from tests.servers.places import on_path, program
from tests.servers.server import DatabaseServer, ServerMissing, start_first


class MariadbServer(DatabaseServer):
    name = "MariaDB"
    end_signal = signal.SIGTERM
    last_signal = signal.SIGKILL

    @property
    def url(self) -> str:
        """The URL of the server, without a database, as an administrator."""
        return f"mariadb+pymysql://tests:{self.password}@127.0.0.1:{self.port}/?charset=utf8mb4&ssl_disabled=true"

    @property
    def command(self) -> list[str]:
        options = {
            "datadir": self.data,
            "port": self.port,
            "bind-address": "127.0.0.1",
            "socket": self.folder / "socket",
            "pid-file": self.folder / "pid",
            "tmpdir": self.folder,
            "init-file": self._first_statements,
            "max-connections": 400,
            # Only a crash of the machine loses unsynced data; a kill of the server does not.
            "innodb-flush-log-at-trx-commit": 2,
            # Together with the data on a tmpfs: keep small.
            "innodb-buffer-pool-size": "64M",
            "innodb-log-file-size": "32M",
        }
        return [
            str(self.programs / "mariadbd"),
            *("--no-defaults", "--skip-name-resolve"),
            *(f"--{option}={value}" for option, value in options.items()),
        ]

    def prepare(self) -> None:
        installer = program("mariadb-install-db")
        if installer is None:
            raise ServerMissing("there is no mariadb-install-db")
        self._first_statements.write_text(
            f"CREATE USER IF NOT EXISTS tests@'127.0.0.1' IDENTIFIED BY '{self.password}';\n"
            "GRANT ALL ON *.* TO tests@'127.0.0.1' WITH GRANT OPTION;\n"
        )
        if self.user is not None:
            for path in (self.folder, self.data, self._first_statements):
                shutil.chown(path, self.user)
        command = [
            installer,
            *("--no-defaults", "--skip-test-db", "--auth-root-authentication-method=normal"),
            f"--datadir={self.data}",
            *([f"--user={self.user}"] if self.user else []),
        ]
        # Its temporary tables are named after its process id, and /tmp may be shared with another machine.
        environment = {**os.environ, "TMPDIR": str(self.folder)}
        self.make_data(command, env=environment)

    @property
    def _first_statements(self) -> Path:
        return self.folder / "init.sql"


def own_mariadb(reaper: Reaper) -> MariadbServer:
    """Start a MariaDB of our own with new data (about three seconds); the caller ends it with `discard()`.

    Raises:
        ServerMissing: with the reason.
    """
    return start_first(MariadbServer, reaper, on_path("mariadbd", "mariadb-install-db"))
