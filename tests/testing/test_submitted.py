"""`assert_submitted` and `refute_submitted`, and what they say when they fail."""

import asyncio
import uuid
from datetime import UTC, datetime
from unittest.mock import ANY

import pytest
from celery import chain

from jobhandle_celery import ApiUsageError, Job
from jobhandle_celery.broker.publish_queue import PublishQueue
from jobhandle_celery.testing import JobsKit
from tests.support import failure
from tests.testing import service
from tests.testing.service import add, note, total


def test_fields_that_are_not_named_may_have_any_value(jobs: JobsKit) -> None:
    first, second = (service.jobs.submit(add.s(1, y=y), username="ann") for y in (2, 3))
    assert jobs.assert_submitted(add).id == second
    assert jobs.assert_submitted(add, kwargs={"y": 2}).id == first
    assert jobs.assert_submitted("tests.testing.service.add", args=(1,), username="ann").id == second
    assert jobs.assert_submitted(add.s(1, y=2), username="ann").id == first
    assert jobs.assert_submitted(add, args=[ANY], kwargs={"y": ANY}, status="Queued").id == second
    jobs.refute_submitted(add, username="bob")
    jobs.refute_submitted(add.s(1, 2))
    jobs.refute_submitted(note)


def test_job_of_an_event_loop_is_found_published(jobs: JobsKit, monkeypatch: pytest.MonkeyPatch) -> None:
    """The thread that publishes it does not get to it."""
    monkeypatch.setattr(PublishQueue, "_start", lambda _: True)

    async def request() -> None:
        service.jobs.submit(note.s("a.tif"))

    asyncio.run(request())
    assert jobs.find(status="Submitted") != []
    assert jobs.assert_submitted(note, status="Queued").attempt == 0


def test_values_are_compared_as_the_row_keeps_them(jobs: JobsKit) -> None:
    value = {"at": datetime(2030, 1, 1, tzinfo=UTC), "id": uuid.UUID(int=1), "pair": (1, 2), 3: None}
    service.jobs.submit(note.s(value))
    jobs.assert_submitted(note.s(value))
    jobs.assert_submitted(note, args=[{**value, "pair": [1, ANY]}])
    jobs.refute_submitted(note, args=[{**value, "pair": [1]}])


def test_failed_assertion_shows_the_nearest_jobs_first(jobs: JobsKit) -> None:
    jobs.submit(note.s("b.tif"), username="ann")
    jobs.submit(add.s(1, y=2), username="ann")
    jobs.submit(note.s("a.tiff"), username="ann")
    jobs.submit(note.s("z"), username="bob")
    assert failure(jobs.assert_submitted, note, args=["a.tif"], username="ann") == (
        "no job of tests.testing.service.note with args=['a.tif'], username='ann' was submitted.\n"
        "4 jobs were submitted, nearest first:\n"
        "  job 3 of ann: tests.testing.service.note('a.tiff'), Queued\n"
        "    args: ['a.tiff'], not ['a.tif']\n"
        "  job 1 of ann: tests.testing.service.note('b.tif'), Queued\n"
        "    args: ['b.tif'], not ['a.tif']\n"
        "  job 4 of bob: tests.testing.service.note('z'), Queued\n"
        "    args: ['z'], not ['a.tif']\n"
        "    username: 'bob', not 'ann'\n"
        "  job 2 of ann: tests.testing.service.add(1, y=2), Queued\n"
        "    task: 'tests.testing.service.add', not 'tests.testing.service.note'\n"
        "    args: [1], not ['a.tif']"
    )


def test_failed_assertion_without_jobs_says_so(jobs: JobsKit) -> None:
    expected = "no job of tests.testing.service.note was submitted.\nNo job was submitted."
    assert failure(jobs.assert_submitted, note) == expected


def test_failed_refutation_shows_what_was_submitted(jobs: JobsKit) -> None:
    jobs.submit_many([note.s(number) for number in range(7)], username="ann")
    lines = failure(jobs.refute_submitted, note, username="ann").splitlines()
    assert lines[0] == "a job of tests.testing.service.note with username='ann' was submitted:"
    assert lines[1] == "  job 7 of ann: tests.testing.service.note(6), Queued"
    assert lines[-1] == "  and 2 more"


def test_failed_assertion_hides_sensitive_arguments(jobs: JobsKit) -> None:
    jobs.submit(Job(task=note.name, args=["secret"], sensitive=[0]))
    message = failure(jobs.assert_submitted, note, args=["public"])
    assert "secret" not in message
    assert "note('***'), Queued\n    args: ['***'] (sensitive)" in message


def test_members_of_trees_are_jobs(jobs: JobsKit) -> None:
    jobs.submit(chain(add.s(1, 2), add.s(3)))
    jobs.assert_submitted("celery.chain")
    assert jobs.assert_submitted(add, args=[3]).status == "Waiting"
    jobs.refute_submitted(total)


def test_wrong_use_is_an_error_and_no_failure(jobs: JobsKit) -> None:
    with pytest.raises(ApiUsageError, match=r"a job has no user; it has after, args,"):
        jobs.assert_submitted(note, user="ann")
    with pytest.raises(
        ApiUsageError, match="task: 7; accepted: a task, its name, a signature of it, or a canvas"
    ):
        jobs.refute_submitted(7)
