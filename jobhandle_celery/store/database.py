"""Connections to one database: an engine per process, transactions, translated errors."""

import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import cached_property
from typing import Any

from sqlalchemy import Connection, Engine, Executable
from sqlalchemy.exc import DBAPIError, SQLAlchemyError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError

from ..errors import ConfigurationError, DatabaseUnavailableError, JobHandleError, shown
from ..settings import Settings
from .connections import (
    DEADLINE,
    IDLE_TIMEOUT,
    LIMITED,
    LOCK_WAIT,
    brief_wait,
    home_schema,
    limit_silence,
    listen,
    standalone,
    transactional,
)
from .db_errors import RETRYABLE, SERVER_CHANGED, STALE_STATEMENT, has_code, translate, without_secrets
from .direct_psycopg import DirectPsycopg, NotDirect
from .engine import accepted_instead
from .executors import Executor, PostgresExecutor
from .fork_guard import Forkable, forks
from .portable_executor import PortableExecutor
from .retrying import retry_limit
from .statements import Transition, params, setting_params

_inherited: list[Engine] = []
"""Engines of parent processes, kept so that the garbage collector does not close their connections."""


class Database(Forkable):
    """Connections to one database, for one process at a time."""

    def __init__(
        self, make_engine: Callable[[], Engine], settings: Settings, deadline: float | None = DEADLINE
    ) -> None:
        """Connect at the first use.

        Args:
            make_engine: Called once in each process.
            settings: Their namespace and durations are parameters of the statements.
            deadline: Seconds that a statement may take without any traffic; None: no limit, for
                migrations.
        """
        self.settings = settings
        self.deadline = deadline
        self.check: Callable[[Connection], None] | None = None
        """Called with the first connection of each process: do the tables fit?"""
        self.on_unsettled: Callable[[list[int]], None] | None = None
        """Called after a commit with the ids of rows that ended, and on which others depend; without it, and
        for those of a process that dies, the sweeper settles them."""
        self._make_engine = make_engine
        self._detached = False
        self._lock = threading.Lock()
        self._engine: Engine | None = None
        self._direct: DirectPsycopg | None = None
        self._checked = False
        self._home: str | None = None
        """The schema of our tables, once it is known."""
        forks.register(self)

    @property
    def engine(self) -> Engine:
        """The engine of this process.

        Raises:
            ConfigurationError: no engine can be made, or the caller's function returns something else.
        """
        engine = self._engine
        if engine is None:
            with self._lock:
                engine = self._engine
                if engine is None:
                    made: object = self._make_engine()
                    if not isinstance(made, Engine):
                        raise ConfigurationError(
                            f"database: the function returned {shown(made)}, not an Engine. "
                            f"{accepted_instead(made)}"
                        )
                    if any(made.pool is parents.pool for parents in _inherited):
                        made.dispose(close=False)
                    engine = self._engine = self._prepare(made)
        return engine

    def _prepare(self, engine: Engine) -> Engine:
        listen(engine)
        if self.deadline is not None:
            limit_silence(engine, self.deadline)
        # Arguments of jobs may be secrets, and errors show the parameters of statements.
        engine.hide_parameters = True
        options = self.options or {"schema_translate_map": {}}
        return engine.execution_options(**options)

    @property
    def dialect(self) -> str:
        """The kind of database, by SQLAlchemy's name."""
        return self.engine.dialect.name

    @property
    def options(self) -> dict[str, Any]:
        """Execution options of every statement on a connection of our own."""
        schema = self.settings.schema
        return {"schema_translate_map": {None: schema}} if schema else {}

    @cached_property
    def _setting_params(self) -> dict[str, Any]:
        return setting_params(self.settings)

    def detached(self, deadline: float) -> "Database":
        """Return another `Database` that shares nothing with this one and does not wait for forks."""
        database = Database(self._make_engine, self.settings, deadline)
        database._detached = True
        return database

    def close(self) -> None:
        """Close the connections of this process; the next use opens new ones."""
        with self._lock:
            if self._engine is not None:
                self._engine.dispose()
            self._engine = None

    def before_fork(self) -> None:
        """Close SQLite's file: a child that inherits it open inherits the parent's locks, too."""
        if self._engine is not None and self._engine.dialect.name == "sqlite":
            self._engine.dispose()

    def after_fork(self) -> None:
        """Leave the parent's connections alone: closing one would end the parent's session."""
        self._lock = threading.Lock()  # the parent's may have been held
        if self._engine is not None:
            _inherited.append(self._engine)
        self._engine = None

    @contextmanager
    def transaction(self) -> Iterator[Executor]:
        """Open a transaction, and commit it at the end."""
        with self.ready() as engine, transactional(engine) as connection, _discard_interrupted(connection):
            with brief_wait(connection, retry_limit()):
                connection.begin()
            if engine.dialect.name == "postgresql" and not connection.info.get(LIMITED):
                # For this transaction alone: behind PgBouncer others use this connection too.
                connection.exec_driver_sql(
                    f"SELECT set_config('idle_in_transaction_session_timeout', '{IDLE_TIMEOUT}s', true), "
                    f"set_config('lock_timeout', '{LOCK_WAIT}s', true)"
                )
            executor = self.executor(connection)
            yield executor
            connection.commit()
        self._hand_over(executor.unsettled)

    @contextmanager
    def autocommit(self) -> Iterator[Executor]:
        """Open a connection on which each statement is committed by itself, and no lock outlives it."""
        with self.ready() as engine, standalone(engine) as connection, _discard_interrupted(connection):
            executor = self.executor(connection)
            yield executor
        self._hand_over(executor.unsettled)

    @contextmanager
    def single_statement(self) -> Iterator[Executor]:
        """Open an `Executor` for one operation: without a transaction on PostgreSQL, with one elsewhere."""
        single = self.dialect == "postgresql"
        with self.autocommit() if single else self.transaction() as db:
            yield db

    def apply(self, transition: Transition, **values: Any) -> int:
        """Apply a transition by itself, by direct psycopg if possible; return how many rows changed."""
        rows = self.execute_directly(transition.counting_statement, params(**values))
        if rows is not None:
            changed, *unsettled = rows[0]
            self._hand_over(unsettled and unsettled[0])
            return int(changed)
        with self.single_statement() as db:
            return db.count_applied(transition, **values)

    @property
    def has_documents(self) -> bool:
        """True if a statement can change the rows of a JSON document here, as `end_each` does."""
        return self.dialect == "postgresql"

    def end_each(self, statement: Executable, parameters: Mapping[str, Any]) -> set[int]:
        """Execute a statement, built once, that ends rows by one commit; return their ids (PostgreSQL).

        Args:
            statement: It returns the id of each row that ended, and whether the row is unsettled.
            parameters: Without the settings.
        """
        rows = self.execute_alone(statement, parameters)
        self._hand_over([job_id for job_id, unsettled in rows if unsettled])
        return {job_id for job_id, _ in rows}

    def execute_alone(self, statement: Executable, parameters: Mapping[str, Any]) -> Sequence[Any]:
        """Execute a statement, built once, as an operation of its own; return its rows."""
        rows: Sequence[Any] | None = self.execute_directly(statement, parameters)
        if rows is None:
            with self.single_statement() as db:
                rows = db.execute(statement, parameters).all()
        return rows

    def _hand_over(self, unsettled: list[int] | None) -> None:
        # After the connection is back in its pool: it is often the only one.
        if unsettled and self.on_unsettled is not None:
            self.on_unsettled(unsettled)

    def execute_directly(
        self, statement: Executable, parameters: Mapping[str, Any]
    ) -> list[tuple[Any, ...]] | None:
        """Execute a statement that is built once, in no transaction, by `DirectPsycopg`.

        None, and nothing was executed, where that is not possible.
        """
        with self.ready() as engine:
            direct = self._direct_on(engine)
            return direct.rows(statement, {**self._setting_params, **parameters}) if direct.open else None

    def execute_each_directly(
        self,
        statement: Executable,
        each: Iterable[Mapping[str, Any]],
        check: Callable[[list[list[tuple[Any, ...]]]], None],
    ) -> bool:
        """Execute such a statement for each of several parameters, in one transaction; see `DirectPsycopg`.

        False, and nothing was executed or all of it rolled back, where that is not possible.
        """
        with self.ready() as engine:
            direct = self._direct_on(engine)
            if not direct.open:
                return False
            every = ({**self._setting_params, **parameters} for parameters in each)
            try:
                direct.rows_of_each(statement, every, check)
            except NotDirect:
                return False
            return True

    def _direct_on(self, engine: Engine) -> DirectPsycopg:
        direct = self._direct
        if direct is None or direct.engine is not engine:
            schemas = self.options.get("schema_translate_map")
            direct = self._direct = DirectPsycopg(engine, schemas)
        return direct

    def executor(self, connection: Connection) -> Executor:
        """Return the executor for a connection: this database's or, within `joining`, the caller's."""
        is_own = connection.engine is self._engine
        # The caller's may have another search path or default database, or a `schema_translate_map`.
        options = (
            self.options if is_own or self._home is None else {"schema_translate_map": {None: self._home}}
        )
        if connection.dialect.name == "postgresql":
            return PostgresExecutor(connection, self._setting_params, options)
        # A caller's transaction on MariaDB may see only what was committed when it began.
        old = connection.dialect.name != "sqlite" and connection.engine.pool is not self.engine.pool
        return PortableExecutor(connection, self._setting_params, options, self.autocommit if old else None)

    @property
    def schema_is_known(self) -> bool:
        """True once `find_schema` was called."""
        return self._home is not None

    def find_schema(self) -> None:
        """Find the schema of our tables, for statements on connections of callers."""
        with self.ready() as engine, standalone(engine) as connection:
            self._home = self.settings.schema or home_schema(connection)

    @contextmanager
    def joining(self) -> Iterator[None]:
        """Translate the errors of the caller's connection.

        A serialization failure or a deadlock stays SQLAlchemy's error: the caller's transaction is rolled
        back, and code of the caller that retries the whole transaction expects that error.

        Raises:
            DBAPIError: a serialization failure or a deadlock.
            JobHandleError: any other error of the connection.
        """
        with forks.hold():
            try:
                yield
            except DBAPIError as error:
                if has_code(error, RETRYABLE):
                    error.hide_parameters = True  # the engine is the caller's, and may show them
                    raise
                raise translate(error, "the database of the session") from None

    @contextmanager
    def ready(self) -> Iterator[Engine]:
        """Check the tables at the first use, translate errors, and delay forks."""
        with self._guarded(), self._translating() as engine:
            yield engine

    def _guarded(self) -> AbstractContextManager[None]:
        if not self._detached:
            return forks.hold()
        return forks.hold_without_waiting() if self.dialect == "sqlite" else nullcontext()

    @contextmanager
    def _translating(self) -> Iterator[Engine]:
        engine = self.engine
        try:
            if self.check is not None and not self._checked:
                with standalone(engine) as connection:
                    self.check(connection)
                self._checked = True
            yield engine
        except DBAPIError as error:
            if has_code(error, STALE_STATEMENT | SERVER_CHANGED):
                engine.dispose()
            raise translate(error, f"the database {without_secrets(engine.url)}") from None
        except PoolTimeoutError as error:
            raise DatabaseUnavailableError(f"no database connection became free: {error}") from error


@contextmanager
def _discard_interrupted(connection: Connection) -> Iterator[None]:
    """Discard a connection that was interrupted in the middle of an answer, for example by a time limit.

    SQLAlchemy would roll back on it, and the driver's error would replace the time limit's.
    """
    try:
        yield
    except (SQLAlchemyError, JobHandleError):
        raise
    except BaseException:
        if not connection.closed:
            connection.invalidate()
        raise
