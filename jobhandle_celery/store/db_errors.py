"""Errors of the database, translated: those of which a retry may help, and those that are final."""

from sqlalchemy import URL
from sqlalchemy.exc import DBAPIError, InternalError, OperationalError, ProgrammingError

from ..errors import (
    UPGRADE_HINT,
    DatabaseRefusedError,
    DatabaseUnavailableError,
    JobHandleError,
    SchemaError,
)
from .retrying import retry_limit

RETRYABLE = {"40001", "40P01", "55P03", "1213", "1205", "1020", "1305", "517"}
"""SQLSTATEs of PostgreSQL and error numbers of MariaDB: serialization failure, deadlock, lock wait, and a
savepoint that a deadlock removed. And SQLite's SQLITE_BUSY_SNAPSHOT."""

_BUSY = {"5"}
"""SQLite: another connection holds the lock. Retried only within `limit_retries`, where the wait was
short."""

SERVER_CHANGED = {"25006", "25P03", "1290", "1836"}
"""A read-only server after a failover, or a session that the server has ended: a new connection may help."""

STALE_STATEMENT = {"0A000", "26000"}
"""PostgreSQL: a prepared statement whose table has changed since, or that it does not know. A new connection
has prepared nothing."""

_REFUSED = {"1153", "1644", "4025"}
"""MariaDB: a packet that is too large, a trigger's refusal and a CHECK; PyMySQL calls them operational."""

_DENIED = {"42501"}
"""PostgreSQL: a missing permission counts as unavailable, because an administrator can grant it."""

_SHOWN = {"host", "port", "service", "unix_socket", "sslmode"}


def translate(error: DBAPIError, database: str) -> JobHandleError:
    """Return the library's error for an error of the driver; a retry helps only against
    `DatabaseUnavailableError`.

    It has the server's text alone: SQLAlchemy's would contain the arguments of jobs.
    """
    if _lacks_table(error):
        return SchemaError(f"The tables of jobhandle-celery are missing or old. {UPGRADE_HINT}")
    stale = has_code(error, STALE_STATEMENT)
    if not has_code(error, _REFUSED) and (
        isinstance(error, (OperationalError, InternalError))
        or error.connection_invalidated
        or stale
        or has_code(error, SERVER_CHANGED | _DENIED)
    ):
        unavailable = DatabaseUnavailableError(f"{database} did not answer: {str(error.orig).strip()}")
        if has_code(error, RETRYABLE) or (retry_limit() is not None and has_code(error, _BUSY)):
            unavailable.retry = "after_pause"
        elif stale or error.connection_invalidated:
            unavailable.retry = "immediately"
        return unavailable
    # The first line alone: PostgreSQL shows the refused value in the next.
    first_line = str(error.orig).strip().partition("\n")[0]
    return DatabaseRefusedError(f"{database} refused a statement: {type(error).__name__}: {first_line}")


def has_code(error: DBAPIError, codes: set[str]) -> bool:
    """Say whether an error has one of these SQLSTATEs or error numbers."""
    return getattr(error.orig, "sqlstate", None) in codes or _number(error) in codes


def without_secrets(url: URL) -> str:
    """Return a URL that may be shown; a driver's options may be passwords, too."""
    shown = {name: value for name, value in url.query.items() if name in _SHOWN}
    return url.set(query=shown).render_as_string()


def _lacks_table(error: DBAPIError) -> bool:
    if isinstance(error, ProgrammingError):
        return has_code(error, {"42P01", "42703", "1146", "1054"})
    text = str(error.orig)
    return "no such table" in text or "no such column" in text


def _number(error: DBAPIError) -> str:
    code = getattr(error.orig, "sqlite_errorcode", None)
    if code is not None:
        return str(code)
    arguments = getattr(error.orig, "args", ())
    return str(arguments[0]) if arguments and isinstance(arguments[0], int) else ""
