"""The lease's renewal depends on nothing else in the process: each other resource is blocked in turn."""

import contextlib
import functools
import gc
import logging
import os
import sys
import threading
import uuid
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Any

import pytest
from sqlalchemy import select

from jobhandle_celery import Job
from jobhandle_celery.runtime import Runtime, runtime_of
from jobhandle_celery.schema import worker
from jobhandle_celery.settings import Settings
from jobhandle_celery.store import Store, Worker, forks
from jobhandle_celery.worker.lease import Lease
from tests.apps import make_app
from tests.support import eventually

LONG = {"jobhandle_lease": 120}
"""Longer than a busy machine delays a renewal."""


class LeaseUnderTest:
    """A process with jobs, its lease, and the locks and connections of its other threads."""

    def __init__(self, database_url: str) -> None:
        self.locks: list[tuple[str, Any]] = []
        with self._noting_locks():
            self.app: Any = make_app("memory://", database_url, LONG)
            self.runtime: Runtime = runtime_of(self.app)
            self.me = self.runtime.worker = Worker("w1@host", str(uuid.uuid4()), os.getpid())
            # The resources of other threads exist: store, pools, publisher, waits, queued marker.
            self.handle = runtime_of(self.app).handle()
            self.handle.submit(Job(task="tests.add", args=[2, 3]))
            self.handle.job_status()
        self.lease = Lease(self.runtime.stores_of_lease(), self.me, self.runtime.settings)
        assert self.lease.renew()

    def close(self) -> None:
        self.lease._store.database.close()
        self.runtime.store.database.close()

    def renews(self) -> bool:
        """Return whether a renewal now succeeds: it has found and written the row."""
        return self.lease.renew()

    def lease_until(self) -> Any:
        mine = select(worker.c.lease_until).where(worker.c.worker_uid == self.me.worker_uid)
        store = self.lease._store  # the only one whose connections are free in these tests
        with store.database.autocommit() as connection:
            return connection.execute(mine).scalar_one()

    @contextmanager
    def _noting_locks(self) -> Iterator[None]:
        """Record every lock made within the block, and where."""
        real = {name: getattr(threading, name) for name in ("Lock", "RLock")}

        def noting(make: Callable[[], Any]) -> Any:
            lock = make()
            self.locks.append((sys._getframe(1).f_code.co_qualname, lock))
            return lock

        try:
            for name, make in real.items():
                setattr(threading, name, functools.partial(noting, make))
            yield
        finally:
            for name, make in real.items():
                setattr(threading, name, make)


@pytest.fixture
def under_test(database_url: str) -> Iterator[LeaseUnderTest]:
    under_test = LeaseUnderTest(database_url)
    yield under_test
    under_test.close()


@contextmanager
def by_another_thread(hold: Callable[[], AbstractContextManager[Any]]) -> Iterator[None]:
    """Hold a context in another thread within the block."""
    holding, let_go = threading.Event(), threading.Event()

    def work() -> None:
        with hold():
            holding.set()
            let_go.wait()

    thread = threading.Thread(target=work)
    thread.start()
    try:
        assert holding.wait(30)
        yield
    finally:
        let_go.set()
        thread.join(30)


def locks_of_modules() -> Iterator[tuple[str, Any]]:
    """Find the locks that were made at import: the fork guard's, those of logs, …"""
    for found in gc.get_objects():
        # Not isinstance: it asks lazy objects for their class, as those of Django. Python 3.11 has the lock.
        if issubclass(type(found), functools.cached_property) and hasattr(found, "lock"):
            yield f"cached_property {found.attrname}", found.lock
        elif issubclass(type(found), logging.Handler) and found.lock is not None:
            yield f"handler {found!r}", found.lock
    yield "logging", logging._lock  # type: ignore[attr-defined]
    yield "the fork guard", forks._changed
    yield "forking", forks._forking


def test_renewal_needs_no_lock_of_other_work(under_test: LeaseUnderTest) -> None:
    """Every lock of the process is held by another thread, one at a time (faults 45, 46)."""
    locks = [*under_test.locks, *locks_of_modules()]
    assert {"Database.__init__", "BackgroundQueue._renew"} <= {
        name.split(" ")[0] for name, _ in under_test.locks
    }
    sqlite = under_test.runtime.store.database.engine.dialect.name == "sqlite"
    assert under_test.renews()
    for name, lock in locks:
        if name == "forking" and sqlite:
            continue  # held while the process forks, and no longer
        with by_another_thread(lambda it=lock: it):  # type: ignore[misc]  # bound
            assert under_test.renews(), f"a renewal waits for the lock of {name}"


def test_renewal_goes_on_while_a_fork_waits(under_test: LeaseUnderTest) -> None:
    """Mutant 23: the fork guard is closed during a store call (fault 46)."""
    fork = threading.Thread(target=forks._before)
    try:
        with by_another_thread(forks.hold):
            fork.start()
            eventually(lambda: forks._closed, message="the fork does not wait")
            assert under_test.renews()
            assert fork.is_alive(), "the fork did not wait for the call"
    finally:
        fork.join(30)
        forks._renew()  # as in a child: the locks belong to a thread that has ended


def test_renewal_needs_no_connection_of_other_work(under_test: LeaseUnderTest) -> None:
    """Other work holds all connections of its pool (fault 46)."""
    engine = under_test.runtime.store.database.engine
    with ExitStack() as taken:
        pool: Any = engine.pool
        for _ in range(pool.size() + pool._max_overflow):
            taken.enter_context(engine.connect())
        assert under_test.renews()


def test_renewal_does_not_wait_for_a_blocked_log(under_test: LeaseUnderTest) -> None:
    """A blocked log, as a pipe without a reader, does not delay renewals (fault 46)."""
    stuck, logged = threading.Event(), threading.Event()

    class Stuck(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            logged.set()
            stuck.wait()

    handler = Stuck()
    logger = logging.getLogger("jobhandle_celery.worker.lease")
    logger.addHandler(handler)
    try:
        under_test.lease._store.leases.retire(under_test.me)
        assert under_test.lease.renew(), "it logs that the worker was declared lost"
        assert logged.wait(30)
        assert under_test.renews()
    finally:
        stuck.set()
        logger.removeHandler(handler)


class Stopping(Store):
    """A store whose renewals block until released."""

    def __init__(self, store: Store, until: threading.Event) -> None:
        super().__init__(store.database)
        self._renew, self._until = self.leases.renew, until
        self.leases.renew = self._renew_later  # type: ignore[method-assign]

    def _renew_later(self, me: Worker) -> bool:
        self._until.wait(30)
        return self._renew(me)


def test_hanging_renewal_is_abandoned(under_test: LeaseUnderTest) -> None:
    """Mutant 22: whatever blocks a renewal, the next one has its own store (fault 45)."""
    free = threading.Event()
    make = under_test.runtime.stores_of_lease()
    stores: list[Any] = [Stopping(make(), free), Stopping(make(), free), make()]
    lease = Lease(functools.partial(stores.pop, 0), under_test.me, Settings())
    lease._deadline = 0.05
    try:
        assert not lease.renew()
        assert not lease.renew()
        lease._deadline = 30
        assert lease.renew()
        assert len(lease._abandoned) == 2
    finally:
        free.set()
    eventually(lambda: lease.renew() and not lease._abandoned, message="what was given up has not ended")


def test_hanging_renewals_are_limited(under_test: LeaseUnderTest) -> None:
    """A long outage does not start a thread each second (fault 45)."""
    free = threading.Event()
    make = under_test.runtime.stores_of_lease()
    lease = Lease(lambda: Stopping(make(), free), under_test.me, Settings())
    lease._deadline = 0.001
    try:
        for _ in range(30):
            lease.renew()
        assert len(lease._abandoned) == 10
    finally:
        free.set()


def test_lease_is_renewed_until_its_end(under_test: LeaseUnderTest) -> None:
    lease = Lease(
        under_test.runtime.stores_of_lease(),
        under_test.me,
        Settings(lease=under_test.runtime.settings.lease / 1000),
    )
    before = under_test.lease_until()
    lease.start()
    eventually(lambda: under_test.lease_until() != before, message="nothing was renewed")
    lease.end(30)
    with contextlib.suppress(RuntimeError):
        assert not lease._thread.is_alive()
