"""Operations from outside a run (cancel, set a status, set a message), and their return values."""

import uuid
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest

from jobhandle_celery.status import JobStatus
from jobhandle_celery.store import Selection
from tests.store.harness import HELD, STATES, Harness

CANCELLED, RUNNING = JobStatus.CANCELLED, JobStatus.RUNNING
FINISHED, ERROR = JobStatus.FINISHED, JobStatus.ERROR


def cancel(harness: Harness, job_id: int, *, terminate: bool = False) -> JobStatus | None:
    return harness.store.control.cancel(job_id, None, terminate=terminate)


def set_status(
    harness: Harness, job_id: int, status: JobStatus, message: str | None = None, username: str | None = None
) -> tuple[JobStatus | None, bool]:
    return harness.store.control.set_status(job_id, status, str(uuid.uuid4()), username, message)


@pytest.mark.parametrize("state", STATES)
def test_cancel_returns_resulting_status(harness: Harness, state: str) -> None:
    job_id = harness.place(state).job_id
    before = harness.row(job_id)
    status = before["status_id"]
    answer = cancel(harness, job_id)
    assert answer is (status if status.final or status is RUNNING else CANCELLED)
    if status.final:
        assert harness.row(job_id) == before


def test_cancel_of_running_job_requests_a_stop_only(harness: Harness) -> None:
    run = harness.run(harness.submit())
    before = harness.row(run.job_id)
    assert cancel(harness, run.job_id) is RUNNING
    after = harness.row(run.job_id)
    assert after.pop("cancel_requested") is not None
    assert after.items() <= before.items()
    event = harness.store.queries.events(run.job_id)[-1]
    assert (event.status, event.message) == (RUNNING, "asked to stop")


def test_second_request_changes_nothing_unless_it_asks_for_more(harness: Harness) -> None:
    run = harness.run(harness.submit())
    cancel(harness, run.job_id)
    row, events = harness.row(run.job_id), harness.events(run.job_id)
    assert cancel(harness, run.job_id) is RUNNING
    assert (harness.row(run.job_id), harness.events(run.job_id)) == (row, events)
    assert cancel(harness, run.job_id, terminate=True) is RUNNING
    assert harness.row(run.job_id) == row | {"terminate": True}
    cancel(harness, run.job_id)
    assert harness.row(run.job_id)["terminate"], "a terminate request stays"


def test_cancelled_job_has_no_start_and_the_callers_message(harness: Harness) -> None:
    job_id = harness.submit(message="from the importer")
    cancel(harness, job_id)
    row = harness.row(job_id)
    assert (row["started"], row["message"]) == (None, "from the importer")
    assert harness.store.queries.events(job_id)[-1].message == "cancelled before it was started"


def test_cancel_of_unknown_job_returns_none(harness: Harness) -> None:
    assert cancel(harness, 2**60) is None


Act = Callable[[Harness, int, str], Any]
ACTS: dict[str, Act] = {
    "cancel": lambda harness, job_id, user: harness.store.control.cancel(job_id, user, terminate=False),
    "status": lambda harness, job_id, user: harness.store.queries.status(job_id, user),
    "job": lambda harness, job_id, user: harness.store.queries.job(job_id, user),
    "set_message": lambda harness, job_id, user: harness.store.control.set_message(
        job_id, "mine", user, None
    ),
    "set_status": lambda harness, job_id, user: harness.store.control.set_status(
        job_id, CANCELLED, "t", user, "x"
    )[0],
    "release": lambda harness, job_id, user: harness.release(job_id, user) or None,
    "resubmit": lambda harness, job_id, user: (
        harness.store.control.resubmit(job_id, str(uuid.uuid4()), user) or None
    ),
    "events": lambda harness, job_id, user: harness.store.queries.events(job_id, user) or None,
}


@pytest.mark.parametrize("state", [HELD, FINISHED])
@pytest.mark.parametrize("act", ACTS)
def test_another_users_job_is_an_unknown_job(harness: Harness, act: str, state: str) -> None:
    job_id = harness.place(state, username="ann").job_id
    row = harness.row(job_id)
    assert ACTS[act](harness, job_id, "bob") is None
    assert harness.row(job_id) == row
    helped = {"release": state == HELD, "resubmit": state == FINISHED}
    if helped.get(act, True):
        assert ACTS[act](harness, job_id, "ann") is not None


@pytest.mark.parametrize("state", STATES)
@pytest.mark.parametrize("status", [RUNNING, FINISHED, ERROR, CANCELLED])
def test_set_status_returns_previous_status(harness: Harness, status: JobStatus, state: str) -> None:
    job_id = harness.place(state, message="before").job_id
    before = harness.row(job_id)
    left = before["status_id"]
    allowed = {
        RUNNING: not left.final,
        FINISHED: left is RUNNING,
        ERROR: left is RUNNING,
        CANCELLED: True,
    }[status]

    assert set_status(harness, job_id, status, "by hand") == (left, allowed)

    after = harness.row(job_id)
    if not allowed or (status is CANCELLED and left.final):
        assert after == before
        return
    expected = RUNNING if (status, left) == (CANCELLED, RUNNING) else status
    assert (after["status_id"], after["message"]) == (expected, "by hand")
    if (status, left) == (RUNNING, RUNNING):
        assert after == before | {"message": "by hand"}


def test_scheduled_job_cannot_be_set_running_early(harness: Harness) -> None:
    job_id = harness.submit(scheduled_for=timedelta(hours=1))
    row = harness.row(job_id)
    assert set_status(harness, job_id, RUNNING, "mine") == (JobStatus.WAITING, False)
    assert harness.row(job_id) == row


def test_expired_job_cannot_be_taken_by_hand(harness: Harness) -> None:
    job_id = harness.submit(expires=timedelta(minutes=5))
    harness.pass_time(minutes=6)
    assert set_status(harness, job_id, RUNNING) == (JobStatus.SUBMITTED, False)


@pytest.mark.parametrize("status", [RUNNING, FINISHED])
def test_set_status_retried_with_one_token_returns_the_same(harness: Harness, status: JobStatus) -> None:
    """The answer to the first commit was lost."""
    job_id, token = harness.place(RUNNING if status.final else JobStatus.QUEUED).job_id, str(uuid.uuid4())
    assert harness.store.control.set_status(job_id, status, token, None, None)[1]
    row, events = harness.row(job_id), harness.events(job_id)
    previous, moved = harness.store.control.set_status(job_id, status, token, None, None)
    assert (previous, moved) == (RUNNING, True)
    assert (harness.row(job_id), harness.events(job_id)) == (row, events)


def test_outsiders_end_takes_the_claim_away_from_the_body(harness: Harness) -> None:
    run = harness.run(harness.submit())
    set_status(harness, run.job_id, ERROR)
    assert harness.store.runs.check(run) == (False, True)
    assert not harness.store.runs.finish(run, "1")


def test_set_message_changes_only_the_message(harness: Harness) -> None:
    job_id = harness.submit(message="first")
    row = harness.row(job_id)
    assert harness.store.control.set_message(job_id, "second", None, None) == "first"
    assert harness.row(job_id) == row | {"message": "second"}
    assert harness.store.control.set_message(job_id, None, None, None) == "second"
    assert harness.row(job_id) == row | {"message": "second"}


def test_progress_from_outside_is_written_while_running(harness: Harness) -> None:
    job_id = harness.submit()
    assert not harness.store.control.note_progress_of(job_id, 1, 2, None)
    harness.run(job_id)
    assert harness.store.control.note_progress_of(job_id, 1, None, None)
    job = harness.store.queries.job(job_id)
    assert job is not None
    assert job.progress is not None
    assert (job.progress.current, job.progress.total) == (1, None)


def test_selection_is_cancelled_and_the_rest_is_not(harness: Harness) -> None:
    ann = [harness.submit(username="ann") for _ in range(3)]
    bob = harness.submit(username="bob")
    running = harness.run(harness.submit(username="ann")).job_id
    over = harness.place(FINISHED, username="ann").job_id
    assert harness.store.control.cancel_selected(Selection(username="ann")) == 4
    assert {harness.status(job_id) for job_id in ann} == {CANCELLED}
    assert harness.row(running)["cancel_requested"] is not None
    assert (harness.status(bob), harness.status(over)) == (JobStatus.SUBMITTED, FINISHED)
    assert harness.store.control.cancel_selected(Selection(username="ann")) == 0
    assert harness.store.control.cancel_selected(Selection(ids=(bob,), task="another")) == 0
    assert harness.store.control.cancel_selected(Selection(ids=(bob,), statuses=(JobStatus.SUBMITTED,))) == 1


def test_events_name_their_actors(harness: Harness) -> None:
    job_id = harness.submit(username="ann")
    harness.store.control.cancel(job_id, "ann", terminate=False)
    assert harness.store.control.resubmit(job_id, str(uuid.uuid4()), None)
    harness.run(job_id, harness.worker("w3"))
    events = [(event.status, event.attempt, event.actor) for event in harness.store.queries.events(job_id)]
    assert events == [
        (JobStatus.SUBMITTED, 0, "user ann"),
        (CANCELLED, 0, "user ann"),
        (JobStatus.RESUBMITTED, 0, "service"),
        (RUNNING, 1, "worker w3"),
    ]
