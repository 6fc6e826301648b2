"""What a handle does beyond OMERO, and `Jobs`: waiting, results, progress, pruning, keys, schedules."""

import asyncio
import threading
from collections.abc import Callable
from datetime import timedelta
from types import SimpleNamespace

import pytest

from jobhandle_celery import (
    AsyncJobHandle,
    Failure,
    InvalidTransitionError,
    Job,
    JobCancelledError,
    JobFailedError,
    JobHandle,
    JobStatus,
    Progress,
    StopRequested,
    UnknownJobError,
    ValidationError,
    WaitTimeoutError,
    waits,
)
from jobhandle_celery.store import ClaimRejected, RejectionReason
from tests.job_factory import ADD, HELD, JobFactory, age
from tests.support import eventually, prune_ended, sweep_until

HOUR = timedelta(hours=1)


# Waiting, results, progress.


def test_wait_returns_final_status_and_result_the_value(factory: JobFactory) -> None:
    handle = factory.jobs.handle()
    handle.submit(ADD)
    run = factory.claim(handle)
    threading.Timer(0.05, factory.store.runs.finish, (run, '{"sum": 5}')).start()
    assert handle.wait(timeout=20) is JobStatus.FINISHED
    assert handle.wait() is JobStatus.FINISHED
    assert handle.result() == {"sum": 5}
    assert handle.result(timeout=timedelta(0)) == {"sum": 5}


def test_wait_and_result_time_out_and_leave_the_job(factory: JobFactory) -> None:
    handle = factory.job_in(JobStatus.RUNNING)
    before = factory.row(handle.job_id)
    for timeout in (0, 0.01, -1, timedelta(milliseconds=1)):
        with pytest.raises(WaitTimeoutError, match=f"{handle.job_id} is Running"):
            handle.wait(timeout)
        with pytest.raises(TimeoutError):
            handle.result(timeout)
    assert factory.row(handle.job_id) == before


def test_result_keeps_one_deadline_across_a_resubmit(
    factory: JobFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A poll has seen the job final; it is resubmitted before its record is read."""
    job = factory.job_in(JobStatus.FINISHED)
    clock = iter([0, 10])  # the second reading is after the resubmit
    monkeypatch.setattr(waits, "time", SimpleNamespace(monotonic=lambda: next(clock)))
    steps = waits.until_result(job, waits.Timeout(job, 10, job._poller))
    assert next(steps).deadline == 10
    job.resubmit_job()
    with pytest.raises(WaitTimeoutError, match="is Queued after 10 s"):
        steps.send(None)


@pytest.mark.parametrize("wait", [JobHandle.wait, JobHandle.result])
def test_wait_of_a_users_handle_is_not_ended_by_another_users_job(
    factory: JobFactory, wait: Callable[[JobHandle], object]
) -> None:
    """The job of the handle was pruned, and its id belongs to another user's job now."""
    job = factory.job_in(JobStatus.FINISHED)
    handle = factory.jobs.handle(username="bob")
    handle._job_id = job.job_id
    with pytest.raises(UnknownJobError):
        wait(handle)
    with pytest.raises(UnknownJobError):
        asyncio.run(getattr(AsyncJobHandle(handle), wait.__name__)())


def test_result_of_failed_job_raises_its_failure(factory: JobFactory) -> None:
    handle = factory.jobs.handle()
    handle.submit(ADD)
    failure = Failure("task", "ValueError", "no good", "Traceback …")
    factory.store.runs.fail(factory.claim(handle), failure)
    assert handle.wait() is JobStatus.ERROR
    with pytest.raises(JobFailedError, match="ValueError: no good") as caught:
        handle.result()
    assert caught.value.failure == failure == handle.get_job().error
    assert caught.value.job_id == handle.job_id


def test_result_of_job_set_to_error_raises_failure(factory: JobFactory) -> None:
    handle = factory.job_in(JobStatus.RUNNING)
    handle.set_status_and_message("Error", "the instrument is broken")
    with pytest.raises(JobFailedError, match="the instrument is broken"):
        handle.result()


def test_result_of_cancelled_job_raises_job_cancelled(factory: JobFactory) -> None:
    handle = factory.job_in(JobStatus.CANCELLED)
    with pytest.raises(JobCancelledError, match=f"job {handle.job_id} was cancelled: from the importer"):
        handle.result()


def test_progress_is_read_as_it_was_set(factory: JobFactory) -> None:
    handle = factory.job_in(JobStatus.RUNNING)
    assert handle.get_job().progress is None
    for progress in (
        Progress(0),
        Progress(5, 10),
        Progress(2.5, 10.25),
        Progress(-1),
        Progress(2**40, 2**41),
    ):
        handle.set_progress(progress.current, progress.total)
        assert handle.get_job().progress == progress


def test_progress_of_job_not_running_changes_nothing(factory: JobFactory) -> None:
    for status in set(JobStatus) - {JobStatus.RUNNING}:
        handle = factory.job_in(status)
        before = factory.row(handle.job_id)
        handle.set_progress(1, 2)
        assert factory.row(handle.job_id) == before


def test_stop_request_is_seen_by_all_handles(factory: JobFactory) -> None:
    handle = factory.jobs.handle()
    handle.submit(ADD)
    body = factory.body_of(factory.claim(handle))
    assert not handle.cancel_requested()
    assert not body.cancel_requested()
    body.raise_if_cancelled()
    assert handle.cancel_job() is JobStatus.RUNNING
    for caller in (handle, body):
        assert caller.cancel_requested()
        with pytest.raises(StopRequested):
            caller.raise_if_cancelled()


# Running set from outside, release, resubmit.


def test_set_status_running_claims_job_from_workers(factory: JobFactory) -> None:
    for status in (JobStatus.WAITING, JobStatus.QUEUED, JobStatus.REQUEUED):
        handle = factory.job_in(status)
        run, attempt = factory.run_of(handle), handle.get_job().attempt
        assert handle.set_status("Running") is status
        assert factory.store.runs.claim(run, "tests.add") == ClaimRejected(RejectionReason.SUPERSEDED)
        job = handle.get_job()
        assert (job.attempt, job.finished) == (attempt + 1, None)
        assert job.started is not None
        factory.jobs.sweep()
        assert handle.set_status_and_message("Finished", "by hand") is JobStatus.RUNNING
        assert handle.job_finished() is not None
        assert handle.result() is None


def test_release_accepts_waiting_jobs_only(factory: JobFactory) -> None:
    for status in set(JobStatus) - {JobStatus.WAITING}:
        handle = factory.job_in(status)
        before = factory.row(handle.job_id)
        with pytest.raises(InvalidTransitionError, match=f"is {status}, not Waiting"):
            handle.release_job()
        assert factory.row(handle.job_id) == before
    handle = factory.jobs.handle()
    for job in (HELD, Job(task="tests.add", args=[1, 2], scheduled_for=HOUR)):
        handle.submit(job)
        handle.release_job()
        assert handle.job_status() is JobStatus.QUEUED
        assert [event.status for event in factory.jobs.events(handle.job_id)] == ["Waiting", "Submitted"]
        factory.claim(handle)


def test_held_job_stays_waiting_after_sweeps(factory: JobFactory) -> None:
    handle = factory.job_in(JobStatus.WAITING)
    assert handle.get_job().held
    eventually(factory.jobs.sweep)
    assert handle.job_status() is JobStatus.WAITING
    assert factory.store.runs.claim(factory.run_of(handle), "tests.add") == ClaimRejected(
        RejectionReason.EARLY
    )


def test_resubmit_accepts_final_jobs_only_and_resets_them(factory: JobFactory) -> None:
    for status in JobStatus:
        handle = factory.job_in(status)
        before = handle.get_job()
        if not status.final:
            with pytest.raises(InvalidTransitionError, match=f"is {status}"):
                handle.resubmit_job()
            assert handle.get_job() == before
            continue
        handle.resubmit_job()
        job = handle.get_job()
        assert job.status is JobStatus.QUEUED
        assert job.task_id != before.task_id
        kept = ("id", "task", "args", "kwargs", "submitted", "attempt", "username", "unique_key")
        for field in kept:
            assert getattr(job, field) == getattr(before, field)
        assert job.message == (before.message if status is JobStatus.FINISHED else "")
        gone = (job.started, job.finished, job.result, job.error, job.progress, job.cancel_requested)
        assert gone == (None,) * 6
        assert factory.store.runs.finish(factory.claim(handle), "7")
        assert handle.result() == 7


# Prune.


def test_prune_deletes_old_final_jobs_alone(factory: JobFactory) -> None:
    jobs = factory.jobs
    old = [factory.job_in(status) for status in JobStatus if status.final]
    young = [factory.job_in(status) for status in JobStatus]
    for handle in old:
        age(factory, handle.job_id, "finished", 2 * HOUR)
    assert jobs.prune(3 * HOUR) == 0
    assert jobs.prune(HOUR) == 3
    for handle in old:
        with pytest.raises(UnknownJobError):
            handle.job_status()
        assert jobs.events(old[0].job_id) == []
    for handle in young:
        assert jobs.events(handle.job_id)
    assert prune_ended(jobs) == 3
    assert {job.status for job in jobs.find()} == set(JobStatus) - {"Finished", "Error", "Cancelled"}


def test_submit_many_is_all_or_none_and_in_order(factory: JobFactory) -> None:
    jobs = factory.jobs
    add = factory.app.tasks["tests.add"]
    ids = jobs.submit_many((add.s(number, 0) for number in range(5)), username="ann", groupname="lab")
    assert ids == sorted(ids)
    assert [(job.args, job.username, job.groupname) for job in jobs.find()] == [
        ([number, 0], "ann", "lab") for number in reversed(range(5))
    ]
    with pytest.raises(ValidationError):
        jobs.submit_many([add.s(1, 2), add.s(1)])
    assert len(jobs.find()) == 5
    assert jobs.count_by_status()[JobStatus.QUEUED] == 5


# Unique keys.


def test_unfinished_job_with_unique_key_exists_once(factory: JobFactory) -> None:
    keyed = Job(task="tests.add", args=[1, 2], unique_key="scan:1")
    handle, other = factory.jobs.handle(), factory.jobs.handle()
    first = handle.submit(keyed)
    before = factory.row(first)
    assert other.submit(keyed) == first
    assert other.job_id == first
    assert factory.jobs.submit_many([keyed, ADD, keyed])[::2] == [first, first]
    assert factory.row(first) == before
    assert factory.jobs.handle(username="ann").submit(keyed) != first
    assert factory.jobs.handle(username="bob").submit(keyed) != first
    handle.cancel_job()
    second = other.submit(keyed)
    assert second != first
    with pytest.raises(InvalidTransitionError, match="unique_key"):
        handle.resubmit_job()
    assert factory.jobs.attach(first).job_status() is JobStatus.CANCELLED
    other.set_status("Running")
    other.set_status("Finished")
    handle.resubmit_job()
    assert other.submit(keyed) == first


# Schedules.


def test_job_is_published_by_sweep_when_its_time_comes(factory: JobFactory) -> None:
    jobs = factory.jobs
    handle = jobs.handle()
    handle.submit(Job(task="tests.add", args=[1, 2], scheduled_for=timedelta(seconds=0.3)))
    assert handle.job_status() is JobStatus.WAITING
    sweep_until(jobs, lambda: handle.job_status() is JobStatus.QUEUED)
