"""Statements to an SQL server."""

import functools
from typing import Any

import sqlalchemy


def execute(url: str, *statements: str) -> list[Any]:
    """Run statements outside a transaction, on a connection of their own; return the rows of the last."""
    with _engine(url).connect() as connection:
        for statement in statements:
            result = connection.exec_driver_sql(statement)
        return list(result) if result.returns_rows else []


@functools.lru_cache(64)
def _engine(url: str) -> sqlalchemy.Engine:
    """Return a cached engine without a pool; to make one takes ten times as long as to connect."""
    return sqlalchemy.create_engine(url, isolation_level="AUTOCOMMIT", poolclass=sqlalchemy.NullPool)
