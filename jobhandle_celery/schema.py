"""The tables, and the database's clock in SQL.

The tables share a database with those of an application, so every name has the prefix ``jobhandle_``.
`metadata` is public: a foreign key may refer to ``jobhandle_job.id`` (with ``ondelete="SET NULL"`` or
``"CASCADE"``, or `prune` cannot delete that job), and an application's Alembic may have it as a second
target.
"""

from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    Connection,
    Double,
    ForeignKey,
    Index,
    Integer,
    MetaData,
    SmallInteger,
    String,
    Table,
    Text,
    UniqueConstraint,
    event,
    text,
)
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.sql.elements import ColumnElement
from sqlalchemy.sql.functions import FunctionElement

from .column_types import MysqlLongText, Name, Status, UtcDateTime
from .status import JobStatus
from .validation import NAME_LENGTH

VERSION_TABLE = "jobhandle_schema_version"
"""Alembic's version table for these tables, separate from the application's."""


class clock(FunctionElement[datetime]):
    """The database's clock at the moment it is evaluated, plus a number of seconds.

    Not ``CURRENT_TIMESTAMP``: on PostgreSQL that is the start of the transaction, and a claim that has waited
    for a lock must not compare deadlines with the time at which it began to wait.
    """

    type = UtcDateTime()
    inherit_cache = True
    name = "clock"

    def __init__(self, plus: ColumnElement[float] | float | timedelta | None = None) -> None:
        seconds = plus.total_seconds() if isinstance(plus, timedelta) else plus
        super().__init__(*([] if seconds is None else [seconds]))


@compiles(clock)
def _postgresql_clock(element: clock, compiler: SQLCompiler, **options: Any) -> str:
    if not len(element.clauses):
        return "clock_timestamp()"
    seconds = compiler.process(element.clauses, **options)
    return f"(clock_timestamp() + CAST({seconds} AS double precision) * interval '1 second')"


@compiles(clock, "sqlite")
def _sqlite_clock(element: clock, compiler: SQLCompiler, **options: Any) -> str:
    # The text that SQLAlchemy stores for a datetime, so that comparing texts compares times.
    seconds = compiler.process(element.clauses, **options) if len(element.clauses) else "0"
    return f"(strftime('%Y-%m-%d %H:%M:%f', 'now', ({seconds}) || ' seconds') || '000')"


@compiles(clock, "mysql")
@compiles(clock, "mariadb")
def _mysql_clock(element: clock, compiler: SQLCompiler, **options: Any) -> str:
    # SYSDATE is the current moment and NOW the start of the statement, both in the session's time zone, which
    # may be the caller's. In UTC there is only the start of the statement.
    moment = "(UTC_TIMESTAMP(6) + INTERVAL TIMESTAMPDIFF(MICROSECOND, NOW(6), SYSDATE(6)) MICROSECOND)"
    if not len(element.clauses):
        return moment
    seconds = compiler.process(element.clauses, **options)
    return f"({moment} + INTERVAL ({seconds}) SECOND)"


class statement_clock(FunctionElement[datetime]):
    """The database's clock at the start of the statement.

    For conditions that use an index. `clock` may change from row to row, so PostgreSQL evaluates it for every
    row, and each pass of the sweeper would read all jobs that wait for their time.
    """

    type = UtcDateTime()
    inherit_cache = True
    name = "statement_clock"


@compiles(statement_clock)
def _postgresql_statement_clock(element: statement_clock, compiler: SQLCompiler, **options: Any) -> str:
    return "statement_timestamp()"


@compiles(statement_clock, "sqlite")
def _sqlite_statement_clock(element: statement_clock, compiler: SQLCompiler, **options: Any) -> str:
    return compiler.process(clock(), **options)  # constant within a statement


@compiles(statement_clock, "mysql")
@compiles(statement_clock, "mariadb")
def _mysql_statement_clock(element: statement_clock, compiler: SQLCompiler, **options: Any) -> str:
    return "UTC_TIMESTAMP(6)"


class random_uuid(FunctionElement[str]):
    """A new UUID for each row, as text."""

    type = String()
    inherit_cache = True
    name = "random_uuid"


@compiles(random_uuid)
def _postgresql_uuid(element: random_uuid, compiler: SQLCompiler, **options: Any) -> str:
    return "CAST(gen_random_uuid() AS text)"


@compiles(random_uuid, "sqlite")
def _sqlite_uuid(element: random_uuid, compiler: SQLCompiler, **options: Any) -> str:
    parts = (f"hex(randomblob({size}))" for size in (4, 2, 2, 2, 6))
    joined = " || '-' || ".join(parts)
    return f"lower({joined})"


@compiles(random_uuid, "mysql")
@compiles(random_uuid, "mariadb")
def _mysql_uuid(element: random_uuid, compiler: SQLCompiler, **options: Any) -> str:
    return "UUID()"


metadata = MetaData(
    naming_convention={
        "ix": "%(table_name)s_%(column_0_N_name)s_index",
        "uq": "%(table_name)s_%(column_0_N_name)s_key",
        "fk": "%(table_name)s_%(column_0_N_name)s_fkey",
        "pk": "%(table_name)s_pkey",
    }
)

# SQLite numbers only an INTEGER PRIMARY KEY by itself.
_LongText = Text().with_variant(MysqlLongText(), "mysql", "mariadb")
_FALSE = text("'0'")  # the databases read it as their false; MariaDB reports it as it was written
_Id = BigInteger().with_variant(Integer, "sqlite")

job_status = Table(
    "jobhandle_job_status",
    metadata,
    Column("id", SmallInteger, primary_key=True, autoincrement=False),
    Column("value", Name(32), nullable=False, unique=True),
    Column("final", Boolean, nullable=False),
)

job = Table(
    "jobhandle_job",
    metadata,
    # What it is.
    Column("id", _Id, primary_key=True),
    Column("namespace", Name(63), nullable=False),
    Column("task", Name(NAME_LENGTH), nullable=False),
    Column("task_id", Name(36), nullable=False),
    Column("args", _LongText, nullable=False),
    Column("kwargs", _LongText, nullable=False),
    Column("username", Name(NAME_LENGTH)),
    Column("groupname", Name(NAME_LENGTH)),
    Column("message", _LongText, nullable=False),
    Column("meta", _LongText),
    Column("unique_key", Name(NAME_LENGTH)),
    # Digest of namespace, user and key while the job is unfinished, else NULL. A partial unique index on
    # these columns would be simpler; MariaDB has none.
    Column("unique_hash", Name(64)),
    # How it is published.
    Column("queue", Name(NAME_LENGTH)),
    Column("routing", _LongText, nullable=False),
    Column("priority", SmallInteger),
    Column("time_limit", Double),
    Column("soft_time_limit", Double),
    # The signature of the next message if a retry changed it: arguments, options, count.
    Column("retry", _LongText),
    Column("publish_count", Integer, nullable=False, default=0),
    Column("republish_deferrals", SmallInteger, nullable=False, default=0),
    # When.
    Column("submitted", UtcDateTime, nullable=False),
    Column("scheduled_for", UtcDateTime),
    Column("expires", UtcDateTime),
    Column("started", UtcDateTime),
    Column("finished", UtcDateTime),
    Column("not_before", UtcDateTime),
    Column("due_at", UtcDateTime),
    # Status.
    Column("status_id", Status, ForeignKey(job_status.c.id), nullable=False),
    Column("cancel_requested", UtcDateTime),
    Column("terminate", Boolean, nullable=False, default=False),
    # The cancel was reported to Celery's result backend and events.
    Column("revoke_reported", Boolean, nullable=False, default=False),
    # Who runs it. `claim_id` is also the token of a release and of `set_status`; `worker` may be a user, who
    # has set the job Running. `worker_uid` of a row that is not started is the note of
    # `Recovery.note_received`; of a final row, of a worker whose body has not left yet.
    Column("attempt", Integer, nullable=False, default=0),
    Column("lost_count", Integer, nullable=False, default=0),
    Column("max_attempts", Integer, nullable=False, default=1),
    Column("claim_id", Name(36)),
    Column("worker", Name(NAME_LENGTH)),
    Column("worker_uid", Name(36)),
    Column("pid", Integer),
    # Progress and outcome.
    Column("progress_current", Double),
    Column("progress_total", Double),
    Column("result", _LongText),
    Column("error", _LongText),
    # Its place in a tree. No foreign keys: InnoDB would lock the other row until a caller's commit.
    # chain, group or chord; NULL: a task.
    Column("kind", Name(16)),
    Column("root_id", _Id),
    Column("parent_id", _Id),
    # Among its parent's children; NULL: a callback, whose result and failure do not count.
    Column("position", Integer),
    # What it needs: `job_need` has the rows. NULL: nothing; else in which status a need must have ended.
    Column("needs_when", Name(16)),
    # A need is not met yet; the row is Waiting, without `not_before`.
    Column("blocked", Boolean, nullable=False, server_default=_FALSE),
    # Seconds from the moment at which its needs are met, as Celery counts those of a chain's tasks.
    Column("countdown", Double),
    Column("expires_in", Double),
    # Other rows depend on how it ends: its parent, or those that need it.
    Column("needed", Boolean, nullable=False, server_default=_FALSE),
    # It is final, and the rows that depend on it are not settled yet; `due_at` is set.
    Column("unsettled", Boolean, nullable=False, server_default=_FALSE),
    UniqueConstraint("task_id"),
    # An id must never be reused for another job.
    sqlite_autoincrement=True,
)


def _not_null(column: Column[Any]) -> dict[str, Any]:
    """Return the options of a partial index, of the rows in which a column has a value."""
    return {f"{dialect}_where": column.is_not(None) for dialect in ("postgresql", "sqlite")}


Index("jobhandle_job_due_index", job.c.namespace, job.c.due_at, **_not_null(job.c.due_at))
Index("jobhandle_job_worker_uid_index", job.c.worker_uid, **_not_null(job.c.worker_uid))
Index("jobhandle_job_status_index", job.c.namespace, job.c.status_id, job.c.id)
# Not a constraint, and with a condition: else PostgreSQL counts the column among those that a foreign key may
# refer to, and the end of a job waits for every transaction that has locked the row by a foreign key.
Index("jobhandle_job_unique_hash_key", job.c.unique_hash, unique=True, **_not_null(job.c.unique_hash))
# A user's jobs, newest first. None of its columns changes after the insert.
Index("jobhandle_job_user_index", job.c.namespace, job.c.username, job.c.id, **_not_null(job.c.username))
# The members of a tree; and of them the unfinished children of a node, however many have finished.
Index("jobhandle_job_root_index", job.c.root_id, **_not_null(job.c.root_id))
Index("jobhandle_job_parent_index", job.c.parent_id, job.c.status_id, **_not_null(job.c.parent_id))

job_need = Table(
    "jobhandle_job_need",
    metadata,
    Column("job_id", _Id, ForeignKey(job.c.id, ondelete="CASCADE"), primary_key=True, autoincrement=False),
    # No foreign key, as in `job`.
    Column("needs_id", _Id, primary_key=True, autoincrement=False, index=True),
    # The place of its result among the arguments; NULL: it is no argument.
    Column("position", Integer),
)
"""What a job needs: jobs that must have ended before it starts."""

job_event = Table(
    "jobhandle_job_event",
    metadata,
    Column("id", _Id, primary_key=True),
    Column("job_id", _Id, ForeignKey(job.c.id, ondelete="CASCADE"), nullable=False, index=True),
    Column("at", UtcDateTime, nullable=False),
    Column("attempt", Integer, nullable=False),
    # Copied from the row, which has the foreign key: a second check is a tenth of the time of a bulk cancel.
    Column("status_id", Status, nullable=False),
    Column("message", _LongText, nullable=False),
    Column("actor", Name(NAME_LENGTH), nullable=False),
    sqlite_autoincrement=True,
)

worker = Table(
    "jobhandle_worker",
    metadata,
    Column("worker_uid", Name(36), primary_key=True),
    Column("namespace", Name(63), nullable=False),
    Column("name", Name(NAME_LENGTH), nullable=False),
    Column("pid", Integer, nullable=False),
    Column("started", UtcDateTime, nullable=False),
    Column("lease_until", UtcDateTime, nullable=False),
    # Seconds of its lease, by its own configuration.
    Column("lease", Double, nullable=False),
)

sweep = Table(
    "jobhandle_sweep",
    metadata,
    Column("namespace", Name(63), primary_key=True),
    Column("last_pass_at", UtcDateTime, nullable=False),
    Column("unbroken_since", UtcDateTime, nullable=False),
)


STATUS_ROWS = [{"id": status.id, "value": status.value, "final": status.final} for status in JobStatus]
"""The reference rows, as the first migration writes them."""


@event.listens_for(job_status, "after_create")
def _fill_reference_rows(target: Table, connection: Connection, **_: Any) -> None:
    # For tables that are created from `metadata`, in an application's tests for instance.
    connection.execute(target.insert(), STATUS_ROWS)
