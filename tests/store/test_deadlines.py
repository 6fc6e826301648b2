"""Every statement has a client-side deadline: a connection that does not answer is closed and replaced."""

import uuid
from collections.abc import Callable, Iterator

import pytest

from jobhandle_celery.errors import DatabaseUnavailableError
from jobhandle_celery.settings import Settings
from jobhandle_celery.status import JobStatus
from jobhandle_celery.store import Database, Store, Worker, engine_maker
from jobhandle_celery.worker.lease import Lease
from tests.faults.broker_gate import Gate
from tests.store.harness import Harness, new_job

pytestmark = pytest.mark.faults

DEADLINE = 1.0


class JobFactory:
    """A store behind a gate that can discard bytes, and one that reaches the same rows directly."""

    def __init__(self, url: str, gate: Gate, namespace: str) -> None:
        self.gate = gate
        self.direct = Harness(url, namespace=namespace)
        self.database = Database(engine_maker(gate.url), self.direct.settings, deadline=DEADLINE)
        self.store = Store(self.database)

    def close(self) -> None:
        self.direct.close()
        self.database.close()


@pytest.fixture
def factory(common_server_url: str, namespace: str) -> Iterator[JobFactory]:
    with Gate(common_server_url) as gate:
        factory = JobFactory(common_server_url, gate, namespace)
        yield factory
        factory.close()


def _submit(factory: JobFactory) -> None:
    new = new_job()
    [submitted] = factory.store.inserter.submit([new])
    assert factory.direct.row(submitted.job_id)["task_id"] == new.task_id


def _submit_many(factory: JobFactory) -> None:
    assert len(factory.store.inserter.submit([new_job() for _ in range(3)])) == 3


def _read(factory: JobFactory) -> None:
    assert factory.store.queries.status(factory.direct.submit()) is JobStatus.SUBMITTED


def _finish(factory: JobFactory) -> None:
    run = factory.direct.run(factory.direct.submit())
    assert factory.store.runs.finish(run, "1")
    assert factory.direct.status(run.job_id) is JobStatus.FINISHED


def _cancel(factory: JobFactory) -> None:
    assert factory.store.control.cancel(factory.direct.submit(), None, terminate=False) is JobStatus.CANCELLED


def _renew(factory: JobFactory) -> None:
    assert factory.store.leases.renew(factory.direct.worker())


WAYS: list[Callable[[JobFactory], None]] = [_submit, _submit_many, _read, _finish, _cancel, _renew]
"""One call for each way in which the store executes a statement."""


@pytest.mark.parametrize("way", WAYS)
def test_silent_connection_is_replaced(factory: JobFactory, way: Callable[[JobFactory], None]) -> None:
    """Mutant 22: without a deadline the call would wait for ever (fault 45)."""
    way(factory)
    factory.gate.swallow()
    way(factory)


@pytest.mark.faults
def test_silent_server_is_an_error_in_bounded_time(factory: JobFactory) -> None:
    """Connections are accepted by TCP and answer nothing, new ones too (fault 45)."""
    factory.store.queries.status(0)
    with factory.gate.shut(), pytest.raises(DatabaseUnavailableError):
        factory.store.queries.status(0)
    assert factory.store.queries.status(0) is None


def test_lease_is_renewed_though_its_connection_is_silent(factory: JobFactory) -> None:
    """The renewal is given up, and the next one has a connection of its own (fault 45, promise 3)."""
    settings = factory.direct.settings
    first = Database(engine_maker(factory.gate.url), settings)
    me = Worker("w1", str(uuid.uuid4()), 1)
    databases: list[Database] = []

    def make() -> Store:
        databases.append(first.detached(DEADLINE))
        return Store(databases[-1])

    lease = Lease(make, me, Settings(lease=settings.lease))
    assert lease.renew()
    factory.gate.swallow()
    lease._deadline = DEADLINE / 10
    assert not lease.renew(), "it did not notice that nothing answers"
    lease._deadline = 30
    assert lease.renew()
    assert factory.direct.store.leases.renew(me)
    for database in databases:
        database.close()
