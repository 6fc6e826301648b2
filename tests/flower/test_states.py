"""Flower shows a job in the state of its row."""

import re
from collections import Counter

import pytest

from jobhandle_celery import JobHandle, JobStatus
from tests.apps import lines_of
from tests.flower.conftest import start
from tests.flower.process import Flower
from tests.support import eventually
from tests.worker.cluster import Cluster
from tests.workers import WorkerProcess

pytestmark = pytest.mark.flower


def running(cluster: Cluster, task: str = "attentive", **fields: object) -> JobHandle:
    path = cluster.new_file()
    handle = cluster.submit(task, str(path), 120, **fields)
    eventually(lambda: "begun" in lines_of(path), message="the job was not started")
    return handle


def start_for_queue(cluster: Cluster, queue: str, concurrency: int = 1) -> WorkerProcess:
    """Start a worker that consumes from this queue alone, and that the test ends."""
    return start(cluster, concurrency=concurrency, queues=[queue])


def test_finished_and_failed_job(cluster: Cluster, flower: Flower) -> None:
    good, bad = cluster.submit("add", 1, 2), cluster.submit("raise_value_error", "of no value")

    assert flower.wait_for(good, "SUCCESS")["result"] == "3"
    assert "of no value" in flower.wait_for(bad, "FAILURE")["exception"]


def test_retried_job(cluster: Cluster, flower: Flower) -> None:
    path = cluster.new_file()
    handle = cluster.submit("retry_times", str(path), 1, 3)

    flower.wait_for(handle, "RETRY")
    assert flower.wait_for(handle, "SUCCESS")["retries"] == 1


def test_job_cancelled_after_its_delivery_and_before_its_start(cluster: Cluster, flower: Flower) -> None:
    body = running(cluster)
    behind = cluster.submit("add", 1, 1)
    flower.wait_for(behind, "RECEIVED")
    assert behind.cancel_job() is JobStatus.CANCELLED

    body.cancel_job()

    flower.wait_for(behind, "REVOKED")
    flower.wait_for(body, "REVOKED")


def test_job_cancelled_between_two_attempts(cluster: Cluster, flower: Flower) -> None:
    handle = cluster.submit("retry_times", str(cluster.new_file()), 1, 600)
    flower.wait_for(handle, "RETRY")

    assert handle.cancel_job() is JobStatus.CANCELLED

    flower.wait_for(handle, "REVOKED")


def test_job_cancelled_after_its_message_was_lost_with_a_worker(cluster: Cluster, flower: Flower) -> None:
    worker = start_for_queue(cluster, "grave")
    body = running(cluster, queue="grave")
    behind = cluster.submit("add", 1, 1, queue="grave")
    flower.wait_for(behind, "RECEIVED")
    worker.kill()
    worker.wait()

    assert behind.cancel_job() is JobStatus.CANCELLED

    flower.wait_for(behind, "REVOKED")
    assert body.wait(60) is JobStatus.ERROR


def test_progress_and_result(cluster: Cluster, flower: Flower) -> None:
    sign = cluster.new_file()
    handle = cluster.submit("report_progress", str(sign))

    assert flower.wait_for(handle, "PROGRESS")["result"] == "25 %: reading"

    handle.set_progress(3, 4)
    eventually(lambda: flower.wait_for(handle, "PROGRESS")["result"] == "75 %: reading")
    sign.touch()
    assert flower.wait_for(handle, "SUCCESS")["result"] == "'seen'"


@pytest.mark.parametrize("terminate", [False, True])
def test_job_with_progress_that_is_cancelled(cluster: Cluster, flower: Flower, terminate: bool) -> None:
    handle = cluster.submit("report_progress", str(cluster.new_file()))
    flower.wait_for(handle, "PROGRESS")

    handle.cancel_job(terminate=terminate)

    flower.wait_for(handle, "REVOKED")
    assert handle.wait(30) is JobStatus.CANCELLED


def test_jobs_whose_worker_is_lost(cluster: Cluster, flower: Flower) -> None:
    worker = start_for_queue(cluster, "lost", concurrency=2)
    once, twice = running(cluster, queue="lost"), running(cluster, queue="lost", max_attempts=2)
    flower.wait_for(twice, "STARTED")
    worker.kill()

    assert "was lost" in flower.wait_for(once, "FAILURE")["exception"]
    flower.wait_for(twice, "RETRY")

    start_for_queue(cluster, "lost")
    flower.wait_for(twice, "STARTED")
    twice.cancel_job()
    flower.wait_for(twice, "REVOKED")


def test_job_whose_process_is_lost(cluster: Cluster, flower: Flower) -> None:
    handle = cluster.submit("kill_own_process")

    assert "signal 9" in flower.wait_for(handle, "FAILURE")["exception"]


def test_job_that_runs_again_after_its_process_was_lost(cluster: Cluster, flower: Flower) -> None:
    worker = start_for_queue(cluster, "childless")
    handle = running(cluster, queue="childless", max_attempts=2)
    worker.kill_children()

    eventually(lambda: handle.get_job().attempt == 2 and handle.job_running())

    flower.wait_for(handle, "STARTED")
    handle.cancel_job()
    flower.wait_for(handle, "REVOKED")


def test_job_that_finishes_during_a_soft_shutdown(cluster: Cluster, flower: Flower) -> None:
    worker = start(cluster, queues=["finishing"], settings={"worker_soft_shutdown_timeout": 5})
    sign = cluster.new_file()
    handle = cluster.submit("until_there", str(cluster.new_file()), str(sign), queue="finishing")
    flower.wait_for(handle, "STARTED")

    worker.quit()
    eventually(lambda: "Initiating Soft Shutdown" in worker.log)
    sign.touch()
    worker.wait(60)

    assert handle.job_status() is JobStatus.FINISHED
    assert flower.wait_for(handle, "SUCCESS")["result"] == "'seen'"


def test_job_that_a_worker_gives_back(cluster: Cluster, flower: Flower) -> None:
    worker = start_for_queue(cluster, "given-back")
    handle = running(cluster, queue="given-back")
    flower.wait_for(handle, "STARTED")

    worker.quit()
    worker.wait(60)

    flower.wait_for(handle, "RETRY")
    start_for_queue(cluster, "given-back")
    flower.wait_for(handle, "STARTED")
    handle.cancel_job()
    flower.wait_for(handle, "REVOKED")


def test_metrics_count_jobs_as_plain_tasks(cluster: Cluster, flower: Flower) -> None:
    """For Prometheus."""
    path = str(cluster.new_file())

    def counted() -> Counter[str]:
        lines = re.findall(
            r'^flower_events_total\{task="worker\.append",type="([\w-]+)",.*\} (\S+)$',
            flower.page("metrics"),
            re.MULTILINE,
        )
        return Counter({kind: int(float(value)) for kind, value in lines})

    def counted_once(before: Counter[str]) -> bool:
        return counted() - before == Counter(["task-received", "task-started", "task-succeeded"])

    before = counted()
    cluster.call("append", path, "a line")
    eventually(lambda: counted_once(before))
    before = counted()
    cluster.submit("append", path, "a line")
    eventually(lambda: counted_once(before))
