"""Flower shows a job in the state of its row."""

import pytest

from jobhandle_celery import JobHandle, JobStatus
from tests.apps import lines_of
from tests.flower.conftest import start
from tests.flower.process import Flower
from tests.support import eventually
from tests.worker.site import Site
from tests.workers import WorkerProcess

pytestmark = pytest.mark.flower


def running(site: Site, task: str = "attentive", **fields: object) -> JobHandle:
    path = site.new_file()
    handle = site.submit(task, str(path), 120, **fields)
    eventually(lambda: "begun" in lines_of(path), 60, "the job was not started")
    return handle


def doomed(site: Site, queue: str, concurrency: int = 1) -> WorkerProcess:
    """Start a worker with a queue of its own, to be ended."""
    return start(site, concurrency=concurrency, queues=[queue])


def test_finished_and_failed_job(site: Site, flower: Flower) -> None:
    good, bad = site.submit("add", 1, 2), site.submit("raise_value_error", "of no value")

    assert flower.wait_for(good, "SUCCESS")["result"] == "3"
    assert "of no value" in flower.wait_for(bad, "FAILURE")["exception"]


def test_retried_job(site: Site, flower: Flower) -> None:
    path = site.new_file()
    handle = site.submit("retry_times", str(path), 1, 3)

    flower.wait_for(handle, "RETRY")
    assert flower.wait_for(handle, "SUCCESS")["retries"] == 1


def test_job_cancelled_after_its_delivery_and_before_its_start(site: Site, flower: Flower) -> None:
    body = running(site)
    behind = site.submit("add", 1, 1)
    flower.wait_for(behind, "RECEIVED")
    assert behind.cancel_job() is JobStatus.CANCELLED

    body.cancel_job()

    flower.wait_for(behind, "REVOKED")
    flower.wait_for(body, "REVOKED")


def test_job_cancelled_between_two_attempts(site: Site, flower: Flower) -> None:
    handle = site.submit("retry_times", str(site.new_file()), 1, 600)
    flower.wait_for(handle, "RETRY")

    assert handle.cancel_job() is JobStatus.CANCELLED

    flower.wait_for(handle, "REVOKED")


def test_job_cancelled_after_its_message_was_lost_with_a_worker(site: Site, flower: Flower) -> None:
    worker = doomed(site, "grave")
    body = running(site, queue="grave")
    behind = site.submit("add", 1, 1, queue="grave")
    flower.wait_for(behind, "RECEIVED")
    worker.kill()
    worker.wait()

    assert behind.cancel_job() is JobStatus.CANCELLED

    flower.wait_for(behind, "REVOKED")
    assert body.wait(60) is JobStatus.ERROR


def test_progress_and_result(site: Site, flower: Flower) -> None:
    sign = site.new_file()
    handle = site.submit("report_progress", str(sign))

    assert flower.wait_for(handle, "PROGRESS")["result"] == "25 %: reading"

    handle.set_progress(3, 4)
    eventually(lambda: flower.wait_for(handle, "PROGRESS")["result"] == "75 %: reading", 30)
    sign.touch()
    assert flower.wait_for(handle, "SUCCESS")["result"] == "'seen'"


@pytest.mark.parametrize("terminate", [False, True])
def test_job_with_progress_that_is_cancelled(site: Site, flower: Flower, terminate: bool) -> None:
    handle = site.submit("report_progress", str(site.new_file()))
    flower.wait_for(handle, "PROGRESS")

    handle.cancel_job(terminate=terminate)

    flower.wait_for(handle, "REVOKED")
    assert handle.wait(30) is JobStatus.CANCELLED


def test_jobs_whose_worker_is_lost(site: Site, flower: Flower) -> None:
    worker = doomed(site, "lost", concurrency=2)
    once, twice = running(site, queue="lost"), running(site, queue="lost", max_attempts=2)
    flower.wait_for(twice, "STARTED")
    worker.kill()

    assert "was lost" in flower.wait_for(once, "FAILURE")["exception"]
    flower.wait_for(twice, "RETRY")

    doomed(site, "lost")
    flower.wait_for(twice, "STARTED")
    twice.cancel_job()
    flower.wait_for(twice, "REVOKED")


def test_job_whose_process_is_lost(site: Site, flower: Flower) -> None:
    handle = site.submit("kill_own_process")

    assert "signal 9" in flower.wait_for(handle, "FAILURE")["exception"]


def test_job_that_runs_again_after_its_process_was_lost(site: Site, flower: Flower) -> None:
    worker = doomed(site, "childless")
    handle = running(site, queue="childless", max_attempts=2)
    worker.kill_children()

    eventually(lambda: handle.get_job().attempt == 2 and handle.job_running(), 60)

    flower.wait_for(handle, "STARTED")
    handle.cancel_job()
    flower.wait_for(handle, "REVOKED")


def test_job_that_finishes_during_a_soft_shutdown(site: Site, flower: Flower) -> None:
    worker = start(site, queues=["finishing"], settings={"worker_soft_shutdown_timeout": 5})
    sign = site.new_file()
    handle = site.submit("until_there", str(site.new_file()), str(sign), queue="finishing")
    flower.wait_for(handle, "STARTED")

    worker.quit()
    eventually(lambda: "Initiating Soft Shutdown" in worker.log, 30)
    sign.touch()
    worker.wait(60)

    assert handle.job_status() is JobStatus.FINISHED
    assert flower.wait_for(handle, "SUCCESS")["result"] == "'seen'"


def test_job_that_a_worker_gives_back(site: Site, flower: Flower) -> None:
    worker = doomed(site, "given-back")
    handle = running(site, queue="given-back")
    flower.wait_for(handle, "STARTED")

    worker.quit()
    worker.wait(60)

    flower.wait_for(handle, "RETRY")
    doomed(site, "given-back")
    flower.wait_for(handle, "STARTED")
    handle.cancel_job()
    flower.wait_for(handle, "REVOKED")
