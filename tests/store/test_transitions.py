"""Every entry of `MOVES`, from every status, while all other conditions of its guard hold.

Only the status decides here; the other conditions have their own tests.
"""

import uuid
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import pytest

from jobhandle_celery.status import MOVES, JobStatus
from jobhandle_celery.store import Run, Worker
from tests.databases import MARIADB_WITH_FAULTS
from tests.store.harness import FAILURE, GRACE, HELD, REPUBLISH_AFTER, STATES, TASK, Harness, about

NONE = "none"
KEPT = "as it was"
REPORTED_LATER = "republish_after from now, if it was ever sent"
NOW = timedelta(0)
Expected = str | timedelta

RUNNING = JobStatus.RUNNING
FINAL_ROW: dict[str, Expected] = {
    "due_at": NONE,
    "not_before": NONE,
    "unique_hash": NONE,
    "worker_uid": NONE,
    "pid": NONE,
    "finished": NOW,
}
REQUEUED_ROW: dict[str, Expected] = {
    "due_at": NOW,
    "not_before": NONE,
    "unique_hash": KEPT,
    "worker_uid": NONE,
    "pid": NONE,
    "finished": NONE,
}


@dataclass(frozen=True)
class Verb:
    """A verb of `MOVES`, one way to call it, and the expected row afterwards."""

    move: str
    call: Callable[[Harness, Run], Any]
    to: JobStatus
    row: dict[str, Expected]
    before: Callable[[Harness, int], None] = lambda harness, job_id: None
    silent: bool = False
    """Queued has no event."""


def _stamped(harness: Harness, job_id: int) -> None:
    harness.write(job_id, cancel_requested=harness.row(job_id)["submitted"])


def _second_chance(harness: Harness, job_id: int) -> None:
    harness.write(job_id, max_attempts=2)


def _stamped_with_a_second_chance(harness: Harness, job_id: int) -> None:
    _stamped(harness, job_id)
    _second_chance(harness, job_id)


def _expired(harness: Harness, job_id: int) -> None:
    row = harness.row(job_id)
    harness.write(job_id, started=None, expires=row["submitted"], due_at=row["submitted"])


def _claim(harness: Harness, run: Run) -> Any:
    return harness.store.runs.claim(harness.key(run.job_id, run.worker), TASK)


def _set(status: JobStatus) -> Callable[[Harness, Run], Any]:
    return lambda harness, run: harness.store.control.set_status(
        run.job_id, status, str(uuid.uuid4()), None, None
    )


def _retry(harness: Harness, run: Run, delay: float | None = None) -> Any:
    return harness.store.runs.retry(run, "{}", None, delay, "again")


def _give_back(harness: Harness, run: Run) -> Any:
    return harness.store.recovery.give_back(run, "shut down", run.worker)


def _lose(harness: Harness, run: Run) -> Any:
    return harness.store.recovery.lose(run, "gone", run.worker)


def _send_back(harness: Harness, run: Run) -> Any:
    message = harness.message(run.job_id)
    return harness.store.runs.send_back(run.job_id, run.task_id, message.attempt, TASK, run.worker)


def _give_up(harness: Harness, run: Run) -> None:
    for number in range(4):
        message = (run.job_id, run.task_id, harness.row(run.job_id)["attempt"] + 1)
        harness.store.recovery.note_received([message], Worker(f"w{number}", f"uid-{number}", 1))


VERBS = {
    "give_up": Verb(
        "give_up",
        _give_up,
        JobStatus.ERROR,
        {"due_at": NONE, "not_before": NONE, "unique_hash": NONE, "worker_uid": NONE, "finished": NOW},
    ),
    "release": Verb(
        "release",
        lambda harness, run: harness.release(run.job_id),
        JobStatus.SUBMITTED,
        {"due_at": GRACE, "not_before": NONE, "scheduled_for": NONE, "unique_hash": KEPT, "finished": NONE},
    ),
    "publish": Verb(
        "publish",
        lambda harness, run: harness.queue(run.job_id),
        JobStatus.QUEUED,
        {"due_at": REPUBLISH_AFTER, "not_before": KEPT, "unique_hash": KEPT, "finished": NONE},
        silent=True,
    ),
    "claim": Verb(
        "claim",
        _claim,
        RUNNING,
        {
            "due_at": NONE,
            "not_before": NONE,
            "started": NOW,
            "unique_hash": KEPT,
            "worker_uid": "the worker's",
            "pid": "the worker's",
            "finished": NONE,
        },
    ),
    "set_running": Verb(
        "set_running",
        _set(RUNNING),
        RUNNING,
        {
            "due_at": NONE,
            "not_before": NONE,
            "started": NOW,
            "unique_hash": KEPT,
            "worker_uid": NONE,
            "pid": NONE,
            "finished": NONE,
        },
    ),
    "finish": Verb(
        "finish", lambda harness, run: harness.store.runs.finish(run, "1"), JobStatus.FINISHED, FINAL_ROW
    ),
    "fail": Verb(
        "fail", lambda harness, run: harness.store.runs.fail(run, FAILURE), JobStatus.ERROR, FINAL_ROW
    ),
    "stop": Verb(
        "stop", lambda harness, run: harness.store.runs.stop(run, ""), JobStatus.CANCELLED, FINAL_ROW
    ),
    "retry at once": Verb("retry", _retry, JobStatus.REQUEUED, REQUEUED_ROW | {"due_at": GRACE}),
    "retry later": Verb(
        "retry",
        lambda harness, run: _retry(harness, run, 3600.0),
        JobStatus.REQUEUED,
        REQUEUED_ROW | {"due_at": timedelta(hours=1), "not_before": timedelta(hours=1)},
    ),
    "retry, asked to stop": Verb("retry", _retry, JobStatus.CANCELLED, FINAL_ROW, before=_stamped),
    "give_back": Verb("give_back", _give_back, JobStatus.REQUEUED, REQUEUED_ROW),
    "give_back, asked to stop": Verb(
        "give_back",
        _give_back,
        JobStatus.CANCELLED,
        FINAL_ROW,
        before=_stamped,
    ),
    "lose for good": Verb("lose", _lose, JobStatus.ERROR, FINAL_ROW),
    "lose with attempts left": Verb("lose", _lose, JobStatus.REQUEUED, REQUEUED_ROW, before=_second_chance),
    "lose, asked to stop": Verb(
        "lose",
        _lose,
        JobStatus.CANCELLED,
        FINAL_ROW,
        before=_stamped_with_a_second_chance,
    ),
    # The worker stays named until the body has left.
    "end as Finished": Verb(
        "end", _set(JobStatus.FINISHED), JobStatus.FINISHED, FINAL_ROW | {"worker_uid": KEPT, "pid": KEPT}
    ),
    "end as Error": Verb(
        "end", _set(JobStatus.ERROR), JobStatus.ERROR, FINAL_ROW | {"worker_uid": KEPT, "pid": KEPT}
    ),
    "cancel": Verb(
        "cancel",
        lambda harness, run: harness.store.control.cancel(run.job_id, None, terminate=False),
        JobStatus.CANCELLED,
        FINAL_ROW | {"cancel_requested": NOW, "due_at": REPORTED_LATER},
    ),
    "expire": Verb(
        "expire",
        lambda harness, run: harness.store.sweep.expire(),
        JobStatus.CANCELLED,
        FINAL_ROW | {"due_at": REPORTED_LATER},
        before=_expired,
    ),
    "send_back": Verb(
        "send_back",
        _send_back,
        JobStatus.SUBMITTED,
        {"due_at": REPUBLISH_AFTER, "unique_hash": KEPT, "message": KEPT, "finished": NONE},
    ),
    "resubmit": Verb(
        "resubmit",
        lambda harness, run: harness.store.control.resubmit(run.job_id, str(uuid.uuid4()), None),
        JobStatus.RESUBMITTED,
        {"due_at": GRACE, "not_before": NONE, "started": NONE, "finished": NONE, "worker_uid": NONE},
    ),
}

NOT_HELD = {"publish", "claim", "send_back", "give_up"}
"""A held job is Waiting, and leaves it only by release, an outsider's claim, cancel and expiry."""


def _moves_from(verb: Verb, state: str) -> bool:
    if state == HELD:
        return JobStatus.WAITING in MOVES[verb.move].sources and verb.move not in NOT_HELD
    return state in MOVES[verb.move].sources


def _key(harness: Harness, job_id: int, run: Run | None) -> Run:
    # Without a run: the key that its row would match if it were Running.
    if run is None or harness.row(job_id)["task_id"] != run.task_id:
        message = harness.message(job_id)
        run = Run(job_id, message.task_id, message.attempt - 1, str(uuid.uuid4()), harness.worker())
        harness.write(job_id, claim_id=run.claim_id)
    return run


def test_every_move_has_a_case() -> None:
    assert {verb.move for verb in VERBS.values()} == MOVES.keys() - {"submit"}


CASES = [
    pytest.param(name, state, id=f"{name}, {state}")
    for name in VERBS
    for state in STATES
    # No move, but the request is stored in the row: see test_control.py.
    if (name, state) != ("cancel", RUNNING)
]


@pytest.mark.parametrize("common_url", MARIADB_WITH_FAULTS, indirect=True)
@pytest.mark.parametrize(("name", "state"), CASES)
def test_move_is_made_from_its_sources_only(harness: Harness, name: str, state: str) -> None:
    verb = VERBS[name]
    placed = harness.place(state, unique_key="the only one")
    job_id = placed.job_id
    verb.before(harness, job_id)
    run = _key(harness, job_id, placed.run)
    row, events = harness.row(job_id), harness.events(job_id)

    verb.call(harness, run)

    after, written = harness.row(job_id), harness.events(job_id)
    if not _moves_from(verb, state):
        assert after == row
        assert written == events
        return
    assert after["status_id"] is verb.to
    assert verb.to in MOVES[verb.move].targets
    assert written == events + ([] if verb.silent else [verb.to])
    for column, expected in verb.row.items():
        assert _fits(harness, row, after, column, expected), (column, row[column], after[column])


def _fits(
    harness: Harness, row: dict[str, Any], after: dict[str, Any], column: str, expected: Expected
) -> bool:
    found = after[column]
    if isinstance(expected, timedelta):
        return found is not None and about(harness.ahead(found), expected)
    if expected == REPORTED_LATER:
        sent = row["publish_count"] or row["attempt"]
        expected = REPUBLISH_AFTER if sent else NONE
        return _fits(harness, row, after, column, expected)
    match expected:
        case "none":
            return found is None
        case "as it was":
            return bool(found == row[column])
        case _:
            return found is not None


@pytest.mark.parametrize(
    ("given", "status", "due", "not_before"),
    [
        ({}, JobStatus.SUBMITTED, GRACE, None),
        ({"scheduled_for": timedelta(hours=-1)}, JobStatus.SUBMITTED, GRACE, None),
        ({"held": True, "scheduled_for": timedelta(hours=-1)}, JobStatus.SUBMITTED, GRACE, None),
        ({"held": True}, JobStatus.WAITING, None, None),
        ({"held": True, "expires": timedelta(hours=1)}, JobStatus.WAITING, timedelta(hours=1), None),
        ({"scheduled_for": timedelta(hours=1)}, JobStatus.WAITING, timedelta(hours=1), timedelta(hours=1)),
        (
            {"held": True, "scheduled_for": timedelta(hours=1)},
            JobStatus.WAITING,
            timedelta(hours=1),
            timedelta(hours=1),
        ),
        (
            {"scheduled_for": timedelta(hours=2), "expires": timedelta(hours=1)},
            JobStatus.WAITING,
            timedelta(hours=1),
            timedelta(hours=2),
        ),
    ],
)
def test_submitted_job_waits_for_its_time_or_for_its_release(
    harness: Harness,
    given: dict[str, Any],
    status: JobStatus,
    due: timedelta | None,
    not_before: timedelta | None,
) -> None:
    job_id = harness.submit(**given)
    row = harness.row(job_id)
    assert row["status_id"] is status
    for moment, expected in ((row["due_at"], due), (row["not_before"], not_before)):
        assert moment is None if expected is None else about(harness.ahead(moment), expected)
    assert harness.events(job_id) == [status]


def test_loss_is_counted_and_a_give_back_is_not(harness: Harness) -> None:
    job_id = harness.submit(max_attempts=2)
    run = harness.run(job_id)
    harness.store.recovery.give_back(run, "shut down", run.worker)
    assert harness.row(job_id)["lost_count"] == 0
    run = harness.run(job_id)
    harness.store.recovery.lose(run, "gone", run.worker)
    assert harness.row(job_id)["lost_count"] == 1
    run = harness.run(job_id)
    harness.store.recovery.lose(run, "gone", run.worker)
    row = harness.row(job_id)
    assert (row["status_id"], row["lost_count"], row["attempt"]) == (JobStatus.ERROR, 2, 3)
