"""Statements to an SQL server."""

import functools
from typing import Any

import sqlalchemy


def execute(url: str, *statements: str) -> list[Any]:
    """Run statements outside a transaction, on a connection of their own; return the rows of the last."""
    return _executed(_engine(url), *statements)


class LastingConnection:
    """Runs statements outside a transaction, on a connection that is kept: to connect takes longer."""

    def __init__(self, url: str) -> None:
        self._engine = sqlalchemy.create_engine(url, isolation_level="AUTOCOMMIT", pool_pre_ping=True)

    def execute(self, statement: str) -> list[Any]:
        """Return its rows."""
        return _executed(self._engine, statement)

    def close(self) -> None:
        self._engine.dispose()


def _executed(engine: sqlalchemy.Engine, *statements: str) -> list[Any]:
    with engine.connect() as connection:
        for statement in statements:
            result = connection.exec_driver_sql(statement)
        return list(result) if result.returns_rows else []


@functools.lru_cache(64)
def _engine(url: str) -> sqlalchemy.Engine:
    """Return a cached engine without a pool; to make one takes ten times as long as to connect."""
    return sqlalchemy.create_engine(url, isolation_level="AUTOCOMMIT", poolclass=sqlalchemy.NullPool)
