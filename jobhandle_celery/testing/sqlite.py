"""The database of tests unless a project names one: a fresh SQLite file, whose clock can be moved."""

import itertools
import shutil
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from sqlalchemy import Column, Connection, MetaData, String, Table, create_engine, event
from sqlalchemy.pool import Pool, QueuePool

from .. import migrations, schema
from ..settings import Settings
from .database import AWAY, DatabaseOfTests

BUSY_TIMEOUT = 5.0
"""Seconds for which a write waits for another one. Mostly the test itself holds the lock."""

_OURS = "jobhandle_testing"
"""In the info of a pool's record: its connection is one to the file of the test."""


class Clock:
    """The clock of the database: Python's, which freezegun and time-machine move, plus an offset."""

    def __init__(self) -> None:
        self.offset = timedelta(0)
        # Computes what SQLite's own function returns at another moment.
        self._plain = sqlite3.connect(":memory:", check_same_thread=False)
        self._lock = threading.Lock()

    def now(self) -> datetime:
        """Return the time, in UTC."""
        return datetime.now(UTC) + self.offset

    def strftime(self, *arguments: Any) -> Any:
        """Take the place of SQLite's function, which knows the clock of the machine alone."""
        form, *rest = arguments
        moment, *modifiers = rest or ["now"]
        if isinstance(moment, str) and moment.lower() == "now":
            moment = self.now().strftime("%Y-%m-%d %H:%M:%S.%f")
        values = [form, moment, *modifiers]
        with self._lock:
            marks = ", ".join("?" * len(values))
            return self._plain.execute(f"SELECT strftime({marks})", values).fetchone()[0]


class SqliteFiles(DatabaseOfTests):
    """A database of tests in SQLite: each test has a fresh file, a copy of one template."""

    def __init__(self, folder: Path) -> None:
        super().__init__(create_engine("sqlite://", creator=self._connect, poolclass=QueuePool))
        self._folder = folder
        self._numbers = itertools.count(1)
        self._path = self._template = folder / "template.sqlite3"
        self._clock = Clock()
        self._create_tables()

    @property
    def url(self) -> str:
        return f"sqlite:///{self._path}"

    @contextmanager
    def opened(self) -> Iterator[None]:
        self._clock.offset, self.is_away = timedelta(0), False
        self._path = self._folder / f"{next(self._numbers)}.sqlite3"
        shutil.copyfile(self._template, self._path)
        # All engines: that of the service, for its sessions, has the same clock, and is away as well.
        event.listen(Pool, "connect", self._on_connect)
        event.listen(Pool, "checkout", self._on_checkout)
        try:
            yield
        finally:
            event.remove(Pool, "connect", self._on_connect)
            event.remove(Pool, "checkout", self._on_checkout)
            self.engine.dispose()
            for file in self._folder.glob(f"{self._path.name}*"):
                file.unlink(missing_ok=True)

    def settings(self, configured: Settings) -> Settings:
        return replace(configured, schema=None, sweep_interval=timedelta(0))  # SQLite has no schemas

    def now(self) -> datetime:
        return self._clock.now()

    def advance(self, by: timedelta) -> None:
        self._clock.offset += by

    def is_of(self, connection: Connection) -> bool:
        return _OURS in connection.info

    def _connect(self) -> sqlite3.Connection:
        return sqlite3.connect(self._path, timeout=BUSY_TIMEOUT, check_same_thread=False)

    def _create_tables(self) -> None:
        # Not by the migrations: to import Alembic takes longer than all of this.
        with self.engine.begin() as connection:
            # A copy of the file has that mode as well: a change of it waits for the disk.
            connection.exec_driver_sql("PRAGMA journal_mode = WAL")
            schema.metadata.create_all(connection)
            number = Column("version_num", String, primary_key=True)
            versions = Table(schema.VERSION_TABLE, MetaData(), number)
            versions.create(connection)
            connection.execute(versions.insert(), {"version_num": migrations.REVISIONS[-1]})
        self.engine.dispose()

    def _on_connect(self, connection: Any, record: Any) -> None:
        if "sqlite" not in type(connection).__module__:
            return
        cursor = connection.cursor()
        cursor.execute("PRAGMA database_list")
        files = [row[2] for row in cursor.fetchall()]
        cursor.close()
        if any(file and Path(file).resolve() == self._path.resolve() for file in files):
            record.info[_OURS] = True
            connection.create_function("strftime", -1, self._clock.strftime)

    def _on_checkout(self, connection: Any, record: Any, _proxy: Any) -> None:
        if _OURS not in record.info:
            return
        if self.is_away:
            raise sqlite3.OperationalError(AWAY)
        # A test has no use for a commit that survives a crash of the machine.
        cursor = connection.cursor()
        cursor.execute("PRAGMA synchronous = OFF")
        cursor.close()
