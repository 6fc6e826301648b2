"""A statement to a server of SQL."""

from typing import Any

import sqlalchemy


def execute(url: str, statement: str) -> list[Any]:
    """Run one statement outside a transaction, on a connection of its own, and return its rows."""
    engine = sqlalchemy.create_engine(url, isolation_level="AUTOCOMMIT", poolclass=sqlalchemy.NullPool)
    with engine.connect() as connection:
        result = connection.exec_driver_sql(statement)
        return list(result) if result.returns_rows else []
