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
from tests.store.harness import FAILURE, HELD, TASK, Bench

Spoil = Callable[[Bench, Run], Run]
"""Violates one condition of the guard, in the row or in the message; returns the claim's key."""


def _another_claim(bench: Bench, run: Run) -> Run:
    bench.run(run.job_id)
    return run


def _cancelled(bench: Bench, run: Run) -> Run:
    bench.store.control.cancel(run.job_id, None, terminate=False)
    return run


def _resubmitted(bench: Bench, run: Run) -> Run:
    _cancelled(bench, run)
    assert bench.store.control.resubmit(run.job_id, str(uuid.uuid4()), None)
    return run


def _retried(bench: Bench, run: Run) -> Run:
    former = bench.run(run.job_id)
    bench.store.runs.retry(former, "{}", None, None, "again")
    return run


def _waiting_to_retry(bench: Bench, run: Run) -> Run:
    former = bench.run(run.job_id)
    bench.store.runs.retry(former, "{}", None, 3600.0, "again")
    return bench.key(run.job_id, run.worker)


def _stamped(bench: Bench, run: Run) -> Run:
    bench.write(run.job_id, cancel_requested=bench.row(run.job_id)["submitted"])
    return run


def _finished(bench: Bench, run: Run) -> Run:
    bench.store.runs.finish(bench.run(run.job_id), "1")
    return run


def _expired(bench: Bench, run: Run) -> Run:
    bench.write(run.job_id, expires=bench.row(run.job_id)["submitted"])
    return run


def _lease_ended(bench: Bench, run: Run) -> Run:
    bench.pass_time(seconds=bench.settings.lease.total_seconds() + 1)
    return run


def _without_lease(bench: Bench, run: Run) -> Run:
    return replace(run, worker=Worker("unheard of", str(uuid.uuid4()), 1))


def _other_namespace(bench: Bench, run: Run) -> Run:
    bench.write(run.job_id, namespace="another")
    return run


SPOILS: dict[str, tuple[Spoil, RejectionReason]] = {
    "an unknown job": (lambda bench, run: replace(run, job_id=2**60), RejectionReason.UNKNOWN),
    "another namespace": (_other_namespace, RejectionReason.UNKNOWN),
    "another task id": (lambda bench, run: replace(run, task_id="another"), RejectionReason.SUPERSEDED),
    "a message of the former round": (_resubmitted, RejectionReason.SUPERSEDED),
    "a duplicate": (_another_claim, RejectionReason.SUPERSEDED),
    "a message of the former attempt": (_retried, RejectionReason.SUPERSEDED),
    "a message of a later attempt": (lambda bench, run: replace(run, attempt=2), RejectionReason.SUPERSEDED),
    "a finished job": (_finished, RejectionReason.SUPERSEDED),
    "a cancelled job": (_cancelled, RejectionReason.CANCELLED),
    "a stop request": (_stamped, RejectionReason.EARLY),
    "a retry's delay": (_waiting_to_retry, RejectionReason.EARLY),
    "an expired job": (_expired, RejectionReason.EXPIRED),
    "a lease that has ended": (_lease_ended, RejectionReason.NO_LEASE),
    "a worker without a lease": (_without_lease, RejectionReason.NO_LEASE),
}


@pytest.mark.parametrize("name", SPOILS)
def test_claim_is_refused_for(bench: Bench, name: str) -> None:
    """Mutant 13 (no attempt in the message): the former attempt's and the duplicate's claims win."""
    spoil, reason = SPOILS[name]
    job_id = bench.submit()
    bench.queue(job_id)
    run = spoil(bench, bench.key(job_id, bench.worker()))
    row = bench.row(job_id)

    assert bench.store.runs.claim(run, TASK) == ClaimRejected(reason)

    if reason is not RejectionReason.EXPIRED:
        assert bench.row(job_id) == row


def test_claim_by_another_tasks_name_is_refused(bench: Bench) -> None:
    job_id = bench.submit()
    assert bench.store.runs.claim(bench.key(job_id, bench.worker()), "shop.other") == ClaimRejected(
        RejectionReason.SUPERSEDED
    )
    assert bench.status(job_id) is JobStatus.SUBMITTED


def test_held_job_is_not_claimed(bench: Bench) -> None:
    job_id = bench.place(HELD).job_id
    assert bench.store.runs.claim(bench.key(job_id, bench.worker()), TASK) == ClaimRejected(
        RejectionReason.EARLY
    )


def test_scheduled_job_is_claimed_from_its_time_on(bench: Bench) -> None:
    """Mutants 2 and 3: any worker with its message may claim a due job that is still Waiting."""
    job_id = bench.submit(scheduled_for=timedelta(minutes=30))
    run = bench.key(job_id, bench.worker())
    bench.pass_time(minutes=29)
    bench.store.leases.renew(run.worker)
    assert bench.store.runs.claim(run, TASK) == ClaimRejected(RejectionReason.EARLY)
    bench.pass_time(minutes=2)
    bench.store.leases.renew(run.worker)
    assert bench.store.runs.claim(run, TASK) == run


def test_due_job_is_claimed_before_the_sweep_finds_it_due(bench: Bench) -> None:
    """Mutant 2 (one column for both times): due_at lies ahead, but the job may start."""
    job_id = bench.submit()
    bench.queue(job_id)
    due_in = bench.due_in(job_id)
    assert due_in is not None
    assert due_in > timedelta(minutes=1)
    run = bench.key(job_id, bench.worker())
    assert bench.store.runs.claim(run, TASK) == run


def test_retrys_delay_is_over_when_its_time_has_come(bench: Bench) -> None:
    job_id = bench.submit()
    run = _waiting_to_retry(bench, bench.key(job_id, bench.worker()))
    bench.pass_time(minutes=61)
    bench.store.leases.renew(run.worker)
    assert bench.store.runs.claim(run, TASK) == run


def test_retry_may_start_after_the_expiry_of_its_first_start(bench: Bench) -> None:
    job_id = bench.submit(expires=timedelta(minutes=5))
    bench.store.runs.retry(bench.run(job_id), "{}", None, None, "again")
    bench.pass_time(minutes=6)
    assert bench.run(job_id).attempt == 2


def test_claim_retried_with_one_claim_id_wins(bench: Bench) -> None:
    """Mutant 19 (the answer to the first was lost): refused, the row would be Running without a body."""
    run = bench.run(bench.submit())
    row = bench.row(run.job_id)
    assert bench.store.runs.claim(run, TASK) == run
    assert bench.row(run.job_id) == row
    assert bench.events(run.job_id) == [JobStatus.SUBMITTED, JobStatus.RUNNING]


def test_claim_retried_after_the_run_is_rejected(bench: Bench) -> None:
    run = bench.run(bench.submit())
    bench.store.recovery.give_back(run, "shut down", run.worker)
    assert bench.store.runs.claim(run, TASK) == ClaimRejected(RejectionReason.SUPERSEDED)


def test_claim_writes_who_runs_the_job_and_since_when(bench: Bench) -> None:
    job_id = bench.submit()
    run = bench.run(job_id, bench.worker("w7", pid=77))
    row = bench.row(job_id)
    found = [row[name] for name in ("attempt", "claim_id", "worker", "worker_uid", "pid")]
    assert found == [1, run.claim_id, "w7", run.worker.worker_uid, 77]
    assert bench.store.queries.events(job_id)[-1].actor == "worker w7"


def test_run_outside_any_worker_needs_no_lease(bench: Bench) -> None:
    job_id = bench.submit()
    run = bench.key(job_id, Worker("here", None, 1))
    assert bench.store.runs.claim(run, TASK) == run
    bench.pass_time(days=1)
    assert bench.store.leases.lapsed_workers() == []
    assert bench.status(job_id) is JobStatus.RUNNING


def test_claim_that_meets_an_expired_job_cancels_it(bench: Bench) -> None:
    """Mutant 10 (rejected without a write): the job never becomes final."""
    job_id = bench.submit(expires=timedelta(minutes=5))
    bench.queue(job_id)
    bench.pass_time(minutes=6)
    assert bench.store.runs.claim(bench.key(job_id, bench.worker()), TASK) == ClaimRejected(
        RejectionReason.EXPIRED
    )
    row = bench.row(job_id)
    assert (row["status_id"], row["message"]) == (JobStatus.CANCELLED, "expired before it was started")
    assert row["finished"] is not None
    assert row["started"] is None


def test_claim_uses_one_time_while_the_clock_moves_on(own_bench: Bench) -> None:
    """When a transition takes several statements, a deadline may pass between two of them."""
    bench = own_bench
    job_id = bench.submit(expires=timedelta(minutes=5))
    run, past = bench.key(job_id, bench.worker()), bench.row(job_id)["submitted"]
    moved_on: list[str] = []

    def before_the_update(connection: Connection, _cursor: Any, statement: str, *_: Any) -> None:
        if "UPDATE jobhandle_job" in statement and not moved_on:
            moved_on.append(statement)
            connection.execute(update(job).where(job.c.id == job_id).values(expires=past))

    event.listen(bench.database.engine, "before_cursor_execute", before_the_update)
    answer = bench.store.runs.claim(run, TASK)
    assert moved_on
    assert isinstance(answer, Run) == (bench.status(job_id) is JobStatus.RUNNING)


@pytest.mark.parametrize("reached", ["by a cancel", "by expiry"])
def test_cancelled_job_is_reported_revoked_once(bench: Bench, reached: str) -> None:
    job_id = bench.submit(expires=timedelta(minutes=5))
    if reached == "by a cancel":
        bench.store.control.cancel(job_id, None, terminate=False)
    else:
        bench.pass_time(minutes=6)
        bench.store.sweep.expire()
    task_id = bench.row(job_id)["task_id"]
    assert bench.store.runs.mark_revoke_reported(job_id, task_id)
    assert not bench.store.runs.mark_revoke_reported(job_id, task_id)


def test_only_a_cancelled_job_of_this_round_is_reported(bench: Bench) -> None:
    job_id = bench.submit()
    task_id = bench.row(job_id)["task_id"]
    assert not bench.store.runs.mark_revoke_reported(job_id, task_id)
    bench.store.runs.fail(bench.run(job_id), FAILURE)
    assert not bench.store.runs.mark_revoke_reported(job_id, task_id)
    assert bench.store.control.resubmit(job_id, str(uuid.uuid4()), None)
    bench.store.control.cancel(job_id, None, terminate=False)
    assert not bench.store.runs.mark_revoke_reported(job_id, task_id)
    assert bench.store.runs.mark_revoke_reported(job_id, bench.row(job_id)["task_id"])


def test_stopped_run_counts_as_reported(bench: Bench) -> None:
    run = bench.run(bench.submit())
    bench.store.runs.stop(run, "as asked")
    assert not bench.store.runs.mark_revoke_reported(run.job_id, run.task_id)
