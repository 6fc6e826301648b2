"""Publishing: due rows, their reservation, and late queued marks."""

import uuid
from datetime import timedelta
from typing import Any

import pytest

from jobhandle_celery.status import JobStatus
from jobhandle_celery.store import MAX_REPUBLISH_DEFERRALS, PendingMessage, Worker
from tests.store.conftest import CommonDoor
from tests.store.harness import GRACE, HELD, REPUBLISH_AFTER, TASK, Bench, about

HOUR = 3600.0


@pytest.fixture
def impatient(common_url: str, common_database: CommonDoor, namespace: str) -> Bench:
    """A bench whose republish delay, unlike the default bench's, is not at its limit."""
    database = common_database(common_url, "the first")
    return Bench(common_url, database, namespace=namespace, republish_after=timedelta(minutes=1))


def ids(messages: list[PendingMessage]) -> list[int]:
    return [message.job_id for message in messages]


def test_submitter_reads_what_it_is_to_send(bench: Bench) -> None:
    job_id = bench.submit(args="[1]", kwargs='{"a": 2}', queue="q", priority=3, routing='{"x": 1}')
    [message] = bench.store.outbox.reserve([job_id])
    assert message == bench.message(job_id)
    assert (message.task, message.attempt, message.args, message.kwargs) == (TASK, 1, "[1]", '{"a": 2}')
    assert (message.queue, message.priority, message.routing) == ("q", 3, '{"x": 1}')


@pytest.mark.parametrize("state", [*JobStatus, HELD])
def test_submitter_sends_only_what_waits_to_be_sent(bench: Bench, state: str) -> None:
    job_id = bench.place(state).job_id
    to_send = state in (JobStatus.SUBMITTED, JobStatus.REQUEUED, JobStatus.RESUBMITTED)
    assert ids(bench.store.outbox.reserve([job_id])) == ([job_id] if to_send else [])


def test_node_of_a_tree_is_never_sent(bench: Bench) -> None:
    """Its task, celery.group for instance, is one of Celery's own, which a worker would run."""
    job_id = bench.submit()
    bench.write(job_id, kind="group")
    assert bench.store.outbox.reserve([job_id]) == []


def test_retry_with_a_delay_is_not_sent_at_once(bench: Bench) -> None:
    run = bench.run(bench.submit())
    bench.store.runs.retry(run, "{}", None, HOUR, "again")
    assert bench.store.outbox.reserve([run.job_id]) == []


@pytest.mark.parametrize("state", [*JobStatus, HELD])
def test_sweep_reserves_due_jobs_that_may_start(bench: Bench, state: str) -> None:
    """Mutant 18: a Queued row is due again, in case its message is lost."""
    job_id = bench.place(state).job_id
    bench.pass_time(hours=1)
    startable = not (state in (HELD, JobStatus.RUNNING) or JobStatus(state).final)
    assert ids(bench.store.outbox.reserve_due(10)) == ([job_id] if startable else [])


@pytest.mark.parametrize("given", [{"held": True}, {"scheduled_for": timedelta(hours=2)}])
def test_job_due_only_to_expire_is_not_published(bench: Bench, given: dict[str, Any]) -> None:
    """The sweep finds it due to cancel it, and must not publish it."""
    bench.submit(expires=timedelta(minutes=5), **given)
    bench.pass_time(minutes=6)
    assert bench.store.outbox.reserve_due(10) == []


def test_job_is_reserved_by_one_sweep_and_again_after_the_grace(bench: Bench, other: Bench) -> None:
    """Related to mutant 18: the sweep that reserved it may have died before it published."""
    job_id = bench.submit()
    assert bench.store.outbox.reserve_due(10) == []
    bench.pass_time(seconds=GRACE.total_seconds() + 1)
    assert ids(bench.store.outbox.reserve_due(10)) == [job_id]
    assert bench.status(job_id) is JobStatus.SUBMITTED
    assert other.store.outbox.reserve_due(10) == []
    bench.pass_time(seconds=GRACE.total_seconds() + 1)
    assert ids(other.store.outbox.reserve_due(10)) == [job_id]


def test_reserve_returns_the_oldest_up_to_its_limit(bench: Bench) -> None:
    first = bench.submit()
    bench.pass_time(seconds=1)
    others = {bench.submit() for _ in range(3)}
    bench.pass_time(minutes=5)
    assert ids(bench.store.outbox.reserve_due(1)) == [first]
    assert set(ids(bench.store.outbox.reserve_due(2))) < others


def test_retry_is_not_reserved_before_its_time(bench: Bench) -> None:
    run = bench.run(bench.submit())
    bench.store.runs.retry(run, "{}", None, HOUR, "again")
    bench.pass_time(minutes=59)
    assert bench.store.outbox.reserve_due(10) == []
    bench.pass_time(minutes=2)
    assert ids(bench.store.outbox.reserve_due(10)) == [run.job_id]


def test_late_mark_does_not_touch_the_back_off_of_a_retry(bench: Bench) -> None:
    """Mutant 1 (guarded by status only): a second message starts the retry at once."""
    job_id = bench.submit()
    [message] = bench.store.outbox.reserve([job_id])
    bench.store.runs.retry(bench.run(job_id), "{}", None, HOUR, "again")
    row = bench.row(job_id)
    bench.store.outbox.mark_queued([message])
    assert bench.row(job_id) == row
    assert about(bench.due_in(job_id), timedelta(hours=1))


@pytest.mark.parametrize("state", [JobStatus.RUNNING, JobStatus.FINISHED, JobStatus.CANCELLED])
def test_late_mark_does_not_touch_a_job_that_went_on(bench: Bench, state: JobStatus) -> None:
    job_id = bench.submit()
    [message] = bench.store.outbox.reserve([job_id])
    if state is JobStatus.CANCELLED:
        bench.store.control.cancel(job_id, None, terminate=False)
    else:
        run = bench.run(job_id)
        if state is JobStatus.FINISHED:
            bench.store.runs.finish(run, "1")
    row = bench.row(job_id)
    bench.store.outbox.mark_queued([message])
    assert bench.row(job_id) == row


def test_late_mark_of_claimed_scheduled_job_changes_nothing(bench: Bench) -> None:
    """Mutant 3: rejected for a fast worker, it would be Queued without a message."""
    job_id = bench.place(JobStatus.WAITING).job_id
    [message] = bench.store.outbox.reserve_due(10)
    run = bench.run(job_id)
    bench.store.outbox.mark_queued([message])
    assert bench.status(job_id) is JobStatus.RUNNING
    assert bench.store.runs.finish(run, "1")


def test_republish_delay_doubles_up_to_its_limit(common_url: str) -> None:
    bench = Bench(common_url, namespace=str(uuid.uuid4()), republish_after=timedelta(minutes=2))
    job_id, found = bench.submit(), []
    for _ in range(6):
        bench.queue(job_id)
        found.append(bench.due_in(job_id))
    bench.close()
    expected = [timedelta(minutes=minutes) for minutes in (2, 4, 8, 15, 15, 15)]
    assert all(about(due, wanted) for due, wanted in zip(found, expected, strict=True)), found


def test_new_attempt_has_the_first_republish_delay(bench: Bench) -> None:
    job_id = bench.submit()
    for _ in range(3):
        bench.queue(job_id)
    bench.store.runs.retry(bench.run(job_id), "{}", None, None, "again")
    assert bench.row(job_id)["publish_count"] == 0


def test_republish_of_queued_job_is_deferred(bench: Bench) -> None:
    """Mutant 4: deferrals in a row are counted, so that the queue depth is not trusted for ever."""
    job_id = bench.submit(queue="q")
    bench.queue(job_id)
    for republish_deferrals in range(1, 4):
        bench.pass_time(minutes=16)
        messages = bench.store.outbox.reserve_due(10)
        assert messages[0].republish_deferrals == republish_deferrals - 1
        bench.store.outbox.defer_republish(messages)
        assert bench.row(job_id)["republish_deferrals"] == republish_deferrals
        assert about(bench.due_in(job_id), REPUBLISH_AFTER)
    bench.queue(job_id)
    assert bench.row(job_id)["republish_deferrals"] == 0


def test_each_deferral_doubles_the_republish_delay(impatient: Bench) -> None:
    """So a lost message is republished after at most 1 + 2 + 4 + 8 = 15 republish delays."""
    job_id = impatient.submit(queue="q")
    impatient.queue(job_id)
    found = [impatient.due_in(job_id)]
    for _ in range(MAX_REPUBLISH_DEFERRALS):
        impatient.pass_time(minutes=9)
        impatient.store.outbox.defer_republish(impatient.store.outbox.reserve_due(10))
        found.append(impatient.due_in(job_id))
    expected = [timedelta(minutes=minutes) for minutes in (1, 2, 4, 8)]
    assert all(about(due, wanted) for due, wanted in zip(found, expected, strict=True)), found


def test_job_claimed_meanwhile_is_not_deferred(bench: Bench) -> None:
    job_id = bench.submit()
    bench.queue(job_id)
    bench.pass_time(minutes=16)
    messages = bench.store.outbox.reserve_due(10)
    bench.store.runs.retry(bench.run(job_id), "{}", None, HOUR, "again")
    row = bench.row(job_id)
    bench.store.outbox.defer_republish(messages)
    assert bench.row(job_id) == row


def test_rows_are_counted_by_queue(bench: Bench) -> None:
    for queue in ("a", "a", "b", "c"):
        bench.queue(bench.submit(queue=queue))
    bench.submit(queue="a")
    assert bench.store.outbox.count_queued(["a", "b", "nothing"]) == {"a": 2, "b": 1}


@pytest.mark.parametrize("state", [JobStatus.SUBMITTED, JobStatus.WAITING, HELD, JobStatus.QUEUED])
def test_sweep_cancels_expired_job_in_every_status(bench: Bench, state: str) -> None:
    """Mutant 10: without it the job would wait for ever for a claim that is rejected."""
    job_id = bench.place(state, expires=timedelta(minutes=40), unique_key="k").job_id
    bench.pass_time(minutes=41)
    assert bench.store.sweep.expire() == 1
    row = bench.row(job_id)
    assert (row["status_id"], row["message"]) == (JobStatus.CANCELLED, "expired before it was started")
    assert bench.store.queries.events(job_id)[-1].actor == "sweep"
    assert (row["unique_hash"], row["started"]) == (None, None)
    assert (row["due_at"] is not None) == (state is JobStatus.QUEUED), "is it to be reported?"


def test_unreported_cancel_is_returned_once(bench: Bench) -> None:
    unsent, sent, met = bench.submit(), bench.submit(), bench.submit()
    for job_id in (sent, met):
        bench.queue(job_id)
    for job_id in (unsent, sent, met):
        assert bench.store.control.cancel(job_id, None, terminate=False) is JobStatus.CANCELLED
    assert bench.store.runs.mark_revoke_reported(met, bench.row(met)["task_id"])
    assert bench.store.sweep.unreported_cancels(10) == []
    bench.pass_time(hours=1)
    [cancelled] = bench.store.sweep.unreported_cancels(10)
    assert (cancelled.job_id, cancelled.status) == (sent, JobStatus.CANCELLED)
    bench.pass_time(hours=1)
    assert bench.store.sweep.unreported_cancels(10) == []


def test_job_expires_neither_early_nor_once_started(bench: Bench) -> None:
    early = bench.submit(expires=timedelta(minutes=40))
    retried = bench.submit(expires=timedelta(minutes=10))
    bench.store.runs.retry(bench.run(retried), "{}", None, None, "again")
    bench.pass_time(minutes=20)
    assert bench.store.sweep.expire() == 0
    assert bench.status(early) is JobStatus.SUBMITTED
    assert bench.status(retried) is JobStatus.REQUEUED


@pytest.mark.parametrize("verb", ["mark_queued", "defer_republish", "send_back"])
def test_sweep_looks_again_no_later_than_the_expiry(bench: Bench, verb: str) -> None:
    job_id = bench.submit(expires=timedelta(minutes=5))
    bench.queue(job_id)
    message = bench.message(job_id)
    match verb:
        case "mark_queued":
            bench.store.outbox.mark_queued([message])
        case "defer_republish":
            bench.store.outbox.defer_republish([message])
        case _:
            assert bench.store.runs.send_back(job_id, message.task_id, 1, TASK, Worker("w", "b", 1))
    assert about(bench.due_in(job_id), timedelta(minutes=5))


def test_job_sent_back_has_a_reason_and_keeps_its_message(bench: Bench) -> None:
    job_id = bench.submit(message="from the importer")
    bench.queue(job_id)
    message = bench.message(job_id)
    assert bench.store.runs.send_back(job_id, message.task_id, message.attempt, TASK, bench.worker("w9"))
    job = bench.store.queries.job(job_id)
    assert job is not None
    assert (job.status, job.message) == (JobStatus.SUBMITTED, "from the importer")
    event = bench.store.queries.events(job_id)[-1]
    assert (event.status, event.actor) == (JobStatus.SUBMITTED, "worker w9")
    assert TASK in event.message


def test_late_mark_does_not_touch_a_job_that_was_sent_back(bench: Bench) -> None:
    """A worker that does not know the task may be faster than the publisher's mark."""
    job_id = bench.submit()
    [message] = bench.store.outbox.reserve([job_id])
    assert bench.store.runs.send_back(job_id, message.task_id, message.attempt, TASK, bench.worker())
    row = bench.row(job_id)
    bench.store.outbox.mark_queued([message])
    assert bench.row(job_id) == row
    bench.pass_time(hours=2)
    [message] = bench.store.outbox.reserve_due(10)
    bench.store.outbox.mark_queued([message])
    assert bench.status(job_id) is JobStatus.QUEUED


def test_job_sent_back_counts_its_publish_once(bench: Bench) -> None:
    counts = []
    for marked in (False, True):
        job_id = bench.submit()
        [message] = bench.store.outbox.reserve([job_id])
        if marked:
            bench.store.outbox.mark_queued([message])
        assert bench.store.runs.send_back(job_id, message.task_id, message.attempt, TASK, bench.worker())
        counts.append(bench.row(job_id)["publish_count"])
    assert counts == [1, 1]


def test_message_of_the_past_sends_nothing_back(bench: Bench) -> None:
    job_id = bench.submit()
    message, me = bench.message(job_id), bench.worker()
    bench.store.runs.retry(bench.run(job_id), "{}", None, HOUR, "again")
    row = bench.row(job_id)
    assert not bench.store.runs.send_back(job_id, message.task_id, message.attempt, TASK, me)
    assert not bench.store.runs.send_back(job_id, "another", message.attempt + 1, TASK, me)
    assert bench.row(job_id) == row


@pytest.mark.parametrize("delay", [1e9, 1e12, 1e300])
def test_retry_with_an_absurd_delay_is_still_looked_at_one_day(bench: Bench, delay: float) -> None:
    run = bench.run(bench.submit())
    assert bench.store.runs.retry(run, "{}", None, delay, "again") is JobStatus.REQUEUED
    row = bench.row(run.job_id)
    assert abs(row["due_at"] - row["not_before"]) < timedelta(seconds=1)
    assert bench.ahead(row["not_before"]) > timedelta(days=365)
    assert bench.store.outbox.reserve([run.job_id]) == []


def test_unsendable_job_is_deferred_ever_longer_with_a_reason(impatient: Bench) -> None:
    bench = impatient
    job_id = bench.submit(unique_key="k")
    message = bench.message(job_id)
    bench.store.outbox.defer_unsendable([message], "the queue is full")
    assert bench.status(job_id) is JobStatus.SUBMITTED
    assert about(bench.due_in(job_id), timedelta(minutes=1))
    assert bench.store.queries.events(job_id)[-1].message == "the queue is full"
    bench.pass_time(hours=1)
    [again] = bench.store.outbox.reserve_due(1)
    bench.store.outbox.defer_unsendable([again], "the queue is full")
    assert about(bench.due_in(job_id), timedelta(minutes=2))
    assert bench.row(job_id)["publish_count"] == 2
    bench.store.runs.retry(bench.run(job_id), "{}", None, HOUR, "again")
    row = bench.row(job_id)
    bench.store.outbox.defer_unsendable([message], "the queue is full")
    assert bench.row(job_id) == row, "that was another attempt's"
