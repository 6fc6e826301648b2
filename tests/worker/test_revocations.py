"""`control.revoke`, as operators and Flower use it."""

from typing import Any

import pytest

from jobhandle_celery import JobHandle, JobStatus
from tests.apps import lines_of
from tests.support import eventually
from tests.worker.site import NewSite, Site


@pytest.fixture(scope="module")
def site(module_site: NewSite) -> Site:
    site = module_site()
    site.start(concurrency=2, arguments=["-E"])
    return site


def running(site: Site, task: str = "deaf", seconds: float = 60) -> tuple[JobHandle, str]:
    path = site.new_file()
    handle = site.submit(task, str(path), seconds)
    eventually(lambda: lines_of(path) == ["begun"])
    return handle, str(handle.get_job().task_id)


def revoke(site: Site, task_id: str | None, **options: Any) -> None:
    """Revoke, and wait until the worker has received it."""
    assert task_id
    assert site.app.control.revoke(task_id, reply=True, limit=1, timeout=10, **options)


def test_revoke_before_the_start_cancels_the_job(site: Site) -> None:
    path = site.new_file()
    handle, message = site.submit_parked("append", str(path), "body")
    task_id = str(handle.get_job().task_id)
    revoke(site, task_id)

    site.deliver(message)

    assert handle.wait(20) is JobStatus.CANCELLED
    assert handle.get_job().started is None
    assert lines_of(path) == []
    eventually(lambda: site.state(task_id) == "REVOKED")


@pytest.mark.parametrize("signal", ["SIGTERM", "SIGKILL"])
def test_revoke_with_terminate_cancels_the_running_job(site: Site, signal: str) -> None:
    handle, task_id = running(site)

    site.app.control.revoke(task_id, terminate=True, signal=signal)

    assert handle.wait(20) is JobStatus.CANCELLED
    assert "terminated" in handle.job_message()
    eventually(lambda: site.state(task_id) == "REVOKED")


def test_revoke_without_terminate_leaves_the_running_job(site: Site) -> None:
    handle, task_id = running(site, seconds=2)

    revoke(site, task_id)

    assert handle.result(timeout=20) == "slept"


@pytest.mark.parametrize("terminate", [False, True])
def test_revoke_of_a_finished_job_changes_nothing(site: Site, terminate: bool) -> None:
    handle, message = site.submit_parked("add", 1, 2)
    site.deliver(message)
    assert handle.result(timeout=20) == 3
    job = handle.get_job()
    stored = eventually(lambda: site.meta(job.task_id))

    revoke(site, job.task_id, terminate=terminate)
    site.deliver(message)  # which the worker now discards as revoked
    assert site.submit("add", 2, 2).result(timeout=20) == 4

    assert handle.get_job() == job
    assert stored
    assert stored["status"] == "SUCCESS"


def test_revoked_job_can_be_resubmitted(site: Site) -> None:
    path = site.new_file()
    handle, message = site.submit_parked("append", str(path), "body")
    revoke(site, handle.get_job().task_id)
    site.deliver(message)
    assert handle.wait(20) is JobStatus.CANCELLED

    handle.resubmit_job()  # to the parked queue, which no worker consumes
    again = site.redis.lpop(handle.get_job().queue or "")
    assert isinstance(again, bytes)
    site.deliver(again)

    assert handle.result(timeout=20) == "body"
    assert lines_of(path) == ["body"]
