"""The life of a job in a real worker on SQLite; the other tests of this folder use PostgreSQL."""

import pytest

from jobhandle_celery import JobStatus
from tests.apps import lines_of
from tests.support import eventually
from tests.worker.cluster import Cluster, NewCluster, statuses


@pytest.fixture(scope="module")
def cluster(module_cluster: NewCluster) -> Cluster:
    cluster = module_cluster(database="sqlite")
    cluster.start(concurrency=2)
    return cluster


def test_job_ends_as_its_body_does(cluster: Cluster) -> None:
    done, failed = cluster.submit("add", 2, 3), cluster.submit("raise_value_error", "no good")
    killed = cluster.submit("kill_own_process")

    assert done.result(timeout=20) == 5
    assert statuses(cluster, done) == ["Submitted", "Running", "Finished"]
    assert failed.wait(20) is JobStatus.ERROR
    assert failed.job_message() == "ValueError: no good"
    assert killed.wait(20) is JobStatus.ERROR
    assert "was lost" in killed.job_message()


def test_retry_goes_through_the_row(cluster: Cluster) -> None:
    handle = cluster.submit("retry_times", str(cluster.new_file()), 3)

    assert handle.result(timeout=20) == 3
    assert handle.get_job().attempt == 4


@pytest.mark.parametrize(("task", "terminate"), [("attentive", False), ("deaf", True)])
def test_running_body_ends_after_a_cancel(cluster: Cluster, task: str, terminate: bool) -> None:
    handle = cluster.submit(task, str(cluster.new_file()), 60)
    eventually(handle.job_running)

    assert handle.cancel_job(terminate=terminate) is JobStatus.RUNNING

    assert handle.wait(timeout=20) is JobStatus.CANCELLED


@pytest.mark.faults
def test_job_survives_cold_shutdown_but_not_a_killed_worker(new_cluster: NewCluster) -> None:
    cluster = new_cluster(database="sqlite")
    worker, path = cluster.start(concurrency=1), cluster.new_file()
    handle = cluster.submit("deaf", str(path), 60)
    eventually(lambda: lines_of(path) == ["begun"])

    worker.quit()
    worker.wait()

    assert handle.job_status() in (JobStatus.REQUEUED, JobStatus.QUEUED)

    worker = cluster.start(concurrency=1)
    eventually(lambda: lines_of(path) == ["begun", "begun"])
    worker.kill()
    cluster.start(pool="solo")

    assert handle.wait(timeout=40) is JobStatus.ERROR
    assert "lost" in handle.job_message()
    assert handle.get_job().attempt == 2
