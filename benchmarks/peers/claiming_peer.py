"""A lower bound of a worker that checks, before each body, whether its job may still start."""

from collections.abc import Callable, Sequence
from typing import Any

import psycopg

from tests.servers import execute

from ..marks import body
from .celery_peers import CeleryPeer


class Claiming(CeleryPeer):
    """Celery without results, whose bodies first update a row of their own and commit: a bare claim.

    Nothing else of a job is stored: no event, no result, no end.
    """

    name = "the floor: Celery, no results, UPDATE + COMMIT before each body"
    kind = "claiming"
    settings = "as for plain Celery; psycopg, one connection per process, a prepared statement, autocommit"

    def prepare(self) -> None:
        """Create the table."""
        execute(
            self.sandbox.database_url, "CREATE TABLE claim (id bigint PRIMARY KEY, started bool NOT NULL)"
        )

    def submit_many(self, numbers: Sequence[int]) -> None:
        """Insert the rows and publish the messages."""
        rows = ", ".join(f"({number}, false)" for number in numbers)
        execute(self.sandbox.database_url, f"INSERT INTO claim VALUES {rows}")
        super().submit_many(numbers)

    def settled(self, count: int) -> bool:
        """Count the rows."""
        return (
            int(execute(self.sandbox.database_url, "SELECT count(*) FROM claim WHERE started")[0][0]) >= count
        )

    def purge(self) -> None:
        """Empty the queue and the table."""
        super().purge()
        execute(self.sandbox.database_url, "TRUNCATE claim")


def claiming_body(dsn: str) -> Callable[..., None]:
    """Return the body of the task."""
    connections: list[psycopg.Connection[Any]] = []

    def claim(number: int) -> None:
        if not connections:
            connections.append(psycopg.connect(dsn, autocommit=True))
        statement = "UPDATE claim SET started = true WHERE id = %s AND NOT started RETURNING id"
        if connections[0].execute(statement, (number,), prepare=True).fetchone():
            body(number)

    return claim
