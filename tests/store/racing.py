"""Concurrent store calls: started at once, or queued behind a lock in a chosen order."""

import re
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from threading import Barrier, Event, get_ident
from typing import Any, Self

from sqlalchemy import Connection, Engine, Table, event

from tests.rng import stretched
from tests.store.harness import Harness
from tests.support import eventually

Contender = Callable[[], Any]

_WAITING_ON_POSTGRESQL = (
    "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
)
_OURS_ON_MARIADB = "SELECT id FROM information_schema.processlist WHERE db = database()"
_WAITS_ON_MARIADB = re.compile(r"^LOCK WAIT .*?thread id (\d+),", re.MULTILINE | re.DOTALL)


LIMIT = stretched(300)
"""Seconds within which a contender arrives, waits or ends, on the slowest machine."""


def race(*contenders: Contender, timeout: float = LIMIT) -> list[Any]:
    """Start all at once, each in its own thread; return their results, each within `timeout` seconds."""
    barrier = Barrier(len(contenders), timeout=timeout)

    def run(contender: Contender) -> Any:
        barrier.wait()
        return contender()

    with ThreadPoolExecutor(len(contenders)) as pool:
        return [
            future.result(timeout=timeout)
            for future in [pool.submit(run, contender) for contender in contenders]
        ]


def in_line(harness: Harness, table: Table, contenders: Sequence[Contender]) -> list[Any]:
    """Start each when those before it wait for the lock on a table's rows; then release the lock.

    On a server the first in the queue gets the rows first. SQLite has one lock and no queue.
    """
    futures: list[Future[Any]] = []
    with ThreadPoolExecutor(len(contenders)) as pool:
        with locked(harness, table):
            for contender in contenders:
                futures.append(pool.submit(contender))
                if has_lines(harness):
                    eventually(
                        lambda: waiting(harness) >= sum(not future.done() for future in futures), LIMIT
                    )
        return [future.result(timeout=LIMIT) for future in futures]


def in_the_middle(
    harness: Harness, number: int, slow: Contender, quick: Contender, of: str = ""
) -> list[Any]:
    """Start `quick` when `slow` is at its n-th statement, or its commit; return both answers.

    `slow` goes on when `quick` has returned, or waits for a lock. With `of`, only statements with this text
    count.
    """
    with Watch(harness.database.engine) as watch, ThreadPoolExecutor(2) as pool:
        pause = Pause(number, of)
        first = pool.submit(watch.by, pause.at, slow)
        first.add_done_callback(lambda _: pause.arrived.set())
        assert pause.arrived.wait(LIMIT)
        assert not first.done(), f"it came to its end before statement {number}: {first.result()}"
        second = pool.submit(watch.by, watch.note, quick)
        try:
            eventually(lambda: second.done() or is_waiting(harness, watch), LIMIT)
        finally:
            pause.over.set()
        return [first.result(timeout=LIMIT), second.result(timeout=LIMIT)]


def steps(harness: Harness, contender: Contender) -> int:
    """Return the number of its statements, the commit included."""
    made: list[str] = []
    with Watch(harness.database.engine) as watch:
        watch.by(lambda statement, _: made.append(statement), contender)
    return len(made)


class Pause:
    """Stops a thread once, at its n-th statement or at its commit."""

    def __init__(self, number: int, of: str = "") -> None:
        self._left, self._of = number, of
        self.arrived, self.over = Event(), Event()

    def at(self, statement: str, connection: Connection) -> None:
        self._left -= self._of in statement
        if self._left == 0 and self._of in statement:
            with without_idle_limit(connection):
                self.arrived.set()
                assert self.over.wait(LIMIT)


class Watch:
    """Calls back before each statement of the watched threads."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._callbacks: dict[int, Callable[[str, Connection], None]] = {}
        self.statement = ""
        """The last statement noted."""

    def by(self, callback: Callable[[str, Connection], None], contender: Contender) -> Any:
        """Call `contender` in this thread; `callback` first gets each statement and its connection."""
        self._callbacks[get_ident()] = callback
        try:
            return contender()
        finally:
            del self._callbacks[get_ident()]

    def note(self, statement: str, _: Connection) -> None:
        self.statement = statement

    def _on_statement(self, connection: Connection, _cursor: Any, statement: str, *_: Any) -> None:
        self._notify(statement, connection)

    def _on_commit(self, connection: Connection) -> None:
        self._notify("COMMIT", connection)

    def _notify(self, statement: str, connection: Connection) -> None:
        callback = self._callbacks.get(get_ident())
        if callback:
            callback(statement, connection)

    def __enter__(self) -> Self:
        event.listen(self._engine, "before_cursor_execute", self._on_statement)
        event.listen(self._engine, "commit", self._on_commit)
        return self

    def __exit__(self, *_: object) -> None:
        event.remove(self._engine, "before_cursor_execute", self._on_statement)
        event.remove(self._engine, "commit", self._on_commit)


@contextmanager
def locked(harness: Harness, table: Table) -> Iterator[None]:
    """Lock the rows of this namespace; on SQLite, the whole database."""
    with harness.database.transaction() as connection:
        connection.execute(
            table.select().where(table.c.namespace == harness.settings.namespace).with_for_update(),
        )
        with without_idle_limit(connection.connection):
            yield


@contextmanager
def without_idle_limit(connection: Connection) -> Iterator[None]:
    """Keep the server from ending a transaction that the test leaves idle, however slow the machine is."""
    driver: Any = connection.connection.dbapi_connection
    if connection.dialect.name == "postgresql":
        if driver.autocommit:
            yield  # there is no transaction
            return
        with driver.cursor() as cursor:
            cursor.execute("SET LOCAL idle_in_transaction_session_timeout = 0")
        yield
    elif connection.dialect.name in ("mysql", "mariadb"):
        with driver.cursor() as cursor:
            cursor.execute("SELECT @@idle_transaction_timeout")
            (limit,) = cursor.fetchone()
            cursor.execute("SET idle_transaction_timeout = 0")
        try:
            yield
        finally:
            with driver.cursor() as cursor:
                cursor.execute(f"SET idle_transaction_timeout = {limit}")
    else:
        yield


def has_lines(harness: Harness) -> bool:
    """Return whether its database grants a row lock in the order of waiting."""
    return harness.database.engine.dialect.name != "sqlite"


def waiting(harness: Harness) -> int:
    """Return how many connections to this database wait for a lock."""
    with harness.database.autocommit() as connection:
        if harness.database.engine.dialect.name == "postgresql":
            return int(connection.connection.exec_driver_sql(_WAITING_ON_POSTGRESQL).scalar_one())
        return _waiting_on_mariadb(connection.connection)


def is_waiting(harness: Harness, watch: Watch) -> bool:
    """Return whether the watched thread waits for the paused transaction."""
    return waiting(harness) > 0 if has_lines(harness) else watch.statement == "BEGIN IMMEDIATE"


def _waiting_on_mariadb(connection: Connection) -> int:
    # MariaDB refreshes its lock tables only after they were not read for a while.
    ours = set(connection.exec_driver_sql(_OURS_ON_MARIADB).scalars())
    [(_, _, report)] = connection.exec_driver_sql("SHOW ENGINE INNODB STATUS")
    transactions = re.split(
        r"^---TRANSACTION", report.partition("LIST OF TRANSACTIONS")[2], flags=re.MULTILINE
    )
    waits = [_WAITS_ON_MARIADB.search(transaction) for transaction in transactions]
    return sum(int(found[1]) in ours for found in waits if found)
