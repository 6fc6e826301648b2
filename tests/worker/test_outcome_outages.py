"""The database is away when a body ends: its outcome is written later, and delays nothing."""

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

import pytest

from jobhandle_celery import JobHandle, JobStatus
from tests.apps import lines_of
from tests.databases import migrate
from tests.servers import PostgresqlServer, execute
from tests.support import eventually
from tests.worker.cluster import Cluster, NewCluster

pytestmark = pytest.mark.faults

LIMIT = 4

STATUSES = {
    "return": JobStatus.FINISHED,
    "fail": JobStatus.ERROR,
    "stop": JobStatus.CANCELLED,
    "retry": JobStatus.FINISHED,
}


@contextmanager
def stopped(server: PostgresqlServer) -> Iterator[None]:
    server.stop()
    yield
    server.start()


@contextmanager
def paused(server: PostgresqlServer) -> Iterator[None]:
    server.pause()
    yield
    server.resume()


@contextmanager
def without_tables(server: PostgresqlServer) -> Iterator[None]:
    """Remove the tables, as in a migration: SchemaError, not an outage."""
    execute(server.url, "ALTER TABLE jobhandle_job RENAME TO elsewhere")
    yield
    execute(server.url, "ALTER TABLE elsewhere RENAME TO jobhandle_job")


Away = Callable[[PostgresqlServer], AbstractContextManager[None]]


@pytest.fixture
def cluster(new_cluster: NewCluster, private_postgresql: PostgresqlServer) -> Cluster:
    migrate(private_postgresql.url)
    # A long lease: in a pause of the database this worker is not lost.
    return new_cluster(database_url=private_postgresql.url, settings={"jobhandle_lease": 60})


@pytest.mark.parametrize("away", [stopped, paused, without_tables])
def test_body_that_returned_in_time_is_finished_after_its_limit(
    cluster: Cluster, private_postgresql: PostgresqlServer, away: Away
) -> None:
    """The hard limit ends with the body, not with the write of its outcome (fault 49)."""
    worker = cluster.start(concurrency=1)
    path, sign = cluster.new_file(), cluster.new_file()
    handle = cluster.submit("ends_when_there", str(path), str(sign), "return", time_limit=LIMIT)
    eventually(lambda: lines_of(path) == ["begun"])
    begun = time.monotonic()
    with away(private_postgresql):
        sign.touch()
        eventually(lambda: lines_of(path) == ["begun", "ended"])
        eventually(lambda: time.monotonic() > begun + LIMIT + 1)
    assert handle.result(timeout=30) == "returned"
    assert "Hard time limit" not in worker.log


@pytest.mark.parametrize("away", [stopped, without_tables])
def test_unwritten_outcome_occupies_no_pool_process(
    cluster: Cluster, private_postgresql: PostgresqlServer, away: Away
) -> None:
    """A pool that waits for the database would run nothing else, for ever on a SchemaError (fault 26)."""
    cluster.start(concurrency=len(STATUSES))
    sign = cluster.new_file()
    handles: dict[str, JobHandle] = {}
    paths = {how: cluster.new_file() for how in STATUSES}
    for how, path in paths.items():
        handles[how] = cluster.submit("ends_when_there", str(path), str(sign), how)
    eventually(lambda: all(lines_of(path) == ["begun"] for path in paths.values()))
    with away(private_postgresql):
        sign.touch()
        eventually(lambda: all("ended" in lines_of(path) for path in paths.values()))
        for _ in STATUSES:  # one for each process
            cluster.fence()
    assert {how: handle.wait(30) for how, handle in handles.items()} == STATUSES
    assert [handle.get_job().attempt for handle in handles.values()] == [1, 1, 1, 2]
    assert handles["stop"].job_message() == "enough"
    task_id = handles["stop"].get_job().task_id
    eventually(lambda: cluster.state(task_id) == "REVOKED")


def test_warm_shutdown_waits_for_an_unwritten_outcome(
    cluster: Cluster, private_postgresql: PostgresqlServer
) -> None:
    worker = cluster.start(concurrency=1)
    path, sign = cluster.new_file(), cluster.new_file()
    handle = cluster.submit("ends_when_there", str(path), str(sign), "return")
    eventually(lambda: lines_of(path) == ["begun"])
    with stopped(private_postgresql):
        sign.touch()
        worker.terminate()
        eventually(lambda: worker.log.count("is waiting for the database") > 1)
        assert worker.is_running()
    worker.wait(60)
    assert handle.result(timeout=0) == "returned"
