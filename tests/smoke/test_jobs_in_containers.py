"""Jobs that are submitted from here and run in a worker container, while containers die and come back."""

import pytest
from pytest_celery import CeleryTestSetup

from jobhandle_celery import Job, JobHandle, Jobs, JobStatus
from tests.support import eventually

pytestmark = [pytest.mark.smoke, pytest.mark.timeout(300)]


def submit(jobs: Jobs, task: str, *args: object, max_attempts: int = 1) -> JobHandle:
    handle = jobs.handle()
    handle.submit(Job(task=f"smoke.{task}", args=args, max_attempts=max_attempts))
    return handle


def running(jobs: Jobs, max_attempts: int = 1) -> JobHandle:
    handle = submit(jobs, "until_told", max_attempts=max_attempts)
    eventually(handle.job_running, 60, "it was not started")
    return handle


def test_a_job_runs_in_the_worker_container(celery_setup: CeleryTestSetup, jobs: Jobs) -> None:
    handle = submit(jobs, "add", 1, 2)

    assert handle.result(60) == 3
    assert handle.get_job().worker == celery_setup.worker.hostname()


def test_a_job_whose_worker_container_is_killed_is_settled(celery_setup: CeleryTestSetup, jobs: Jobs) -> None:
    once, twice = running(jobs), running(jobs, max_attempts=2)

    celery_setup.worker.kill()
    celery_setup.worker.restart()

    assert once.wait(60) is JobStatus.ERROR
    assert "was lost" in once.job_message()
    eventually(lambda: twice.get_job().attempt == 2 and twice.job_running(), 60)
    twice.set_message("go on")
    assert twice.result(60) == "attempt 2 was told"


def test_jobs_outlive_their_broker_container(celery_setup: CeleryTestSetup, jobs: Jobs) -> None:
    begun = [running(jobs), running(jobs)]
    behind = [submit(jobs, "add", number, 1) for number in range(4)]

    celery_setup.broker.kill()
    behind.append(submit(jobs, "add", 4, 1))
    celery_setup.broker.restart()
    for handle in begun:
        handle.set_message("go on")

    for handle in begun:
        assert handle.result(60) == "attempt 1 was told"
    assert [handle.result(90) for handle in behind] == [1, 2, 3, 4, 5]
    for handle in behind:
        assert [str(event.status) for event in jobs.events(handle.job_id)].count("Running") == 1


def test_a_cancel_holds_when_the_worker_container_restarts(celery_setup: CeleryTestSetup, jobs: Jobs) -> None:
    begun = [running(jobs), running(jobs)]
    behind = [submit(jobs, "add", number, 1) for number in range(4)]
    kept = behind.pop()
    celery_setup.worker.kill()

    assert {handle.cancel_job() for handle in behind} == {JobStatus.CANCELLED}
    assert {handle.cancel_job() for handle in begun} == {JobStatus.RUNNING}
    celery_setup.worker.restart()

    assert kept.result(90) == 4
    for handle in begun:
        assert handle.wait(60) is JobStatus.CANCELLED
    for handle in behind:
        assert handle.job_status() is JobStatus.CANCELLED
        assert handle.get_job().started is None
