"""The one door to the database: an engine per process, transactions, errors said in our words.

Engines are made lazily and never survive a fork. Every verb that is marked `repeatable` is asked again
when a connection breaks or the database asks for it (deadlock, serialisation failure): its author
recognises its own earlier success, see the verbs.
"""

import functools
import random
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, Concatenate, ParamSpec, TypeVar

from sqlalchemy import URL, Connection, Engine, create_engine, event, make_url
from sqlalchemy.exc import ArgumentError, DBAPIError, NoSuchModuleError, OperationalError, ProgrammingError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError

from ..errors import UPGRADE_HINT, ConfigurationError, DatabaseUnavailableError, SchemaError, shown
from ..settings import Settings
from .forks import gate

P = ParamSpec("P")
T = TypeVar("T")

BUSY_TIMEOUT = 10.0
"""Seconds for which SQLite waits for another process's write."""

CONNECT_TIMEOUT = 5
"""Seconds to reach a PostgreSQL or MariaDB server, and for its answer to a packet."""

FROZEN = 5
"""Seconds for which a transaction may do nothing.

A process that was stopped between two statements, or whose machine has vanished, would hold its locks, and by
them every sweep, for as long as the server believes in it."""

_REPEATS = 6
_ASKED_TO_REPEAT = {"40001", "40P01", "1213", "1205", "1020", "1305"}
"""SQLSTATEs of PostgreSQL and error numbers of MariaDB: serialisation failure, deadlock, lock wait, and a
savepoint that a deadlock took away."""

_GONE_ELSEWHERE = {"25006", "25P03", "1290", "1836"}
"""A read-only server after a failover, a session that the server has ended: ask on a new connection."""


def engine_maker(database: str | URL | Callable[[], Engine]) -> Callable[[], Engine]:
    """Return a function that makes an engine for that database, once per process that asks.

    Raises:
        ConfigurationError: the URL cannot be read, or its driver is not installed.
    """
    if callable(database):
        return database
    try:
        url = make_url(database)
        if url.get_backend_name() == "postgresql" and url.drivername == "postgresql":
            url = url.set(drivername="postgresql+psycopg")
        dialect = url.get_dialect()
    except (ArgumentError, NoSuchModuleError, ValueError) as error:
        shown = database.render_as_string() if isinstance(database, URL) else "the text given"
        raise ConfigurationError(
            f"Not a database URL: {shown} ({type(error).__name__}). "
            "Accepted: e.g. 'postgresql+psycopg://user@host/name' or 'sqlite:///path/to/file.db'."
        ) from None
    if url.get_backend_name() == "sqlite" and url.database in (None, "", ":memory:"):
        raise ConfigurationError(
            "An in-memory SQLite database is gone with its connection, and no worker would see it. "
            "Name a file: 'sqlite:///path/to/file.db'."
        )

    if dialect.is_async:
        raise ConfigurationError(
            f"{url.drivername} is an asynchronous driver; accepted: a synchronous one, "
            "e.g. postgresql+psycopg:// (an AsyncSession joins by its run_sync)."
        )
    try:
        dialect.import_dbapi()
    except ModuleNotFoundError as error:
        hint = "'jobhandle-celery[postgresql]'" if url.get_backend_name() == "postgresql" else error.name
        raise ConfigurationError(
            f"The driver of {url.drivername} is not installed ({error.name}): pip install {hint}."
        ) from None
    return functools.partial(_own_engine, url)


def _own_engine(url: URL) -> Engine:
    engine = create_engine(url, connect_args=_connect_args(url))
    if url.drivername == "postgresql+psycopg":
        event.listen(engine, "connect", functools.partial(_on_psycopg_connect, url.query))
    return engine


def _connect_args(url: URL) -> dict[str, Any]:
    if url.drivername == "postgresql+psycopg":
        given: dict[str, Any] = {
            "connect_timeout": CONNECT_TIMEOUT,
            # A peer that silently vanished is noticed in seconds, not after the kernel's quarter of an hour.
            "tcp_user_timeout": CONNECT_TIMEOUT * 1000,
            "keepalives_idle": CONNECT_TIMEOUT,
            "keepalives_interval": 2,
            "keepalives_count": 3,
            # Until it is known who is at the other end, see `_on_psycopg_connect`.
            "prepare_threshold": None,
        }
        return {key: value for key, value in given.items() if key not in url.query}
    if url.get_backend_name() == "sqlite":
        return {"timeout": BUSY_TIMEOUT}
    if url.get_backend_name() in ("mysql", "mariadb"):
        return {"connect_timeout": CONNECT_TIMEOUT}
    return {}


_inherited: list[Engine] = []
"""Engines of our parents. Not closed, not even by the garbage collector: their connections are not ours."""


class Door:
    """Connections to one database, for one process at a time."""

    def __init__(self, make_engine: Callable[[], Engine], settings: Settings) -> None:
        self._make_engine = make_engine
        self._settings = settings
        self._lock = threading.Lock()
        self._engine: Engine | None = None
        self._checked = False
        gate.register(self)
        self.check: Callable[[Connection], None] | None = None
        """Called with the first connection of each process: do the tables fit?"""

    @property
    def engine(self) -> Engine:
        """The engine of this process."""
        engine = self._engine
        if engine is None:
            with self._lock:
                engine = self._engine
                if engine is None:
                    made: object = self._make_engine()
                    if not isinstance(made, Engine):
                        raise ConfigurationError(f"database: it returned {shown(made)}, not an Engine")
                    engine = self._engine = self._prepare(made)
        return engine

    @property
    def options(self) -> dict[str, Any]:
        """Execution options of every statement, also on a connection that is the caller's."""
        schema = self._settings.schema
        return {"schema_translate_map": {None: schema}} if schema else {}

    def close(self) -> None:
        """Close the connections of this process; the next use opens new ones."""
        with self._lock:
            if self._engine is not None:
                self._engine.dispose()
            self._engine = None

    def before_fork(self) -> None:
        """Close SQLite's file: a child that finds it open finds its parent's locks there, too."""
        if self._engine is not None and self._engine.dialect.name == "sqlite":
            self._engine.dispose()

    def after_fork(self) -> None:
        """Leave the parent's connections alone: to close one would end the parent's conversation."""
        self._lock = threading.Lock()  # the parent's may have been held
        if self._engine is not None:
            _inherited.append(self._engine)
        self._engine = None

    @contextmanager
    def transaction(self) -> Iterator[Connection]:
        """Open a transaction and commit it."""
        with self._ready() as engine, engine.begin() as connection:
            if engine.dialect.name == "postgresql" and not connection.info.get(_LIMITED):
                # For this transaction alone: others use this connection too.
                limit = f"SET LOCAL idle_in_transaction_session_timeout = '{FROZEN}s'"
                connection.exec_driver_sql(limit)
            yield connection

    @contextmanager
    def moving(self) -> Iterator[Connection]:
        """Open what one move needs: it is a single statement on PostgreSQL, a transaction elsewhere."""
        single = self.engine.dialect.name == "postgresql"
        with self.reading() if single else self.transaction() as connection:
            yield connection

    @contextmanager
    def reading(self) -> Iterator[Connection]:
        """Open a connection on which each statement stands alone: no lock outlives it."""
        with self._ready() as engine, _standalone(engine) as connection:
            yield connection

    @contextmanager
    def joining(self) -> Iterator[None]:
        """Say in our words what goes wrong on a connection that is the caller's."""
        with self._ready():
            yield

    @contextmanager
    def _ready(self) -> Iterator[Engine]:
        with gate.inside(), self._translating() as engine:
            yield engine

    @contextmanager
    def _translating(self) -> Iterator[Engine]:
        engine = self.engine
        try:
            if self.check is not None and not self._checked:
                with _standalone(engine) as connection:
                    self.check(connection)
                self._checked = True
            yield engine
        except DBAPIError as error:
            if _lacks_table(error):
                said = f"The tables of jobhandle-celery are missing or old. {UPGRADE_HINT}"
                raise SchemaError(said) from None
            moved = _says(error, _GONE_ELSEWHERE)
            if moved:
                engine.dispose()
            if moved or isinstance(error, OperationalError) or error.connection_invalidated:
                # What the server said; SQLAlchemy's words would have the arguments of jobs among them.
                raise _Unavailable(engine.url, error) from None
            raise
        except PoolTimeoutError as error:
            raise DatabaseUnavailableError(f"no database connection became free: {error}") from error

    def _prepare(self, engine: Engine) -> Engine:
        if engine.dialect.name == "sqlite":
            event.listen(engine, "connect", _on_sqlite_connect)
            event.listen(engine, "begin", _on_sqlite_begin)
        elif engine.dialect.name in ("mysql", "mariadb"):
            event.listen(engine, "connect", _on_mysql_connect)
        elif engine.dialect.name == "postgresql":
            # Before SQLAlchemy's own, which does not expect the bytes that a driver makes of SQL_ASCII.
            event.listen(engine, "connect", _on_postgresql_connect, insert=True)
        # Arguments of jobs may be secrets, and parameters of statements stand in errors.
        engine.hide_parameters = True
        return engine.execution_options(**self.options) if self.options else engine


_LIMITED = "jobhandle_limited"
"""In the record of a connection: its session has the limit of `FROZEN`, for all its transactions."""

PREPARED_AFTER = 3
"""Executions of a statement after which the server is asked to keep its plan."""


def _on_psycopg_connect(query: Mapping[str, Any], connection: Any, record: Any) -> None:
    """Spare what PgBouncer forbids only where there is none.

    In transaction mode it hands each transaction another connection: a statement that was prepared on one is
    unknown to the next, and what was set is left to somebody else. It shows by giving its clients numbers
    of its own for the server's processes.
    """
    connection.autocommit = True
    try:
        (number,) = connection.execute("SELECT pg_backend_pid()").fetchone()
        if number == connection.info.backend_pid:
            connection.execute(f"SET idle_in_transaction_session_timeout = '{FROZEN}s'")
            record.info[_LIMITED] = True
            if "prepare_threshold" not in query:
                connection.prepare_threshold = PREPARED_AFTER
    finally:
        connection.autocommit = False


def _on_sqlite_connect(connection: Any, _record: Any) -> None:
    connection.isolation_level = None  # we say BEGIN ourselves, below
    cursor = connection.cursor()
    for pragma in ("journal_mode = WAL", "synchronous = FULL", "foreign_keys = ON"):
        cursor.execute(f"PRAGMA {pragma}")
    cursor.close()


def _on_sqlite_begin(connection: Connection) -> None:
    # A transaction that reads first and then writes cannot wait for its turn in SQLite, it fails at
    # once; so ours take the write lock at their beginning. Single reads take none.
    if connection.get_execution_options().get("isolation_level") != "AUTOCOMMIT":
        connection.exec_driver_sql("BEGIN IMMEDIATE")


def _on_mysql_connect(connection: Any, _record: Any) -> None:
    with connection.cursor() as cursor:
        cursor.execute(
            "SET time_zone = '+00:00', tx_isolation = 'READ-COMMITTED', "
            # An UPDATE reads the old values everywhere, as on every other database.
            "sql_mode = CONCAT(@@sql_mode, ',SIMULTANEOUS_ASSIGNMENT')"
            # Read by MariaDB alone; MySQL has nothing like it.
            f"/*M! , idle_transaction_timeout = {FROZEN} */"
        )


def _on_postgresql_connect(connection: Any, _record: Any) -> None:
    info: Any = getattr(connection, "info", None)  # psycopg's, and psycopg2's
    encoding = None if info is None else info.parameter_status("server_encoding")
    if encoding not in (None, "UTF8"):
        raise ConfigurationError(
            f"The encoding of the database {info.dbname} is {encoding}, which cannot hold every message and "
            "result. Make one that can: CREATE DATABASE name TEMPLATE template0 ENCODING 'UTF8' LOCALE 'C'."
        )


def _standalone(engine: Engine) -> Connection:
    if engine.dialect.name in ("mysql", "mariadb"):
        # To switch to autocommit is a round trip there, and its failure is none that SQLAlchemy knows.
        return engine.connect()
    return engine.connect().execution_options(isolation_level="AUTOCOMMIT")


class _Unavailable(DatabaseUnavailableError):
    def __init__(self, url: URL, error: DBAPIError) -> None:
        # The URL without its password, and only what the server said: the statement and its parameters
        # are not for logs.
        super().__init__(f"the database {url.render_as_string()} did not answer: {str(error.orig).strip()}")
        self.repeat_at_once = error.connection_invalidated
        self.repeat_soon = _says(error, _ASKED_TO_REPEAT)


def _lacks_table(error: DBAPIError) -> bool:
    if isinstance(error, ProgrammingError):
        return getattr(error.orig, "sqlstate", None) in ("42P01", "42703") or _number(error) in (
            "1146",
            "1054",
        )
    said = str(error.orig)
    return "no such table" in said or "no such column" in said


def _says(error: DBAPIError, codes: set[str]) -> bool:
    return getattr(error.orig, "sqlstate", None) in codes or _number(error) in codes


def _number(error: DBAPIError) -> str:
    arguments = getattr(error.orig, "args", ())
    return str(arguments[0]) if arguments and isinstance(arguments[0], int) else ""


S = TypeVar("S")

_repeating: ContextVar[bool] = ContextVar("jobhandle_repeating", default=False)


def repeating() -> bool:
    """Say, within a verb, whether what it would write may be there, written by itself: an answer was lost."""
    return _repeating.get()


def repeatable(verb: Callable[Concatenate[S, P], T]) -> Callable[Concatenate[S, P], T]:
    """Ask again where asking again may help: at once after a broken connection, soon after a deadlock.

    A pooled connection that the server has closed meanwhile is the most common failure there is; it
    costs one repeat. A server that cannot be reached is not asked again here.
    """

    @functools.wraps(verb)
    def repeating(self: S, /, *args: P.args, **kwargs: P.kwargs) -> T:
        uncertain = False
        for repeat in range(_REPEATS):
            asking = _repeating.set(uncertain)
            try:
                return verb(self, *args, **kwargs)
            except _Unavailable as error:
                if repeat + 1 == _REPEATS or not (error.repeat_at_once or error.repeat_soon):
                    raise
                if error.repeat_soon:
                    # Whoever is told to repeat is told that nothing was written.
                    time.sleep(random.uniform(0.0, 0.02 * 2**repeat))
                else:
                    uncertain = True
            finally:
                _repeating.reset(asking)
        raise AssertionError("unreachable")

    return repeating
