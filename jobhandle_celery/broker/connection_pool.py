"""The connections to the broker of one process: lent for a publish, at most `broker_pool_limit` kept.

Celery has a pool as well, and so has kombu; but their waits have no bound, and a connection of theirs takes
with it neither its declared queues nor what was prepared for its fast transport. May import broker and below.
"""

import atexit
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from weakref import WeakMethod, WeakSet

from celery import Celery

from ..store import gate
from .connection import BOUND, BrokerConnection


class Busy(Exception):
    """Every connection that may be open is in use, and none became free in time."""


_inherited: list[BrokerConnection] = []
"""Connections of our parents. Not closed, not even by the garbage collector: they are not ours to end."""


class ConnectionPool:
    """Connections to one broker, for all threads of one process at a time."""

    def __init__(self, app: Celery) -> None:
        self._app = app
        self._limit: int = app.conf.broker_pool_limit or 0
        """0: as with Celery, none is kept and any number may be open."""
        self._renew()
        gate.register(self)
        atexit.register(_close_at_exit, WeakMethod(self.close))

    def _renew(self) -> None:
        self._changed = threading.Condition()
        self._idle: list[BrokerConnection] = []
        # A time limit may come anywhere: what was lent and is lost is no longer counted once it is collected.
        self._lent: WeakSet[BrokerConnection] = WeakSet()
        self._outdated: WeakSet[BrokerConnection] = WeakSet()
        self._local = threading.local()

    def before_fork(self) -> None:
        """Nothing: a fork waits for the verbs under way."""

    def after_fork(self) -> None:
        """Leave the parent's connections to the parent."""
        _inherited.extend((*self._idle, *self._lent))
        self._renew()

    @contextmanager
    def lent(self) -> Iterator[BrokerConnection]:
        """Lend a connection, the one that was used last; it may not have been opened yet.

        Raises:
            Unusable: there can be none.
            Busy: none became free within `BOUND`.
        """
        holding = getattr(self._local, "holding", 0)
        line = self._take(beyond_the_limit=holding > 0)
        self._local.holding = holding + 1
        try:
            yield line
        except BaseException:
            line.close()
            raise
        finally:
            self._local.holding = holding
            self._give_back(line)

    def _take(self, *, beyond_the_limit: bool) -> BrokerConnection:
        # A receiver of Celery's signals that submits while its thread publishes must not wait for itself.
        deadline = time.monotonic() + BOUND
        with self._changed:
            while not self._idle:
                if not self._limit or len(self._lent) < self._limit or beyond_the_limit:
                    line = BrokerConnection(self._app)
                    break
                if not self._changed.wait(max(deadline - time.monotonic(), 0)) and not self._idle:
                    raise Busy(f"all {self._limit} connections are in use (broker_pool_limit)")
            else:
                line = self._idle.pop()
            self._lent.add(line)
            return line

    def _give_back(self, line: BrokerConnection) -> None:
        with self._changed:
            if line not in self._lent:
                return  # a fork came in between: it is the parent's
            self._lent.discard(line)
            room = len(self._idle) + len(self._lent) < self._limit
            if keep := room and line not in self._outdated:
                self._idle.append(line)
            self._changed.notify()
        if not keep:
            line.close()

    def close(self) -> None:
        """Close all connections; what is lent is closed when it is given back."""
        with self._changed:
            idle, self._idle = self._idle, []
            self._outdated |= self._lent
        orderly = True
        for line in idle:
            orderly = line.close(orderly=orderly)  # a broker that is silent to one need not be asked again


def _close_at_exit(close: "WeakMethod[Callable[[], None]]") -> None:
    closing = close()
    if closing is not None:
        closing()
