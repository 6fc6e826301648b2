"""Fresh databases for the tests, cheap: migrated once, then copied.

The library is imported only for migrations: an error in it must not fail tests that do not need it.
"""

import contextlib
import itertools
import os
import secrets
import shutil
from functools import cached_property
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy

from tests.servers import (
    LastingConnection,
    execute,
)

MARIADB_WITH_FAULTS = ["sqlite", "postgresql", pytest.param("mariadb", marks=pytest.mark.faults)]
"""For many cases that take long on MariaDB, which runs a transition in the steps of SQLite."""


def migrate(url: str) -> None:
    """Bring an empty database to the newest schema, and leave no connection behind."""
    from celery import Celery

    from jobhandle_celery import Jobs

    jobs = Jobs(Celery("migration", set_as_current=False), url)
    try:
        jobs.upgrade_schema()
    finally:
        jobs.close()


class SqliteFiles:
    """Migrated SQLite files, by copy; by default in their own folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._template = folder / "template.sqlite3"
        self._numbers = itertools.count(1)

    def create(self, path: Path | None = None) -> str:
        """Make a migrated file and return its URL; `drop()` it unless a place is given."""
        path = path or self._folder / f"{next(self._numbers)}.sqlite3"
        if not self._template.exists():
            unfinished = self._template.with_suffix(".unfinished")
            migrate(f"sqlite:///{unfinished}")
            # Moves what the write-ahead log may still hold into the file that is copied.
            execute(f"sqlite:///{unfinished}", "PRAGMA wal_checkpoint(TRUNCATE)")
            unfinished.rename(self._template)
        shutil.copyfile(self._template, path)
        return f"sqlite:///{path}"

    def drop(self, url: str) -> None:
        for path in self._folder.glob(f"{Path(str(sqlalchemy.make_url(url).database)).name}*"):
            path.unlink(missing_ok=True)  # its write-ahead log goes with its last connection


class Names:
    """Names for databases, unique among all test runs on one server."""

    def __init__(self) -> None:
        self._prefix = f"jobhandle_test_{os.getpid()}_{secrets.token_hex(3)}"
        self._numbers = itertools.count(1)

    def __next__(self) -> str:
        return f"{self._prefix}_{next(self._numbers)}"


class PostgresqlDatabases:
    """Databases on one PostgreSQL server, by copy of a template."""

    def __init__(self, server_url: str) -> None:
        self.server_url = server_url
        self._names = Names()
        self._template: str | None = None
        self._connection = LastingConnection(server_url)

    def create(self) -> str:
        """Make a migrated database and return its URL; `drop()` it afterwards."""
        return self._create(self._migrated_template())

    def create_empty(self, encoding: str | None = None) -> str:
        return self._create("template0", "" if encoding is None else f"ENCODING '{encoding}'")

    def drop(self, url: str) -> None:
        """Drop it, and disconnect its clients."""
        self._execute(f'DROP DATABASE IF EXISTS "{sqlalchemy.make_url(url).database}" WITH (FORCE)')

    def disconnect(self, url: str) -> int:
        """End all connections to it; return how many there were."""
        which = f"datname = '{sqlalchemy.make_url(url).database}'"
        ended = f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE {which}"
        return len(execute(self.server_url, ended))

    def close(self) -> None:
        if self._template is not None:
            self._execute(f'DROP DATABASE IF EXISTS "{self._template}" WITH (FORCE)')
        self._connection.close()

    def _migrated_template(self) -> str:
        if self._template is None:
            url = self.create_empty()
            migrate(url)
            self._template = sqlalchemy.make_url(url).database
        assert self._template is not None
        return self._template

    def _create(self, template: str, options: str = "") -> str:
        name = next(self._names)
        self._execute(f'CREATE DATABASE "{name}" TEMPLATE "{template}" {options} {self._strategy}')
        return sqlalchemy.make_url(self.server_url).set(database=name).render_as_string(hide_password=False)

    @cached_property
    def _strategy(self) -> str:
        # The default of PostgreSQL 15 and newer writes the copy into its log, which takes twice the time.
        [(version,)] = self._execute("SHOW server_version_num")
        return "STRATEGY file_copy" if int(version) >= 150000 else ""

    def _execute(self, statement: str) -> list[Any]:
        return self._connection.execute(statement)


class MariadbDatabases:
    """Databases on one MariaDB server, which has no templates: the first is dumped as statements."""

    def __init__(self, server_url: str) -> None:
        self.server_url = server_url
        self._names = Names()
        self._template: list[str] = []
        self._connection = LastingConnection(server_url)

    def create(self) -> str:
        """Make a migrated database and return its URL; `drop()` it afterwards."""
        url = self.create_empty(*self._template)
        if not self._template:
            migrate(url)
            self._template = _as_statements(url)
        return url

    def create_empty(self, *statements: str) -> str:
        """Make a database, and run statements in it."""
        name = next(self._names)
        execute(
            self.server_url, f"CREATE DATABASE `{name}` CHARACTER SET utf8mb4", f"USE `{name}`", *statements
        )
        return sqlalchemy.make_url(self.server_url).set(database=name).render_as_string(hide_password=False)

    def drop(self, url: str) -> None:
        """Drop it after disconnecting its clients: the drop waits for their transactions."""
        self.disconnect(url)
        self._connection.execute(f"DROP DATABASE IF EXISTS `{sqlalchemy.make_url(url).database}`")

    def disconnect(self, url: str) -> int:
        """End all connections to it; return how many there were."""
        used = f"db = '{sqlalchemy.make_url(url).database}'"
        ended = 0
        for (number,) in self._connection.execute(
            f"SELECT id FROM information_schema.processlist WHERE {used}"
        ):
            with contextlib.suppress(sqlalchemy.exc.DBAPIError):  # it has ended meanwhile
                self._connection.execute(f"KILL CONNECTION {number}")
                ended += 1
        return ended

    def close(self) -> None:
        self._connection.close()


def _as_statements(url: str) -> list[str]:
    """Return the statements that copy this database with its few rows."""
    made = ["SET foreign_key_checks = 0"]
    database = sqlalchemy.make_url(url).database
    tables = execute(
        url, f"SELECT table_name FROM information_schema.tables WHERE table_schema = '{database}'"
    )
    for (table,) in tables:
        [(_, statement)] = execute(url, f"SHOW CREATE TABLE `{table}`")
        made.append(statement)
        rows = [f"({', '.join(map(repr, row))})" for row in execute(url, f"SELECT * FROM `{table}`")]
        if rows:
            made.append(f"INSERT INTO `{table}` VALUES {', '.join(rows)}")
    return made


DATABASES = ["sqlite", "postgresql", "mariadb"]
