"""Only messages that end their worker before the claim are counted (fault 42)."""

import pytest

from jobhandle_celery import JobStatus
from jobhandle_celery.store import ChangedJob, Worker
from tests.store.harness import TASK, Harness
from tests.store.racing import in_the_middle

ROUNDS = 10


def worker(number: int) -> Worker:
    return Worker(f"w{number}", f"uid-{number}", 100)


def note_received(harness: Harness, job_id: int, number: int) -> list[ChangedJob]:
    """Record that a worker received the message of a job's next attempt."""
    message = harness.message(job_id)
    return harness.store.recovery.note_received([(job_id, message.task_id, message.attempt)], worker(number))


def clear_received(harness: Harness, job_id: int, number: int) -> None:
    message = harness.message(job_id)
    harness.store.recovery.clear_received([(job_id, message.task_id, message.attempt)], worker(number))


def test_message_that_ends_worker_after_worker_fails_its_job(harness: Harness) -> None:
    """Three workers lost with an unclaimed message end its job in Error (fault 42)."""
    job_id = harness.submit()
    harness.queue(job_id)
    for number in range(3):
        assert note_received(harness, job_id, number) == []
        assert harness.status(job_id) is JobStatus.QUEUED

    [lost] = note_received(harness, job_id, 3)

    assert (lost.job_id, lost.task, lost.status) == (job_id, TASK, JobStatus.ERROR)
    record = harness.store.queries.job(job_id)
    assert record is not None
    assert record.error is not None
    assert (record.status, record.attempt) == (JobStatus.ERROR, 0)
    assert (record.error.kind, record.error.type) == ("system", "WorkerLostError")
    assert "before its body started" in record.error.message
    assert harness.store.queries.events(job_id)[-1].actor == "worker w3"


def test_children_lost_before_the_claim_fail_their_job(harness: Harness) -> None:
    """A pool process that dies with a message before the claim counts, too (fault 42)."""
    job_id = harness.submit()
    harness.queue(job_id)
    message = harness.message(job_id)
    key = (job_id, message.task_id, message.attempt)
    for _ in range(2):
        assert harness.store.recovery.lose_unstarted(key, worker(1)) == []
    assert [lost.status for lost in harness.store.recovery.lose_unstarted(key, worker(1))] == [
        JobStatus.ERROR
    ]


@pytest.mark.parametrize("end", ["put down", "shut down", "same worker"])
def test_worker_that_survives_a_message_does_not_count(harness: Harness, end: str) -> None:
    """Neither messages that workers survive, nor their shutdowns, nor copies fail a job (fault 42)."""
    job_id = harness.submit()
    harness.queue(job_id)
    for number in range(ROUNDS):
        assert note_received(harness, job_id, 0 if end == "same worker" else number) == []
        if end == "put down":
            clear_received(harness, job_id, number)
        elif end == "shut down":
            harness.store.leases.retire(worker(number))
    assert (harness.status(job_id), harness.row(job_id)["lost_count"]) == (JobStatus.QUEUED, 0)


def test_backlog_and_lack_of_workers_do_not_count(harness: Harness) -> None:
    """However often a job is published, it waits for a worker (fault 42)."""
    job_id = harness.submit()
    for _ in range(ROUNDS):
        harness.queue(job_id)
        harness.pass_time(hours=2)
    assert (harness.status(job_id), harness.row(job_id)["lost_count"]) == (JobStatus.QUEUED, 0)


def test_job_that_allows_more_attempts_outlives_as_many_losses(harness: Harness) -> None:
    """A job with ten attempts does not end after three losses (fault 42)."""
    job_id = harness.submit(max_attempts=10)
    harness.queue(job_id)
    for number in range(10):
        assert note_received(harness, job_id, number) == []
    assert [lost.status for lost in note_received(harness, job_id, 10)] == [JobStatus.ERROR]


def test_note_does_not_hinder_claim_cancel_or_resubmit(harness: Harness) -> None:
    """Another worker claims a job whose message the first has received; its note is no claim."""
    job_id = harness.submit()
    harness.queue(job_id)
    message = harness.message(job_id)
    note_received(harness, job_id, 1)
    by = harness.worker("w2")
    run = harness.run(job_id, by)
    harness.store.recovery.clear_received([(job_id, message.task_id, message.attempt)], worker(1))
    assert harness.row(job_id)["worker_uid"] == by.worker_uid
    assert harness.store.runs.finish(run, "null")
    note_received(harness, job_id, 1)
    assert harness.status(job_id) is JobStatus.FINISHED


def test_children_lost_at_once_are_both_counted(own_server_harness: Harness) -> None:
    """The second loss comes when the first has read the count."""
    harness = own_server_harness
    job_id = harness.submit()
    message = harness.message(job_id)
    key = (job_id, message.task_id, message.attempt)

    def lose() -> list[ChangedJob]:
        return harness.store.recovery.lose_unstarted(key, worker(1))

    assert in_the_middle(harness, 2, lose, lose) == [[], []]
    assert harness.row(job_id)["lost_count"] == 2
