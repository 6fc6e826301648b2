"""`control.revoke`, as operators and Flower use it."""

from typing import Any

import pytest

from jobhandle_celery import JobHandle, JobStatus
from tests.apps import lines_of
from tests.support import eventually
from tests.worker.cluster import Cluster, NewCluster


@pytest.fixture(scope="module")
def cluster(module_cluster: NewCluster) -> Cluster:
    cluster = module_cluster()
    cluster.start(concurrency=2, arguments=["-E"])
    return cluster


def running(cluster: Cluster, task: str = "deaf", seconds: float = 60) -> tuple[JobHandle, str]:
    path = cluster.new_file()
    handle = cluster.submit(task, str(path), seconds)
    eventually(lambda: lines_of(path) == ["begun"])
    return handle, str(handle.get_job().task_id)


def revoke(cluster: Cluster, task_id: str | None, **options: Any) -> None:
    """Revoke, and wait until the worker has received it."""
    assert task_id
    assert cluster.app.control.revoke(task_id, reply=True, limit=1, timeout=10, **options)


def test_revoke_before_the_start_cancels_the_job(cluster: Cluster) -> None:
    path = cluster.new_file()
    handle, message = cluster.submit_parked("append", str(path), "body")
    task_id = str(handle.get_job().task_id)
    revoke(cluster, task_id)

    cluster.deliver(message)

    assert handle.wait(20) is JobStatus.CANCELLED
    assert handle.get_job().started is None
    assert lines_of(path) == []
    eventually(lambda: cluster.state(task_id) == "REVOKED")


@pytest.mark.parametrize("signal", ["SIGTERM", "SIGKILL"])
def test_revoke_with_terminate_cancels_the_running_job(cluster: Cluster, signal: str) -> None:
    handle, task_id = running(cluster)

    cluster.app.control.revoke(task_id, terminate=True, signal=signal)

    assert handle.wait(20) is JobStatus.CANCELLED
    assert "terminated" in handle.job_message()
    eventually(lambda: cluster.state(task_id) == "REVOKED")


def test_revoke_without_terminate_leaves_the_running_job(cluster: Cluster) -> None:
    handle, task_id = running(cluster, seconds=2)

    revoke(cluster, task_id)

    assert handle.result(timeout=20) == "slept"


@pytest.mark.parametrize("terminate", [False, True])
def test_revoke_of_a_finished_job_changes_nothing(cluster: Cluster, terminate: bool) -> None:
    handle, message = cluster.submit_parked("add", 1, 2)
    cluster.deliver(message)
    assert handle.result(timeout=20) == 3
    job = handle.get_job()
    stored = eventually(lambda: cluster.meta(job.task_id))

    revoke(cluster, job.task_id, terminate=terminate)
    cluster.deliver(message)  # which the worker now discards as revoked
    assert cluster.submit("add", 2, 2).result(timeout=20) == 4

    assert handle.get_job() == job
    assert stored
    assert stored["status"] == "SUCCESS"


def test_revoked_job_can_be_resubmitted(cluster: Cluster) -> None:
    path = cluster.new_file()
    handle, message = cluster.submit_parked("append", str(path), "body")
    revoke(cluster, handle.get_job().task_id)
    cluster.deliver(message)
    assert handle.wait(20) is JobStatus.CANCELLED

    handle.resubmit_job()  # to the parked queue, which no worker consumes
    again = cluster.redis.lpop(handle.get_job().queue or "")
    assert isinstance(again, bytes)
    cluster.deliver(again)

    assert handle.result(timeout=20) == "body"
    assert lines_of(path) == ["body"]
