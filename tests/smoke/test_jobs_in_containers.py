"""Jobs in a worker container, while containers are killed and restarted."""

import pytest
from pytest_celery import CeleryTestSetup, CeleryTestWorker

from jobhandle_celery import Job, JobHandle, Jobs, JobStatus
from tests.support import eventually

pytestmark = [pytest.mark.smoke, pytest.mark.timeout(600)]


def submit(jobs: Jobs, task: str, *args: object, max_attempts: int = 1) -> JobHandle:
    handle = jobs.handle()
    handle.submit(Job(task=f"smoke.{task}", args=args, max_attempts=max_attempts))
    return handle


def running(jobs: Jobs, max_attempts: int = 1) -> JobHandle:
    handle = submit(jobs, "wait_for_go", max_attempts=max_attempts)
    eventually(handle.job_running, message="it was not started")
    return handle


def test_job_runs_in_the_worker_container(celery_setup: CeleryTestSetup, jobs: Jobs) -> None:
    handle = submit(jobs, "add", 1, 2)

    assert handle.result(60) == 3
    assert handle.get_job().worker == celery_setup.worker.hostname()


def test_job_whose_worker_container_is_killed_is_recovered(celery_setup: CeleryTestSetup, jobs: Jobs) -> None:
    once, twice = running(jobs), running(jobs, max_attempts=2)

    celery_setup.worker.kill()
    celery_setup.worker.restart()

    assert once.wait(60) is JobStatus.ERROR
    assert "was lost" in once.job_message()
    eventually(lambda: twice.get_job().attempt == 2 and twice.job_running())
    twice.set_message("go")
    assert twice.result(60) == "attempt 2"


def keep_running(worker: CeleryTestWorker) -> None:
    """Start a worker's container again if it has ended, as a supervisor does.

    kombu's Redis transport may raise AttributeError while a worker closes a connection that the broker has
    cut, which ends the worker.
    """
    worker.container.reload()
    if worker.container.status == "exited":
        worker.restart()


def test_jobs_survive_a_restart_of_the_broker(celery_setup: CeleryTestSetup, jobs: Jobs) -> None:
    started_jobs = [running(jobs, max_attempts=2), running(jobs, max_attempts=2)]
    queued_jobs = [submit(jobs, "add", number, 1) for number in range(4)]

    celery_setup.broker.kill()
    queued_jobs.append(submit(jobs, "add", 4, 1))
    celery_setup.broker.restart()
    for handle in started_jobs:
        handle.set_message("go")

    def all_final() -> bool:
        keep_running(celery_setup.worker)
        return all(handle.job_status().final for handle in [*started_jobs, *queued_jobs])

    eventually(all_final, 150, "not all jobs are final")
    assert {handle.result(0) for handle in started_jobs} <= {"attempt 1", "attempt 2"}
    assert [handle.result(0) for handle in queued_jobs] == [1, 2, 3, 4, 5]
    for handle in queued_jobs:
        assert [str(event.status) for event in jobs.events(handle.job_id)].count("Running") == 1


def test_cancel_holds_when_the_worker_restarts(celery_setup: CeleryTestSetup, jobs: Jobs) -> None:
    started_jobs = [running(jobs), running(jobs)]
    queued_jobs = [submit(jobs, "add", number, 1) for number in range(4)]
    kept = queued_jobs.pop()
    celery_setup.worker.kill()

    assert {handle.cancel_job() for handle in queued_jobs} == {JobStatus.CANCELLED}
    assert {handle.cancel_job() for handle in started_jobs} == {JobStatus.RUNNING}
    celery_setup.worker.restart()

    assert kept.result(90) == 4
    for handle in started_jobs:
        assert handle.wait(60) is JobStatus.CANCELLED
    for handle in queued_jobs:
        assert handle.job_status() is JobStatus.CANCELLED
        assert handle.get_job().started is None
