"""The migrations of the tables (Alembic), and the check whether they were run.

The version is kept in a table of its own, separate from an application's Alembic. An application that manages
the tables itself (`jobhandle_celery.schema.metadata`) has no such table: then only the rows of the nine
statuses are checked, which Alembic's autogenerate does not write.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sqlalchemy import Connection, Engine, inspect, select, text
from sqlalchemy.schema import CreateSchema

from ..errors import UPGRADE_HINT, SchemaError
from ..schema import STATUS_ROWS, VERSION_TABLE, job, job_status

REVISIONS = ("0001", "0002")
"""All revisions, oldest first. The last is the one that this code needs."""

EMPTY = "base"
"""Stands for the revision of a database without tables, as in Alembic."""

_LOCK = 0x6A6F6268  # "jobh"; PostgreSQL's advisory locks are numbers
_SET_LOCAL = text("SELECT set_config(:name, :value, true)")


def revision_of(engine: Engine, schema: str | None = None) -> str:
    """Return the revision of a database's tables; `EMPTY` if it has none.

    Raises:
        SchemaError: the tables are newer than this code.
    """
    with engine.connect() as connection:
        found = _found(connection, schema)
    if found is not None and found not in REVISIONS:
        raise _newer(found)
    return found or EMPTY


def upgrade(engine: Engine, schema: str | None = None, *, print_from: str | None = None) -> None:
    """Bring the tables to the newest revision; safe to call from many processes at once.

    Args:
        engine: The database.
        schema: The database schema of the tables; created if it does not exist.
        print_from: Only print the statements, for tables of this revision.

    Raises:
        SchemaError: the tables are newer than this code.
    """
    # Imported here: a worker, which only checks the version, does not need it.
    from alembic import command
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent).replace("%", "%%"))
    config.attributes["schema"] = schema
    if print_from is not None:
        config.attributes["dialect"] = engine.dialect.name
        command.upgrade(config, f"{print_from}:head", sql=True)
        return
    with engine.connect() as connection, _alone(connection):
        if schema is not None and not inspect(connection).has_schema(schema):
            connection.execute(CreateSchema(schema))
        found = _found(connection, schema)
        if found is not None and found not in REVISIONS:
            raise _newer(found)
        config.attributes["connection"] = connection
        command.upgrade(config, "head")
        connection.commit()


@contextmanager
def _alone(connection: Connection) -> Iterator[None]:
    """Let one process at a time change the tables; on SQLite a transaction does."""
    match connection.dialect.name:
        case "postgresql":
            # The limits of other transactions would end an upgrade that waits for another process, or that
            # prepares its next statement on a busy machine. Its statements wait for locks as long as others.
            bounded = connection.execute(text("SHOW lock_timeout")).scalar_one()
            for name in ("idle_in_transaction_session_timeout", "lock_timeout"):
                connection.execute(_SET_LOCAL, {"name": name, "value": "0"})
            connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _LOCK})
            connection.execute(_SET_LOCAL, {"name": "lock_timeout", "value": bounded})
            yield
        case "mysql" | "mariadb":
            # DDL commits implicitly there, so the lock belongs to the session.
            connection.execute(text("SELECT GET_LOCK(CONCAT('jobhandle ', DATABASE()), 600)"))
            try:
                yield
            finally:
                connection.execute(text("SELECT RELEASE_LOCK(CONCAT('jobhandle ', DATABASE()))"))
        case _:
            yield


def check(connection: Connection, schema: str | None = None) -> None:
    """Make sure that the tables fit this code.

    Raises:
        SchemaError: they are missing, older or newer; the message says what to run.
    """
    inspector = inspect(connection)
    if not inspector.has_table(VERSION_TABLE, schema=schema):
        if inspector.has_table(job.name, schema=schema):
            _check_statuses(connection, schema)
            return
        raise SchemaError(f"The tables of jobhandle-celery are not in this database. {UPGRADE_HINT}")
    found = _found(connection, schema)
    if found == REVISIONS[-1]:
        return
    if found in REVISIONS or found is None:
        raise SchemaError(
            f"The tables of jobhandle-celery are at revision {found}, "
            f"this code needs {REVISIONS[-1]}. {UPGRADE_HINT}"
        )
    raise _newer(found)


def _check_statuses(connection: Connection, schema: str | None) -> None:
    here = {"schema_translate_map": {None: schema}}
    found = set(connection.execute(select(job_status.c.id), execution_options=here).scalars())
    if not found.issuperset(row["id"] for row in STATUS_ROWS):
        raise SchemaError(
            f"The table {job_status.name} lacks its rows, which Alembic's autogenerate does not write. "
            "Add `op.bulk_insert(job_status, STATUS_ROWS)` to a migration of yours, after its tables, "
            "with `from jobhandle_celery.schema import STATUS_ROWS, job_status`."
        )


def _found(connection: Connection, schema: str | None) -> str | None:
    if not inspect(connection).has_table(VERSION_TABLE, schema=schema):
        return None
    quote = connection.dialect.identifier_preparer.quote
    table = f"{quote(schema)}.{VERSION_TABLE}" if schema else VERSION_TABLE
    found: str | None = connection.execute(text(f"SELECT version_num FROM {table}")).scalar()
    return found


def _newer(found: str) -> SchemaError:
    return SchemaError(
        f"The tables of jobhandle-celery are at revision {found}, newer than this code ({REVISIONS[-1]}). "
        "Run `pip install --upgrade jobhandle-celery`."
    )
