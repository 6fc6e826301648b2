"""The one door to the database: an engine per process, transactions, errors said in our words.

Engines are made lazily and never survive a fork. Every verb that is marked `repeatable` is asked again
when a connection breaks or the database asks for it (deadlock, serialisation failure): its author
recognises its own earlier success, see the verbs.
"""

import functools
import random
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, Concatenate, ParamSpec, TypeVar

from sqlalchemy import URL, Connection, Engine, Executable, make_url
from sqlalchemy.exc import (
    ArgumentError,
    DBAPIError,
    InternalError,
    NoSuchModuleError,
    OperationalError,
    ProgrammingError,
    SQLAlchemyError,
)
from sqlalchemy.exc import TimeoutError as PoolTimeoutError

from ..errors import (
    UPGRADE_HINT,
    ConfigurationError,
    DatabaseUnavailableError,
    JobHandleError,
    SchemaError,
    shown,
)
from ..settings import Settings
from .connections import FROZEN, LIMITED, listen, own_engine, standalone
from .forks import gate
from .straight import NotStraight, Straight

P = ParamSpec("P")
T = TypeVar("T")

_REPEATS = 6
_ASKED_TO_REPEAT = {"40001", "40P01", "1213", "1205", "1020", "1305"}
"""SQLSTATEs of PostgreSQL and error numbers of MariaDB: serialisation failure, deadlock, lock wait, and a
savepoint that a deadlock took away."""

_GONE_ELSEWHERE = {"25006", "25P03", "1290", "1836"}
"""A read-only server after a failover, a session that the server has ended: ask on a new connection."""

_FORGOTTEN = {"0A000", "26000"}
"""PostgreSQL's of a prepared statement whose table has changed since, or that it does not know: a new
connection has prepared nothing."""

_DENIED = {"42501"}
"""PostgreSQL's of a permission that is missing: somebody will grant it, as somebody will start a server."""


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
        shown = _without_secrets(database) if isinstance(database, URL) else "the text given"
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
    return functools.partial(own_engine, url)


_SHOWN = {"host", "port", "service", "unix_socket", "sslmode"}


def _without_secrets(url: URL) -> str:
    """Return a URL that may be shown: a driver takes passwords among its options, too."""
    shown = {name: value for name, value in url.query.items() if name in _SHOWN}
    return url.set(query=shown).render_as_string()


_inherited: list[Engine] = []
"""Engines of our parents. Not closed, not even by the garbage collector: their connections are not ours."""


class Door:
    """Connections to one database, for one process at a time."""

    def __init__(self, make_engine: Callable[[], Engine], settings: Settings) -> None:
        self._make_engine = make_engine
        self._settings = settings
        self._lock = threading.Lock()
        self._engine: Engine | None = None
        self._straight: Straight | None = None
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
                    if any(made.pool is parents.pool for parents in _inherited):
                        made.dispose(close=False)
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
        with self._ready() as engine, engine.connect() as connection, _unspoilt(connection):
            connection.begin()
            if engine.dialect.name == "postgresql" and not connection.info.get(LIMITED):
                # For this transaction alone: others use this connection too.
                limit = f"SET LOCAL idle_in_transaction_session_timeout = '{FROZEN}s'"
                connection.exec_driver_sql(limit)
            yield connection
            connection.commit()

    @contextmanager
    def moving(self) -> Iterator[Connection]:
        """Open what one move needs: it is a single statement on PostgreSQL, a transaction elsewhere."""
        single = self.engine.dialect.name == "postgresql"
        with self.reading() if single else self.transaction() as connection:
            yield connection

    @contextmanager
    def reading(self) -> Iterator[Connection]:
        """Open a connection on which each statement stands alone: no lock outlives it."""
        with self._ready() as engine, standalone(engine) as connection, _unspoilt(connection):
            yield connection

    def straight(self, statement: Executable, parameters: Mapping[str, Any]) -> list[tuple[Any, ...]] | None:
        """Execute a statement that is built once and stands alone, past SQLAlchemy; see `Straight`.

        None, and nothing was executed, where that cannot be: then there is `moving`.
        """
        with self._ready() as engine:
            straight = self._straight_to(engine)
            return straight.rows(statement, parameters) if straight.open else None

    def straight_each(
        self,
        statement: Executable,
        each: Iterable[Mapping[str, Any]],
        look: Callable[[list[list[tuple[Any, ...]]]], None],
    ) -> bool:
        """Execute such a statement for each of several parameters in a transaction; see `Straight`.

        False, and nothing was executed or all of it undone, where that cannot be
        """
        with self._ready() as engine:
            straight = self._straight_to(engine)
            if not straight.open:
                return False
            try:
                straight.rows_of_each(statement, each, look)
            except NotStraight:
                return False
            return True

    def _straight_to(self, engine: Engine) -> Straight:
        straight = self._straight
        if straight is None or straight.engine is not engine:
            schemas = self.options.get("schema_translate_map")
            straight = self._straight = Straight(engine, schemas)
        return straight

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
                with standalone(engine) as connection:
                    self.check(connection)
                self._checked = True
            yield engine
        except DBAPIError as error:
            if _lacks_table(error):
                said = f"The tables of jobhandle-celery are missing or old. {UPGRADE_HINT}"
                raise SchemaError(said) from None
            forgotten = _says(error, _FORGOTTEN)
            if forgotten or _says(error, _GONE_ELSEWHERE):
                engine.dispose()
            elif not (
                isinstance(error, (OperationalError, InternalError))
                or error.connection_invalidated
                or _says(error, _DENIED)
            ):
                raise
            # What the server said; SQLAlchemy's words would have the arguments of jobs among them.
            away = DatabaseUnavailableError(
                f"the database {_without_secrets(engine.url)} did not answer: {str(error.orig).strip()}"
            )
            if _says(error, _ASKED_TO_REPEAT):
                away.again = "soon"
            elif forgotten or error.connection_invalidated:
                away.again = "at once"
            raise away from None
        except PoolTimeoutError as error:
            raise DatabaseUnavailableError(f"no database connection became free: {error}") from error

    def _prepare(self, engine: Engine) -> Engine:
        listen(engine)
        # Arguments of jobs may be secrets, and parameters of statements stand in errors.
        engine.hide_parameters = True
        return engine.execution_options(**self.options) if self.options else engine


@contextmanager
def _unspoilt(connection: Connection) -> Iterator[None]:
    """Throw a connection away whose conversation was interrupted, by a time limit say.

    SQLAlchemy would roll back on it, and what the driver says to that would take the place of the limit.
    """
    try:
        yield
    except (SQLAlchemyError, JobHandleError):
        raise
    except BaseException:
        if not connection.closed:
            connection.invalidate()
        raise


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
    def asked_again(self: S, /, *args: P.args, **kwargs: P.kwargs) -> T:
        uncertain = False
        for repeat in range(_REPEATS):
            asking = _repeating.set(uncertain)
            try:
                return verb(self, *args, **kwargs)
            except DatabaseUnavailableError as error:
                if repeat + 1 == _REPEATS or error.again is None:
                    raise
                if error.again == "soon":
                    # Whoever is told to repeat is told that nothing was written.
                    time.sleep(random.uniform(0.0, 0.02 * 2**repeat))
                else:
                    uncertain = True
            finally:
                _repeating.reset(asking)
        raise AssertionError("unreachable")

    return asked_again
