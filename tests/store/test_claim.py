"""The claim's guard, condition by condition."""

import uuid
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import Connection, event, update

from jobhandle_celery.schema import job
from jobhandle_celery.status import JobStatus
from jobhandle_celery.store import ClaimRejected, RejectionReason, Run, Worker
from tests.store.harness import FAILURE, HELD, TASK, Harness

Spoil = Callable[[Harness, Run], Run]
"""Violates one condition of the guard, in the row or in the message; returns the claim's key."""


def _another_claim(harness: Harness, run: Run) -> Run:
    harness.run(run.job_id)
    return run


def _cancelled(harness: Harness, run: Run) -> Run:
    harness.store.control.cancel(run.job_id, None, terminate=False)
    return run


def _resubmitted(harness: Harness, run: Run) -> Run:
    _cancelled(harness, run)
    assert harness.store.control.resubmit(run.job_id, str(uuid.uuid4()), None)
    return run


def _retried(harness: Harness, run: Run) -> Run:
    former = harness.run(run.job_id)
    harness.store.runs.retry(former, "{}", None, None, "again")
    return run


def _waiting_to_retry(harness: Harness, run: Run) -> Run:
    former = harness.run(run.job_id)
    harness.store.runs.retry(former, "{}", None, 3600.0, "again")
    return harness.key(run.job_id, run.worker)


def _stamped(harness: Harness, run: Run) -> Run:
    harness.write(run.job_id, cancel_requested=harness.row(run.job_id)["submitted"])
    return run


def _finished(harness: Harness, run: Run) -> Run:
    harness.store.runs.finish(harness.run(run.job_id), "1")
    return run


def _expired(harness: Harness, run: Run) -> Run:
    harness.write(run.job_id, expires=harness.row(run.job_id)["submitted"])
    return run


def _lease_ended(harness: Harness, run: Run) -> Run:
    harness.pass_time(seconds=harness.settings.lease.total_seconds() + 1)
    return run


def _without_lease(harness: Harness, run: Run) -> Run:
    return replace(run, worker=Worker("unheard of", str(uuid.uuid4()), 1))


def _other_namespace(harness: Harness, run: Run) -> Run:
    harness.write(run.job_id, namespace="another")
    return run


SPOILS: dict[str, tuple[Spoil, RejectionReason]] = {
    "an unknown job": (lambda harness, run: replace(run, job_id=2**60), RejectionReason.UNKNOWN),
    "another namespace": (_other_namespace, RejectionReason.UNKNOWN),
    "another task id": (lambda harness, run: replace(run, task_id="another"), RejectionReason.SUPERSEDED),
    "a message of the former round": (_resubmitted, RejectionReason.SUPERSEDED),
    "a duplicate": (_another_claim, RejectionReason.SUPERSEDED),
    "a message of the former attempt": (_retried, RejectionReason.SUPERSEDED),
    "a message of a later attempt": (
        lambda harness, run: replace(run, attempt=2),
        RejectionReason.SUPERSEDED,
    ),
    "a finished job": (_finished, RejectionReason.SUPERSEDED),
    "a cancelled job": (_cancelled, RejectionReason.CANCELLED),
    "a stop request": (_stamped, RejectionReason.EARLY),
    "a retry's delay": (_waiting_to_retry, RejectionReason.EARLY),
    "an expired job": (_expired, RejectionReason.EXPIRED),
    "a lease that has ended": (_lease_ended, RejectionReason.NO_LEASE),
    "a worker without a lease": (_without_lease, RejectionReason.NO_LEASE),
}


@pytest.mark.parametrize("name", SPOILS)
def test_claim_is_refused_for(harness: Harness, name: str) -> None:
    """Mutant 13 (no attempt in the message): the former attempt's and the duplicate's claims win."""
    spoil, reason = SPOILS[name]
    job_id = harness.submit()
    harness.queue(job_id)
    run = spoil(harness, harness.key(job_id, harness.worker()))
    row = harness.row(job_id)

    assert harness.store.runs.claim(run, TASK) == ClaimRejected(reason)

    if reason is not RejectionReason.EXPIRED:
        assert harness.row(job_id) == row


def test_lease_renewed_after_the_refusal_makes_it_worth_another_try(
    harness: Harness, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After an outage a worker claims and renews at once: taken for early, the message would be dropped."""
    run = _lease_ended(harness, harness.key(harness.submit(), harness.worker()))
    apply = harness.database.apply

    def renewed_after(*args: Any, **params: Any) -> Any:
        moved = apply(*args, **params)
        monkeypatch.undo()
        assert harness.store.leases.renew(run.worker)
        return moved

    monkeypatch.setattr(harness.database, "apply", renewed_after)

    assert harness.store.runs.claim(run, TASK) == ClaimRejected(RejectionReason.NO_LEASE)
    assert harness.store.runs.claim(run, TASK) == run


def test_claim_by_another_tasks_name_is_refused(harness: Harness) -> None:
    job_id = harness.submit()
    assert harness.store.runs.claim(harness.key(job_id, harness.worker()), "shop.other") == ClaimRejected(
        RejectionReason.SUPERSEDED
    )
    assert harness.status(job_id) is JobStatus.SUBMITTED


def test_held_job_is_not_claimed(harness: Harness) -> None:
    job_id = harness.place(HELD).job_id
    assert harness.store.runs.claim(harness.key(job_id, harness.worker()), TASK) == ClaimRejected(
        RejectionReason.EARLY
    )


def test_scheduled_job_is_claimed_from_its_time_on(harness: Harness) -> None:
    """Mutants 2 and 3: any worker with its message may claim a due job that is still Waiting."""
    job_id = harness.submit(scheduled_for=timedelta(minutes=30))
    run = harness.key(job_id, harness.worker())
    harness.pass_time(minutes=29)
    harness.store.leases.renew(run.worker)
    assert harness.store.runs.claim(run, TASK) == ClaimRejected(RejectionReason.EARLY)
    harness.pass_time(minutes=2)
    harness.store.leases.renew(run.worker)
    assert harness.store.runs.claim(run, TASK) == run


def test_due_job_is_claimed_before_the_sweep_finds_it_due(harness: Harness) -> None:
    """Mutant 2 (one column for both times): due_at lies ahead, but the job may start."""
    job_id = harness.submit()
    harness.queue(job_id)
    due_in = harness.due_in(job_id)
    assert due_in is not None
    assert due_in > timedelta(minutes=1)
    run = harness.key(job_id, harness.worker())
    assert harness.store.runs.claim(run, TASK) == run


def test_retrys_delay_is_over_when_its_time_has_come(harness: Harness) -> None:
    job_id = harness.submit()
    run = _waiting_to_retry(harness, harness.key(job_id, harness.worker()))
    harness.pass_time(minutes=61)
    harness.store.leases.renew(run.worker)
    assert harness.store.runs.claim(run, TASK) == run


def test_retry_may_start_after_the_expiry_of_its_first_start(harness: Harness) -> None:
    job_id = harness.submit(expires=timedelta(minutes=5))
    harness.store.runs.retry(harness.run(job_id), "{}", None, None, "again")
    harness.pass_time(minutes=6)
    assert harness.run(job_id).attempt == 2


def test_claim_retried_with_one_claim_id_wins(harness: Harness) -> None:
    """Mutant 19 (the answer to the first was lost): refused, the row would be Running without a body."""
    run = harness.run(harness.submit())
    row = harness.row(run.job_id)
    assert harness.store.runs.claim(run, TASK) == run
    assert harness.row(run.job_id) == row
    assert harness.events(run.job_id) == [JobStatus.SUBMITTED, JobStatus.RUNNING]


def test_claim_retried_after_the_run_is_rejected(harness: Harness) -> None:
    run = harness.run(harness.submit())
    harness.store.recovery.give_back(run, "shut down", run.worker)
    assert harness.store.runs.claim(run, TASK) == ClaimRejected(RejectionReason.SUPERSEDED)


def test_claim_writes_who_runs_the_job_and_since_when(harness: Harness) -> None:
    job_id = harness.submit()
    run = harness.run(job_id, harness.worker("w7", pid=77))
    row = harness.row(job_id)
    found = [row[name] for name in ("attempt", "claim_id", "worker", "worker_uid", "pid")]
    assert found == [1, run.claim_id, "w7", run.worker.worker_uid, 77]
    assert harness.store.queries.events(job_id)[-1].actor == "worker w7"


def test_run_outside_any_worker_needs_no_lease(harness: Harness) -> None:
    job_id = harness.submit()
    run = harness.key(job_id, Worker("here", None, 1))
    assert harness.store.runs.claim(run, TASK) == run
    harness.pass_time(days=1)
    assert harness.store.leases.lapsed_workers() == []
    assert harness.status(job_id) is JobStatus.RUNNING


def test_claim_that_meets_an_expired_job_cancels_it(harness: Harness) -> None:
    """Mutant 10 (rejected without a write): the job never becomes final."""
    job_id = harness.submit(expires=timedelta(minutes=5))
    harness.queue(job_id)
    harness.pass_time(minutes=6)
    assert harness.store.runs.claim(harness.key(job_id, harness.worker()), TASK) == ClaimRejected(
        RejectionReason.EXPIRED
    )
    row = harness.row(job_id)
    assert (row["status_id"], row["message"]) == (JobStatus.CANCELLED, "expired before it was started")
    assert row["finished"] is not None
    assert row["started"] is None


def test_claim_uses_one_time_while_the_clock_moves_on(own_harness: Harness) -> None:
    """When a transition takes several statements, a deadline may pass between two of them."""
    harness = own_harness
    job_id = harness.submit(expires=timedelta(minutes=5))
    run, past = harness.key(job_id, harness.worker()), harness.row(job_id)["submitted"]
    moved_on: list[str] = []

    def before_the_update(connection: Connection, _cursor: Any, statement: str, *_: Any) -> None:
        if "UPDATE jobhandle_job" in statement and not moved_on:
            moved_on.append(statement)
            connection.execute(update(job).where(job.c.id == job_id).values(expires=past))

    event.listen(harness.database.engine, "before_cursor_execute", before_the_update)
    answer = harness.store.runs.claim(run, TASK)
    assert moved_on
    assert isinstance(answer, Run) == (harness.status(job_id) is JobStatus.RUNNING)


@pytest.mark.parametrize("reached", ["by a cancel", "by expiry"])
def test_cancelled_job_is_reported_revoked_once(harness: Harness, reached: str) -> None:
    job_id = harness.submit(expires=timedelta(minutes=5))
    if reached == "by a cancel":
        harness.store.control.cancel(job_id, None, terminate=False)
    else:
        harness.pass_time(minutes=6)
        harness.store.sweep.expire()
    task_id = harness.row(job_id)["task_id"]
    assert harness.store.runs.mark_revoke_reported(job_id, task_id)
    assert not harness.store.runs.mark_revoke_reported(job_id, task_id)


def test_only_a_cancelled_job_of_this_round_is_reported(harness: Harness) -> None:
    job_id = harness.submit()
    task_id = harness.row(job_id)["task_id"]
    assert not harness.store.runs.mark_revoke_reported(job_id, task_id)
    harness.store.runs.fail(harness.run(job_id), FAILURE)
    assert not harness.store.runs.mark_revoke_reported(job_id, task_id)
    assert harness.store.control.resubmit(job_id, str(uuid.uuid4()), None)
    harness.store.control.cancel(job_id, None, terminate=False)
    assert not harness.store.runs.mark_revoke_reported(job_id, task_id)
    assert harness.store.runs.mark_revoke_reported(job_id, harness.row(job_id)["task_id"])


def test_stopped_run_counts_as_reported(harness: Harness) -> None:
    run = harness.run(harness.submit())
    harness.store.runs.stop(run, "as asked")
    assert not harness.store.runs.mark_revoke_reported(run.job_id, run.task_id)
