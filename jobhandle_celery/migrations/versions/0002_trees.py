"""Job trees: the place of a job in its tree, and what it needs. Frozen, as every revision.

The new columns have defaults in the database, so that processes of the version before can insert jobs.
"""

import sqlalchemy as sa
from alembic import context, op
from sqlalchemy.dialects import mysql

revision = "0002"
down_revision = "0001"

ID = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
WORD = sa.String(16).with_variant(mysql.VARCHAR(16, collation="utf8mb4_nopad_bin"), "mysql", "mariadb")


FALSE = sa.text("'0'")  # the databases read it as their false; MariaDB reports it as it was written


def upgrade() -> None:
    """Add the columns, their indexes and the table of needs."""
    # Alembic does not apply the connection's `schema_translate_map` to an ALTER TABLE.
    schema = None if context.is_offline_mode() else op.get_context().version_table_schema
    for column in (
        sa.Column("kind", WORD),
        sa.Column("root_id", ID),
        sa.Column("parent_id", ID),
        sa.Column("position", sa.Integer),
        sa.Column("needs_when", WORD),
        sa.Column("blocked", sa.Boolean, nullable=False, server_default=FALSE),
        sa.Column("countdown", sa.Double),
        sa.Column("expires_in", sa.Double),
        sa.Column("needed", sa.Boolean, nullable=False, server_default=FALSE),
        sa.Column("unsettled", sa.Boolean, nullable=False, server_default=FALSE),
    ):
        op.add_column("jobhandle_job", column, schema=schema)
    _partial_index("root", "root_id")
    _partial_index("parent", "parent_id", "status_id")
    op.create_table(
        "jobhandle_job_need",
        sa.Column("job_id", ID, autoincrement=False, nullable=False),
        sa.Column("needs_id", ID, autoincrement=False, nullable=False),
        sa.Column("position", sa.Integer),
        sa.PrimaryKeyConstraint("job_id", "needs_id", name="jobhandle_job_need_pkey"),
        sa.ForeignKeyConstraint(
            ["job_id"], ["jobhandle_job.id"], name="jobhandle_job_need_job_id_fkey", ondelete="CASCADE"
        ),
    )
    op.create_index("jobhandle_job_need_needs_id_index", "jobhandle_job_need", ["needs_id"])


def _partial_index(name: str, *columns: str) -> None:
    """Create an index of the rows in which its first column is set; MariaDB indexes all rows."""
    condition = sa.text(f"{columns[0]} IS NOT NULL")
    op.create_index(
        f"jobhandle_job_{name}_index",
        "jobhandle_job",
        columns,
        postgresql_where=condition,
        sqlite_where=condition,
    )
