"""Writes of superseded runs change nothing; a repeated write is recognised."""

import uuid
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from jobhandle_celery.models import Failure
from jobhandle_celery.status import JobStatus
from jobhandle_celery.store import ProcessRef, Run
from tests.store.harness import FAILURE, Bench, Row

Write = Callable[[Bench, Run], Any]
Supersede = Callable[[Bench, Run], Any]

WRITES: dict[str, Write] = {
    "message": lambda bench, run: bench.store.control.set_message(run.job_id, "late", None, run),
    "progress": lambda bench, run: bench.store.runs.note_progress(run, 7, 8),
    "finish": lambda bench, run: bench.store.runs.finish(run, '"late"'),
    "fail": lambda bench, run: bench.store.runs.fail(run, FAILURE),
    "stop": lambda bench, run: bench.store.runs.stop(run, "late"),
    "retry": lambda bench, run: bench.store.runs.retry(run, '"late"', "late", 60.0, "late"),
    "give_back": lambda bench, run: bench.store.recovery.give_back(run, "late", run.worker),
    "lose": lambda bench, run: bench.store.recovery.lose(run, "late", run.worker),
    "leave": lambda bench, run: bench.store.runs.leave(run),
    "fail_process": lambda bench, run: bench.store.recovery.fail_process(process(run), FAILURE, run.worker),
    "stop_process": lambda bench, run: bench.store.recovery.stop_process(process(run), "late", run.worker),
    "lose_process": lambda bench, run: bench.store.recovery.lose(process(run), "late", run.worker),
    "give_back_process": lambda bench, run: bench.store.recovery.give_back(process(run), "late", run.worker),
    "give_back_boot": lambda bench, run: bench.store.recovery.give_back_all(run.worker, "late"),
}
LISTING = {"lose", "give_back", "lose_process", "give_back_process", "give_back_boot"}


def declined(write: str, row: Row) -> Any:
    """Return the answer of a write that changes nothing."""
    says = {"message": row["message"], "leave": None, "retry": None}
    return [] if write in LISTING else says.get(write, False)


def process(run: Run) -> ProcessRef:
    return ProcessRef(run.job_id, run.task_id, run.attempt, str(run.worker.worker_uid), run.worker.pid)


def _gone(bench: Bench, run: Run) -> None:
    bench.write(run.job_id, max_attempts=9)
    bench.store.recovery.lose(run, "gone", run.worker)


def _claimed_again(bench: Bench, run: Run) -> None:
    _gone(bench, run)
    bench.run(run.job_id)


def _lost_for_good(bench: Bench, run: Run) -> None:
    bench.store.recovery.lose(run, "gone", run.worker)


def _cancelled_in_between(bench: Bench, run: Run) -> None:
    _gone(bench, run)
    bench.store.control.cancel(run.job_id, None, terminate=False)


def _ended_by_hand(bench: Bench, run: Run) -> None:
    bench.store.control.set_status(run.job_id, JobStatus.ERROR, str(uuid.uuid4()), None, None)
    bench.store.runs.leave(run)


def _second_round(bench: Bench, run: Run) -> None:
    bench.store.runs.finish(run, "1")
    assert bench.store.control.resubmit(run.job_id, str(uuid.uuid4()), None)
    bench.run(run.job_id)


def _taken_by_an_outsider(bench: Bench, run: Run) -> None:
    _gone(bench, run)
    bench.store.control.set_status(run.job_id, JobStatus.RUNNING, str(uuid.uuid4()), None, None)


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
def test_superseded_run_writes_nothing(bench: Bench, superseded: str) -> None:
    """Mutants 8 (the second round counts from one) and 16 (guarded by status alone)."""
    run = bench.run(bench.submit())
    SUPERSEDED[superseded](bench, run)
    row, events = bench.row(run.job_id), bench.events(run.job_id)

    for name, write in WRITES.items():
        assert write(bench, run) == declined(name, row), name
        assert bench.row(run.job_id) == row, name
    assert bench.events(run.job_id) == events


@pytest.mark.parametrize("superseded", SUPERSEDED)
def test_superseded_run_learns_to_stop(bench: Bench, superseded: str) -> None:
    run = bench.run(bench.submit())
    assert bench.store.runs.check(run) == (True, False)
    SUPERSEDED[superseded](bench, run)
    assert bench.store.runs.check(run) == (False, True)


def test_run_that_is_asked_to_stop_still_holds_its_row(bench: Bench) -> None:
    run = bench.run(bench.submit())
    bench.store.control.cancel(run.job_id, None, terminate=False)
    assert bench.store.runs.check(run) == (True, True)
    assert bench.store.runs.note_progress(run, 1, 2)


@pytest.mark.parametrize("spoiled", ["attempt", "claim_id", "task_id"])
def test_every_part_of_the_key_is_looked_at(bench: Bench, spoiled: str) -> None:
    """Mutant 16: without one part of the fence another run's key would match."""
    run = bench.run(bench.submit())
    row = bench.row(run.job_id)
    wrong = {
        "attempt": replace(run, attempt=2),
        "claim_id": replace(run, claim_id="another"),
        "task_id": replace(run, task_id="another"),
    }[spoiled]
    for name, write in WRITES.items():
        if name == "give_back_boot" or ("process" in name and spoiled != "task_id"):
            continue  # the next test covers the main process
        write(bench, wrong)
        assert bench.row(run.job_id) == row, name


@pytest.mark.parametrize("write", [name for name in WRITES if name.endswith("_process")])
def test_main_process_ends_only_the_run_that_the_row_names(bench: Bench, write: str) -> None:
    """Mutant 14: a signal about a duplicate, on another worker or in another process, changes nothing."""
    run = bench.run(bench.submit(), bench.worker("w1", pid=100))
    row = bench.row(run.job_id)
    elsewhere = replace(run, worker=bench.worker("w2", pid=100))
    another_child = replace(run, worker=replace(run.worker, pid=101))
    for duplicate in (elsewhere, another_child):
        assert WRITES[write](bench, duplicate) == declined(write, row)
    assert bench.row(run.job_id) == row
    assert WRITES[write](bench, run)
    assert bench.status(run.job_id) is not JobStatus.RUNNING


@pytest.mark.parametrize("write", ["finish", "fail", "stop", "retry"])
def test_retried_outcome_is_recognised(bench: Bench, write: str) -> None:
    """Related to mutant 19: the answer to the commit was lost, and the caller retries."""
    run = bench.run(bench.submit())
    first = WRITES[write](bench, run)
    row, events = bench.row(run.job_id), bench.events(run.job_id)
    assert first
    assert WRITES[write](bench, run) == first
    assert bench.row(run.job_id) == row
    assert bench.events(run.job_id) == events


@pytest.mark.parametrize("write", ["finish", "fail", "stop", "retry"])
def test_other_outcome_of_the_same_run_is_not_recognised(bench: Bench, write: str) -> None:
    run = bench.run(bench.submit())
    ended = bench.store.runs.stop if write in ("finish", "fail") else None
    assert ended(run, "") if ended else bench.store.runs.finish(run, "1")
    row = bench.row(run.job_id)
    assert not WRITES[write](bench, run)
    assert bench.row(run.job_id) == row


def test_finished_body_is_finished_though_it_was_asked_to_stop(bench: Bench) -> None:
    run = bench.run(bench.submit())
    bench.store.control.cancel(run.job_id, None, terminate=True)
    assert bench.store.runs.finish(run, "42")
    row = bench.row(run.job_id)
    assert (row["status_id"], row["result"]) == (JobStatus.FINISHED, "42")
    assert row["cancel_requested"] is not None


def test_last_message_stays_when_stopped_without_one(bench: Bench) -> None:
    run = bench.run(bench.submit(message="from the importer"))
    bench.store.control.set_message(run.job_id, "half way", None, run)
    bench.store.runs.stop(run, "")
    assert bench.row(run.job_id)["message"] == "half way"


def test_failure_becomes_the_message_and_is_kept_as_data(bench: Bench) -> None:
    run = bench.run(bench.submit())
    bench.store.runs.fail(run, Failure("task", "ValueError", "no\0 good", "Trace"))
    job = bench.store.queries.job(run.job_id)
    assert job is not None
    assert job.message == "ValueError: no good"
    assert job.error is not None
    assert (job.error.kind, job.error.type, job.error.traceback) == ("task", "ValueError", "Trace")


def test_retry_stores_signature_and_queue_of_the_next_message(bench: Bench) -> None:
    run = bench.run(bench.submit(queue="first"))
    bench.store.runs.retry(run, '{"args": [2]}', "second", None, "again")
    message = bench.message(run.job_id)
    assert (message.retry, message.queue, message.attempt) == ('{"args": [2]}', "second", 2)


def test_give_back_all_returns_only_this_workers_jobs(bench: Bench) -> None:
    mine, stranger = bench.worker("w1"), bench.worker("w2")
    runs = [bench.run(bench.submit(), mine) for _ in range(3)]
    bench.store.runs.finish(runs[0], "1")
    bench.store.control.cancel(runs[1].job_id, None, terminate=False)
    elsewhere = bench.run(bench.submit(), stranger)
    given = bench.store.recovery.give_back_all(mine, "shut down")
    assert {(lost.job_id, lost.status) for lost in given} == {
        (runs[1].job_id, JobStatus.CANCELLED),
        (runs[2].job_id, JobStatus.REQUEUED),
    }
    assert bench.status(elsewhere.job_id) is JobStatus.RUNNING
    assert bench.status(runs[0].job_id) is JobStatus.FINISHED
