"""A caller's session: which of its connections writes to our tables, and whether a job can join it.

Settings of the session, its connection, role or database may change the effect of our statements. A session
in which that cannot be corrected is refused before anything is written.
"""

from collections.abc import Iterable, Mapping
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from sqlalchemy import Connection, insert, text
from sqlalchemy.exc import DBAPIError

from ..errors import ApiUsageError
from ..schema import job

if TYPE_CHECKING:
    # Importing the ORM takes longer than importing this library; at run time the caller has imported it.
    from sqlalchemy.ext.asyncio import AsyncSession
    from sqlalchemy.orm import Session


def session_of(value: Any) -> "Session":
    """Return the session that can be joined.

    Raises:
        ApiUsageError: it is not a session; the message says what to pass instead.
    """
    from sqlalchemy.orm import Session, scoped_session

    if isinstance(value, scoped_session):
        value = value()
    if isinstance(value, Session):
        return value
    hint = ""
    if any(kind.__module__.startswith("sqlalchemy.ext.asyncio") for kind in type(value).__mro__):
        session = "session()" if type(value).__name__ == "async_scoped_session" else "session"
        hint = (
            " In a coroutine, use jobs.async_handle(), or "
            f"await {session}.run_sync(lambda sync: handle.submit(job, session=sync))."
        )
    raise ApiUsageError(f"session: {type(value).__name__} is not a sqlalchemy.orm.Session.{hint}")


def async_session_of(value: Any) -> "AsyncSession":
    """Return the asynchronous session that can be joined.

    Raises:
        ApiUsageError: it is not an asynchronous session.
    """
    from sqlalchemy.ext.asyncio import AsyncSession, async_scoped_session

    if isinstance(value, async_scoped_session):
        value = value()
    if isinstance(value, AsyncSession):
        return value
    raise ApiUsageError(
        f"session: {type(value).__name__} is not a sqlalchemy.ext.asyncio.AsyncSession. "
        "A Session would block the event loop: join it by JobHandle.submit, in a thread."
    )


def connection_of(session: "Session") -> Connection:
    """Return the connection on which a session would write to our tables.

    Raises:
        ApiUsageError: the session has no database for them, or its connection cannot be joined.
    """
    from sqlalchemy.exc import UnboundExecutionError

    try:
        # With a statement that writes: a session that routes statements sends it to the primary.
        bind = session.get_bind(clause=insert(job))
    except UnboundExecutionError:
        # Models are bound individually, and SQLAlchemy 2.0 has no public name for these binds.
        bound: Any = getattr(session, "_Session__binds", None) or getattr(session, "binds", {})
        binds = {id(bind): bind for bind in bound.values()}
        if len(binds) != 1:
            raise ApiUsageError(
                "session: it has no bind for the tables of jobs. Add one: "
                "Session(binds={..., jobhandle_celery.schema.job: engine})."
            ) from None
        (bind,) = binds.values()
    connection = session.connection(bind_arguments={"bind": bind})
    if _commits_by_itself(connection):
        raise ApiUsageError(
            "session: its connection is in AUTOCOMMIT, so a rollback would not remove the job. "
            "Pass a session without AUTOCOMMIT, or submit without a session."
        )
    encoding = _client_encoding(connection)
    if encoding == "SQL_ASCII":
        raise ApiUsageError(
            "session: the client_encoding of its connection is SQL_ASCII, with which its driver returns "
            "bytes. Use UTF8."
        )
    text_factory = getattr(connection.connection.driver_connection, "text_factory", str)
    if text_factory is not str:
        raise ApiUsageError(
            "session: the text_factory of its SQLite connection is not str, so text cannot be read."
        )
    return connection


def carry_text(connection: Connection, rows: Iterable[Mapping[str, Any]]) -> None:
    """Make sure that MariaDB receives the non-ASCII text of rows unchanged.

    The character set of the driver, and the one that the server assumes, are the caller's. PostgreSQL gets
    only ASCII, SQLite has no such setting.

    Raises:
        ApiUsageError: the connection's character set cannot carry the text; nothing was written.
    """
    if connection.dialect.name not in ("mysql", "mariadb"):
        return
    texts = {
        value for row in rows for value in row.values() if isinstance(value, str) and not value.isascii()
    }
    if not texts:
        return
    probe = "".join(sorted({character for value in texts for character in value if character > "\x7f"}))
    arrived = ""
    with suppress(UnicodeError, DBAPIError):
        asked = text("SELECT HEX(CONVERT(:probe USING utf8mb4))")
        arrived = connection.execute(asked, {"probe": probe}).scalar_one()
    if arrived != probe.encode().hex().upper():
        charset = connection.exec_driver_sql("SELECT @@character_set_client").scalar()
        raise ApiUsageError(
            f"session: its connection's character set, {charset}, cannot carry every character of this job. "
            "Make its engine with charset=utf8mb4, e.g. mariadb+pymysql://user@host/name?charset=utf8mb4."
        )


def _client_encoding(connection: Connection) -> str | None:
    if connection.dialect.name != "postgresql":
        return None
    info: Any = getattr(connection.connection.driver_connection, "info", None)  # psycopg's, and psycopg2's
    encoding: str | None = None if info is None else info.parameter_status("client_encoding")
    return encoding


def _commits_by_itself(connection: Connection) -> bool:
    """Return True if a connection commits each statement; needs no round trip."""
    if connection.get_execution_options().get("isolation_level") == "AUTOCOMMIT":
        return True
    adapted: Any = connection.connection.dbapi_connection
    driver: Any = connection.connection.driver_connection
    if connection.dialect.name == "sqlite":
        # With None, or Python 3.12's True, there is a transaction only if the caller has begun one.
        by_itself = driver.isolation_level is None or getattr(driver, "autocommit", None) is True
        return by_itself and not driver.in_transaction
    for asked in (adapted, driver):
        get = getattr(asked, "get_autocommit", None)  # of PyMySQL and its forks
        autocommit = get() if callable(get) else getattr(asked, "autocommit", None)
        if isinstance(autocommit, (bool, int)):
            return bool(autocommit)
    return False
