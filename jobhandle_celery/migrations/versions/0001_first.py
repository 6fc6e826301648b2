"""The first tables. Frozen: later changes of `schema` do not change what this revision creates."""

from typing import Any

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import mysql

revision = "0001"
down_revision = None

MOMENT = sa.DateTime(timezone=True).with_variant(mysql.DATETIME(fsp=6), "mysql", "mariadb")
LONG_TEXT = sa.Text().with_variant(mysql.LONGTEXT(collation="utf8mb4_nopad_bin"), "mysql", "mariadb")
ID = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


class Name(sa.types.TypeDecorator[str]):
    """Text that is compared exactly, on MariaDB too."""

    impl = sa.String
    cache_ok = True

    def load_dialect_impl(self, dialect: sa.Dialect) -> Any:
        """Return the column type."""
        length: int = self.impl_instance.length  # type: ignore[attr-defined]  # String's
        if dialect.name not in ("mysql", "mariadb"):
            return dialect.type_descriptor(sa.String(length))
        return dialect.type_descriptor(mysql.VARCHAR(length, collation="utf8mb4_nopad_bin"))


NAME = Name(255)

STATUSES = (
    (1, "Submitted", False),
    (2, "Resubmitted", False),
    (3, "Queued", False),
    (4, "Requeued", False),
    (5, "Running", False),
    (6, "Error", True),
    (7, "Waiting", False),
    (8, "Finished", True),
    (9, "Cancelled", True),
)


def upgrade() -> None:
    """Make the tables, and write the nine statuses."""
    job_status = op.create_table(
        "jobhandle_job_status",
        sa.Column("id", sa.SmallInteger, autoincrement=False, nullable=False),
        sa.Column("value", Name(32), nullable=False),
        sa.Column("final", sa.Boolean, nullable=False),
        sa.PrimaryKeyConstraint("id", name="jobhandle_job_status_pkey"),
        sa.UniqueConstraint("value", name="jobhandle_job_status_value_key"),
    )
    op.bulk_insert(job_status, [dict(zip(("id", "value", "final"), row, strict=True)) for row in STATUSES])
    op.create_table(
        "jobhandle_job",
        sa.Column("id", ID, nullable=False),
        sa.Column("namespace", Name(63), nullable=False),
        sa.Column("task", NAME, nullable=False),
        sa.Column("task_id", Name(36), nullable=False),
        sa.Column("args", LONG_TEXT, nullable=False),
        sa.Column("kwargs", LONG_TEXT, nullable=False),
        sa.Column("username", NAME),
        sa.Column("groupname", NAME),
        sa.Column("message", LONG_TEXT, nullable=False),
        sa.Column("meta", LONG_TEXT),
        sa.Column("unique_key", NAME),
        sa.Column("unique_hash", Name(64)),
        sa.Column("queue", NAME),
        sa.Column("routing", LONG_TEXT, nullable=False),
        sa.Column("priority", sa.SmallInteger),
        sa.Column("time_limit", sa.Double),
        sa.Column("soft_time_limit", sa.Double),
        sa.Column("retry", LONG_TEXT),
        sa.Column("publish_count", sa.Integer, nullable=False),
        sa.Column("republish_deferrals", sa.SmallInteger, nullable=False),
        sa.Column("submitted", MOMENT, nullable=False),
        sa.Column("scheduled_for", MOMENT),
        sa.Column("expires", MOMENT),
        sa.Column("started", MOMENT),
        sa.Column("finished", MOMENT),
        sa.Column("not_before", MOMENT),
        sa.Column("due_at", MOMENT),
        sa.Column("status_id", sa.SmallInteger, nullable=False),
        sa.Column("cancel_requested", MOMENT),
        sa.Column("terminate", sa.Boolean, nullable=False),
        sa.Column("revoke_reported", sa.Boolean, nullable=False),
        sa.Column("attempt", sa.Integer, nullable=False),
        sa.Column("lost_count", sa.Integer, nullable=False),
        sa.Column("max_attempts", sa.Integer, nullable=False),
        sa.Column("claim_id", Name(36)),
        sa.Column("worker", NAME),
        sa.Column("worker_uid", Name(36)),
        sa.Column("pid", sa.Integer),
        sa.Column("progress_current", sa.Double),
        sa.Column("progress_total", sa.Double),
        sa.Column("result", LONG_TEXT),
        sa.Column("error", LONG_TEXT),
        sa.PrimaryKeyConstraint("id", name="jobhandle_job_pkey"),
        sa.UniqueConstraint("task_id", name="jobhandle_job_task_id_key"),
        sa.ForeignKeyConstraint(
            ["status_id"], ["jobhandle_job_status.id"], name="jobhandle_job_status_id_fkey"
        ),
        sqlite_autoincrement=True,
    )
    _partial_index("due", "namespace", "due_at")
    _partial_index("worker_uid", "worker_uid")
    op.create_index("jobhandle_job_status_index", "jobhandle_job", ["namespace", "status_id", "id"])
    # After that of the statuses: of two that fit alike, SQLite takes the newer one, which must be the users'.
    _partial_index("user", "namespace", "username", "id")
    # A unique constraint would count among the columns that a foreign key may refer to: see `schema`.
    op.create_index(
        "jobhandle_job_unique_hash_key",
        "jobhandle_job",
        ["unique_hash"],
        unique=True,
        postgresql_where=sa.text("unique_hash IS NOT NULL"),
        sqlite_where=sa.text("unique_hash IS NOT NULL"),
    )
    op.create_table(
        "jobhandle_job_event",
        sa.Column("id", ID, nullable=False),
        sa.Column("job_id", ID, nullable=False),
        sa.Column("at", MOMENT, nullable=False),
        sa.Column("attempt", sa.Integer, nullable=False),
        sa.Column("status_id", sa.SmallInteger, nullable=False),
        sa.Column("message", LONG_TEXT, nullable=False),
        sa.Column("actor", NAME, nullable=False),
        sa.PrimaryKeyConstraint("id", name="jobhandle_job_event_pkey"),
        sa.ForeignKeyConstraint(
            ["job_id"], ["jobhandle_job.id"], name="jobhandle_job_event_job_id_fkey", ondelete="CASCADE"
        ),
        sqlite_autoincrement=True,
    )
    op.create_index("jobhandle_job_event_job_id_index", "jobhandle_job_event", ["job_id"])
    op.create_table(
        "jobhandle_worker",
        sa.Column("worker_uid", Name(36), nullable=False),
        sa.Column("namespace", Name(63), nullable=False),
        sa.Column("name", NAME, nullable=False),
        sa.Column("pid", sa.Integer, nullable=False),
        sa.Column("started", MOMENT, nullable=False),
        sa.Column("lease_until", MOMENT, nullable=False),
        sa.Column("lease", sa.Double, nullable=False),
        sa.PrimaryKeyConstraint("worker_uid", name="jobhandle_worker_pkey"),
    )
    op.create_table(
        "jobhandle_sweep",
        sa.Column("namespace", Name(63), nullable=False),
        sa.Column("last_pass_at", MOMENT, nullable=False),
        sa.Column("unbroken_since", MOMENT, nullable=False),
        sa.PrimaryKeyConstraint("namespace", name="jobhandle_sweep_pkey"),
    )


def _partial_index(name: str, *columns: str) -> None:
    """Create an index of the rows in which a column is set; MariaDB, which has no such, indexes all rows."""
    condition = sa.text(f"{columns[1] if len(columns) > 1 else columns[0]} IS NOT NULL")
    op.create_index(
        f"jobhandle_job_{name}_index",
        "jobhandle_job",
        columns,
        postgresql_where=condition,
        sqlite_where=condition,
    )
