"""What the connections to each database need. Knows nothing of jobs."""

import functools
import socket
from collections.abc import Mapping
from typing import Any

from sqlalchemy import URL, Connection, Engine, create_engine, event

from ..errors import ConfigurationError

BUSY_TIMEOUT = 10.0
"""Seconds for which SQLite waits for another process's write."""

CONNECT_TIMEOUT = 5
"""Seconds to reach a PostgreSQL or MariaDB server, and until a peer that is silent is given up."""

FROZEN = 5
"""Seconds for which a transaction may do nothing.

A process that was stopped between two statements, or whose machine has vanished, would hold its locks, and by
them every sweep, for as long as the server believes in it."""


def own_engine(url: URL) -> Engine:
    """Make an engine for that URL, which nobody else uses."""
    psycopg = url.drivername == "postgresql+psycopg"
    options = {_OURS: True} if psycopg else {}
    engine = create_engine(url, connect_args=_connect_args(url), execution_options=options)
    if psycopg:
        event.listen(engine, "connect", functools.partial(_on_psycopg_connect, url.query))
        event.listen(engine, "begin", _on_psycopg_begin)
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


_OURS = "jobhandle_ours"
"""The option of an engine whose driver is psycopg, and which nobody else uses."""

_STANDALONE = "jobhandle_standalone"
"""The option of a connection on which each statement is committed by itself."""


def is_ours(engine: Engine) -> bool:
    """Say whether nobody else uses an engine, and its driver is psycopg."""
    return _OURS in engine.get_execution_options()


def listen(engine: Engine) -> None:
    """Have the connections of an engine, which may be somebody else's too, fit for our statements."""
    if engine.dialect.name == "sqlite":
        event.listen(engine, "connect", _on_sqlite_connect)
        event.listen(engine, "begin", _on_sqlite_begin)
    elif engine.dialect.name in ("mysql", "mariadb"):
        # Before SQLAlchemy's own, which has words of its own for a MySQL that is called a MariaDB.
        event.listen(engine, "connect", _on_mysql_connect, insert=True)
    elif engine.dialect.name == "postgresql":
        # Before SQLAlchemy's own, which does not expect the bytes that a driver makes of SQL_ASCII.
        event.listen(engine, "connect", _on_postgresql_connect, insert=True)


def standalone(engine: Engine) -> Connection:
    """Open a connection on which each statement is committed by itself."""
    if engine.dialect.name in ("mysql", "mariadb"):
        # To switch to autocommit is a round trip there, and its failure is none that SQLAlchemy knows.
        return engine.connect()
    connection = engine.connect()
    if is_ours(engine):
        return connection.execution_options(**{_STANDALONE: True})
    return connection.execution_options(isolation_level="AUTOCOMMIT")


LIMITED = "jobhandle_limited"
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
    (number,) = connection.execute("SELECT pg_backend_pid()").fetchone()
    if number == connection.info.backend_pid:
        connection.execute(f"SET idle_in_transaction_session_timeout = '{FROZEN}s'")
        record.info[LIMITED] = True
        if "prepare_threshold" not in query:
            connection.prepare_threshold = PREPARED_AFTER


def _on_psycopg_begin(connection: Connection) -> None:
    # Instead of SQLAlchemy's isolation level AUTOCOMMIT, which it takes back after each use: mostly the next
    # use is of the same kind.
    alone = bool(connection.get_execution_options().get(_STANDALONE))
    driver: Any = connection.connection.dbapi_connection
    if driver.autocommit is not alone:
        driver.autocommit = alone


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
    _notice_silence(getattr(connection, "_sock", None))  # PyMySQL's, which has no options for that
    with connection.cursor() as cursor:
        cursor.execute("SELECT VERSION()")
        (version,) = cursor.fetchone()
        if "MariaDB" not in version:
            raise ConfigurationError(f"MySQL ({version}) is not supported; MariaDB 10.6 or newer is.")
        cursor.execute(
            "SET time_zone = '+00:00', tx_isolation = 'READ-COMMITTED', "
            # An UPDATE reads the old values everywhere, as on every other database.
            "sql_mode = CONCAT(@@sql_mode, ',SIMULTANEOUS_ASSIGNMENT'), "
            f"idle_transaction_timeout = {FROZEN}"
        )


def _notice_silence(sock: socket.socket | None) -> None:
    """Have a peer that silently vanished noticed in seconds, as for PostgreSQL, where the system can."""
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
