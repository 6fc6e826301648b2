"""Fresh databases for the tests, cheap: migrated once, then copied.

The library is imported only when something is migrated: an error in it must not hide the tests that
do not need it.
"""

import itertools
import os
import secrets
import shutil
from pathlib import Path

import sqlalchemy

from tests.servers import execute


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
    """Migrated SQLite files, by copy."""

    def __init__(self, folder: Path) -> None:
        self._template = folder / "template.sqlite3"

    def create(self, path: Path) -> str:
        """Make a migrated file and return its URL."""
        if not self._template.exists():
            unfinished = self._template.with_suffix(".unfinished")
            migrate(f"sqlite:///{unfinished}")
            # Moves what the write-ahead log may still hold into the file that is copied.
            execute(f"sqlite:///{unfinished}", "PRAGMA wal_checkpoint(TRUNCATE)")
            unfinished.rename(self._template)
        shutil.copyfile(self._template, path)
        return f"sqlite:///{path}"


class PostgresqlDatabases:
    """Databases on one server, each with a name of its own among all test runs on that server."""

    def __init__(self, server_url: str) -> None:
        self.server_url = server_url
        self._prefix = f"jobhandle_test_{os.getpid()}_{secrets.token_hex(3)}"
        self._numbers = itertools.count(1)
        self._template: str | None = None

    def create(self) -> str:
        """Make a migrated database and return its URL; `drop()` it afterwards."""
        return self._create(self._migrated_template())

    def create_empty(self) -> str:
        return self._create("template0")

    def drop(self, url: str) -> None:
        """Drop it, and disconnect whoever still uses it."""
        self._execute(f'DROP DATABASE IF EXISTS "{sqlalchemy.make_url(url).database}" WITH (FORCE)')

    def close(self) -> None:
        if self._template is not None:
            self._execute(f'DROP DATABASE IF EXISTS "{self._template}" WITH (FORCE)')

    def _migrated_template(self) -> str:
        if self._template is None:
            url = self.create_empty()
            migrate(url)
            self._template = sqlalchemy.make_url(url).database
        assert self._template is not None
        return self._template

    def _create(self, template: str) -> str:
        name = f"{self._prefix}_{next(self._numbers)}"
        self._execute(f'CREATE DATABASE "{name}" TEMPLATE "{template}"')
        return sqlalchemy.make_url(self.server_url).set(database=name).render_as_string(hide_password=False)

    def _execute(self, statement: str) -> None:
        execute(self.server_url, statement)
