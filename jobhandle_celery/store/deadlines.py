"""A deadline on our side for every statement, and a bound for every wait for a lock. Knows nothing of jobs.

A server that has stopped, or a proxy whose server has died, acknowledges what TCP brings and answers nothing:
no keepalive notices that. So the client itself closes a connection on which nothing comes.
"""

import functools
import time
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from typing import Any

from sqlalchemy import Connection, Engine, event

DEADLINE = 15.0
"""Seconds after which a connection is closed whose server shows no sign of life during a statement."""

LOCK_WAIT = 3
"""Seconds for which a statement waits for a lock, of a caller's open transaction say; then the verb is asked
again. On MariaDB a statement that waits may hold another lock, which the lease of a worker needs."""


def bound(engine: Engine, deadline: float) -> None:
    """Have every statement on the connections of an engine end within that many silent seconds."""
    if engine.dialect.driver == "psycopg":
        event.listen(engine, "do_connect", functools.partial(_connect_psycopg, deadline))
    elif engine.dialect.driver in ("pymysql", "mysqldb"):
        event.listen(engine, "do_connect", functools.partial(_connect_mysql, deadline))
    elif engine.dialect.name == "sqlite":
        event.listen(engine, "do_connect", functools.partial(_connect_sqlite, deadline))
    if engine.dialect.name in ("mysql", "mariadb"):
        event.listen(engine, "connect", _on_mariadb_connect)


def _connect_psycopg(deadline: float, _dialect: Any, _record: Any, args: Any, options: Any) -> Any:
    return _bounded_psycopg(deadline).connect(*args, **options)


def _connect_mysql(deadline: float, _dialect: Any, _record: Any, _args: Any, options: Any) -> None:
    options.setdefault("read_timeout", deadline)
    options.setdefault("write_timeout", deadline)


def _connect_sqlite(deadline: float, _dialect: Any, _record: Any, _args: Any, options: Any) -> None:
    options["timeout"] = min(options.get("timeout", deadline), deadline)


def _on_mariadb_connect(connection: Any, _record: Any) -> None:
    # A merge of two indexes waits for rows in spite of SKIP LOCKED, and locks rows in no order.
    with connection.cursor() as cursor:
        cursor.execute(
            f"SET innodb_lock_wait_timeout = {LOCK_WAIT}, lock_wait_timeout = {LOCK_WAIT}, "
            "optimizer_switch = 'index_merge=off'"
        )


@contextmanager
def brief_wait(connection: Connection, seconds: float | None) -> Iterator[None]:
    """Have what begins in here wait for SQLite's one lock for so long at most; other locks are of rows."""
    if seconds is None or connection.dialect.name != "sqlite":
        yield
        return
    driver: Any = connection.connection.dbapi_connection
    (before,) = driver.execute("PRAGMA busy_timeout").fetchone()
    driver.execute(f"PRAGMA busy_timeout = {min(before, int(seconds * 1000))}")
    try:
        yield
    finally:
        driver.execute(f"PRAGMA busy_timeout = {before}")


@functools.cache
def _bounded_psycopg(deadline: float) -> Any:
    """Return psycopg's class of connections, with a deadline in what all its statements wait by."""
    import psycopg  # where it is used: other databases do without

    class BoundedConnection(psycopg.Connection[Any]):
        def wait(self, gen: Any, *args: Any, **options: Any) -> Any:
            return super().wait(self._until_silent(gen), *args, **options)

        def _until_silent(self, gen: Any) -> Generator[Any, Any, Any]:
            # psycopg waits in steps of 0.1 s, and sends 0 if nothing came in one.
            silent_at = time.monotonic() + deadline
            ready: Any = None
            while True:
                try:
                    wanted = gen.send(ready)
                except StopIteration as done:
                    return done.value
                ready = yield wanted
                if ready:
                    silent_at = time.monotonic() + deadline
                elif time.monotonic() > silent_at:
                    self.close()
                    raise psycopg.OperationalError(f"no answer within {deadline:g} s")

    return BoundedConnection
