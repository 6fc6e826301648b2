"""The one door to the database: an engine per process, transactions, errors said in our words.

Engines are made lazily and never survive a fork. Every verb that is marked `repeatable` is asked again
when a connection breaks or the database asks for it (deadlock, serialisation failure): its author
recognises its own earlier success, see the verbs.
"""

import functools
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, ParamSpec, TypeVar

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
    DatabaseRefusedError,
    DatabaseUnavailableError,
    JobHandleError,
    SchemaError,
    shown,
)
from ..settings import Settings
from .connections import FROZEN, LIMITED, home_schema, listen, own_engine, standalone, transactional
from .deadlines import DEADLINE, LOCK_WAIT, bound, brief_wait
from .direct_psycopg import DirectPsycopg, NotDirect
from .fork_guard import gate
from .retrying import brief

P = ParamSpec("P")
T = TypeVar("T")

_ASKED_TO_REPEAT = {"40001", "40P01", "55P03", "1213", "1205", "1020", "1305", "517"}
"""SQLSTATEs of PostgreSQL and error numbers of MariaDB: serialisation failure, deadlock, lock wait, and a
savepoint that a deadlock took away. And SQLite's SQLITE_BUSY_SNAPSHOT."""

_BUSY = {"5"}
"""SQLite's: another has its lock; of one who has waited for it briefly alone."""

_GONE_ELSEWHERE = {"25006", "25P03", "1290", "1836"}
"""A read-only server after a failover, a session that the server has ended: ask on a new connection."""

_FORGOTTEN = {"0A000", "26000"}
"""PostgreSQL's of a prepared statement whose table has changed since, or that it does not know: a new
connection has prepared nothing."""

_REFUSED = {"1153", "1644", "4025"}
"""MariaDB's of a packet that is too large, a trigger's refusal and a CHECK: operational, to PyMySQL."""

_DENIED = {"42501"}
"""PostgreSQL's of a permission that is missing: somebody will grant it, as somebody will start a server."""


def engine_maker(database: object) -> Callable[[], Engine]:
    """Return a function that makes an engine for that database, once per process that asks.

    Raises:
        ConfigurationError: the URL cannot be read, or its driver is not installed.
    """
    if callable(database):
        return database
    if not isinstance(database, (str, URL)):
        said = f"database: {shown(database)} is not a URL or a function."
        raise ConfigurationError(f"{said} {_instead(database)}")
    try:
        url = make_url(database)
        if url.get_backend_name() == "postgresql" and url.drivername == "postgresql":
            url = url.set(drivername="postgresql+psycopg")
        dialect = url.get_dialect()
    except (ArgumentError, NoSuchModuleError, ValueError) as error:
        refused = _without_secrets(database) if isinstance(database, URL) else "the text given"
        raise ConfigurationError(
            f"Not a database URL: {refused} ({type(error).__name__}). Accepted: {_URLS}."
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


_URLS = "e.g. 'postgresql+psycopg://user@host/name' or 'sqlite:///path/to/file.db'"


def _instead(given: object) -> str:
    """Return what to give instead of something that is no database, but has to do with one."""
    if type(given).__module__.startswith("sqlalchemy.ext.asyncio"):
        return "Give the URL of a synchronous driver, or a function that makes an Engine by create_engine()."
    return (
        f"Accepted: a URL, {_URLS}; or a function that makes a new Engine for this library alone, "
        "e.g. Jobs(app, lambda: create_engine(url)). Your own engine joins by submit(session=...)."
    )


_SHOWN = {"host", "port", "service", "unix_socket", "sslmode"}


def _without_secrets(url: URL) -> str:
    """Return a URL that may be shown: a driver takes passwords among its options, too."""
    shown = {name: value for name, value in url.query.items() if name in _SHOWN}
    return url.set(query=shown).render_as_string()


_inherited: list[Engine] = []
"""Engines of our parents. Not closed, not even by the garbage collector: their connections are not ours."""


class Database:
    """Connections to one database, for one process at a time."""

    def __init__(
        self, make_engine: Callable[[], Engine], settings: Settings, deadline: float | None = DEADLINE
    ) -> None:
        self._make_engine = make_engine
        self._settings = settings
        self.deadline = deadline
        """Seconds that a statement may take without a sign of life; None: any time, as migrations need."""
        self._apart = False
        self._lock = threading.Lock()
        self._engine: Engine | None = None
        self._straight: DirectPsycopg | None = None
        self._checked = False
        self._home: str | None = None
        """The schema that our tables are in, once it was asked for."""
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
                        said = f"database: the function returned {shown(made)}, not an Engine."
                        raise ConfigurationError(f"{said} {_instead(made)}")
                    if any(made.pool is parents.pool for parents in _inherited):
                        made.dispose(close=False)
                    engine = self._engine = self._prepare(made)
        return engine

    @property
    def options(self) -> dict[str, Any]:
        """Execution options of every statement on a connection of our own."""
        schema = self._settings.schema
        return {"schema_translate_map": {None: schema}} if schema else {}

    def options_on(self, connection: Connection) -> dict[str, Any]:
        """Execution options of a statement, by which it finds our tables on a connection of the caller's too.

        That may have another search path or default database, or a ``schema_translate_map``.
        """
        if self._home is None or connection.engine is self._engine:
            return self.options
        return {"schema_translate_map": {None: self._home}}

    def apart(self, deadline: float) -> "Database":
        """Return a door to the same database that shares nothing with this one and waits for no fork."""
        door = Database(self._make_engine, self._settings, deadline)
        door._apart = True
        return door

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
        with self._ready() as engine, transactional(engine) as connection, _unspoilt(connection):
            with brief_wait(connection, brief()):
                connection.begin()
            if engine.dialect.name == "postgresql" and not connection.info.get(LIMITED):
                # For this transaction alone: others use this connection too.
                connection.exec_driver_sql(
                    f"SELECT set_config('idle_in_transaction_session_timeout', '{FROZEN}s', true), "
                    f"set_config('lock_timeout', '{LOCK_WAIT}s', true)"
                )
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
        """Execute a statement that is built once and stands alone, past SQLAlchemy; see `DirectPsycopg`.

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
        """Execute such a statement for each of several parameters in a transaction; see `DirectPsycopg`.

        False, and nothing was executed or all of it undone, where that cannot be
        """
        with self._ready() as engine:
            straight = self._straight_to(engine)
            if not straight.open:
                return False
            try:
                straight.rows_of_each(statement, each, look)
            except NotDirect:
                return False
            return True

    def _straight_to(self, engine: Engine) -> DirectPsycopg:
        straight = self._straight
        if straight is None or straight.engine is not engine:
            schemas = self.options.get("schema_translate_map")
            straight = self._straight = DirectPsycopg(engine, schemas)
        return straight

    @contextmanager
    def joining(self) -> Iterator[None]:
        """Say in our words what goes wrong on a connection that is the caller's.

        A serialization failure or a deadlock is SQLAlchemy's own error: the caller's transaction is over, and
        what repeats it from its beginning knows that error.
        """
        if self._home is None:
            with self._ready() as engine, standalone(engine) as connection:
                self._home = self._settings.schema or home_schema(connection)
        with gate.inside():
            try:
                yield
            except DBAPIError as error:
                if _says(error, _ASKED_TO_REPEAT):
                    error.hide_parameters = True  # the engine is the caller's, and may show them
                    raise
                raise _in_our_words(error, "the database of the session") from None

    @contextmanager
    def upgrading(self) -> Iterator[Engine]:
        """Say in our words what goes wrong while the tables are made."""
        with self._ready() as engine:
            yield engine

    @contextmanager
    def _ready(self) -> Iterator[Engine]:
        with self._guarded(), self._translating() as engine:
            yield engine

    def _guarded(self) -> AbstractContextManager[None]:
        if not self._apart:
            return gate.inside()
        return gate.past() if self.engine.dialect.name == "sqlite" else nullcontext()

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
            if _says(error, _FORGOTTEN) or _says(error, _GONE_ELSEWHERE):
                engine.dispose()
            raise _in_our_words(error, f"the database {_without_secrets(engine.url)}") from None
        except PoolTimeoutError as error:
            raise DatabaseUnavailableError(f"no database connection became free: {error}") from error

    def _prepare(self, engine: Engine) -> Engine:
        listen(engine)
        if self.deadline is not None:
            bound(engine, self.deadline)
        # Arguments of jobs may be secrets, and parameters of statements stand in errors.
        engine.hide_parameters = True
        options = self.options or {"schema_translate_map": {}}
        return engine.execution_options(**options)


def _in_our_words(error: DBAPIError, database: str) -> JobHandleError:
    """Return what an error of the database is to the caller; asking again helps against the first kind alone.

    With what the server said: SQLAlchemy's words would have the arguments of jobs among them.
    """
    if _lacks_table(error):
        return SchemaError(f"The tables of jobhandle-celery are missing or old. {UPGRADE_HINT}")
    forgotten = _says(error, _FORGOTTEN)
    if not _says(error, _REFUSED) and (
        isinstance(error, (OperationalError, InternalError))
        or error.connection_invalidated
        or forgotten
        or _says(error, _GONE_ELSEWHERE | _DENIED)
    ):
        away = DatabaseUnavailableError(f"{database} did not answer: {str(error.orig).strip()}")
        if _says(error, _ASKED_TO_REPEAT) or (brief() is not None and _says(error, _BUSY)):
            away.again = "soon"
        elif forgotten or error.connection_invalidated:
            away.again = "at once"
        return away
    # The first line alone: PostgreSQL shows the refused value in the next.
    said = str(error.orig).strip().partition("\n")[0]
    return DatabaseRefusedError(f"{database} refused a statement: {type(error).__name__}: {said}")


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
    code = getattr(error.orig, "sqlite_errorcode", None)
    if code is not None:
        return str(code)
    arguments = getattr(error.orig, "args", ())
    return str(arguments[0]) if arguments and isinstance(arguments[0], int) else ""
