"""One pass of the sweeper, with a recorder in the place of the publisher."""

from collections.abc import Iterator
from typing import Any, cast

import pytest

from jobhandle_celery import JobStatus
from jobhandle_celery.broker.publisher import Publisher
from jobhandle_celery.store import MAX_REPUBLISH_DEFERRALS
from jobhandle_celery.sweeper import sweep
from tests.publishers import Recorder
from tests.store.harness import Harness


@pytest.fixture
def harness(database_url: str) -> Iterator[Harness]:
    harness = Harness(database_url)
    yield harness
    harness.close()


def make_pass(harness: Harness, recorder: Any) -> bool:
    return sweep(harness.store, cast(Publisher, recorder))


def overdue(harness: Harness, *, queue: str = "q") -> int:
    """Queue a job and let its republish delay pass."""
    job_id = harness.submit(queue=queue)
    harness.queue(job_id)
    harness.pass_time(hours=1)
    return job_id


def test_due_job_is_published_and_queued(harness: Harness) -> None:
    submitted = harness.submit()
    harness.pass_time(hours=1)
    recorder = Recorder()

    assert make_pass(harness, recorder)

    assert recorder.published == [submitted]
    assert harness.status(submitted) is JobStatus.QUEUED


def test_second_pass_within_the_interval_does_nothing(harness: Harness) -> None:
    make_pass(harness, Recorder())
    overdue(harness)
    make_pass(harness, Recorder())
    recorder = Recorder()

    assert not make_pass(harness, recorder)

    assert recorder.published == []


def test_lost_message_is_republished_when_its_queue_is_empty(harness: Harness) -> None:
    job_id = overdue(harness)
    recorder = Recorder(depth=0)

    make_pass(harness, recorder)

    assert recorder.published == [job_id]


def test_full_queue_defers_republish_a_few_times_only(harness: Harness) -> None:
    """Other tasks' messages in the queue do not hide a lost one for ever (mutant 4)."""
    job_id = overdue(harness)
    recorder = Recorder(depth=1_000_000)

    for _ in range(MAX_REPUBLISH_DEFERRALS):
        make_pass(harness, recorder)
        assert recorder.published == []
        harness.pass_time(hours=1)
    make_pass(harness, recorder)

    assert recorder.published == [job_id]


def test_missing_messages_are_republished_oldest_first(harness: Harness) -> None:
    """The others are a backlog. Messages reserved by workers are missing from the queue's count."""
    oldest, old, *young = [overdue(harness) for _ in range(5)]
    recorder = Recorder(depth=3)

    make_pass(harness, recorder)

    assert recorder.published == [oldest, old]
    assert [harness.row(job_id)["republish_deferrals"] for job_id in young] == [1, 1, 1]


def test_loss_of_young_message_is_hidden_a_few_times_only(harness: Harness) -> None:
    jobs = [overdue(harness) for _ in range(3)]
    recorder = Recorder(depth=len(jobs))
    for _ in range(MAX_REPUBLISH_DEFERRALS):
        make_pass(harness, recorder)
        harness.pass_time(hours=1)
    assert recorder.published == []

    make_pass(harness, recorder)

    assert recorder.published == jobs


def test_each_queue_is_counted_by_itself(harness: Harness) -> None:
    lost = overdue(harness, queue="empty")
    overdue(harness, queue="full")
    recorder = Recorder({"full": 1, "empty": 0})

    make_pass(harness, recorder)

    assert recorder.published == [lost]


def test_unknown_queue_depth_defers_nothing(harness: Harness) -> None:
    job_id = overdue(harness)
    recorder = Recorder(depth=None)

    make_pass(harness, recorder)

    assert recorder.published == [job_id]


def test_unreachable_broker_reserves_nothing(harness: Harness) -> None:
    job_id = harness.submit()
    harness.pass_time(hours=1)
    before = harness.row(job_id)
    recorder = Recorder()
    recorder.reachable = False

    make_pass(harness, recorder)

    assert harness.row(job_id) == before


def test_unsendable_job_does_not_hold_up_others(harness: Harness) -> None:
    bad, good = harness.submit(), harness.submit()
    harness.pass_time(hours=1)
    recorder = Recorder()
    recorder.unsendable = {bad}

    make_pass(harness, recorder)

    assert harness.status(good) is JobStatus.QUEUED
    assert harness.status(bad) is JobStatus.SUBMITTED
    assert harness.store.queries.events(bad)[-1].message == "unsendable"


def test_pass_requeues_and_publishes_jobs_of_lost_worker(harness: Harness) -> None:
    job_id = harness.submit(max_attempts=2)
    harness.run(job_id)
    harness.pass_steadily(harness.settings.lease * 2)
    harness.pass_time(seconds=harness.settings.pass_interval.total_seconds() + 1)
    recorder = Recorder()

    assert make_pass(harness, recorder)

    assert recorder.published == [job_id]
    assert harness.status(job_id) is JobStatus.QUEUED
