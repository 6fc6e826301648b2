"""Connections and forks. Celery's pools fork a new child whenever one is lost, at any moment.

A child must neither use nor close its parent's connections. SQLite keeps the state of a file's locks per
process: a child that is forked while another thread is inside a transaction sees that lock as held for ever.
A fork therefore waits for the operations under way, and SQLite's files are closed before it.

The renewal of a worker's lease is not delayed by a pending fork: see `ForkGuard.hold_without_waiting`.
"""

import os
import threading
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from weakref import WeakSet

WAIT_TIMEOUT = 30.0
"""Seconds that a fork waits for an operation: three times as long as SQLite waits for a lock."""


class Forkable(ABC):
    """An object with connections or locks."""

    def before_fork(self) -> None:  # noqa: B027 -- most have nothing to close
        """Close what must not be open in the child. A fork waits for the calls under way."""

    @abstractmethod
    def after_fork(self) -> None:
        """Drop, in the child, what belongs to the parent."""


class Operation:
    """One or more nested blocks of `ForkGuard.hold`."""

    blocks = 0


_operation: ContextVar[Operation | None] = ContextVar("jobhandle_fork_guard_operation", default=None)
"""The operation that a thread or coroutine is in, or was. A nested call does not wait for a pending fork, nor
does a call that is made in another thread for that coroutine. A task that outlives the operation in which it
was created begins a new one."""


class ForkGuard:
    """Admits any number of threads, but none during a fork."""

    def __init__(self) -> None:
        self._forkables: WeakSet[Forkable] = WeakSet()
        self._renew()
        os.register_at_fork(
            before=self._before, after_in_parent=self._after_in_parent, after_in_child=self._after_in_child
        )

    def register(self, forkable: Forkable) -> None:
        """Call its methods at forks, for as long as it lives."""
        self._forkables.add(forkable)

    @contextmanager
    def hold(self) -> Iterator[None]:
        """Delay forks during the block; a thread or a coroutine may do so more than once."""
        with self._changed:
            operation = _operation.get()
            if operation is None or operation not in self._inside:
                self._changed.wait_for(lambda: not self._closed)
                operation = Operation()
                self._inside.add(operation)
            operation.blocks += 1
        token = _operation.set(operation)
        try:
            yield
        finally:
            _operation.reset(token)
            with self._changed:
                operation.blocks -= 1
                if operation.blocks == 0:
                    self._inside.discard(operation)  # in a child that was forked meanwhile it is not there
                    self._changed.notify_all()

    @contextmanager
    def hold_without_waiting(self) -> Iterator[None]:
        """Delay forks during the block. Unlike `hold`, do not wait for a pending fork.

        For lease renewals on SQLite, which must not be late. Other databases do not need it.
        """
        with self._forking:
            yield

    def _renew(self) -> None:
        self._changed = threading.Condition()
        self._forking = threading.Lock()
        self._holding = False
        self._inside: set[Operation] = set()
        self._closed = False

    def _before(self) -> None:
        own = {_operation.get()}  # the forking thread does not wait for itself
        with self._changed:
            self._closed = True
            self._changed.wait_for(lambda: self._inside <= own, timeout=WAIT_TIMEOUT)
        self._holding = self._forking.acquire(timeout=WAIT_TIMEOUT)
        for forkable in self._registered():
            forkable.before_fork()
        # Held during the fork, so that no other thread holds it in the child.
        self._changed.acquire()

    def _after_in_parent(self) -> None:
        self._closed = False
        self._changed.notify_all()
        self._changed.release()
        if self._holding:
            self._forking.release()

    def _after_in_child(self) -> None:
        self._renew()
        _operation.set(None)
        for forkable in self._registered():
            forkable.after_fork()

    def _registered(self) -> list[Forkable]:
        while True:
            try:
                return list(self._forkables)
            except RuntimeError:  # "Set changed size during iteration": another thread has made a store
                continue


forks = ForkGuard()
