"""Verbs let loose at one moment, and verbs lined up behind a lock in an order of the test's choosing."""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from threading import Barrier
from typing import Any

from sqlalchemy import Table, text

from tests.store.bench import Bench
from tests.support import eventually

Contender = Callable[[], Any]

WAITING = text(
    "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
)


def race(*contenders: Contender) -> list[Any]:
    """Let all start at one moment, each in a thread of its own; return what each came to."""
    barrier = Barrier(len(contenders), timeout=30)

    def run(contender: Contender) -> Any:
        barrier.wait()
        return contender()

    with ThreadPoolExecutor(len(contenders)) as pool:
        return [future.result(timeout=60) for future in [pool.submit(run, one) for one in contenders]]


def in_line(bench: Bench, table: Table, contenders: Sequence[Contender]) -> list[Any]:
    """Start each only when those before it wait for the lock on the rows of a table; then let go.

    On PostgreSQL the first in the line gets the rows first. SQLite has one lock for all, and no line.
    """
    futures: list[Future[Any]] = []
    with ThreadPoolExecutor(len(contenders)) as pool:
        with locked(bench, table):
            for number, contender in enumerate(contenders, start=1):
                futures.append(pool.submit(contender))
                if bench.door.engine.dialect.name == "postgresql":
                    eventually(lambda number=number: waiting(bench) == number)  # type: ignore[misc]  # bound
        return [future.result(timeout=60) for future in futures]


@contextmanager
def locked(bench: Bench, table: Table) -> Iterator[None]:
    """Hold the rows of this namespace; on SQLite, the whole database."""
    with bench.door.transaction() as connection:
        bench.store.execute(
            connection,
            table.select().where(table.c.namespace == bench.settings.namespace).with_for_update(),
        )
        yield


def waiting(bench: Bench) -> int:
    with bench.door.reading() as connection:
        return int(connection.execute(WAITING).scalar_one())
