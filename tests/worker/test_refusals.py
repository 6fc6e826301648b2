"""Rejected messages: a revoked task if the job is cancelled or expired, otherwise no trace."""

import time
from collections.abc import Iterator
from datetime import timedelta

import pytest

from jobhandle_celery import JobHandle, JobStatus
from tests.apps import lines_of
from tests.support import eventually
from tests.worker.site import Events, NewSite, Site, statuses


@pytest.fixture(scope="module")
def site(module_site: NewSite) -> Site:
    # One process: every message before a fence has been processed.
    site = module_site()
    site.start(concurrency=1, arguments=["-E"])
    return site


@pytest.fixture
def events(site: Site) -> Iterator[Events]:
    with site.events() as events:
        yield events


def task_id_of(handle: JobHandle) -> str:
    return str(handle.get_job().task_id)


def revocations(events: Events, task_id: str) -> int:
    return events.of(task_id).count("task-revoked")


@pytest.mark.parametrize("copies", [1, 2, 5])
def test_cancelled_job_is_reported_revoked_once(site: Site, events: Events, copies: int) -> None:
    path = site.new_file()
    handle, message = site.submit_parked("append", str(path), "body")
    handle.cancel_job()

    for _ in range(copies):
        site.deliver(message)
    site.fence()

    task_id = task_id_of(handle)
    eventually(lambda: events.of(task_id).count("task-received") == copies)
    eventually(lambda: revocations(events, task_id))
    assert revocations(events, task_id) == 1
    assert site.state(task_id) == "REVOKED"
    assert lines_of(path) == []
    assert statuses(site, handle) == ["Submitted", "Cancelled"]


def test_expired_job_is_cancelled_and_reported_revoked(site: Site, events: Events) -> None:
    path = site.new_file()
    handle, message = site.submit_parked("append", str(path), "body", expires=timedelta(milliseconds=50))
    submitted = time.monotonic()
    eventually(lambda: time.monotonic() - submitted > 0.1)

    site.deliver(message)
    site.deliver(message)
    site.fence()

    task_id = task_id_of(handle)
    eventually(lambda: revocations(events, task_id))
    assert revocations(events, task_id) == 1
    assert site.state(task_id) == "REVOKED"
    job = handle.get_job()
    assert (job.status, job.started) == (JobStatus.CANCELLED, None)
    assert "expired" in job.message
    assert lines_of(path) == []


@pytest.mark.parametrize(
    ("task", "arguments", "state"),
    [
        ("add", [1, 2], "SUCCESS"),
        ("raise_value_error", ["no good"], "FAILURE"),
        ("raise_tracked", ["no good"], "FAILURE"),
        ("stop_saying", ["x"], "REVOKED"),
    ],
)
def test_duplicate_after_the_end_keeps_the_stored_result(
    site: Site, events: Events, task: str, arguments: list[object], state: str
) -> None:
    handle, message = site.submit_parked(task, *arguments)
    site.deliver(message)
    handle.wait(20)
    site.fence()
    job, stored = handle.get_job(), site.meta(task_id_of(handle))
    assert stored is not None
    assert stored["status"] == state
    before = revocations(events, task_id_of(handle))

    site.deliver(message)
    site.deliver(message)
    site.fence()

    assert site.meta(task_id_of(handle)) == stored
    assert handle.get_job() == job
    eventually(lambda: events.of(task_id_of(handle)).count("task-received") == 3)
    assert revocations(events, task_id_of(handle)) == before


def test_duplicate_during_the_run_does_not_start_it_twice(new_site: NewSite) -> None:
    site = new_site()
    site.start(pool="threads", concurrency=4)
    path, sign = site.new_file(), site.new_file()
    handle, message = site.submit_parked("until_there", str(path), str(sign))
    site.deliver(message)
    eventually(lambda: lines_of(path) == ["begun"])

    for _ in range(3):
        site.deliver(message)
    assert site.submit("add", 1, 1).result(timeout=20) == 2
    sign.touch()

    assert handle.result(timeout=20) == "seen"
    assert lines_of(path) == ["begun", "ended"]
    assert handle.get_job().attempt == 1


def test_message_of_an_earlier_attempt_is_refused(site: Site) -> None:
    path = site.new_file()
    handle, message = site.submit_parked("append", str(path), "body")
    site.deliver(message)
    handle.wait(20)
    handle.resubmit_job()
    handle.cancel_job()

    site.deliver(message)
    site.fence()

    assert lines_of(path) in (["body"], ["body", "body"])  # the second: the resubmitted one was faster
    assert handle.job_status().final


def test_message_for_another_tasks_job_is_refused(site: Site) -> None:
    path = site.new_file()
    handle, message = site.submit_parked("append", str(path), "body")

    site.deliver(message, task="worker.deaf")
    site.deliver(message, id="00000000-0000-4000-8000-000000000000")
    site.deliver(message, jobhandle={"id": handle.job_id + 1_000_000, "attempt": 1})
    site.deliver(message, jobhandle={"id": handle.job_id, "attempt": 2})
    site.fence()

    assert lines_of(path) == []
    assert handle.job_status() is JobStatus.QUEUED

    site.deliver(message)

    assert handle.wait(20) is JobStatus.FINISHED
    assert lines_of(path) == ["body"]


@pytest.mark.parametrize("fields", [{"scheduled_for": timedelta(hours=1)}, {"status": "Waiting"}])
def test_message_before_its_time_is_refused(site: Site, fields: dict[str, object]) -> None:
    path = site.new_file()
    handle = site.submit("append", str(path), "body", **fields)
    _, other = site.submit_parked("append", str(path), "other")

    site.deliver(other, id=task_id_of(handle), jobhandle={"id": handle.job_id, "attempt": 1})
    site.fence()

    assert lines_of(path) == []
    assert handle.job_status() is JobStatus.WAITING
    assert site.meta(task_id_of(handle)) is None


def test_cancel_after_a_lost_message_needs_no_message(site: Site) -> None:
    handle, _ = site.submit_parked("append", str(site.new_file()), "body")

    assert handle.cancel_job() is JobStatus.CANCELLED
    assert handle.wait(5) is JobStatus.CANCELLED
