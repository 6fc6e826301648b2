"""The database goes away for a while: workers live on, and what should have been written is."""

import json
import os
import time
import uuid

import pytest

from jobhandle_celery import JobStatus
from jobhandle_celery.service import service_of
from jobhandle_celery.store import Run, Worker
from tests.apps import lines_of
from tests.databases import migrate
from tests.servers import PostgresqlServer
from tests.support import eventually
from tests.worker.site import NewSite

LEASE = 2


@pytest.mark.parametrize("how", ["stop", "pause"])
def test_an_outage_delays_jobs_and_loses_none(
    new_site: NewSite, private_postgresql: PostgresqlServer, how: str
) -> None:
    migrate(private_postgresql.url)
    site = new_site(database_url=private_postgresql.url, settings={"jobhandle_lease": LEASE})
    worker = site.start(concurrency=3, ready=False)
    site.start(pool="solo", queues=["idle"])  # who would take the other for lost
    worker.wait_until_ready()
    children = set(worker.children())
    paths, sign = [site.new_file() for _ in range(3)], site.new_file()
    finishing = site.submit("until_there", str(paths[0]), str(sign))
    beside = site.submit("deaf", str(paths[1]), 3 * LEASE)
    starting, message = site.submit_parked("append", str(paths[2]), "body")
    eventually(lambda: all(lines_of(path) == ["begun"] for path in paths[:2]))
    # Leases are believed only after a lease without a gap between passes.
    began = time.monotonic()
    eventually(lambda: time.monotonic() - began > LEASE / 2)

    getattr(private_postgresql, how)()
    gone = time.monotonic()
    sign.touch()
    site.deliver(message)
    eventually(lambda: time.monotonic() - gone > 1.5 * LEASE)
    assert lines_of(paths[0]) == ["begun", "ended"]
    assert lines_of(paths[2]) == []
    if how == "pause":
        private_postgresql.resume()
    else:
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


def test_a_worker_may_be_lost_even_after_an_outage(
    new_site: NewSite, private_postgresql: PostgresqlServer
) -> None:
    migrate(private_postgresql.url)
    site = new_site(database_url=private_postgresql.url, settings={"jobhandle_lease": LEASE})
    doomed = site.start(pool="solo", ready=False)
    site.start(pool="solo", queues=["idle"])
    doomed.wait_until_ready()
    path = site.new_file()
    handle = site.submit("deaf", str(path), 60)
    eventually(lambda: lines_of(path) == ["begun"])

    private_postgresql.stop()
    doomed.kill()
    private_postgresql.start()

    assert handle.wait(30) is JobStatus.ERROR
    assert "lost" in handle.job_message()


def test_a_pass_that_was_held_up_takes_nobody_for_lost(new_site: NewSite) -> None:
    # The database, or the one who sweeps, stood still between the beginning of a pass and its look at the
    # leases. Nobody could renew meanwhile.
    site = new_site(settings={"jobhandle_lease": 2.4})
    store = service_of(site.app).store
    worker = Worker("healthy", str(uuid.uuid4()), os.getpid())
    handle, message = site.submit_parked("add", 1, 2)
    run = Run(handle.job_id, json.loads(message)["headers"]["id"], 1, str(uuid.uuid4()), worker)
    store.renew(worker)
    assert store.claim(run, "worker.add") == run
    eventually(lambda: store.renew(worker) and store.begin_pass())

    held_up = time.monotonic()
    eventually(lambda: time.monotonic() - held_up > 3)
    for boot_id in store.lapsed_workers():
        store.reap(boot_id)

    assert handle.job_running()
    assert store.finish(run, "3")
