"""What the databases of tests have in common, and one on a server that a project has named."""

import uuid
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

from sqlalchemy import (
    Column,
    Connection,
    Engine,
    Interval,
    delete,
    event,
    func,
    inspect,
    literal,
    select,
    text,
    update,
)
from sqlalchemy.exc import OperationalError

from .. import migrations
from ..column_types import UtcDateTime
from ..errors import ApiUsageError, ConfigurationError, JobHandleError
from ..schema import job, job_event, job_need, sweep, worker
from ..settings import Settings
from ..store import Database, Executor, engine_maker

AWAY = "the database is away (database_away)"


class DatabaseOfTests(ABC):
    """A database in which each test finds no job of another one.

    The engine stays the same for all tests, because it keeps what SQLAlchemy has compiled.
    """

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.is_away = False
        self._prepared: Engine | None = None

    @property
    @abstractmethod
    def url(self) -> str:
        """The URL for an engine of the service."""

    @abstractmethod
    def opened(self) -> AbstractContextManager[None]:
        """Use it for one test, within the block."""

    @abstractmethod
    def settings(self, configured: Settings) -> Settings:
        """Return the settings of a test."""

    @abstractmethod
    def now(self) -> datetime:
        """Return the time by its clock, or nearly so."""

    @abstractmethod
    def advance(self, by: timedelta) -> None:
        """Let time pass, for the jobs of the test."""

    @abstractmethod
    def is_of(self, connection: Connection) -> bool:
        """Return False if a connection of the service is surely one to another database."""

    def database(self, settings: Settings) -> Database:
        """Return the store's access to it, with the settings of a test."""
        return _Database(self, settings)

    def prepared(self, prepare: Callable[[Engine], Engine]) -> Engine:
        """Return the engine, prepared once."""
        if self._prepared is None:
            self._prepared = prepare(self.engine)
        return self._prepared


class _Database(Database):
    def __init__(self, of_tests: DatabaseOfTests, settings: Settings) -> None:
        super().__init__(lambda: of_tests.engine, settings)
        self._of_tests = of_tests

    def executor(self, connection: Connection) -> Executor:
        if not self._of_tests.is_of(connection):
            raise ApiUsageError(
                "session: its database is not that of the test. Make its engine of jobs.database_url, or "
                "return the URL of its database from a fixture jobhandle_database."
            )
        return super().executor(connection)

    def _prepare(self, engine: Engine) -> Engine:
        prepared = self._of_tests.prepared(super()._prepare)
        return prepared.execution_options(**(self.options or {"schema_translate_map": {}}))


class GivenDatabase(DatabaseOfTests):
    """One on a server, for services whose own tables need it: each test has a namespace of its own.

    Time passes there by making the rows of the test older: the clock is the server's.
    """

    def __init__(self, given: object) -> None:
        """Connect to nothing yet.

        Args:
            given: A URL, or a function that returns an Engine, as for `Jobs`.

        Raises:
            ConfigurationError: it is none, or of SQLite.
        """
        super().__init__(engine_maker(given)())
        if self.engine.dialect.name == "sqlite":
            raise ConfigurationError(
                "jobhandle_database: it is for tests on a server. On SQLite leave it out, and make your own "
                "engine of jobs.database_url."
            )
        event.listen(self.engine, "checkout", self._on_checkout)
        self._schemas: set[str | None] = set()
        self._namespace = ""
        self._database: Database | None = None

    @property
    def url(self) -> str:
        return self.engine.url.render_as_string(hide_password=False)

    @contextmanager
    def opened(self) -> Iterator[None]:
        self.is_away = False
        self._namespace = f"test-{uuid.uuid4().hex}"
        try:
            yield
        finally:
            if self._database is not None:
                # A row that the service's own tables need, or that it has locked, stays: no test sees it.
                with suppress(JobHandleError):
                    self._delete(self._database)
                self._database.close()
                self._database = None

    def database(self, settings: Settings) -> Database:
        self._database = super().database(settings)
        return self._database

    def settings(self, configured: Settings) -> Settings:
        schema = configured.schema
        if schema not in self._schemas:
            # A database that a test makes unavailable has its tables, also if this is the first use.
            away, self.is_away = self.is_away, False
            try:
                with self.engine.connect() as connection:
                    there = inspect(connection).has_table(job.name, schema=schema)
                if not there:
                    migrations.upgrade(self.engine, schema)
            finally:
                self.is_away = away
            self._schemas.add(schema)
        return replace(configured, namespace=self._namespace, sweep_interval=timedelta(0))

    def now(self) -> datetime:
        return datetime.now(UTC)

    def advance(self, by: timedelta) -> None:
        if self._database is None:
            return  # there is no job yet
        with self._database.transaction() as db:
            for table, mine in self._rows():
                older = {
                    column.name: self._earlier(column, by)
                    for column in table.columns
                    if isinstance(column.type, UtcDateTime)
                }
                db.execute(update(table).where(mine).values(older))

    def is_of(self, connection: Connection) -> bool:
        return connection.dialect.name == self.engine.dialect.name

    def _earlier(self, column: Column[Any], by: timedelta) -> Any:
        if self.engine.dialect.name == "postgresql":
            return column - literal(by, Interval())
        return func.timestampadd(text("MICROSECOND"), -(by // timedelta(microseconds=1)), column)

    def _delete(self, database: Database) -> None:
        with database.transaction() as db:
            for table, mine in [(job_need, job_need.c.job_id.in_(self._jobs())), *self._rows()]:
                db.execute(delete(table).where(mine))

    def _rows(self) -> list[tuple[Any, Any]]:
        """Return the tables, and which rows of them are the test's; what refers to others comes first."""
        return [
            (job_event, job_event.c.job_id.in_(self._jobs())),
            *((table, table.c.namespace == self._namespace) for table in (job, worker, sweep)),
        ]

    def _jobs(self) -> Any:
        return select(job.c.id).where(job.c.namespace == self._namespace)

    def _on_checkout(self, *_: object) -> None:
        if self.is_away:
            raise OperationalError(None, None, ConnectionError(AWAY))
