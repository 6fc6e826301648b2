"""A resubmit restarts a final job with a new task id, and never beside its former body."""

import uuid
from datetime import timedelta

import pytest

from jobhandle_celery.errors import InvalidTransitionError
from jobhandle_celery.status import JobStatus
from jobhandle_celery.store import ClaimRejected, RejectionReason, Run, Worker
from tests.store.harness import FAILURE, TASK, Bench, new_job

CLEARED = (
    "cancel_requested",
    "started",
    "finished",
    "result",
    "error",
    "progress_current",
    "progress_total",
    "expires",
    "not_before",
    "retry",
    "worker_uid",
    "pid",
)
KEPT = (
    "id",
    "args",
    "kwargs",
    "message",
    "meta",
    "username",
    "groupname",
    "unique_key",
    "attempt",
    "submitted",
)


def resubmit(bench: Bench, job_id: int) -> bool:
    return bench.store.control.resubmit(job_id, str(uuid.uuid4()), None) == [job_id]


def full_life(bench: Bench) -> int:
    """Return a job with a value in every column that a run can fill."""
    job_id = bench.submit(
        args="[1]",
        kwargs='{"size": 2}',
        message="from the importer",
        meta='{"colour": "red"}',
        username="ann",
        groupname="lab",
        unique_key="the only one",
        max_attempts=3,
        expires=timedelta(hours=1),
    )
    bench.queue(job_id)
    run = bench.run(job_id)
    bench.store.runs.note_progress(run, 1, 2)
    bench.store.recovery.lose(run, "gone", run.worker)
    run = bench.run(job_id)
    bench.store.runs.retry(run, '{"args": [2]}', None, None, "again")
    run = bench.run(job_id)
    bench.store.control.cancel(job_id, None, terminate=True)
    bench.store.runs.fail(run, FAILURE)
    return job_id


def ended_by_hand(bench: Bench, run: Run) -> None:
    previous, moved = bench.store.control.set_status(
        run.job_id, JobStatus.ERROR, str(uuid.uuid4()), None, None
    )
    assert (previous, moved) == (JobStatus.RUNNING, True)


def test_resubmit_resets_the_run_and_keeps_the_request(bench: Bench) -> None:
    """Mutant 8: `attempt` is kept."""
    job_id = full_life(bench)
    before = bench.row(job_id)
    assert before["attempt"] == 3

    assert resubmit(bench, job_id)

    after = bench.row(job_id)
    assert {name: after[name] for name in CLEARED} == dict.fromkeys(CLEARED)
    assert {name: after[name] for name in KEPT} == {name: before[name] for name in KEPT}
    assert after["task_id"] != before["task_id"]
    counts = [
        after[name]
        for name in ("lost_count", "publish_count", "republish_deferrals", "terminate", "revoke_reported")
    ]
    assert counts == [0, 0, 0, False, False]


def test_resubmitted_job_that_was_cancelled_can_be_started(bench: Bench) -> None:
    """Mutant 9 (the cancel stamp stays): it could never be started."""
    job_id = bench.submit()
    bench.store.control.cancel(job_id, None, terminate=True)
    assert resubmit(bench, job_id)
    assert bench.run(job_id).attempt == 1
    assert not bench.store.leases.runs(str(bench.row(job_id)["worker_uid"]))[0].terminate


def test_resubmitted_job_has_its_losses_before_it_again(bench: Bench) -> None:
    job_id = bench.submit(max_attempts=2)
    for expected in (JobStatus.REQUEUED, JobStatus.ERROR) * 2:
        run = bench.run(job_id)
        assert [lost.status for lost in bench.store.recovery.lose(run, "gone", run.worker)] == [expected]
        if expected is JobStatus.ERROR:
            assert resubmit(bench, job_id)


def test_former_rounds_message_is_refused(bench: Bench) -> None:
    job_id = bench.submit()
    old = bench.key(job_id, bench.worker())
    bench.store.control.cancel(job_id, None, terminate=False)
    assert resubmit(bench, job_id)
    assert bench.store.runs.claim(old, TASK) == ClaimRejected(RejectionReason.SUPERSEDED)


def test_former_rounds_late_mark_changes_nothing(bench: Bench) -> None:
    job_id = bench.submit()
    message = bench.message(job_id)
    bench.store.control.cancel(job_id, None, terminate=False)
    assert resubmit(bench, job_id)
    row = bench.row(job_id)
    bench.store.outbox.mark_queued([message])
    assert bench.row(job_id) == row


def test_former_rounds_cancel_changes_nothing(bench: Bench) -> None:
    run = bench.run(bench.submit())
    bench.store.runs.finish(run, "1")
    assert resubmit(bench, run.job_id)
    bench.store.control.cancel(run.job_id, None, terminate=True, task_id=run.task_id)
    assert bench.status(run.job_id) is JobStatus.RESUBMITTED


def test_resubmit_is_refused_while_the_former_body_may_be_alive(bench: Bench) -> None:
    """Mutant 7: an outsider ends a running job and resubmits it; two bodies, with a healthy worker."""
    run = bench.run(bench.submit())
    ended_by_hand(bench, run)
    row = bench.row(run.job_id)
    assert not resubmit(bench, run.job_id)
    assert bench.row(run.job_id) == row


@pytest.mark.parametrize("leaves", ["by its report", "by its refused finish", "by its refused retry"])
def test_resubmit_is_allowed_once_the_former_body_has_left(bench: Bench, leaves: str) -> None:
    run = bench.run(bench.submit())
    ended_by_hand(bench, run)
    match leaves:
        case "by its report":
            bench.store.runs.leave(run)
        case "by its refused finish":
            assert not bench.store.runs.finish(run, "1")
        case _:
            assert bench.store.runs.retry(run, "{}", None, None, "again") is None
    assert resubmit(bench, run.job_id)


@pytest.mark.parametrize("ends", ["it lapses", "it retires"])
def test_resubmit_is_allowed_once_the_former_lease_has_ended(bench: Bench, ends: str) -> None:
    run = bench.run(bench.submit())
    ended_by_hand(bench, run)
    if ends == "it lapses":
        bench.pass_time(seconds=bench.settings.lease.total_seconds() + 1)
    else:
        bench.store.leases.retire(run.worker)
    assert resubmit(bench, run.job_id)


def test_body_leaves_without_touching_a_later_claim(bench: Bench) -> None:
    run = bench.run(bench.submit())
    ended_by_hand(bench, run)
    bench.pass_time(seconds=bench.settings.lease.total_seconds() + 1)
    assert resubmit(bench, run.job_id)
    later = bench.run(run.job_id)
    bench.store.runs.leave(run)
    assert bench.row(run.job_id)["worker_uid"] == later.worker.worker_uid


def test_resubmit_retried_with_one_task_id_returns_true(bench: Bench) -> None:
    job_id = bench.place(JobStatus.FINISHED).job_id
    task_id = str(uuid.uuid4())
    assert bench.store.control.resubmit(job_id, task_id, None)
    row, events = bench.row(job_id), bench.events(job_id)
    assert bench.store.control.resubmit(job_id, task_id, None)
    assert (bench.row(job_id), bench.events(job_id)) == (row, events)


def test_resubmit_is_refused_while_its_unique_key_is_taken(bench: Bench) -> None:
    first = bench.place(JobStatus.FINISHED, unique_key="the only one").job_id
    second = bench.submit(unique_key="the only one")
    assert second != first
    row = bench.row(first)
    with pytest.raises(InvalidTransitionError, match="the only one"):
        resubmit(bench, first)
    assert bench.row(first) == row
    bench.store.control.cancel(second, None, terminate=False)
    assert resubmit(bench, first)
    assert bench.submit(unique_key="the only one") == first


def test_former_outsiders_run_does_not_hold_up_a_resubmit(bench: Bench) -> None:
    job_id = bench.submit()
    for status in (JobStatus.RUNNING, JobStatus.FINISHED):
        assert bench.store.control.set_status(job_id, status, str(uuid.uuid4()), None, None)[1]
    assert resubmit(bench, job_id)


def test_submit_with_taken_unique_key_returns_existing_job(bench: Bench) -> None:
    [first] = bench.store.inserter.submit([new_job(unique_key="k", username="ann")])
    [again] = bench.store.inserter.submit([new_job(unique_key="k", username="ann")])
    assert (again.job_id, first.fresh, again.fresh) == (first.job_id, True, False)
    assert bench.submit(unique_key="k", username="bob") != first.job_id
    assert bench.submit(unique_key="k") != first.job_id
    assert bench.submit(unique_key="other", username="ann") != first.job_id
    assert bench.events(first.job_id) == [JobStatus.SUBMITTED]


@pytest.mark.parametrize("final", [JobStatus.FINISHED, JobStatus.ERROR, JobStatus.CANCELLED])
def test_unique_key_is_free_again_once_its_job_is_final(bench: Bench, final: JobStatus) -> None:
    first = bench.place(final, unique_key="k").job_id
    assert bench.submit(unique_key="k") != first


def test_retried_submit_inserts_one_job(bench: Bench) -> None:
    job = new_job()
    [first] = bench.store.inserter.submit([job])
    [again] = bench.store.inserter.submit([job])
    assert again == first
    assert again.fresh
    assert bench.store.queries.count_by_status()[JobStatus.SUBMITTED] == 1


def test_run_without_a_lease_may_be_resubmitted_once_ended(bench: Bench) -> None:
    job_id = bench.submit()
    run = bench.run(job_id, Worker("here", None, 1))
    assert bench.store.runs.finish(run, "1")
    assert resubmit(bench, job_id)
