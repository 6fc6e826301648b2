"""Text in utf8mb4 on MariaDB, a unique key that foreign keys do not lock, users' jobs, workers' leases."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"

TEXTS = {
    "jobhandle_job": {
        "args": "NOT NULL",
        "kwargs": "NOT NULL",
        "message": "NOT NULL",
        "meta": "NULL",
        "routing": "NOT NULL",
        "retry": "NULL",
        "result": "NULL",
        "error": "NULL",
    },
    "jobhandle_job_event": {"message": "NOT NULL"},
}
"""The columns of long text, and what they are beside it."""

SLOT = "jobhandle_job_unique_hash_key"
WHERE_SLOT = sa.text("unique_hash IS NOT NULL")
WHERE_USER = sa.text("username IS NOT NULL")


def upgrade() -> None:
    """Change the columns of long text in one statement a table: each rebuilds the table."""
    schema = op.get_context().version_table_schema
    dialect = op.get_context().dialect
    if dialect.name in ("mysql", "mariadb"):
        quote = dialect.identifier_preparer.quote
        for table, columns in TEXTS.items():
            name = f"{quote(schema)}.{table}" if schema else table
            text = "LONGTEXT CHARACTER SET utf8mb4 COLLATE utf8mb4_nopad_bin"
            changes = ", ".join(f"MODIFY {column} {text} {null}" for column, null in columns.items())
            op.execute(f"ALTER TABLE {name} {changes}")
    elif dialect.name == "postgresql":
        op.drop_constraint(SLOT, "jobhandle_job", schema=schema)
        _index(SLOT, ["unique_hash"], WHERE_SLOT, schema, unique=True)
    else:
        # Beside the constraint, which SQLite drops only with the table.
        _index(SLOT, ["unique_hash"], WHERE_SLOT, schema, unique=True)
    _index("jobhandle_job_user_index", ["namespace", "username", "id"], WHERE_USER, schema)
    op.add_column("jobhandle_worker", sa.Column("lease", sa.Double()), schema=schema)


def _index(
    name: str, columns: list[str], where: sa.TextClause, schema: str | None, *, unique: bool = False
) -> None:
    op.create_index(
        name,
        "jobhandle_job",
        columns,
        unique=unique,
        schema=schema,
        postgresql_where=where,
        sqlite_where=where,
    )
