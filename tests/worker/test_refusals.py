"""Rejected messages: a revoked task if the job is cancelled or expired, otherwise no trace."""

import time
from collections.abc import Iterator
from datetime import timedelta

import pytest

from jobhandle_celery import JobHandle, JobStatus
from tests.apps import lines_of
from tests.support import eventually
from tests.worker.cluster import Cluster, Events, NewCluster, statuses


@pytest.fixture(scope="module")
def cluster(module_cluster: NewCluster) -> Cluster:
    # One process: every message before a fence has been processed.
    cluster = module_cluster()
    cluster.start(concurrency=1, arguments=["-E"])
    return cluster


@pytest.fixture
def events(cluster: Cluster) -> Iterator[Events]:
    with cluster.events() as events:
        yield events


def task_id_of(handle: JobHandle) -> str:
    return str(handle.get_job().task_id)


def revocations(events: Events, task_id: str) -> int:
    return events.of(task_id).count("task-revoked")


@pytest.mark.parametrize("copies", [1, 2, 5])
def test_cancelled_job_is_reported_revoked_once(cluster: Cluster, events: Events, copies: int) -> None:
    path = cluster.new_file()
    handle, message = cluster.submit_parked("append", str(path), "body")
    handle.cancel_job()

    for _ in range(copies):
        cluster.deliver(message)
    cluster.fence()

    task_id = task_id_of(handle)
    eventually(lambda: events.of(task_id).count("task-received") == copies)
    eventually(lambda: revocations(events, task_id))
    assert revocations(events, task_id) == 1
    assert cluster.state(task_id) == "REVOKED"
    assert lines_of(path) == []
    assert statuses(cluster, handle) == ["Submitted", "Cancelled"]


def test_expired_job_is_cancelled_and_reported_revoked(cluster: Cluster, events: Events) -> None:
    path = cluster.new_file()
    handle, message = cluster.submit_parked("append", str(path), "body", expires=timedelta(milliseconds=50))
    submitted = time.monotonic()
    eventually(lambda: time.monotonic() - submitted > 0.1)

    cluster.deliver(message)
    cluster.deliver(message)
    cluster.fence()

    task_id = task_id_of(handle)
    eventually(lambda: revocations(events, task_id))
    assert revocations(events, task_id) == 1
    assert cluster.state(task_id) == "REVOKED"
    job = handle.get_job()
    assert (job.status, job.started) == (JobStatus.CANCELLED, None)
    assert "expired" in job.message
    assert lines_of(path) == []


@pytest.mark.parametrize(
    ("task", "arguments", "state"),
    [
        ("add", [1, 2], "SUCCESS"),
        ("raise_value_error", ["no good"], "FAILURE"),
        ("raise_tracked", ["no good"], "FAILURE"),
        ("stop_saying", ["x"], "REVOKED"),
    ],
)
def test_duplicate_after_the_end_keeps_the_stored_result(
    cluster: Cluster, events: Events, task: str, arguments: list[object], state: str
) -> None:
    handle, message = cluster.submit_parked(task, *arguments)
    cluster.deliver(message)
    handle.wait(20)
    cluster.fence()
    job, stored = handle.get_job(), cluster.meta(task_id_of(handle))
    assert stored is not None
    assert stored["status"] == state
    before = revocations(events, task_id_of(handle))

    cluster.deliver(message)
    cluster.deliver(message)
    cluster.fence()

    assert cluster.meta(task_id_of(handle)) == stored
    assert handle.get_job() == job
    eventually(lambda: events.of(task_id_of(handle)).count("task-received") == 3)
    assert revocations(events, task_id_of(handle)) == before


def test_duplicate_during_the_run_does_not_start_it_twice(new_cluster: NewCluster) -> None:
    cluster = new_cluster()
    cluster.start(pool="threads", concurrency=4)
    path, sign = cluster.new_file(), cluster.new_file()
    handle, message = cluster.submit_parked("until_there", str(path), str(sign))
    cluster.deliver(message)
    eventually(lambda: lines_of(path) == ["begun"])

    for _ in range(3):
        cluster.deliver(message)
    assert cluster.submit("add", 1, 1).result(timeout=20) == 2
    sign.touch()

    assert handle.result(timeout=20) == "seen"
    assert lines_of(path) == ["begun", "ended"]
    assert handle.get_job().attempt == 1


def test_message_of_an_earlier_attempt_is_refused(cluster: Cluster) -> None:
    path = cluster.new_file()
    handle, message = cluster.submit_parked("append", str(path), "body")
    cluster.deliver(message)
    handle.wait(20)
    handle.resubmit_job()
    handle.cancel_job()

    cluster.deliver(message)
    cluster.fence()

    assert lines_of(path) in (["body"], ["body", "body"])  # the second: the resubmitted one was faster
    assert handle.job_status().final


def test_message_for_another_tasks_job_is_refused(cluster: Cluster) -> None:
    path = cluster.new_file()
    handle, message = cluster.submit_parked("append", str(path), "body")

    cluster.deliver(message, task="worker.deaf")
    cluster.deliver(message, id="00000000-0000-4000-8000-000000000000")
    cluster.deliver(message, jobhandle={"id": handle.job_id + 1_000_000, "attempt": 1})
    cluster.deliver(message, jobhandle={"id": handle.job_id, "attempt": 2})
    cluster.fence()

    assert lines_of(path) == []
    assert handle.job_status() is JobStatus.QUEUED

    cluster.deliver(message)

    assert handle.wait(20) is JobStatus.FINISHED
    assert lines_of(path) == ["body"]


@pytest.mark.parametrize("fields", [{"scheduled_for": timedelta(hours=1)}, {"status": "Waiting"}])
def test_message_before_its_time_is_refused(cluster: Cluster, fields: dict[str, object]) -> None:
    path = cluster.new_file()
    handle = cluster.submit("append", str(path), "body", **fields)
    _, other = cluster.submit_parked("append", str(path), "other")

    cluster.deliver(other, id=task_id_of(handle), jobhandle={"id": handle.job_id, "attempt": 1})
    cluster.fence()

    assert lines_of(path) == []
    assert handle.job_status() is JobStatus.WAITING
    assert cluster.meta(task_id_of(handle)) is None


def test_cancel_after_a_lost_message_needs_no_message(cluster: Cluster) -> None:
    handle, _ = cluster.submit_parked("append", str(cluster.new_file()), "body")

    assert handle.cancel_job() is JobStatus.CANCELLED
    assert handle.wait(5) is JobStatus.CANCELLED
