"""What a fork does to connections. Pools fork a child whenever one is lost, in the middle of anything.

A child must not use, nor close, its parent's connections; and SQLite keeps what it knows of a file's locks
per process, so a child that is forked while another thread is inside a transaction believes for ever that
somebody has the lock. A fork therefore waits for the verbs under way, and finds SQLite's files closed.

The lease of a worker does not wait for a fork that waits: it goes past this gate, see `ForkGuard.past`.
"""

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol
from weakref import WeakSet

LONGEST_WAIT = 30.0
"""Seconds that a fork waits for a verb: three times as long as SQLite waits for a lock."""


class Forkable(Protocol):
    """Something that has connections."""

    def before_fork(self) -> None:
        """Close what must not be open."""

    def after_fork(self) -> None:
        """Forget, in the child, what is the parent's."""


class ForkGuard:
    """Lets any number of threads in, but none while a fork is made."""

    def __init__(self) -> None:
        self._forkables: WeakSet[Forkable] = WeakSet()
        self._renew()
        os.register_at_fork(
            before=self._before, after_in_parent=self._after_in_parent, after_in_child=self._after_in_child
        )

    def register(self, forkable: Forkable) -> None:
        """Tell it of forks, for as long as it lives."""
        self._forkables.add(forkable)

    @contextmanager
    def inside(self) -> Iterator[None]:
        """Keep forks waiting for as long as this lasts; a thread may be inside more than once."""
        depth = getattr(self._local, "depth", 0)
        if depth == 0:
            with self._changed:
                self._changed.wait_for(lambda: not self._closed)
                self._inside += 1
        self._local.depth = depth + 1
        try:
            yield
        finally:
            self._local.depth = depth
            if depth == 0:
                with self._changed:
                    self._inside -= 1
                    self._changed.notify_all()

    @contextmanager
    def past(self) -> Iterator[None]:
        """Keep a fork from being made during this; unlike `inside`, this does not wait while a fork waits.

        For the one verb that must not be late, on SQLite alone: other databases need no such care.
        """
        with self._forking:
            yield

    def _renew(self) -> None:
        self._changed = threading.Condition()
        self._forking = threading.Lock()
        self._holding = False
        self._local = threading.local()
        self._inside = 0
        self._closed = False

    def _before(self) -> None:
        own = 1 if getattr(self._local, "depth", 0) else 0  # a thread that forks does not wait for itself
        with self._changed:
            self._closed = True
            self._changed.wait_for(lambda: self._inside <= own, timeout=LONGEST_WAIT)
        self._holding = self._forking.acquire(timeout=LONGEST_WAIT)
        for forkable in self._registered():
            forkable.before_fork()
        # Held through the fork, so that nobody holds it in the child.
        self._changed.acquire()

    def _after_in_parent(self) -> None:
        self._closed = False
        self._changed.notify_all()
        self._changed.release()
        if self._holding:
            self._forking.release()

    def _after_in_child(self) -> None:
        self._renew()
        for forkable in self._registered():
            forkable.after_fork()

    def _registered(self) -> list[Forkable]:
        while True:
            try:
                return list(self._forkables)
            except RuntimeError:  # "Set changed size during iteration": the lease's thread has made a store
                continue


gate = ForkGuard()
