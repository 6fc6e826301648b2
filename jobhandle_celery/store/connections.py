"""The settings of connections, whatever role, database and URL have set, and their deadlines."""

import functools
import socket
import time
from collections.abc import Generator, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from sqlalchemy import Connection, Engine, event, text

from ..errors import ConfigurationError
from ..schema import job

DEADLINE = 15.0
"""Seconds without any traffic during a statement after which the connection is closed."""

LOCK_WAIT = 3
"""Seconds for which a statement waits for a lock, of a caller's open transaction for instance; then the
operation is retried. On MariaDB a statement that waits may hold another lock, which a worker's lease
needs."""

CONNECT_TIMEOUT = 5
"""Seconds to reach a PostgreSQL or MariaDB server, and until a silent peer is given up."""

IDLE_TIMEOUT = 5
"""Seconds for which a transaction may be idle.

A process that is stopped between two statements, or whose machine has vanished, would keep its locks, and
with them block every sweep, until the server notices."""


OWN_PSYCOPG_ENGINE = "jobhandle_ours"
"""The option of an engine that only this library uses, and whose driver is psycopg."""

_STANDALONE = "jobhandle_standalone"
"""The option of a connection on which each statement is committed by itself."""


def is_own_psycopg(engine: Engine) -> bool:
    """Return True if only this library uses an engine, and its driver is psycopg."""
    return OWN_PSYCOPG_ENGINE in engine.get_execution_options()


def listen_to_psycopg(engine: Engine, query: Mapping[str, Any]) -> None:
    """Set up the connections of an engine of our own, whose URL has these options."""
    event.listen(engine, "connect", functools.partial(_on_psycopg_connect, query))
    event.listen(engine, "begin", _on_psycopg_begin)


def listen(engine: Engine) -> None:
    """Set up the connections of any engine for our statements."""
    if engine.dialect.name == "sqlite":
        event.listen(engine, "connect", _on_sqlite_connect)
        event.listen(engine, "begin", _on_sqlite_begin)
    elif engine.dialect.name in ("mysql", "mariadb"):
        # Before SQLAlchemy's listener, which has its own error for a MySQL in a mariadb:// URL.
        event.listen(engine, "connect", _on_mysql_connect, insert=True)
        # After the settings of the engine's creator.
        event.listen(engine, "connect", _disable_autocommit)
    elif engine.dialect.name == "postgresql":
        # Before SQLAlchemy's listener, which fails on the bytes that a driver returns for SQL_ASCII.
        event.listen(engine, "connect", _on_postgresql_connect, insert=True)


def transactional(engine: Engine) -> Connection:
    """Open a connection whose transactions are real, in READ COMMITTED, whatever its engine was made with."""
    connection = engine.connect()
    if engine.dialect.name == "postgresql":
        # An engine of our own sets it for each transaction, see `_on_psycopg_begin`.
        return (
            connection
            if is_own_psycopg(engine)
            else connection.execution_options(isolation_level="READ COMMITTED")
        )
    if "isolation_level" in engine.get_execution_options():
        level = "SERIALIZABLE" if engine.dialect.name == "sqlite" else "READ COMMITTED"
        return connection.execution_options(isolation_level=level)
    return connection  # as `listen` sets it


def home_schema(connection: Connection) -> str | None:
    """Return the schema of our tables, as a connection of our own finds them."""
    if connection.dialect.name == "postgresql":
        # Not the current schema: an earlier one in the search path may be newer than the tables.
        found = text(
            "SELECT nspname FROM pg_class JOIN pg_namespace ON pg_namespace.oid = relnamespace "
            "WHERE pg_class.oid = to_regclass(:name)"
        )
        home: str | None = connection.execute(found, {"name": job.name}).scalar()
        return home
    return connection.dialect.default_schema_name


def durability(connection: Connection) -> dict[str, str]:
    """Return the settings that say whether a commit survives a crash; none for SQLite."""
    match connection.dialect.name:
        case "postgresql":
            names = ["fsync", "synchronous_commit", "full_page_writes"]
            return {name: str(connection.execute(text(f"SHOW {name}")).scalar()) for name in names}
        case "mysql" | "mariadb":
            name = "innodb_flush_log_at_trx_commit"
            return {name: str(connection.execute(text(f"SELECT @@{name}")).scalar())}
    return {}


def standalone(engine: Engine) -> Connection:
    """Open a connection on which each statement is committed by itself."""
    if engine.dialect.name in ("mysql", "mariadb"):
        # Switching to autocommit is a round trip there, whose failure SQLAlchemy does not translate.
        return engine.connect()
    connection = engine.connect()
    if is_own_psycopg(engine):
        return connection.execution_options(**{_STANDALONE: True})
    return connection.execution_options(isolation_level="AUTOCOMMIT")


LIMITED = "jobhandle_limited"
"""In the info of a connection: its session has the limits of `IDLE_TIMEOUT` and `LOCK_WAIT`."""

_READ_COMMITTED = 2
"""psycopg's and psycopg2's number of that isolation level."""

PREPARED_AFTER = 3
"""Executions of a statement after which the server is asked to keep its plan."""


def _on_psycopg_connect(query: Mapping[str, Any], connection: Any, record: Any) -> None:
    """Set session parameters and prepare statements, except behind PgBouncer.

    In transaction mode each transaction gets another connection: a statement that was prepared on one is
    unknown to the next, and parameters that were set affect other clients. PgBouncer is detected by the
    process id, which it replaces by a number of its own.
    """
    connection.autocommit = True
    (number,) = connection.execute("SELECT pg_backend_pid()").fetchone()
    # For transactions. Behind PgBouncer a single statement has the role's default, and is retried.
    connection.isolation_level = _READ_COMMITTED
    if number == connection.info.backend_pid:
        connection.execute(
            f"SELECT set_config('idle_in_transaction_session_timeout', '{IDLE_TIMEOUT}s', false), "
            "set_config('default_transaction_isolation', 'read committed', false), "
            f"set_config('lock_timeout', '{LOCK_WAIT}s', false)"
        )
        record.info[LIMITED] = True
        if "prepare_threshold" not in query:
            connection.prepare_threshold = PREPARED_AFTER


def _on_psycopg_begin(connection: Connection) -> None:
    # Instead of SQLAlchemy's isolation level AUTOCOMMIT, which is reset after each use: the next use is
    # mostly of the same kind.
    alone = bool(connection.get_execution_options().get(_STANDALONE))
    driver: Any = connection.connection.dbapi_connection
    if driver.autocommit is not alone:
        driver.autocommit = alone


def _on_sqlite_connect(connection: Any, _record: Any) -> None:
    connection.isolation_level = None  # `_on_sqlite_begin` executes BEGIN
    connection.text_factory, connection.row_factory = str, None
    cursor = connection.cursor()
    for pragma in ("journal_mode = WAL", "synchronous = FULL", "foreign_keys = ON"):
        cursor.execute(f"PRAGMA {pragma}")
    cursor.close()


def _on_sqlite_begin(connection: Connection) -> None:
    # In SQLite a transaction that reads first and then writes fails at once instead of waiting; so ours take
    # the write lock at their beginning. Single reads take none.
    if connection.get_execution_options().get("isolation_level") != "AUTOCOMMIT":
        connection.exec_driver_sql("BEGIN IMMEDIATE")


def _on_mysql_connect(connection: Any, _record: Any) -> None:
    _set_keepalive(getattr(connection, "_sock", None))  # PyMySQL's, which has no options for that
    with connection.cursor() as cursor:
        cursor.execute("SELECT VERSION()")
        (version,) = cursor.fetchone()
        if "MariaDB" not in version:
            raise ConfigurationError(f"MySQL ({version}) is not supported; MariaDB 10.6 or newer is.")
        cursor.execute(f"SET {_MARIADB_SETTINGS}, idle_transaction_timeout = {IDLE_TIMEOUT}")
    if connection.character_set_name() != "utf8mb4":
        connection.set_character_set("utf8mb4")  # the driver's, which encodes the statements


_MARIADB_SETTINGS = (
    "time_zone = '+00:00', tx_isolation = 'READ-COMMITTED', "
    "character_set_client = utf8mb4, character_set_results = utf8mb4, "
    "character_set_connection = utf8mb4, collation_connection = utf8mb4_nopad_bin, "
    # A value that is too long is an error, and an UPDATE reads the old values, as on other databases.
    # ANSI_QUOTES stays: SQLAlchemy may have read it already, and quotes accordingly.
    "sql_mode = CONCAT('STRICT_TRANS_TABLES,NO_ENGINE_SUBSTITUTION,SIMULTANEOUS_ASSIGNMENT', "
    "IF(FIND_IN_SET('ANSI_QUOTES', @@sql_mode), ',ANSI_QUOTES', '')), "
    "sql_safe_updates = 0, sql_select_limit = 18446744073709551615"
)


def _disable_autocommit(connection: Any, _record: Any) -> None:
    connection.autocommit(False)


def _set_keepalive(sock: socket.socket | None) -> None:
    """Notice a vanished peer within seconds, as for PostgreSQL, where the system supports it."""
    if sock is None or sock.family == getattr(socket, "AF_UNIX", None):
        return
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in (
        ("TCP_USER_TIMEOUT", CONNECT_TIMEOUT * 1000),
        ("TCP_KEEPIDLE", CONNECT_TIMEOUT),
        ("TCP_KEEPINTVL", 2),
        ("TCP_KEEPCNT", 3),
    ):
        if hasattr(socket, name):
            sock.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)


def _on_postgresql_connect(connection: Any, _record: Any) -> None:
    info: Any = getattr(connection, "info", None)  # psycopg's, and psycopg2's
    encoding = None if info is None else info.parameter_status("server_encoding")
    if encoding not in (None, "UTF8"):
        raise ConfigurationError(
            f"The encoding of the database {info.dbname} is {encoding}, which cannot hold every message and "
            "result. Make one that can: CREATE DATABASE name TEMPLATE template0 ENCODING 'UTF8' LOCALE 'C'."
        )
    if info is not None:
        _set_formats(connection, info)


def _set_formats(connection: Any, info: Any) -> None:
    """Set the client encoding, date style and float digits that drivers expect.

    Behind PgBouncer other clients may get these settings: they are PostgreSQL's defaults.
    """
    _set(connection, "extra_float_digits = 1")
    if info.parameter_status("client_encoding") != "UTF8":
        if hasattr(connection, "set_client_encoding"):
            connection.set_client_encoding("UTF8")  # psycopg2 would not notice the statement
        else:
            _set(connection, "client_encoding = 'UTF8'")
    if not info.parameter_status("DateStyle").startswith("ISO"):
        _set(connection, "DateStyle = 'ISO, MDY'")


def _set(connection: Any, setting: str) -> None:
    with connection.cursor() as cursor:
        cursor.execute(f"SET {setting}")
    connection.commit()


# Deadlines. A server that has stopped, or a proxy whose server has died, acknowledges what TCP brings and
# answers nothing, which no keepalive notices. So the client closes a connection on which nothing comes.


def limit_silence(engine: Engine, deadline: float) -> None:
    """Close the connections of an engine on which a statement gets no answer for so many seconds."""
    event.listen(engine, "do_connect", functools.partial(_connect, deadline))
    if engine.dialect.name in ("mysql", "mariadb"):
        event.listen(engine, "connect", _on_mariadb_connect)


def _connect(deadline: float, dialect: Any, _record: Any, args: Any, options: Any) -> Any:
    if dialect.driver == "psycopg":
        return _bounded_psycopg(deadline).connect(*args, **options)
    if dialect.driver in ("pymysql", "mysqldb"):
        options.setdefault("read_timeout", deadline)
        options.setdefault("write_timeout", deadline)
    elif dialect.name == "sqlite":
        options["timeout"] = min(options.get("timeout", deadline), deadline)
    return None  # SQLAlchemy connects


def _on_mariadb_connect(connection: Any, _record: Any) -> None:
    # An index merge waits for locked rows in spite of SKIP LOCKED, and locks rows in no order.
    with connection.cursor() as cursor:
        cursor.execute(
            f"SET innodb_lock_wait_timeout = {LOCK_WAIT}, lock_wait_timeout = {LOCK_WAIT}, "
            "optimizer_switch = 'index_merge=off'"
        )


@contextmanager
def brief_wait(connection: Connection, seconds: float | None) -> Iterator[None]:
    """Limit the wait for SQLite's write lock within the block."""
    if seconds is None or connection.dialect.name != "sqlite":
        yield
        return
    driver: Any = connection.connection.dbapi_connection
    (before,) = driver.execute("PRAGMA busy_timeout").fetchone()
    driver.execute(f"PRAGMA busy_timeout = {min(before, int(seconds * 1000))}")
    try:
        yield
    finally:
        driver.execute(f"PRAGMA busy_timeout = {before}")


@functools.cache
def _bounded_psycopg(deadline: float) -> Any:
    """Return a subclass of psycopg's connection with a deadline in `wait`, which all statements use."""
    import psycopg  # only where it is used: it need not be installed

    class BoundedConnection(psycopg.Connection[Any]):
        def wait(self, gen: Any, *args: Any, **options: Any) -> Any:
            return super().wait(self._until_silent(gen), *args, **options)

        def _until_silent(self, gen: Any) -> Generator[Any, Any, Any]:
            # psycopg waits in steps of 0.1 s, and sends 0 if nothing was received.
            silent_at = time.monotonic() + deadline
            ready: Any = None
            while True:
                try:
                    wanted = gen.send(ready)
                except StopIteration as done:
                    return done.value
                ready = yield wanted
                if ready:
                    silent_at = time.monotonic() + deadline
                elif time.monotonic() > silent_at:
                    self.close()
                    raise psycopg.OperationalError(f"no answer within {deadline:g} s")

    return BoundedConnection
