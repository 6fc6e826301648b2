"""A caller's session: which of its connections writes to our tables, and whether a job can join it.

What the session, its connection, role or database has set may change what a statement of ours does there.
What cannot be made right is refused before anything is written.
"""

from typing import TYPE_CHECKING, Any

from sqlalchemy import Connection, insert

from ..errors import ApiUsageError
from ..schema import job

if TYPE_CHECKING:
    # At run time only for those who have one: the ORM takes longer to import than all of ours.
    from sqlalchemy.orm import Session


def session_of(given: Any) -> "Session":
    """Return the session that can be joined.

    Raises:
        ApiUsageError: there is none; it says what to give instead.
    """
    from sqlalchemy.orm import Session, scoped_session

    if isinstance(given, scoped_session):
        given = given()
    if isinstance(given, Session):
        return given
    hint = ""
    if type(given).__module__.startswith("sqlalchemy.ext.asyncio"):
        session = "session()" if type(given).__name__ == "async_scoped_session" else "session"
        hint = f" In a coroutine: await {session}.run_sync(lambda sync: handle.submit(job, session=sync))."
    raise ApiUsageError(f"session: {type(given).__name__} is not a sqlalchemy.orm.Session.{hint}")


def connection_of(session: "Session") -> Connection:
    """Return the connection on which a session would write to our tables.

    Raises:
        ApiUsageError: the session has no database for them, or its connection cannot be joined.
    """
    from sqlalchemy.exc import UnboundExecutionError

    try:
        # By a statement that writes, so that a session which routes them sends it to the primary.
        bind = session.get_bind(clause=insert(job))
    except UnboundExecutionError:
        # Its models are bound one by one, and SQLAlchemy 2.0 has no public name for these binds.
        bound: Any = getattr(session, "_Session__binds", None) or getattr(session, "binds", {})
        binds = {id(bind): bind for bind in bound.values()}
        if len(binds) != 1:
            raise ApiUsageError(
                "session: it is bound to no database for the tables of jobs. Bind them too: "
                "Session(binds={..., jobhandle_celery.schema.job: engine})."
            ) from None
        (bind,) = binds.values()
    connection = session.connection(bind_arguments={"bind": bind})
    if _commits_by_itself(connection):
        raise ApiUsageError(
            "session: its connection is in AUTOCOMMIT, so a job would stay there after a rollback. "
            "Give a session whose transactions are real, or submit without one."
        )
    return connection


def _commits_by_itself(connection: Connection) -> bool:
    """Say whether each statement on a connection is committed at once; no round trip."""
    if connection.get_execution_options().get("isolation_level") == "AUTOCOMMIT":
        return True
    adapted: Any = connection.connection.dbapi_connection
    driver: Any = connection.connection.driver_connection
    if connection.dialect.name == "sqlite":
        # With None, or Python 3.12's True, a transaction is there if somebody has begun it.
        by_itself = driver.isolation_level is None or getattr(driver, "autocommit", None) is True
        return by_itself and not driver.in_transaction
    for asked in (adapted, driver):
        get = getattr(asked, "get_autocommit", None)  # PyMySQL's and its kin's
        autocommit = get() if callable(get) else getattr(asked, "autocommit", None)
        if isinstance(autocommit, (bool, int)):
            return bool(autocommit)
    return False
