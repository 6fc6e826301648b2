"""The whole life of a job in a real worker, on each database."""

from collections.abc import Callable
from typing import Any

import pytest

from jobhandle_celery import Job, JobCancelledError, JobFailedError, JobStatus
from tests.apps import make_app
from tests.support import eventually
from tests.workers import WorkerProcess

Start = Callable[..., WorkerProcess]


@pytest.fixture
def app(database_url: str, broker_url: str) -> Any:
    return make_app(broker_url, database_url)


@pytest.fixture
def jobs(app: Any) -> Any:
    yield app.jobs
    app.jobs.close()


def test_a_job_runs_and_its_result_is_kept(
    jobs: Any, app: Any, start_worker: Start, database_url: str, broker_url: str
) -> None:
    start_worker(database_url=database_url, broker_url=broker_url)
    with jobs.handle() as handle:
        handle.submit(app.tasks["tests.add"].s(2, 3))
        assert handle.result(timeout=20) == 5
        job = handle.get_job()
    assert job.status is JobStatus.FINISHED
    assert job.attempt == 1
    assert job.submitted <= job.started <= job.finished
    assert [event.status for event in jobs.events(job.id)] == ["Submitted", "Running", "Finished"]


def test_a_failing_job_ends_in_error_with_its_reason(
    jobs: Any, start_worker: Start, database_url: str, broker_url: str
) -> None:
    start_worker(database_url=database_url, broker_url=broker_url)
    handle = jobs.handle()
    handle.submit(Job(task="tests.fail", args=["no good"]))
    with pytest.raises(JobFailedError) as caught:
        handle.result(timeout=20)
    failure = caught.value.failure
    assert (failure.kind, failure.type, failure.message) == ("task", "ValueError", "no good")
    assert "raise ValueError" in failure.traceback
    assert handle.job_message() == "ValueError: no good"


def test_retries_go_through_the_row(
    jobs: Any, start_worker: Start, database_url: str, broker_url: str, tmp_path: Any
) -> None:
    start_worker(database_url=database_url, broker_url=broker_url)
    handle = jobs.handle()
    handle.submit(Job(task="tests.retry_times", args=[str(tmp_path / "lines"), 3, 0.0]))
    assert handle.result(timeout=20) == 3
    assert handle.get_job().attempt == 4


def test_a_running_body_stops_when_cancelled(
    jobs: Any, start_worker: Start, database_url: str, broker_url: str
) -> None:
    start_worker(database_url=database_url, broker_url=broker_url)
    handle = jobs.handle()
    handle.submit(Job(task="tests.sleep_for", args=[60]))
    eventually(handle.job_running)
    assert handle.cancel_job() is JobStatus.RUNNING
    assert handle.wait(timeout=20) is JobStatus.CANCELLED
    with pytest.raises(JobCancelledError):
        handle.result()


def test_a_deaf_body_is_terminated(
    jobs: Any, start_worker: Start, database_url: str, broker_url: str
) -> None:
    start_worker(database_url=database_url, broker_url=broker_url)
    handle = jobs.handle()
    handle.submit(Job(task="tests.deaf_sleep", args=[60]))
    eventually(handle.job_running)
    assert handle.cancel_job(terminate=True) is JobStatus.RUNNING
    assert handle.wait(timeout=20) is JobStatus.CANCELLED
    assert "terminated" in handle.job_message()


def test_a_job_whose_child_dies_ends_in_error(
    jobs: Any, start_worker: Start, database_url: str, broker_url: str
) -> None:
    start_worker(database_url=database_url, broker_url=broker_url)
    handle = jobs.handle()
    handle.submit(Job(task="tests.kill_me"))
    assert handle.wait(timeout=20) is JobStatus.ERROR
    assert handle.get_job().error.kind == "system"


def test_a_job_whose_worker_dies_ends_in_error(
    jobs: Any, start_worker: Start, database_url: str, broker_url: str
) -> None:
    worker = start_worker(database_url=database_url, broker_url=broker_url)
    handle = jobs.handle()
    handle.submit(Job(task="tests.deaf_sleep", args=[60]))
    eventually(handle.job_running)
    worker.kill()
    start_worker(database_url=database_url, broker_url=broker_url)
    assert handle.wait(timeout=40) is JobStatus.ERROR
    assert "lost" in handle.job_message()


def test_a_cold_shutdown_gives_the_job_back(
    jobs: Any, start_worker: Start, database_url: str, broker_url: str
) -> None:
    worker = start_worker(database_url=database_url, broker_url=broker_url)
    handle = jobs.handle()
    handle.submit(Job(task="tests.sleep_for", args=[3]))
    eventually(handle.job_running)
    worker.quit()
    worker.wait(30)
    assert handle.job_status() in (JobStatus.REQUEUED, JobStatus.QUEUED)
    start_worker(database_url=database_url, broker_url=broker_url)
    assert handle.wait(timeout=40) is JobStatus.FINISHED
    assert handle.get_job().attempt == 2
