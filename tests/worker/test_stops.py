"""A running body stops on request, and only then is its job Cancelled."""

import pytest

from jobhandle_celery import InvalidTransitionError, JobCancelledError, JobHandle, JobStatus
from tests.apps import lines_of
from tests.support import eventually
from tests.worker.cluster import Cluster, NewCluster, statuses


@pytest.fixture(scope="module")
def cluster(module_cluster: NewCluster) -> Cluster:
    cluster = module_cluster()
    cluster.start(concurrency=2, arguments=["-E"])
    return cluster


def test_polling_body_stops_after_a_cancel(cluster: Cluster) -> None:
    path = cluster.new_file()
    with cluster.events() as events:
        handle = cluster.submit("attentive", str(path), 60)
        eventually(lambda: lines_of(path) == ["begun"])

        assert handle.cancel_job() is JobStatus.RUNNING

        assert handle.wait(20) is JobStatus.CANCELLED
        task_id = handle.get_job().task_id
        eventually(lambda: "task-revoked" in events.of(task_id))
        assert cluster.submit("add", 1, 1).result(timeout=20) == 2
        assert events.of(task_id).count("task-revoked") == 1
    assert lines_of(path) == ["begun"]
    assert statuses(cluster, handle)[-1] == "Cancelled"
    assert cluster.state(task_id) == "REVOKED"
    with pytest.raises(JobCancelledError):
        handle.result()


def test_body_that_ignores_the_cancel_ends_finished(cluster: Cluster) -> None:
    path = cluster.new_file()
    handle = cluster.submit("deaf", str(path), 1.5)
    eventually(lambda: lines_of(path) == ["begun"])

    assert handle.cancel_job() is JobStatus.RUNNING

    assert handle.result(timeout=20) == "slept"
    assert handle.job_status() is JobStatus.FINISHED
    assert handle.get_job().cancel_requested is not None


def test_cancel_with_terminate_ends_the_body(cluster: Cluster) -> None:
    path = cluster.new_file()
    handle = cluster.submit("deaf", str(path), 60)
    eventually(lambda: lines_of(path) == ["begun"])

    assert handle.cancel_job(terminate=True) is JobStatus.RUNNING

    assert handle.wait(20) is JobStatus.CANCELLED
    assert "terminated" in handle.job_message()
    assert lines_of(path) == ["begun"]
    eventually(lambda: cluster.state(handle.get_job().task_id) == "REVOKED")


def test_cancel_with_terminate_may_follow_a_plain_cancel(cluster: Cluster) -> None:
    path = cluster.new_file()
    handle = cluster.submit("deaf", str(path), 60)
    eventually(lambda: lines_of(path) == ["begun"])
    handle.cancel_job()

    handle.cancel_job(terminate=True)

    assert handle.wait(20) is JobStatus.CANCELLED


def test_message_of_the_stop_becomes_the_jobs_message(cluster: Cluster) -> None:
    handle = cluster.submit("stop_saying", "the disk is full")

    assert handle.wait(20) is JobStatus.CANCELLED
    assert handle.job_message() == "the disk is full"


def test_stop_passes_through_except_exception(cluster: Cluster) -> None:
    path = cluster.new_file()

    handle = cluster.submit("catches_exceptions", str(path))

    assert handle.wait(20) is JobStatus.CANCELLED
    assert handle.job_message() == "through everything"
    assert lines_of(path) == []


@pytest.mark.parametrize("task", ["autoretry_exception_stops", "autoretry_everything_stops", "retry_on_stop"])
def test_stop_is_never_retried(cluster: Cluster, task: str) -> None:
    path = cluster.new_file()

    handle = cluster.submit(task, str(path))

    assert handle.wait(20) is JobStatus.CANCELLED
    assert handle.job_message() == "no retry"
    assert lines_of(path) == ["begun"]
    assert handle.get_job().attempt == 1
    eventually(lambda: cluster.state(handle.get_job().task_id) == "REVOKED")


def test_stop_in_a_plain_task_does_not_end_the_worker(cluster: Cluster) -> None:
    cluster.call("stop_saying", "no job")

    assert cluster.submit("add", 1, 1).result(timeout=20) == 2


def test_failure_after_a_stop_request_ends_in_error(cluster: Cluster) -> None:
    path, sign = cluster.new_file(), cluster.new_file()
    handle = cluster.submit("fails_when_there", str(path), str(sign))
    eventually(lambda: lines_of(path) == ["begun"])
    handle.cancel_job()

    sign.touch()

    assert handle.wait(20) is JobStatus.ERROR


def test_set_status_finished_asks_the_body_to_stop(cluster: Cluster) -> None:
    path = cluster.new_file()
    handle = cluster.submit("attentive", str(path), 60)
    eventually(lambda: lines_of(path) == ["begun"])

    assert handle.set_status_and_message("Finished", "good enough") is JobStatus.RUNNING

    assert cluster.submit("add", 1, 1).result(timeout=20) == 2
    assert (handle.job_status(), handle.job_message()) == (JobStatus.FINISHED, "good enough")
    # The body has returned: the job may be resubmitted.
    eventually(lambda: _resubmitted(handle))
    handle.cancel_job(terminate=True)
    handle.wait(20)


def _resubmitted(handle: JobHandle) -> bool:
    try:
        handle.resubmit_job()
    except InvalidTransitionError:
        return False
    return True
