"""A running body stops on request, and only then is its job Cancelled."""

import pytest

from jobhandle_celery import InvalidTransitionError, JobCancelledError, JobHandle, JobStatus
from tests.apps import lines_of
from tests.support import eventually
from tests.worker.site import NewSite, Site, statuses


@pytest.fixture(scope="module")
def site(module_site: NewSite) -> Site:
    site = module_site()
    site.start(concurrency=2, arguments=["-E"])
    return site


def test_polling_body_stops_after_a_cancel(site: Site) -> None:
    path = site.new_file()
    with site.events() as events:
        handle = site.submit("attentive", str(path), 60)
        eventually(lambda: lines_of(path) == ["begun"])

        assert handle.cancel_job() is JobStatus.RUNNING

        assert handle.wait(20) is JobStatus.CANCELLED
        task_id = handle.get_job().task_id
        eventually(lambda: "task-revoked" in events.of(task_id))
        assert site.submit("add", 1, 1).result(timeout=20) == 2
        assert events.of(task_id).count("task-revoked") == 1
    assert lines_of(path) == ["begun"]
    assert statuses(site, handle)[-1] == "Cancelled"
    assert site.state(task_id) == "REVOKED"
    with pytest.raises(JobCancelledError):
        handle.result()


def test_body_that_ignores_the_cancel_ends_finished(site: Site) -> None:
    path = site.new_file()
    handle = site.submit("deaf", str(path), 1.5)
    eventually(lambda: lines_of(path) == ["begun"])

    assert handle.cancel_job() is JobStatus.RUNNING

    assert handle.result(timeout=20) == "slept"
    assert handle.job_status() is JobStatus.FINISHED
    assert handle.get_job().cancel_requested is not None


def test_cancel_with_terminate_ends_the_body(site: Site) -> None:
    path = site.new_file()
    handle = site.submit("deaf", str(path), 60)
    eventually(lambda: lines_of(path) == ["begun"])

    assert handle.cancel_job(terminate=True) is JobStatus.RUNNING

    assert handle.wait(20) is JobStatus.CANCELLED
    assert "terminated" in handle.job_message()
    assert lines_of(path) == ["begun"]
    eventually(lambda: site.state(handle.get_job().task_id) == "REVOKED")


def test_cancel_with_terminate_may_follow_a_plain_cancel(site: Site) -> None:
    path = site.new_file()
    handle = site.submit("deaf", str(path), 60)
    eventually(lambda: lines_of(path) == ["begun"])
    handle.cancel_job()

    handle.cancel_job(terminate=True)

    assert handle.wait(20) is JobStatus.CANCELLED


def test_message_of_the_stop_becomes_the_jobs_message(site: Site) -> None:
    handle = site.submit("stop_saying", "the disk is full")

    assert handle.wait(20) is JobStatus.CANCELLED
    assert handle.job_message() == "the disk is full"


def test_stop_passes_through_except_exception(site: Site) -> None:
    path = site.new_file()

    handle = site.submit("catches_exceptions", str(path))

    assert handle.wait(20) is JobStatus.CANCELLED
    assert handle.job_message() == "through everything"
    assert lines_of(path) == []


@pytest.mark.parametrize("task", ["autoretry_exception_stops", "autoretry_everything_stops", "retry_on_stop"])
def test_stop_is_never_retried(site: Site, task: str) -> None:
    path = site.new_file()

    handle = site.submit(task, str(path))

    assert handle.wait(20) is JobStatus.CANCELLED
    assert handle.job_message() == "no retry"
    assert lines_of(path) == ["begun"]
    assert handle.get_job().attempt == 1
    eventually(lambda: site.state(handle.get_job().task_id) == "REVOKED")


def test_stop_in_a_plain_task_does_not_end_the_worker(site: Site) -> None:
    site.call("stop_saying", "no job")

    assert site.submit("add", 1, 1).result(timeout=20) == 2


def test_failure_after_a_stop_request_ends_in_error(site: Site) -> None:
    path, sign = site.new_file(), site.new_file()
    handle = site.submit("fails_when_there", str(path), str(sign))
    eventually(lambda: lines_of(path) == ["begun"])
    handle.cancel_job()

    sign.touch()

    assert handle.wait(20) is JobStatus.ERROR


def test_set_status_finished_asks_the_body_to_stop(site: Site) -> None:
    path = site.new_file()
    handle = site.submit("attentive", str(path), 60)
    eventually(lambda: lines_of(path) == ["begun"])

    assert handle.set_status_and_message("Finished", "good enough") is JobStatus.RUNNING

    assert site.submit("add", 1, 1).result(timeout=20) == 2
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
