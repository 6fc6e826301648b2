"""Operations from outside a run (cancel, set a status, set a message), and their return values."""

import uuid
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest

from jobhandle_celery.status import JobStatus
from jobhandle_celery.store import Selection
from tests.store.harness import HELD, STATES, Bench

CANCELLED, RUNNING = JobStatus.CANCELLED, JobStatus.RUNNING
FINISHED, ERROR = JobStatus.FINISHED, JobStatus.ERROR


def cancel(bench: Bench, job_id: int, *, terminate: bool = False) -> JobStatus | None:
    return bench.store.control.cancel(job_id, None, terminate=terminate)


def set_status(
    bench: Bench, job_id: int, status: JobStatus, message: str | None = None, username: str | None = None
) -> tuple[JobStatus | None, bool]:
    return bench.store.control.set_status(job_id, status, str(uuid.uuid4()), username, message)


@pytest.mark.parametrize("state", STATES)
def test_cancel_returns_resulting_status(bench: Bench, state: str) -> None:
    job_id = bench.place(state).job_id
    before = bench.row(job_id)
    status = before["status_id"]
    answer = cancel(bench, job_id)
    assert answer is (status if status.final or status is RUNNING else CANCELLED)
    if status.final:
        assert bench.row(job_id) == before


def test_cancel_of_running_job_requests_a_stop_only(bench: Bench) -> None:
    run = bench.run(bench.submit())
    before = bench.row(run.job_id)
    assert cancel(bench, run.job_id) is RUNNING
    after = bench.row(run.job_id)
    assert after.pop("cancel_requested") is not None
    assert after.items() <= before.items()
    event = bench.store.queries.events(run.job_id)[-1]
    assert (event.status, event.message) == (RUNNING, "asked to stop")


def test_second_request_changes_nothing_unless_it_asks_for_more(bench: Bench) -> None:
    run = bench.run(bench.submit())
    cancel(bench, run.job_id)
    row, events = bench.row(run.job_id), bench.events(run.job_id)
    assert cancel(bench, run.job_id) is RUNNING
    assert (bench.row(run.job_id), bench.events(run.job_id)) == (row, events)
    assert cancel(bench, run.job_id, terminate=True) is RUNNING
    assert bench.row(run.job_id) == row | {"terminate": True}
    cancel(bench, run.job_id)
    assert bench.row(run.job_id)["terminate"], "a terminate request stays"


def test_cancelled_job_has_no_start_and_the_callers_message(bench: Bench) -> None:
    job_id = bench.submit(message="from the importer")
    cancel(bench, job_id)
    row = bench.row(job_id)
    assert (row["started"], row["message"]) == (None, "from the importer")
    assert bench.store.queries.events(job_id)[-1].message == "cancelled before it was started"


def test_cancel_of_unknown_job_returns_none(bench: Bench) -> None:
    assert cancel(bench, 2**60) is None


Act = Callable[[Bench, int, str], Any]
ACTS: dict[str, Act] = {
    "cancel": lambda bench, job_id, user: bench.store.control.cancel(job_id, user, terminate=False),
    "status": lambda bench, job_id, user: bench.store.queries.status(job_id, user),
    "job": lambda bench, job_id, user: bench.store.queries.job(job_id, user),
    "set_message": lambda bench, job_id, user: bench.store.control.set_message(job_id, "mine", user, None),
    "set_status": lambda bench, job_id, user: bench.store.control.set_status(
        job_id, CANCELLED, "t", user, "x"
    )[0],
    "release": lambda bench, job_id, user: bench.release(job_id, user) or None,
    "resubmit": lambda bench, job_id, user: (
        bench.store.control.resubmit(job_id, str(uuid.uuid4()), user) or None
    ),
    "events": lambda bench, job_id, user: bench.store.queries.events(job_id, user) or None,
}


@pytest.mark.parametrize("state", [HELD, FINISHED])
@pytest.mark.parametrize("act", ACTS)
def test_another_users_job_is_an_unknown_job(bench: Bench, act: str, state: str) -> None:
    job_id = bench.place(state, username="ann").job_id
    row = bench.row(job_id)
    assert ACTS[act](bench, job_id, "bob") is None
    assert bench.row(job_id) == row
    helped = {"release": state == HELD, "resubmit": state == FINISHED}
    if helped.get(act, True):
        assert ACTS[act](bench, job_id, "ann") is not None


@pytest.mark.parametrize("state", STATES)
@pytest.mark.parametrize("status", [RUNNING, FINISHED, ERROR, CANCELLED])
def test_set_status_returns_previous_status(bench: Bench, status: JobStatus, state: str) -> None:
    job_id = bench.place(state, message="before").job_id
    before = bench.row(job_id)
    left = before["status_id"]
    allowed = {
        RUNNING: not left.final,
        FINISHED: left is RUNNING,
        ERROR: left is RUNNING,
        CANCELLED: True,
    }[status]

    assert set_status(bench, job_id, status, "by hand") == (left, allowed)

    after = bench.row(job_id)
    if not allowed or (status is CANCELLED and left.final):
        assert after == before
        return
    expected = RUNNING if (status, left) == (CANCELLED, RUNNING) else status
    assert (after["status_id"], after["message"]) == (expected, "by hand")
    if (status, left) == (RUNNING, RUNNING):
        assert after == before | {"message": "by hand"}


def test_scheduled_job_cannot_be_set_running_early(bench: Bench) -> None:
    job_id = bench.submit(scheduled_for=timedelta(hours=1))
    row = bench.row(job_id)
    assert set_status(bench, job_id, RUNNING, "mine") == (JobStatus.WAITING, False)
    assert bench.row(job_id) == row


def test_expired_job_cannot_be_taken_by_hand(bench: Bench) -> None:
    job_id = bench.submit(expires=timedelta(minutes=5))
    bench.pass_time(minutes=6)
    assert set_status(bench, job_id, RUNNING) == (JobStatus.SUBMITTED, False)


@pytest.mark.parametrize("status", [RUNNING, FINISHED])
def test_set_status_retried_with_one_token_returns_the_same(bench: Bench, status: JobStatus) -> None:
    """The answer to the first commit was lost."""
    job_id, token = bench.place(RUNNING if status.final else JobStatus.QUEUED).job_id, str(uuid.uuid4())
    assert bench.store.control.set_status(job_id, status, token, None, None)[1]
    row, events = bench.row(job_id), bench.events(job_id)
    previous, moved = bench.store.control.set_status(job_id, status, token, None, None)
    assert (previous, moved) == (RUNNING, True)
    assert (bench.row(job_id), bench.events(job_id)) == (row, events)


def test_outsiders_end_takes_the_claim_away_from_the_body(bench: Bench) -> None:
    run = bench.run(bench.submit())
    set_status(bench, run.job_id, ERROR)
    assert bench.store.runs.check(run) == (False, True)
    assert not bench.store.runs.finish(run, "1")


def test_set_message_changes_only_the_message(bench: Bench) -> None:
    job_id = bench.submit(message="first")
    row = bench.row(job_id)
    assert bench.store.control.set_message(job_id, "second", None, None) == "first"
    assert bench.row(job_id) == row | {"message": "second"}
    assert bench.store.control.set_message(job_id, None, None, None) == "second"
    assert bench.row(job_id) == row | {"message": "second"}


def test_progress_from_outside_is_written_while_running(bench: Bench) -> None:
    job_id = bench.submit()
    assert not bench.store.control.note_progress_of(job_id, 1, 2, None)
    bench.run(job_id)
    assert bench.store.control.note_progress_of(job_id, 1, None, None)
    job = bench.store.queries.job(job_id)
    assert job is not None
    assert job.progress is not None
    assert (job.progress.current, job.progress.total) == (1, None)


def test_selection_is_cancelled_and_the_rest_is_not(bench: Bench) -> None:
    ann = [bench.submit(username="ann") for _ in range(3)]
    bob = bench.submit(username="bob")
    running = bench.run(bench.submit(username="ann")).job_id
    over = bench.place(FINISHED, username="ann").job_id
    assert bench.store.control.cancel_selected(Selection(username="ann")) == 4
    assert {bench.status(job_id) for job_id in ann} == {CANCELLED}
    assert bench.row(running)["cancel_requested"] is not None
    assert (bench.status(bob), bench.status(over)) == (JobStatus.SUBMITTED, FINISHED)
    assert bench.store.control.cancel_selected(Selection(username="ann")) == 0
    assert bench.store.control.cancel_selected(Selection(ids=(bob,), task="another")) == 0
    assert bench.store.control.cancel_selected(Selection(ids=(bob,), statuses=(JobStatus.SUBMITTED,))) == 1


def test_events_name_their_actors(bench: Bench) -> None:
    job_id = bench.submit(username="ann")
    bench.store.control.cancel(job_id, "ann", terminate=False)
    assert bench.store.control.resubmit(job_id, str(uuid.uuid4()), None)
    bench.run(job_id, bench.worker("w3"))
    events = [(event.status, event.attempt, event.actor) for event in bench.store.queries.events(job_id)]
    assert events == [
        (JobStatus.SUBMITTED, 0, "user ann"),
        (CANCELLED, 0, "user ann"),
        (JobStatus.RESUBMITTED, 0, "service"),
        (RUNNING, 1, "worker w3"),
    ]
