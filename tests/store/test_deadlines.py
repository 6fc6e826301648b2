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
from tests.store.harness import Bench, new_job

DEADLINE = 1.0


class Stage:
    """A store behind a gate that can discard bytes, and one that reaches the same rows directly."""

    def __init__(self, url: str, gate: Gate, namespace: str) -> None:
        self.gate = gate
        self.direct = Bench(url, namespace=namespace)
        self.database = Database(engine_maker(gate.url), self.direct.settings, deadline=DEADLINE)
        self.store = Store(self.database)

    def close(self) -> None:
        self.direct.close()
        self.database.close()


@pytest.fixture
def stage(common_server_url: str, namespace: str) -> Iterator[Stage]:
    with Gate(common_server_url) as gate:
        stage = Stage(common_server_url, gate, namespace)
        yield stage
        stage.close()


def _submit(stage: Stage) -> None:
    new = new_job()
    [submitted] = stage.store.inserter.submit([new])
    assert stage.direct.row(submitted.job_id)["task_id"] == new.task_id


def _submit_many(stage: Stage) -> None:
    assert len(stage.store.inserter.submit([new_job() for _ in range(3)])) == 3


def _read(stage: Stage) -> None:
    assert stage.store.queries.status(stage.direct.submit()) is JobStatus.SUBMITTED


def _finish(stage: Stage) -> None:
    run = stage.direct.run(stage.direct.submit())
    assert stage.store.runs.finish(run, "1")
    assert stage.direct.status(run.job_id) is JobStatus.FINISHED


def _cancel(stage: Stage) -> None:
    assert stage.store.control.cancel(stage.direct.submit(), None, terminate=False) is JobStatus.CANCELLED


def _renew(stage: Stage) -> None:
    assert stage.store.leases.renew(stage.direct.worker())


WAYS: list[Callable[[Stage], None]] = [_submit, _submit_many, _read, _finish, _cancel, _renew]
"""One call for each way in which the store executes a statement."""


@pytest.mark.parametrize("way", WAYS)
def test_silent_connection_is_replaced(stage: Stage, way: Callable[[Stage], None]) -> None:
    """Mutant 22: without a deadline the call would wait for ever (fault 45)."""
    way(stage)
    stage.gate.swallow()
    way(stage)


@pytest.mark.faults
def test_silent_server_is_an_error_in_bounded_time(stage: Stage) -> None:
    """Connections are accepted by TCP and answer nothing, new ones too (fault 45)."""
    stage.store.queries.status(0)
    with stage.gate.shut(), pytest.raises(DatabaseUnavailableError):
        stage.store.queries.status(0)
    assert stage.store.queries.status(0) is None


def test_lease_is_renewed_though_its_connection_is_silent(stage: Stage) -> None:
    """The renewal is given up, and the next one has a connection of its own (fault 45, promise 3)."""
    settings = stage.direct.settings
    first = Database(engine_maker(stage.gate.url), settings)
    me = Worker("w1", str(uuid.uuid4()), 1)
    databases: list[Database] = []

    def make() -> Store:
        databases.append(first.detached(DEADLINE))
        return Store(databases[-1])

    lease = Lease(make, me, Settings(lease=settings.lease))
    assert lease.renew()
    stage.gate.swallow()
    lease._deadline = DEADLINE / 10
    assert not lease.renew(), "it did not notice that nothing answers"
    lease._deadline = 30
    assert lease.renew()
    assert stage.direct.store.leases.renew(me)
    for database in databases:
        database.close()
