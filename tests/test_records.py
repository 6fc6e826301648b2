"""A `JobRecord` is submitted again as a new job of the same wishes."""

from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from jobhandle_celery import (
    Job,
    JobStatus,
    ValidationError,
)
from tests.job_factory import JobFactory
from tests.support import sweep_until

HOUR = timedelta(hours=1)


def test_submit_of_record_makes_new_job_with_same_wishes(factory: JobFactory) -> None:
    """A record's status, expiry, system fields, user and group are ignored; a past time means now."""
    wishes = {
        "task": "tests.add",
        "args": [2],
        "kwargs": {"y": 3},
        "message": "from the importer",
        "queue": factory.app.conf.task_default_queue,
        "priority": 3,
        "time_limit": 20,
        "soft_time_limit": 10,
        "max_attempts": 4,
        "meta": {"batch": 7},
        "headers": {"tenant": "acme"},
        "sensitive": ("y", 1),
    }
    ann = factory.jobs.handle(username="ann", groupname="lab")
    ann.submit(Job(**wishes, scheduled_for=datetime.now(UTC) - HOUR, expires=HOUR))
    bob = factory.jobs.handle(username="bob")
    for change in ("Queued", "Running", "Finished"):
        if change != "Queued":
            ann.set_status(change)
        record = ann.get_job()
        assert bob.submit(record) > record.id
        again = bob.get_job()
        assert {name: getattr(again, name) for name in wishes} == wishes
        assert again.expires is None
        assert (again.status, again.attempt, again.started) == (JobStatus.QUEUED, 0, None)
        assert (again.username, again.groupname) == ("bob", None)
        assert again.task_id != record.task_id
        factory.claim(bob)


def test_submit_of_expired_record_makes_a_live_job(factory: JobFactory) -> None:
    """The old job's moment is past; the default of the task applies, as to any job without `expires`."""
    handle = factory.offline.handle()
    handle.submit(Job(task="tests.add", args=[1, 2], expires=timedelta(seconds=-1)))
    sweep_until(factory.jobs, lambda: handle.job_status() is JobStatus.CANCELLED)
    again = factory.jobs.handle()
    again.submit(handle.get_job())
    assert again.job_status() is JobStatus.QUEUED
    assert again.get_job().expires is None
    factory.claim(again)


def test_submit_of_held_record_makes_a_held_job(factory: JobFactory) -> None:
    held = factory.job_in(JobStatus.WAITING).get_job()
    ended = factory.job_in(JobStatus.FINISHED).get_job()
    made_held: Any = replace(ended, status="Waiting")  # type: ignore[arg-type]  # as a caller may write it
    for record in (held, made_held):
        handle = factory.jobs.handle()
        handle.submit(record)
        assert handle.get_job().held
    timed = factory.jobs.handle()
    timed.submit(Job(task="tests.add", args=[1, 2], scheduled_for=HOUR))
    record = timed.get_job()
    timed.submit(record)
    assert (timed.job_status(), timed.get_job().scheduled_for) == ("Waiting", record.scheduled_for)


@pytest.mark.parametrize("status", [JobStatus.ERROR, JobStatus.CANCELLED])
def test_submit_of_failed_record_leaves_its_message_out(factory: JobFactory, status: JobStatus) -> None:
    """The message says why the old job ended; that of any other record is the caller's."""
    handle = factory.jobs.handle()
    record = replace(factory.job_in(status).get_job(), message="worker lost")
    handle.submit(record)
    assert handle.job_message() == ""
    handle.submit(replace(record, status=JobStatus.FINISHED))
    assert handle.job_message() == "worker lost"


def test_job_of_a_subclass_is_submitted_as_its_base(factory: JobFactory) -> None:
    @dataclass(frozen=True, kw_only=True)
    class Scan(Job):
        instrument: str = ""

    handle = factory.jobs.handle()
    handle.submit(Scan(task="tests.add", args=[1, 2], instrument="left"))
    assert handle.get_job().args == [1, 2]


def test_submit_of_unfinished_keyed_record_returns_its_id(factory: JobFactory) -> None:
    handle = factory.jobs.handle()
    handle.submit(Job(task="tests.add", args=[1, 2], unique_key="scan:1"))
    record = handle.get_job()
    assert handle.submit(record) == record.id
    handle.cancel_job()
    assert handle.submit(record) != record.id


def test_submit_of_record_that_cannot_be_read_names_the_field(factory: JobFactory) -> None:
    handle = factory.jobs.handle()
    for column in ("args", "kwargs", "meta"):
        handle.submit(Job(task="tests.add", args=[1, 2], meta={}))
        with factory.engine.begin() as connection:
            connection.exec_driver_sql(f"UPDATE jobhandle_job SET {column} = '[' WHERE id = {handle.job_id}")
        with pytest.raises(ValidationError, match=f"^{column}: .*unreadable"):
            handle.submit(handle.get_job())
