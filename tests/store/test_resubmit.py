"""A resubmit restarts a final job with a new task id, and never beside its former body."""

import uuid
from datetime import timedelta

import pytest

from jobhandle_celery.errors import InvalidTransitionError
from jobhandle_celery.status import JobStatus
from jobhandle_celery.store import ClaimRejected, RejectionReason, Run, Worker
from tests.store.harness import FAILURE, TASK, Harness, new_job

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
    "meta",
    "username",
    "groupname",
    "unique_key",
    "attempt",
    "submitted",
)


def resubmit(harness: Harness, job_id: int) -> bool:
    return harness.store.control.resubmit(job_id, str(uuid.uuid4()), None) == [job_id]


def full_life(harness: Harness) -> int:
    """Return a job with a value in every column that a run can fill."""
    job_id = harness.submit(
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
    harness.queue(job_id)
    run = harness.run(job_id)
    harness.store.runs.note_progress(run, 1, 2)
    harness.store.recovery.lose(run, "gone", run.worker)
    run = harness.run(job_id)
    harness.store.runs.retry(run, '{"args": [2]}', None, None, "again")
    run = harness.run(job_id)
    harness.store.control.cancel(job_id, None, terminate=True)
    harness.store.runs.fail(run, FAILURE)
    return job_id


def ended_by_hand(harness: Harness, run: Run) -> None:
    previous, moved = harness.store.control.set_status(
        run.job_id, JobStatus.ERROR, str(uuid.uuid4()), None, None
    )
    assert (previous, moved) == (JobStatus.RUNNING, True)


def test_resubmit_resets_the_run_and_keeps_the_request(harness: Harness) -> None:
    """Mutant 8: `attempt` is kept."""
    job_id = full_life(harness)
    before = harness.row(job_id)
    assert before["attempt"] == 3

    assert resubmit(harness, job_id)

    after = harness.row(job_id)
    assert {name: after[name] for name in CLEARED} == dict.fromkeys(CLEARED)
    assert {name: after[name] for name in KEPT} == {name: before[name] for name in KEPT}
    assert after["task_id"] != before["task_id"]
    assert (before["message"], after["message"]) == ("ValueError: no good", "")
    counts = [
        after[name]
        for name in ("lost_count", "publish_count", "republish_deferrals", "terminate", "revoke_reported")
    ]
    assert counts == [0, 0, 0, False, False]


@pytest.mark.parametrize(
    ("status", "message"),
    [(JobStatus.FINISHED, "half done"), (JobStatus.ERROR, ""), (JobStatus.CANCELLED, "")],
)
def test_message_of_a_finished_job_alone_outlives_a_resubmit(
    harness: Harness, status: JobStatus, message: str
) -> None:
    job_id = harness.place(status, message="half done").job_id
    assert resubmit(harness, job_id)
    assert harness.row(job_id)["message"] == message


def test_resubmitted_job_that_was_cancelled_can_be_started(harness: Harness) -> None:
    """Mutant 9 (the cancel stamp stays): it could never be started."""
    job_id = harness.submit()
    harness.store.control.cancel(job_id, None, terminate=True)
    assert resubmit(harness, job_id)
    assert harness.run(job_id).attempt == 1
    assert not harness.store.leases.runs(str(harness.row(job_id)["worker_uid"]))[0].terminate


def test_resubmitted_job_has_its_losses_before_it_again(harness: Harness) -> None:
    job_id = harness.submit(max_attempts=2)
    for expected in (JobStatus.REQUEUED, JobStatus.ERROR) * 2:
        run = harness.run(job_id)
        assert [lost.status for lost in harness.store.recovery.lose(run, "gone", run.worker)] == [expected]
        if expected is JobStatus.ERROR:
            assert resubmit(harness, job_id)


def test_former_rounds_message_is_refused(harness: Harness) -> None:
    job_id = harness.submit()
    old = harness.key(job_id, harness.worker())
    harness.store.control.cancel(job_id, None, terminate=False)
    assert resubmit(harness, job_id)
    assert harness.store.runs.claim(old, TASK) == ClaimRejected(RejectionReason.SUPERSEDED)


def test_former_rounds_late_mark_changes_nothing(harness: Harness) -> None:
    job_id = harness.submit()
    message = harness.message(job_id)
    harness.store.control.cancel(job_id, None, terminate=False)
    assert resubmit(harness, job_id)
    row = harness.row(job_id)
    harness.store.outbox.mark_queued([message])
    assert harness.row(job_id) == row


def test_former_rounds_cancel_changes_nothing(harness: Harness) -> None:
    run = harness.run(harness.submit())
    harness.store.runs.finish(run, "1")
    assert resubmit(harness, run.job_id)
    harness.store.control.cancel(run.job_id, None, terminate=True, task_id=run.task_id)
    assert harness.status(run.job_id) is JobStatus.RESUBMITTED


def test_resubmit_is_refused_while_the_former_body_may_be_alive(harness: Harness) -> None:
    """Mutant 7: an outsider ends a running job and resubmits it; two bodies, with a healthy worker."""
    run = harness.run(harness.submit())
    ended_by_hand(harness, run)
    row = harness.row(run.job_id)
    assert not resubmit(harness, run.job_id)
    assert harness.row(run.job_id) == row


@pytest.mark.parametrize("leaves", ["by its report", "by its refused finish", "by its refused retry"])
def test_resubmit_is_allowed_once_the_former_body_has_left(harness: Harness, leaves: str) -> None:
    run = harness.run(harness.submit())
    ended_by_hand(harness, run)
    match leaves:
        case "by its report":
            harness.store.runs.note_body_exited(run)
        case "by its refused finish":
            assert not harness.store.runs.finish(run, "1")
        case _:
            assert harness.store.runs.retry(run, "{}", None, None, "again") is None
    assert resubmit(harness, run.job_id)


@pytest.mark.parametrize("ends", ["it lapses", "it retires"])
def test_resubmit_is_allowed_once_the_former_lease_has_ended(harness: Harness, ends: str) -> None:
    run = harness.run(harness.submit())
    ended_by_hand(harness, run)
    if ends == "it lapses":
        harness.pass_time(seconds=harness.settings.lease.total_seconds() + 1)
    else:
        harness.store.leases.retire(run.worker)
    assert resubmit(harness, run.job_id)


def test_body_leaves_without_touching_a_later_claim(harness: Harness) -> None:
    run = harness.run(harness.submit())
    ended_by_hand(harness, run)
    harness.pass_time(seconds=harness.settings.lease.total_seconds() + 1)
    assert resubmit(harness, run.job_id)
    later = harness.run(run.job_id)
    harness.store.runs.note_body_exited(run)
    assert harness.row(run.job_id)["worker_uid"] == later.worker.worker_uid


def test_resubmit_retried_with_one_task_id_returns_true(harness: Harness) -> None:
    job_id = harness.place(JobStatus.FINISHED).job_id
    task_id = str(uuid.uuid4())
    assert harness.store.control.resubmit(job_id, task_id, None)
    row, events = harness.row(job_id), harness.events(job_id)
    assert harness.store.control.resubmit(job_id, task_id, None)
    assert (harness.row(job_id), harness.events(job_id)) == (row, events)


def test_resubmit_is_refused_while_its_unique_key_is_taken(harness: Harness) -> None:
    first = harness.place(JobStatus.FINISHED, unique_key="the only one").job_id
    second = harness.submit(unique_key="the only one")
    assert second != first
    row = harness.row(first)
    with pytest.raises(InvalidTransitionError, match="the only one"):
        resubmit(harness, first)
    assert harness.row(first) == row
    harness.store.control.cancel(second, None, terminate=False)
    assert resubmit(harness, first)
    assert harness.submit(unique_key="the only one") == first


def test_former_outsiders_run_does_not_hold_up_a_resubmit(harness: Harness) -> None:
    job_id = harness.submit()
    for status in (JobStatus.RUNNING, JobStatus.FINISHED):
        assert harness.store.control.set_status(job_id, status, str(uuid.uuid4()), None, None)[1]
    assert resubmit(harness, job_id)


def test_submit_with_taken_unique_key_returns_existing_job(harness: Harness) -> None:
    [first] = harness.store.inserter.submit([new_job(unique_key="k", username="ann")])
    [again] = harness.store.inserter.submit([new_job(unique_key="k", username="ann")])
    assert (again.job_id, first.fresh, again.fresh) == (first.job_id, True, False)
    assert harness.submit(unique_key="k", username="bob") != first.job_id
    assert harness.submit(unique_key="k") != first.job_id
    assert harness.submit(unique_key="other", username="ann") != first.job_id
    assert harness.events(first.job_id) == [JobStatus.SUBMITTED]


@pytest.mark.parametrize("final", [JobStatus.FINISHED, JobStatus.ERROR, JobStatus.CANCELLED])
def test_unique_key_is_free_again_once_its_job_is_final(harness: Harness, final: JobStatus) -> None:
    first = harness.place(final, unique_key="k").job_id
    assert harness.submit(unique_key="k") != first


def test_retried_submit_inserts_one_job(harness: Harness) -> None:
    job = new_job()
    [first] = harness.store.inserter.submit([job])
    [again] = harness.store.inserter.submit([job])
    assert again == first
    assert again.fresh
    assert harness.store.queries.count_by_status()[JobStatus.SUBMITTED] == 1


def test_run_without_a_lease_may_be_resubmitted_once_ended(harness: Harness) -> None:
    job_id = harness.submit()
    run = harness.run(job_id, Worker("here", None, 1))
    assert harness.store.runs.finish(run, "1")
    assert resubmit(harness, job_id)
