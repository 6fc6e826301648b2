"""Every kind of task definition claims, in a real worker; without a job each is a plain Celery task."""

from typing import Any

import pytest

from jobhandle_celery import JobCancelledError, JobStatus
from tests.apps import lines_of
from tests.support import eventually
from tests.worker.cluster import Cluster, NewCluster, statuses
from tests.worker.definitions import TASKS

HOUSE = ["house.after_jobs", "house.before_jobs", "definitions.shared"]
DEFINITIONS = [(task, "celery") for task in TASKS] + [(task, "house") for task in HOUSE]

MARKS = {
    "definitions.own_base": ["own before_start"],
    "definitions.abstract_base": ["own before_start"],
    "definitions.before_start_option": ["before_start option"],
    "definitions.annotated": ["annotated before_start"],
    "definitions.annotated_call": ["annotated __call__"],
    "definitions.call_runs": ["own __call__"],
    "definitions.registered_with_init": ["from init"],
}
"""The marks of the task's own hooks; a hook that is not called is missing."""

HOUSE_MARKS = ["the house's before_start", "the house's __call__"]

TRACKED = {
    "definitions.tracked",
    "definitions.registered_tracked",
    "definitions.annotated_tracked",
    "definitions.own_base",
    "definitions.abstract_base",
}

every_definition = pytest.mark.parametrize(
    ("task", "queue"), DEFINITIONS, ids=[f"{task}@{queue}" for task, queue in DEFINITIONS]
)


@pytest.fixture(scope="module")
def cluster(module_cluster: NewCluster) -> Cluster:
    # One process a worker, so that every message before a fence has been processed.
    cluster = module_cluster()
    options: dict[str, Any] = {"concurrency": 1, "arguments": ["-E"], "ready": False}
    cluster.start("tests.worker.definitions:app", **options)
    cluster.start("tests.worker.definitions:house_app", **options)
    for worker in cluster.workers:
        worker.wait_until_ready()
    return cluster


def _seen_by_the_body(task: str, queue: str) -> dict[str, Any]:
    if queue == "house":
        return {"marks": HOUSE_MARKS, "state": "STARTED"}
    return {"marks": MARKS.get(task, []), "state": "STARTED" if task in TRACKED else "PENDING"}


@every_definition
def test_each_definition_runs_its_job_once(cluster: Cluster, task: str, queue: str) -> None:
    path = cluster.new_file()

    handle = cluster.submit(task, str(path), "body", queue=queue)

    returned = handle.result(timeout=20)
    job = handle.get_job()
    assert (job.status, job.attempt) == (JobStatus.FINISHED, 1)
    assert returned == {
        "text": "body",
        "job": job.id,
        **_seen_by_the_body(task, queue),
    }
    assert [line for line in lines_of(path) if line == "body"] == ["body"]
    assert cluster.state(job.task_id) == "SUCCESS"


@every_definition
def test_job_cancelled_after_publish_never_runs(cluster: Cluster, task: str, queue: str) -> None:
    path = cluster.new_file()
    handle, message = cluster.submit_parked(task, str(path), "body")
    assert handle.cancel_job() is JobStatus.CANCELLED

    cluster.deliver(message, queue)
    cluster.fence(queue)

    job = handle.get_job()
    assert (job.status, job.started, job.attempt) == (JobStatus.CANCELLED, None, 0)
    assert "body" not in lines_of(path)
    assert cluster.state(job.task_id) == "REVOKED"
    with pytest.raises(JobCancelledError):
        handle.result()


@every_definition
def test_duplicate_message_leaves_no_trace(cluster: Cluster, task: str, queue: str) -> None:
    path = cluster.new_file()
    handle, message = cluster.submit_parked(task, str(path), "body")
    cluster.deliver(message, queue)
    handle.wait(20)
    task_id = handle.get_job().task_id
    cluster.fence(queue)
    job, stored, events = handle.get_job(), cluster.meta(task_id), statuses(cluster, handle)

    cluster.deliver(message, queue)
    cluster.fence(queue)

    assert [line for line in lines_of(path) if line == "body"] == ["body"]
    assert handle.get_job() == job
    assert cluster.meta(task_id) == stored
    assert statuses(cluster, handle) == events


@every_definition
def test_malformed_header_never_runs_the_body(cluster: Cluster, task: str, queue: str) -> None:
    path = cluster.new_file()
    _, message = cluster.submit_parked(task, str(path), "body")

    for header in (None, {}, {"id": "1", "attempt": 1}, {"id": 1, "attempt": 0}, [1, 1]):
        cluster.deliver(message, queue, jobhandle=header)
    cluster.fence(queue)

    assert "body" not in lines_of(path)


@every_definition
def test_task_called_without_a_job_is_plain(cluster: Cluster, task: str, queue: str) -> None:
    path = cluster.new_file()

    task_id = cluster.call(task, str(path), "body", queue=queue).id

    eventually(lambda: cluster.state(task_id) == "SUCCESS", message=f"{cluster.meta(task_id)}")
    meta = cluster.meta(task_id)
    assert meta is not None
    assert meta["result"] == {
        "text": "body",
        "job": None,
        **_seen_by_the_body(task, queue),
    }
    assert [line for line in lines_of(path) if line == "body"] == ["body"]


@pytest.mark.parametrize("task", ["definitions.own_request", "definitions.own_request_by_name"])
def test_own_request_class_is_kept(cluster: Cluster, task: str) -> None:
    path = cluster.new_file()

    cluster.submit(task, str(path), "body").wait(20)

    assert sorted(lines_of(path)) == ["body", "own request"]
