"""Publishing: due rows, their reservation, and late queued marks."""

import uuid
from datetime import timedelta
from typing import Any

import pytest

from jobhandle_celery.status import JobStatus
from jobhandle_celery.store import MAX_REPUBLISH_DEFERRALS, PendingMessage, Worker
from tests.store.harness import GRACE, HELD, REPUBLISH_AFTER, TASK, CommonDoor, Harness, about

HOUR = 3600.0


@pytest.fixture
def impatient(common_url: str, common_database: CommonDoor, namespace: str) -> Harness:
    """A harness whose republish delay, unlike the default harness's, is not at its limit."""
    database = common_database(common_url, "the first")
    return Harness(common_url, database, namespace=namespace, republish_after=timedelta(minutes=1))


def ids(messages: list[PendingMessage]) -> list[int]:
    return [message.job_id for message in messages]


def test_submitter_reads_what_it_is_to_send(harness: Harness) -> None:
    job_id = harness.submit(args="[1]", kwargs='{"a": 2}', queue="q", priority=3, routing='{"x": 1}')
    [message] = harness.store.outbox.reserve([job_id])
    assert message == harness.message(job_id)
    assert (message.task, message.attempt, message.args, message.kwargs) == (TASK, 1, "[1]", '{"a": 2}')
    assert (message.queue, message.priority, message.routing) == ("q", 3, '{"x": 1}')


@pytest.mark.parametrize("state", [*JobStatus, HELD])
def test_submitter_sends_only_what_waits_to_be_sent(harness: Harness, state: str) -> None:
    job_id = harness.place(state).job_id
    to_send = state in (JobStatus.SUBMITTED, JobStatus.REQUEUED, JobStatus.RESUBMITTED)
    assert ids(harness.store.outbox.reserve([job_id])) == ([job_id] if to_send else [])


def test_reserve_returns_the_same_messages_without_direct_psycopg(
    harness: Harness, monkeypatch: pytest.MonkeyPatch
) -> None:
    states = (JobStatus.SUBMITTED, JobStatus.REQUEUED, JobStatus.RESUBMITTED, JobStatus.QUEUED)
    jobs = [harness.place(state).job_id for state in states]
    jobs.append(harness.submit(routing='{"x": 1}', time_limit=1.5, max_attempts=2))
    messages = harness.store.outbox.reserve(jobs[::-1])
    assert ids(messages) == [jobs[4], *jobs[2::-1]]
    assert {message.status for message in messages} == set(states[:3])
    monkeypatch.setattr(harness.database, "execute_directly", lambda *_: None)
    assert harness.store.outbox.reserve(jobs[::-1]) == messages


def test_node_of_a_tree_is_never_sent(harness: Harness) -> None:
    """Its task, celery.group for instance, is one of Celery's own, which a worker would run."""
    job_id = harness.submit()
    harness.write(job_id, kind="group")
    assert harness.store.outbox.reserve([job_id]) == []


def test_retry_with_a_delay_is_not_sent_at_once(harness: Harness) -> None:
    run = harness.run(harness.submit())
    harness.store.runs.retry(run, "{}", None, HOUR, "again")
    assert harness.store.outbox.reserve([run.job_id]) == []


@pytest.mark.parametrize("state", [*JobStatus, HELD])
def test_sweep_reserves_due_jobs_that_may_start(harness: Harness, state: str) -> None:
    """Mutant 18: a Queued row is due again, in case its message is lost."""
    job_id = harness.place(state).job_id
    harness.pass_time(hours=1)
    startable = not (state in (HELD, JobStatus.RUNNING) or JobStatus(state).final)
    assert ids(harness.store.outbox.reserve_due(10)) == ([job_id] if startable else [])


@pytest.mark.parametrize("given", [{"held": True}, {"scheduled_for": timedelta(hours=2)}])
def test_job_due_only_to_expire_is_not_published(harness: Harness, given: dict[str, Any]) -> None:
    """The sweep finds it due to cancel it, and must not publish it."""
    harness.submit(expires=timedelta(minutes=5), **given)
    harness.pass_time(minutes=6)
    assert harness.store.outbox.reserve_due(10) == []


def test_job_is_reserved_by_one_sweep_and_again_after_the_grace(harness: Harness, other: Harness) -> None:
    """Related to mutant 18: the sweep that reserved it may have died before it published."""
    job_id = harness.submit()
    assert harness.store.outbox.reserve_due(10) == []
    harness.pass_time(seconds=GRACE.total_seconds() + 1)
    assert ids(harness.store.outbox.reserve_due(10)) == [job_id]
    assert harness.status(job_id) is JobStatus.SUBMITTED
    assert other.store.outbox.reserve_due(10) == []
    harness.pass_time(seconds=GRACE.total_seconds() + 1)
    assert ids(other.store.outbox.reserve_due(10)) == [job_id]


def test_reserve_returns_the_oldest_up_to_its_limit(harness: Harness) -> None:
    first = harness.submit()
    harness.pass_time(seconds=1)
    others = {harness.submit() for _ in range(3)}
    harness.pass_time(minutes=5)
    assert ids(harness.store.outbox.reserve_due(1)) == [first]
    assert set(ids(harness.store.outbox.reserve_due(2))) < others


def test_retry_is_not_reserved_before_its_time(harness: Harness) -> None:
    run = harness.run(harness.submit())
    harness.store.runs.retry(run, "{}", None, HOUR, "again")
    harness.pass_time(minutes=59)
    assert harness.store.outbox.reserve_due(10) == []
    harness.pass_time(minutes=2)
    assert ids(harness.store.outbox.reserve_due(10)) == [run.job_id]


def test_late_mark_does_not_touch_the_back_off_of_a_retry(harness: Harness) -> None:
    """Mutant 1 (guarded by status only): a second message starts the retry at once."""
    job_id = harness.submit()
    [message] = harness.store.outbox.reserve([job_id])
    harness.store.runs.retry(harness.run(job_id), "{}", None, HOUR, "again")
    row = harness.row(job_id)
    harness.store.outbox.mark_queued([message])
    assert harness.row(job_id) == row
    assert about(harness.due_in(job_id), timedelta(hours=1))


@pytest.mark.parametrize("state", [JobStatus.RUNNING, JobStatus.FINISHED, JobStatus.CANCELLED])
def test_late_mark_does_not_touch_a_job_that_went_on(harness: Harness, state: JobStatus) -> None:
    job_id = harness.submit()
    [message] = harness.store.outbox.reserve([job_id])
    if state is JobStatus.CANCELLED:
        harness.store.control.cancel(job_id, None, terminate=False)
    else:
        run = harness.run(job_id)
        if state is JobStatus.FINISHED:
            harness.store.runs.finish(run, "1")
    row = harness.row(job_id)
    harness.store.outbox.mark_queued([message])
    assert harness.row(job_id) == row


def test_late_mark_of_claimed_scheduled_job_changes_nothing(harness: Harness) -> None:
    """Mutant 3: rejected for a fast worker, it would be Queued without a message."""
    job_id = harness.place(JobStatus.WAITING).job_id
    [message] = harness.store.outbox.reserve_due(10)
    run = harness.run(job_id)
    harness.store.outbox.mark_queued([message])
    assert harness.status(job_id) is JobStatus.RUNNING
    assert harness.store.runs.finish(run, "1")


def test_republish_delay_doubles_up_to_its_limit(common_url: str) -> None:
    harness = Harness(common_url, namespace=str(uuid.uuid4()), republish_after=timedelta(minutes=2))
    job_id, found = harness.submit(), []
    for _ in range(6):
        harness.queue(job_id)
        found.append(harness.due_in(job_id))
    harness.close()
    expected = [timedelta(minutes=minutes) for minutes in (2, 4, 8, 15, 15, 15)]
    assert all(about(due, wanted) for due, wanted in zip(found, expected, strict=True)), found


def test_new_attempt_has_the_first_republish_delay(harness: Harness) -> None:
    job_id = harness.submit()
    for _ in range(3):
        harness.queue(job_id)
    harness.store.runs.retry(harness.run(job_id), "{}", None, None, "again")
    assert harness.row(job_id)["publish_count"] == 0


def test_republish_of_queued_job_is_deferred(harness: Harness) -> None:
    """Mutant 4: deferrals in a row are counted, so that the queue depth is not trusted for ever."""
    job_id = harness.submit(queue="q")
    harness.queue(job_id)
    for republish_deferrals in range(1, 4):
        harness.pass_time(minutes=16)
        messages = harness.store.outbox.reserve_due(10)
        assert messages[0].republish_deferrals == republish_deferrals - 1
        harness.store.outbox.defer_republish(messages)
        assert harness.row(job_id)["republish_deferrals"] == republish_deferrals
        assert about(harness.due_in(job_id), REPUBLISH_AFTER)
    harness.queue(job_id)
    assert harness.row(job_id)["republish_deferrals"] == 0


def test_each_deferral_doubles_the_republish_delay(impatient: Harness) -> None:
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


def test_job_claimed_meanwhile_is_not_deferred(harness: Harness) -> None:
    job_id = harness.submit()
    harness.queue(job_id)
    harness.pass_time(minutes=16)
    messages = harness.store.outbox.reserve_due(10)
    harness.store.runs.retry(harness.run(job_id), "{}", None, HOUR, "again")
    row = harness.row(job_id)
    harness.store.outbox.defer_republish(messages)
    assert harness.row(job_id) == row


def test_rows_are_counted_by_queue(harness: Harness) -> None:
    for queue in ("a", "a", "b", "c"):
        harness.queue(harness.submit(queue=queue))
    harness.submit(queue="a")
    assert harness.store.outbox.count_queued(["a", "b", "nothing"]) == {"a": 2, "b": 1}


@pytest.mark.parametrize("state", [JobStatus.SUBMITTED, JobStatus.WAITING, HELD, JobStatus.QUEUED])
def test_sweep_cancels_expired_job_in_every_status(harness: Harness, state: str) -> None:
    """Mutant 10: without it the job would wait for ever for a claim that is rejected."""
    job_id = harness.place(state, expires=timedelta(minutes=40), unique_key="k").job_id
    harness.pass_time(minutes=41)
    assert harness.store.sweep.expire() == 1
    row = harness.row(job_id)
    assert (row["status_id"], row["message"]) == (JobStatus.CANCELLED, "expired before it was started")
    assert harness.store.queries.events(job_id)[-1].actor == "sweep"
    assert (row["unique_hash"], row["started"]) == (None, None)
    assert (row["due_at"] is not None) == (state is JobStatus.QUEUED), "is it to be reported?"


def test_unreported_cancel_is_returned_once(harness: Harness) -> None:
    unsent, sent, met = harness.submit(), harness.submit(), harness.submit()
    for job_id in (sent, met):
        harness.queue(job_id)
    for job_id in (unsent, sent, met):
        assert harness.store.control.cancel(job_id, None, terminate=False) is JobStatus.CANCELLED
    assert harness.store.runs.mark_revoke_reported(met, harness.row(met)["task_id"])
    assert harness.store.sweep.unreported_cancels(10) == []
    harness.pass_time(hours=1)
    [cancelled] = harness.store.sweep.unreported_cancels(10)
    assert (cancelled.job_id, cancelled.status) == (sent, JobStatus.CANCELLED)
    harness.pass_time(hours=1)
    assert harness.store.sweep.unreported_cancels(10) == []


def test_job_expires_neither_early_nor_once_started(harness: Harness) -> None:
    early = harness.submit(expires=timedelta(minutes=40))
    retried = harness.submit(expires=timedelta(minutes=10))
    harness.store.runs.retry(harness.run(retried), "{}", None, None, "again")
    harness.pass_time(minutes=20)
    assert harness.store.sweep.expire() == 0
    assert harness.status(early) is JobStatus.SUBMITTED
    assert harness.status(retried) is JobStatus.REQUEUED


@pytest.mark.parametrize("verb", ["mark_queued", "defer_republish", "send_back"])
def test_sweep_looks_again_no_later_than_the_expiry(harness: Harness, verb: str) -> None:
    job_id = harness.submit(expires=timedelta(minutes=5))
    harness.queue(job_id)
    message = harness.message(job_id)
    match verb:
        case "mark_queued":
            harness.store.outbox.mark_queued([message])
        case "defer_republish":
            harness.store.outbox.defer_republish([message])
        case _:
            assert harness.store.runs.send_back(job_id, message.task_id, 1, TASK, Worker("w", "b", 1))
    assert about(harness.due_in(job_id), timedelta(minutes=5))


def test_job_sent_back_has_a_reason_and_keeps_its_message(harness: Harness) -> None:
    job_id = harness.submit(message="from the importer")
    harness.queue(job_id)
    message = harness.message(job_id)
    assert harness.store.runs.send_back(job_id, message.task_id, message.attempt, TASK, harness.worker("w9"))
    job = harness.store.queries.job(job_id)
    assert job is not None
    assert (job.status, job.message) == (JobStatus.SUBMITTED, "from the importer")
    event = harness.store.queries.events(job_id)[-1]
    assert (event.status, event.actor) == (JobStatus.SUBMITTED, "worker w9")
    assert TASK in event.message


def test_late_mark_does_not_touch_a_job_that_was_sent_back(harness: Harness) -> None:
    """A worker that does not know the task may be faster than the publisher's mark."""
    job_id = harness.submit()
    [message] = harness.store.outbox.reserve([job_id])
    assert harness.store.runs.send_back(job_id, message.task_id, message.attempt, TASK, harness.worker())
    row = harness.row(job_id)
    harness.store.outbox.mark_queued([message])
    assert harness.row(job_id) == row
    harness.pass_time(hours=2)
    [message] = harness.store.outbox.reserve_due(10)
    harness.store.outbox.mark_queued([message])
    assert harness.status(job_id) is JobStatus.QUEUED


def test_job_sent_back_counts_its_publish_once(harness: Harness) -> None:
    counts = []
    for marked in (False, True):
        job_id = harness.submit()
        [message] = harness.store.outbox.reserve([job_id])
        if marked:
            harness.store.outbox.mark_queued([message])
        assert harness.store.runs.send_back(job_id, message.task_id, message.attempt, TASK, harness.worker())
        counts.append(harness.row(job_id)["publish_count"])
    assert counts == [1, 1]


def test_message_of_the_past_sends_nothing_back(harness: Harness) -> None:
    job_id = harness.submit()
    message, me = harness.message(job_id), harness.worker()
    harness.store.runs.retry(harness.run(job_id), "{}", None, HOUR, "again")
    row = harness.row(job_id)
    assert not harness.store.runs.send_back(job_id, message.task_id, message.attempt, TASK, me)
    assert not harness.store.runs.send_back(job_id, "another", message.attempt + 1, TASK, me)
    assert harness.row(job_id) == row


@pytest.mark.parametrize("delay", [1e9, 1e12, 1e300])
def test_retry_with_an_absurd_delay_is_still_looked_at_one_day(harness: Harness, delay: float) -> None:
    run = harness.run(harness.submit())
    assert harness.store.runs.retry(run, "{}", None, delay, "again") is JobStatus.REQUEUED
    row = harness.row(run.job_id)
    assert abs(row["due_at"] - row["not_before"]) < timedelta(seconds=1)
    assert harness.ahead(row["not_before"]) > timedelta(days=365)
    assert harness.store.outbox.reserve([run.job_id]) == []


def test_unsendable_job_is_deferred_ever_longer_with_a_reason(impatient: Harness) -> None:
    harness = impatient
    job_id = harness.submit(unique_key="k")
    message = harness.message(job_id)
    harness.store.outbox.defer_unsendable([message], "the queue is full")
    assert harness.status(job_id) is JobStatus.SUBMITTED
    assert about(harness.due_in(job_id), timedelta(minutes=1))
    assert harness.store.queries.events(job_id)[-1].message == "the queue is full"
    harness.pass_time(hours=1)
    [again] = harness.store.outbox.reserve_due(1)
    harness.store.outbox.defer_unsendable([again], "the queue is full")
    assert about(harness.due_in(job_id), timedelta(minutes=2))
    assert harness.row(job_id)["publish_count"] == 2
    harness.store.runs.retry(harness.run(job_id), "{}", None, HOUR, "again")
    row = harness.row(job_id)
    harness.store.outbox.defer_unsendable([message], "the queue is full")
    assert harness.row(job_id) == row, "that was another attempt's"
