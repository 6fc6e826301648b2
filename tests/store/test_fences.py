"""Writes of superseded runs change nothing; a repeated write is recognised."""

import uuid
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from jobhandle_celery.models import Failure
from jobhandle_celery.status import JobStatus
from jobhandle_celery.store import ProcessRef, Run, RunResult
from tests.store.harness import FAILURE, Harness, Row

Write = Callable[[Harness, Run], Any]
Supersede = Callable[[Harness, Run], Any]

WRITES: dict[str, Write] = {
    "message": lambda harness, run: harness.store.control.set_message(run.job_id, "late", None, run),
    "progress": lambda harness, run: harness.store.runs.note_progress(run, 7, 8),
    "finish": lambda harness, run: harness.store.runs.finish(run, '"late"'),
    "finish_many": lambda harness, run: harness.store.runs.finish_many(
        {run: RunResult('"late"')}, run.worker
    ),
    "fail": lambda harness, run: harness.store.runs.fail(run, FAILURE),
    "stop": lambda harness, run: harness.store.runs.stop(run, "late"),
    "retry": lambda harness, run: harness.store.runs.retry(run, '"late"', "late", 60.0, "late"),
    "give_back": lambda harness, run: harness.store.recovery.give_back(run, "late", run.worker),
    "lose": lambda harness, run: harness.store.recovery.lose(run, "late", run.worker),
    "note_body_exited": lambda harness, run: harness.store.runs.note_body_exited(run),
    "fail_process": lambda harness, run: harness.store.recovery.fail_process(
        process(run), FAILURE, run.worker
    ),
    "stop_process": lambda harness, run: harness.store.recovery.stop_process(
        process(run), "late", run.worker
    ),
    "lose_process": lambda harness, run: harness.store.recovery.lose(process(run), "late", run.worker),
    "give_back_process": lambda harness, run: harness.store.recovery.give_back(
        process(run), "late", run.worker
    ),
    "give_back_all": lambda harness, run: harness.store.recovery.give_back_all(run.worker, "late"),
}
LISTING = {"lose", "give_back", "lose_process", "give_back_process", "give_back_all"}


def declined(write: str, row: Row) -> Any:
    """Return the answer of a write that changes nothing."""
    answers = {"message": row["message"], "note_body_exited": None, "retry": None, "finish_many": set()}
    return [] if write in LISTING else answers.get(write, False)


def process(run: Run) -> ProcessRef:
    return ProcessRef(run.job_id, run.task_id, run.attempt, str(run.worker.worker_uid), run.worker.pid)


def _gone(harness: Harness, run: Run) -> None:
    harness.write(run.job_id, max_attempts=9)
    harness.store.recovery.lose(run, "gone", run.worker)


def _claimed_again(harness: Harness, run: Run) -> None:
    _gone(harness, run)
    harness.run(run.job_id)


def _lost_for_good(harness: Harness, run: Run) -> None:
    harness.store.recovery.lose(run, "gone", run.worker)


def _cancelled_in_between(harness: Harness, run: Run) -> None:
    _gone(harness, run)
    harness.store.control.cancel(run.job_id, None, terminate=False)


def _ended_by_hand(harness: Harness, run: Run) -> None:
    harness.store.control.set_status(run.job_id, JobStatus.ERROR, str(uuid.uuid4()), None, None)
    harness.store.runs.note_body_exited(run)


def _second_round(harness: Harness, run: Run) -> None:
    harness.store.runs.finish(run, "1")
    assert harness.store.control.resubmit(run.job_id, str(uuid.uuid4()), None)
    harness.run(run.job_id)


def _taken_by_an_outsider(harness: Harness, run: Run) -> None:
    _gone(harness, run)
    harness.store.control.set_status(run.job_id, JobStatus.RUNNING, str(uuid.uuid4()), None, None)


SUPERSEDED: dict[str, Supersede] = {
    "lost": _gone,
    "lost for good": _lost_for_good,
    "lost and claimed again": _claimed_again,
    "lost and cancelled": _cancelled_in_between,
    "lost and taken by an outsider": _taken_by_an_outsider,
    "ended by an outsider": _ended_by_hand,
    "finished, resubmitted, claimed again": _second_round,
}


@pytest.mark.parametrize("superseded", SUPERSEDED)
def test_superseded_run_writes_nothing(harness: Harness, superseded: str) -> None:
    """Mutants 8 (the second round counts from one) and 16 (guarded by status alone)."""
    run = harness.run(harness.submit())
    SUPERSEDED[superseded](harness, run)
    row, events = harness.row(run.job_id), harness.events(run.job_id)

    for name, write in WRITES.items():
        assert write(harness, run) == declined(name, row), name
        assert harness.row(run.job_id) == row, name
    assert harness.events(run.job_id) == events


@pytest.mark.parametrize("superseded", SUPERSEDED)
def test_superseded_run_learns_to_stop(harness: Harness, superseded: str) -> None:
    run = harness.run(harness.submit())
    assert harness.store.runs.check(run) == (True, False)
    SUPERSEDED[superseded](harness, run)
    assert harness.store.runs.check(run) == (False, True)


def test_run_that_is_asked_to_stop_still_holds_its_row(harness: Harness) -> None:
    run = harness.run(harness.submit())
    harness.store.control.cancel(run.job_id, None, terminate=False)
    assert harness.store.runs.check(run) == (True, True)
    assert harness.store.runs.note_progress(run, 1, 2)


@pytest.mark.parametrize("spoiled", ["attempt", "claim_id", "task_id"])
def test_every_part_of_the_key_is_looked_at(harness: Harness, spoiled: str) -> None:
    """Mutant 16: without one part of the fence another run's key would match."""
    run = harness.run(harness.submit())
    row = harness.row(run.job_id)
    wrong = {
        "attempt": replace(run, attempt=2),
        "claim_id": replace(run, claim_id="another"),
        "task_id": replace(run, task_id="another"),
    }[spoiled]
    for name, write in WRITES.items():
        if name == "give_back_all" or ("process" in name and spoiled != "task_id"):
            continue  # the next test covers the main process
        write(harness, wrong)
        assert harness.row(run.job_id) == row, name


@pytest.mark.parametrize("write", [name for name in WRITES if name.endswith("_process")])
def test_main_process_ends_only_the_run_that_the_row_names(harness: Harness, write: str) -> None:
    """Mutant 14: a signal about a duplicate, on another worker or in another process, changes nothing."""
    run = harness.run(harness.submit(), harness.worker("w1", pid=100))
    row = harness.row(run.job_id)
    elsewhere = replace(run, worker=harness.worker("w2", pid=100))
    another_child = replace(run, worker=replace(run.worker, pid=101))
    for duplicate in (elsewhere, another_child):
        assert WRITES[write](harness, duplicate) == declined(write, row)
    assert harness.row(run.job_id) == row
    assert WRITES[write](harness, run)
    assert harness.status(run.job_id) is not JobStatus.RUNNING


@pytest.mark.parametrize("write", ["finish", "fail", "stop", "retry"])
def test_retried_outcome_is_recognised(harness: Harness, write: str) -> None:
    """Related to mutant 19: the answer to the commit was lost, and the caller retries."""
    run = harness.run(harness.submit())
    first = WRITES[write](harness, run)
    row, events = harness.row(run.job_id), harness.events(run.job_id)
    assert first
    assert WRITES[write](harness, run) == first
    assert harness.row(run.job_id) == row
    assert harness.events(run.job_id) == events


@pytest.mark.parametrize("write", ["finish", "fail", "stop", "retry"])
def test_other_outcome_of_the_same_run_is_not_recognised(harness: Harness, write: str) -> None:
    run = harness.run(harness.submit())
    ended = harness.store.runs.stop if write in ("finish", "fail") else None
    assert ended(run, "") if ended else harness.store.runs.finish(run, "1")
    row = harness.row(run.job_id)
    assert not WRITES[write](harness, run)
    assert harness.row(run.job_id) == row


def test_finished_body_is_finished_though_it_was_asked_to_stop(harness: Harness) -> None:
    run = harness.run(harness.submit())
    harness.store.control.cancel(run.job_id, None, terminate=True)
    assert harness.store.runs.finish(run, "42")
    row = harness.row(run.job_id)
    assert (row["status_id"], row["result"]) == (JobStatus.FINISHED, "42")
    assert row["cancel_requested"] is not None


def test_last_message_stays_when_stopped_without_one(harness: Harness) -> None:
    run = harness.run(harness.submit(message="from the importer"))
    harness.store.control.set_message(run.job_id, "half way", None, run)
    harness.store.runs.stop(run, "")
    assert harness.row(run.job_id)["message"] == "half way"


def test_failure_becomes_the_message_and_is_kept_as_data(harness: Harness) -> None:
    run = harness.run(harness.submit())
    harness.store.runs.fail(run, Failure("task", "ValueError", "no\0 good", "Trace"))
    job = harness.store.queries.job(run.job_id)
    assert job is not None
    assert job.message == "ValueError: no good"
    assert job.error is not None
    assert (job.error.kind, job.error.type, job.error.traceback) == ("task", "ValueError", "Trace")


def test_retry_stores_signature_and_queue_of_the_next_message(harness: Harness) -> None:
    run = harness.run(harness.submit(queue="first"))
    harness.store.runs.retry(run, '{"args": [2]}', "second", None, "again")
    message = harness.message(run.job_id)
    assert (message.retry, message.queue, message.attempt) == ('{"args": [2]}', "second", 2)


def test_give_back_all_returns_only_this_workers_jobs(harness: Harness) -> None:
    mine, stranger = harness.worker("w1"), harness.worker("w2")
    runs = [harness.run(harness.submit(), mine) for _ in range(3)]
    harness.store.runs.finish(runs[0], "1")
    harness.store.control.cancel(runs[1].job_id, None, terminate=False)
    elsewhere = harness.run(harness.submit(), stranger)
    given = harness.store.recovery.give_back_all(mine, "shut down")
    assert {(lost.job_id, lost.status) for lost in given} == {
        (runs[1].job_id, JobStatus.CANCELLED),
        (runs[2].job_id, JobStatus.REQUEUED),
    }
    assert harness.status(elsewhere.job_id) is JobStatus.RUNNING
    assert harness.status(runs[0].job_id) is JobStatus.FINISHED
