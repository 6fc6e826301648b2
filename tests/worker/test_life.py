"""The whole life of a job in a real worker, on each database."""

from collections.abc import Iterator

import pytest

from jobhandle_celery import JobCancelledError, JobFailedError, JobStatus
from tests.apps import lines_of
from tests.support import eventually
from tests.worker.site import NewSite, Site, statuses

DATABASES = ["sqlite", "postgresql"]


@pytest.fixture(scope="module", params=DATABASES)
def site(request: pytest.FixtureRequest, module_site: NewSite) -> Iterator[Site]:
    site = module_site(database=request.param)
    site.start(concurrency=2)
    yield site
    site.close()  # the next one has the same broker


def test_job_runs_and_its_result_is_stored(site: Site) -> None:
    handle = site.submit("add", 2, 3)

    assert handle.result(timeout=20) == 5
    job = handle.get_job()
    assert (job.status, job.attempt) == (JobStatus.FINISHED, 1)
    assert job.started
    assert job.finished
    assert job.submitted <= job.started <= job.finished
    assert statuses(site, handle) == ["Submitted", "Running", "Finished"]


def test_failing_job_ends_in_error_with_a_reason(site: Site) -> None:
    handle = site.submit("raise_value_error", "no good")

    with pytest.raises(JobFailedError) as caught:
        handle.result(timeout=20)
    failure = caught.value.failure
    assert (failure.kind, failure.type, failure.message) == ("task", "ValueError", "no good")
    assert "raise ValueError" in failure.traceback
    assert handle.job_message() == "ValueError: no good"


def test_retry_goes_through_the_row(site: Site) -> None:
    handle = site.submit("retry_times", str(site.new_file()), 3)

    assert handle.result(timeout=20) == 3
    assert handle.get_job().attempt == 4


def test_running_body_stops_when_cancelled(site: Site) -> None:
    handle = site.submit("attentive", str(site.new_file()), 60)
    eventually(handle.job_running)

    assert handle.cancel_job() is JobStatus.RUNNING

    assert handle.wait(timeout=20) is JobStatus.CANCELLED
    with pytest.raises(JobCancelledError):
        handle.result()


def test_body_that_ignores_the_cancel_is_terminated(site: Site) -> None:
    handle = site.submit("deaf", str(site.new_file()), 60)
    eventually(handle.job_running)

    assert handle.cancel_job(terminate=True) is JobStatus.RUNNING

    assert handle.wait(timeout=20) is JobStatus.CANCELLED
    assert "terminated" in handle.job_message()


def test_job_of_a_killed_process_ends_in_error(site: Site) -> None:
    handle = site.submit("kill_own_process")

    assert handle.wait(timeout=20) is JobStatus.ERROR
    error = handle.get_job().error
    assert error is not None
    assert error.kind == "system"


@pytest.mark.parametrize("database", DATABASES)
def test_job_survives_cold_shutdown_but_not_a_killed_worker(new_site: NewSite, database: str) -> None:
    site = new_site(database=database)
    worker, path = site.start(concurrency=1), site.new_file()
    handle = site.submit("deaf", str(path), 60)
    eventually(lambda: lines_of(path) == ["begun"])

    worker.quit()
    worker.wait()

    assert handle.job_status() in (JobStatus.REQUEUED, JobStatus.QUEUED)

    worker = site.start(concurrency=1)
    eventually(lambda: lines_of(path) == ["begun", "begun"])
    worker.kill()
    site.start(pool="solo")

    assert handle.wait(timeout=40) is JobStatus.ERROR
    assert "lost" in handle.job_message()
    assert handle.get_job().attempt == 2
