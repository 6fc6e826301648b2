"""In a database outage workers keep running, and write their outcomes afterwards."""

import json
import time

import pytest

from jobhandle_celery import DatabaseUnavailableError, JobStatus
from tests.apps import lines_of
from tests.databases import migrate
from tests.servers import PostgresqlServer, execute
from tests.support import eventually
from tests.worker.cluster import NewCluster

pytestmark = pytest.mark.faults

LEASE = 2


@pytest.mark.parametrize("how", ["stop", "pause"])
def test_database_outage_delays_jobs_and_loses_none(
    new_cluster: NewCluster, private_postgresql: PostgresqlServer, how: str
) -> None:
    migrate(private_postgresql.url)
    cluster = new_cluster(database_url=private_postgresql.url, settings={"jobhandle_lease": LEASE})
    worker = cluster.start(concurrency=3, ready=False)
    cluster.start(pool="solo", queues=["idle"])  # which would declare the other lost
    worker.wait_until_ready()
    children = set(worker.children())
    paths, sign = [cluster.new_file() for _ in range(3)], cluster.new_file()
    finishing = cluster.submit("until_there", str(paths[0]), str(sign))
    beside = cluster.submit("deaf", str(paths[1]), 3 * LEASE)
    starting, message = cluster.submit_parked("append", str(paths[2]), "body")
    eventually(lambda: all(lines_of(path) == ["begun"] for path in paths[:2]))
    # Leases are trusted only after a lease without a gap between passes.
    began = time.monotonic()
    eventually(lambda: time.monotonic() - began > LEASE / 2)

    getattr(private_postgresql, how)()
    gone = time.monotonic()
    sign.touch()
    cluster.deliver(message)
    eventually(lambda: time.monotonic() - gone > 1.5 * LEASE)
    assert lines_of(paths[0]) == ["begun", "ended"]
    assert lines_of(paths[2]) == []
    if how == "pause":
        private_postgresql.resume()
    else:
        with pytest.raises(DatabaseUnavailableError):
            cluster.submit("add", 20, 22, unique_key="k")
        private_postgresql.start()

    assert finishing.result(timeout=20) == "seen"
    assert starting.result(timeout=20) == "body"
    assert beside.result(timeout=20) == "slept"
    for handle in (finishing, starting, beside):
        job = handle.get_job()
        assert (job.status, job.attempt) == (JobStatus.FINISHED, 1)
    assert lines_of(paths[1]) == ["begun", "ended"]
    assert lines_of(paths[2]) == ["body"]
    assert set(worker.children()) == children
    assert {job.id for job in cluster.jobs.find()} == {
        handle.job_id for handle in (finishing, starting, beside)
    }
    assert cluster.submit("add", 20, 22, unique_key="k").result(timeout=20) == 42


def test_unanswered_claim_drops_message_and_another_is_sent(
    new_cluster: NewCluster, private_postgresql: PostgresqlServer
) -> None:
    migrate(private_postgresql.url)
    cluster = new_cluster(database_url=private_postgresql.url)
    worker = cluster.start("tests.worker.outages:app", concurrency=1)
    path = cluster.new_file()
    handle, message = cluster.submit_parked("append", str(path), "body")
    assert handle.job_status() is JobStatus.QUEUED

    private_postgresql.stop()
    cluster.deliver(message)
    dropped = f"{json.loads(message)['headers']['id']}] ignored"
    eventually(lambda: dropped in worker.log)
    private_postgresql.start()

    assert handle.job_status() is JobStatus.QUEUED
    # As if the republish delay had passed.
    execute(cluster.database_url, "UPDATE jobhandle_job SET due_at = clock_timestamp()")
    parked = str(handle.get_job().queue)
    another = eventually(lambda: cluster.redis.lpop(parked))
    assert isinstance(another, bytes)
    cluster.deliver(another)
    assert handle.result(timeout=20) == "body"
    assert handle.get_job().attempt == 1
    assert lines_of(path) == ["body"]


def test_body_in_outage_goes_on_unless_it_needs_an_answer(
    new_cluster: NewCluster, private_postgresql: PostgresqlServer
) -> None:
    migrate(private_postgresql.url)
    cluster = new_cluster(database_url=private_postgresql.url)
    cluster.start("tests.worker.outages:app", concurrency=2)
    paths, sign = [cluster.new_file() for _ in range(2)], cluster.new_file()
    raising = cluster.submit("speaking", str(paths[0]), str(sign), False)
    catching = cluster.submit("speaking", str(paths[1]), str(sign), True)
    eventually(lambda: all(lines_of(path) == ["begun"] for path in paths))

    private_postgresql.stop()
    sign.touch()
    eventually(lambda: lines_of(paths[0]) == ["begun", "left out", "not answered"])
    eventually(lambda: lines_of(paths[1]) == ["begun", "left out", "not answered", "went on"])
    private_postgresql.start()

    assert raising.wait(20) is JobStatus.ERROR
    error = raising.get_job().error
    assert error is not None
    assert (error.kind, error.type) == ("task", "DatabaseUnavailableError")
    assert catching.result(timeout=20) == "ended"
    assert [handle.get_job().attempt for handle in (raising, catching)] == [1, 1]
    assert [len(lines_of(path)) for path in paths] == [3, 4]


def test_worker_lost_in_an_outage_is_found_after_it(
    new_cluster: NewCluster, private_postgresql: PostgresqlServer
) -> None:
    migrate(private_postgresql.url)
    cluster = new_cluster(database_url=private_postgresql.url, settings={"jobhandle_lease": LEASE})
    worker = cluster.start(pool="solo", ready=False)
    cluster.start(pool="solo", queues=["idle"])
    worker.wait_until_ready()
    path = cluster.new_file()
    handle = cluster.submit("deaf", str(path), 60)
    eventually(lambda: lines_of(path) == ["begun"])

    private_postgresql.stop()
    worker.kill()
    private_postgresql.start()

    assert handle.wait(30) is JobStatus.ERROR
    assert "lost" in handle.job_message()
