"""Only messages that end their worker before the claim are counted (fault 42)."""

import pytest

from jobhandle_celery import JobStatus
from jobhandle_celery.store import LostJob, Worker
from tests.store.harness import TASK, Bench
from tests.store.racing import in_the_middle

ROUNDS = 10


def worker(number: int) -> Worker:
    return Worker(f"w{number}", f"boot-{number}", 100)


def note_received(bench: Bench, job_id: int, number: int) -> list[LostJob]:
    """Record that a worker received the message of a job's next attempt."""
    message = bench.message(job_id)
    return bench.store.recovery.note_received([(job_id, message.task_id, message.attempt)], worker(number))


def clear_received(bench: Bench, job_id: int, number: int) -> None:
    message = bench.message(job_id)
    bench.store.recovery.clear_received([(job_id, message.task_id, message.attempt)], worker(number))


def test_message_that_ends_worker_after_worker_fails_its_job(bench: Bench) -> None:
    """Three workers lost with an unclaimed message end its job in Error (fault 42)."""
    job_id = bench.submit()
    bench.queue(job_id)
    for number in range(3):
        assert note_received(bench, job_id, number) == []
        assert bench.status(job_id) is JobStatus.QUEUED

    [lost] = note_received(bench, job_id, 3)

    assert (lost.job_id, lost.task, lost.status) == (job_id, TASK, JobStatus.ERROR)
    record = bench.store.queries.job(job_id)
    assert record is not None
    assert record.error is not None
    assert (record.status, record.attempt) == (JobStatus.ERROR, 0)
    assert (record.error.kind, record.error.type) == ("system", "WorkerLostError")
    assert "before its body started" in record.error.message
    assert bench.store.queries.events(job_id)[-1].actor == "worker w3"


def test_children_lost_before_the_claim_fail_their_job(bench: Bench) -> None:
    """A pool process that dies with a message before the claim counts, too (fault 42)."""
    job_id = bench.submit()
    bench.queue(job_id)
    message = bench.message(job_id)
    key = (job_id, message.task_id, message.attempt)
    for _ in range(2):
        assert bench.store.recovery.lose_unstarted(key, worker(1)) == []
    assert [lost.status for lost in bench.store.recovery.lose_unstarted(key, worker(1))] == [JobStatus.ERROR]


@pytest.mark.parametrize("end", ["put down", "shut down", "same worker"])
def test_worker_that_survives_a_message_does_not_count(bench: Bench, end: str) -> None:
    """Neither messages that workers survive, nor their shutdowns, nor copies fail a job (fault 42)."""
    job_id = bench.submit()
    bench.queue(job_id)
    for number in range(ROUNDS):
        assert note_received(bench, job_id, 0 if end == "same worker" else number) == []
        if end == "put down":
            clear_received(bench, job_id, number)
        elif end == "shut down":
            bench.store.leases.retire(worker(number))
    assert (bench.status(job_id), bench.row(job_id)["lost_count"]) == (JobStatus.QUEUED, 0)


def test_backlog_and_lack_of_workers_do_not_count(bench: Bench) -> None:
    """However often a job is published, it waits for a worker (fault 42)."""
    job_id = bench.submit()
    for _ in range(ROUNDS):
        bench.queue(job_id)
        bench.pass_time(hours=2)
    assert (bench.status(job_id), bench.row(job_id)["lost_count"]) == (JobStatus.QUEUED, 0)


def test_job_that_allows_more_attempts_outlives_as_many_losses(bench: Bench) -> None:
    """A job with ten attempts does not end after three losses (fault 42)."""
    job_id = bench.submit(max_attempts=10)
    bench.queue(job_id)
    for number in range(10):
        assert note_received(bench, job_id, number) == []
    assert [lost.status for lost in note_received(bench, job_id, 10)] == [JobStatus.ERROR]


def test_note_does_not_hinder_claim_cancel_or_resubmit(bench: Bench) -> None:
    """Another worker claims a job whose message the first has received; its note is no claim."""
    job_id = bench.submit()
    bench.queue(job_id)
    message = bench.message(job_id)
    note_received(bench, job_id, 1)
    by = bench.worker("w2")
    run = bench.run(job_id, by)
    bench.store.recovery.clear_received([(job_id, message.task_id, message.attempt)], worker(1))
    assert bench.row(job_id)["worker_uid"] == by.worker_uid
    assert bench.store.runs.finish(run, "null")
    note_received(bench, job_id, 1)
    assert bench.status(job_id) is JobStatus.FINISHED


def test_children_lost_at_once_are_both_counted(own_server_bench: Bench) -> None:
    """The second loss comes when the first has read the count."""
    bench = own_server_bench
    job_id = bench.submit()
    message = bench.message(job_id)
    key = (job_id, message.task_id, message.attempt)

    def lose() -> list[LostJob]:
        return bench.store.recovery.lose_unstarted(key, worker(1))

    assert in_the_middle(bench, 2, lose, lose) == [[], []]
    assert bench.row(job_id)["lost_count"] == 2
