"""The connections to the broker of one process: lent for a publish, at most `broker_pool_limit` kept.

Celery and kombu have pools as well. But their waits have no bound, and their connections keep neither the
names of declared queues nor the templates of a fast transport.
"""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from weakref import WeakSet

from celery import Celery

from ..background import call_at_exit
from ..store import Forkable, forks
from .connection import BOUND, BrokerConnection


class PoolExhausted(Exception):
    """Every connection that may be open is in use, and none became free in time."""


_inherited: list[BrokerConnection] = []
"""Connections of parent processes. Closing one, by the garbage collector too, would end the parent's."""


class ConnectionPool(Forkable):
    """Connections to one broker, for all threads of one process."""

    def __init__(self, app: Celery, *, fast_publish: bool = True) -> None:
        self._app = app
        self._fast_publish = fast_publish
        self._limit: int = app.conf.broker_pool_limit or 0
        """0: as with Celery, none is kept and any number may be open."""
        self._renew()
        forks.register(self)
        call_at_exit(self.close)

    def _renew(self) -> None:
        self._changed = threading.Condition()
        self._idle: list[BrokerConnection] = []
        # Weak references: a time limit may interrupt a thread at any instruction, and its connection is lost.
        self._in_use: WeakSet[BrokerConnection] = WeakSet()
        self._outdated: WeakSet[BrokerConnection] = WeakSet()
        self._local = threading.local()

    def after_fork(self) -> None:
        _inherited.extend((*self._idle, *self._in_use))
        self._renew()

    @contextmanager
    def acquire(self) -> Iterator[BrokerConnection]:
        """Lend a connection, the one used last. It may not be open yet; after an error it is closed.

        Raises:
            UnusableBrokerUrl: there can be none.
            PoolExhausted: none became free within `BOUND`.
        """
        held = getattr(self._local, "held", 0)
        # A receiver of Celery's signals that submits while its thread publishes must not wait for itself.
        connection = self._acquire(beyond_the_limit=held > 0)
        self._local.held = held + 1
        try:
            yield connection
        except BaseException:
            connection.close()
            raise
        finally:
            self._local.held = held
            self._release(connection)

    def _acquire(self, *, beyond_the_limit: bool) -> BrokerConnection:
        deadline = time.monotonic() + BOUND
        with self._changed:
            while not self._idle:
                if not self._limit or len(self._in_use) < self._limit or beyond_the_limit:
                    connection = BrokerConnection(self._app, fast_publish=self._fast_publish)
                    break
                if not self._changed.wait(max(deadline - time.monotonic(), 0)) and not self._idle:
                    raise PoolExhausted(
                        f"all {self._limit} connections to the broker are in use (broker_pool_limit)"
                    )
            else:
                connection = self._idle.pop()
            self._in_use.add(connection)
            return connection

    def _release(self, connection: BrokerConnection) -> None:
        with self._changed:
            if connection not in self._in_use:
                return  # this process was forked meanwhile: it is the parent's
            self._in_use.discard(connection)
            room = len(self._idle) + len(self._in_use) < self._limit
            if keep := room and connection not in self._outdated:
                self._idle.append(connection)
            self._changed.notify()
        if not keep:
            connection.close()

    def close(self) -> None:
        """Close all idle connections, and those in use when they are released."""
        with self._changed:
            idle, self._idle = self._idle, []
            self._outdated |= self._in_use
        orderly = True
        for connection in idle:
            # A silent broker is waited for once, not once per connection.
            orderly = connection.close(orderly=orderly) and orderly
