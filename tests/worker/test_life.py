"""The life of a job in a real worker on SQLite; the other tests of this folder use PostgreSQL."""

import pytest

from jobhandle_celery import JobStatus
from tests.apps import lines_of
from tests.support import eventually
from tests.worker.site import NewSite, Site, statuses


@pytest.fixture(scope="module")
def site(module_site: NewSite) -> Site:
    site = module_site(database="sqlite")
    site.start(concurrency=2)
    return site


def test_job_ends_as_its_body_does(site: Site) -> None:
    done, failed = site.submit("add", 2, 3), site.submit("raise_value_error", "no good")
    killed = site.submit("kill_own_process")

    assert done.result(timeout=20) == 5
    assert statuses(site, done) == ["Submitted", "Running", "Finished"]
    assert failed.wait(20) is JobStatus.ERROR
    assert failed.job_message() == "ValueError: no good"
    assert killed.wait(20) is JobStatus.ERROR
    assert "was lost" in killed.job_message()


def test_retry_goes_through_the_row(site: Site) -> None:
    handle = site.submit("retry_times", str(site.new_file()), 3)

    assert handle.result(timeout=20) == 3
    assert handle.get_job().attempt == 4


@pytest.mark.parametrize(("task", "terminate"), [("attentive", False), ("deaf", True)])
def test_running_body_ends_after_a_cancel(site: Site, task: str, terminate: bool) -> None:
    handle = site.submit(task, str(site.new_file()), 60)
    eventually(handle.job_running)

    assert handle.cancel_job(terminate=terminate) is JobStatus.RUNNING

    assert handle.wait(timeout=20) is JobStatus.CANCELLED


def test_job_survives_cold_shutdown_but_not_a_killed_worker(new_site: NewSite) -> None:
    site = new_site(database="sqlite")
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
