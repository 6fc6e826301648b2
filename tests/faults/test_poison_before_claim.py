"""Messages that end their worker before the claim: the job is given up, and others run (fault 42)."""

import base64
import json

import pytest

from jobhandle_celery import Job, JobStatus
from tests.apps import lines_of
from tests.support import eventually
from tests.worker.cluster import NewCluster

pytestmark = [pytest.mark.faults, pytest.mark.slow]

APP = "tests.faults.poison_app:app"
SETTINGS = {"jobhandle_republish_after": 0.5, "jobhandle_publish_grace": 0.5, "jobhandle_lease": 3}


def test_job_that_kills_worker_after_worker_ends_in_error(new_cluster: NewCluster) -> None:
    """A message kills the main process repeatedly, until its job ends in Error (fault 42)."""
    cluster = new_cluster(settings=SETTINGS)
    path, other = cluster.new_file(), cluster.new_file()
    poison, healthy = cluster.jobs.handle(), cluster.jobs.handle()
    poison.submit(Job(task="poison.kills_main", args=[str(path)]))
    healthy.submit(Job(task="poison.append", args=[str(other), "ran"], max_attempts=10))
    worker = cluster.start(APP, concurrency=1, ready=False)

    def ended() -> bool:
        nonlocal worker
        if not worker.is_running():
            worker = cluster.start(APP, concurrency=1, ready=False)
        cluster.jobs.sweep()
        return poison.job_status().final and healthy.job_status().final

    eventually(ended)

    record = poison.get_job()
    assert (record.status, record.attempt) == (JobStatus.ERROR, 0)
    assert record.error is not None
    assert "before its body started" in record.error.message
    assert set(lines_of(path)) == {"main"}
    assert len(lines_of(path)) <= 8
    assert healthy.job_status() is JobStatus.FINISHED
    assert lines_of(other) == ["ran"]


def test_message_nested_too_deep_leaves_its_worker_alive(new_cluster: NewCluster) -> None:
    """A message nested 600 deep is dropped before it is decoded (fault 42)."""
    cluster = new_cluster(settings=SETTINGS)
    worker = cluster.start(APP, concurrency=1)
    path = cluster.new_file()
    handle, message = cluster.submit_parked("poison.append", str(path), "deep")
    body = '[["' + str(path) + '", ' + "[" * 600 + "]" * 600 + "], {}, {}]"
    forged = json.loads(message) | {"body": base64.b64encode(body.encode()).decode()}
    cluster.deliver(json.dumps(forged).encode())
    eventually(lambda: f"job {handle.job_id}: refused its message (its arguments are" in worker.log)
    assert worker.is_running()
    healthy = cluster.submit("poison.append", str(path), "ran")
    assert healthy.wait(30) is JobStatus.FINISHED
    assert lines_of(path) == ["ran"]
