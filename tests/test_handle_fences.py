"""The methods of a body's handle once its run is superseded: every public method, by inspection."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from jobhandle_celery import (
    InvalidTransitionError,
    Job,
    JobHandle,
    JobStatus,
    StopRequested,
    WaitTimeoutError,
)
from jobhandle_celery.store import Run
from tests.job_factory import ADD, JobFactory

REFUSED = InvalidTransitionError
"""The call changes nothing, and raises this error, whose text says that the run is superseded."""

WRITES: dict[str, tuple[Callable[[JobHandle], object], Any]] = {
    "cancel_job": (lambda body: body.cancel_job(), REFUSED),
    "cancel_job, terminate": (lambda body: body.cancel_job(terminate=True), REFUSED),
    "set_status Running": (lambda body: body.set_status("Running"), REFUSED),
    "set_status Finished": (lambda body: body.set_status("Finished"), REFUSED),
    "set_status Error": (lambda body: body.set_status("Error"), REFUSED),
    "set_status Cancelled": (lambda body: body.set_status("Cancelled"), REFUSED),
    "set_status_and_message": (lambda body: body.set_status_and_message("Error", "late"), REFUSED),
    "resubmit_job": (lambda body: body.resubmit_job(), REFUSED),
    "release_job": (lambda body: body.release_job(), REFUSED),
    "set_message": (lambda body: body.set_message("late"), "the second run"),
    "set_progress": (lambda body: body.set_progress(7, 8), None),
    "cancel_requested": (lambda body: body.cancel_requested(), True),
    "raise_if_cancelled": (lambda body: body.raise_if_cancelled(), StopRequested),
    "attach": (lambda body: (body.attach(body.job_id), body.cancel_job()), REFUSED),
    "wait": (lambda body: body.wait(0), WaitTimeoutError),
    "result": (lambda body: body.result(0), WaitTimeoutError),
}
"""Calls in a superseded body: what each returns, or which error it raises. None changes the row."""

READS = {
    *("events", "get_job", "job_error", "job_finished", "job_message", "job_running", "job_status"),
    *("members", "needs", "watch"),
}
"""They read rows."""

ELSEWHERE = {"close", "detach_from", "job_id", "submit"}
"""They concern the handle itself, or another job."""


def superseded(factory: JobFactory) -> tuple[Run, Run]:
    """Return a run that was declared lost, and its successor, which runs now."""
    handle = factory.jobs.handle()
    handle.submit(replace(ADD, max_attempts=3))
    first = factory.claim(handle)
    factory.store.recovery.lose(first, "gone", first.worker)
    second = factory.claim(handle)
    factory.body_of(second).set_message("the second run")
    return first, second


def test_every_method_of_handle_has_a_fence_decision() -> None:
    """A new method without a decision about its fence fails here (fault 43)."""
    public = {name for name in dir(JobHandle) if not name.startswith("_")}
    decided = {name.replace(",", " ").split()[0] for name in WRITES} | READS | ELSEWHERE
    assert public == decided


def test_methods_in_superseded_body_change_nothing(factory: JobFactory) -> None:
    """Mutant 20: a body that resumes late ends or stops its successor's run (fault 43, promise 6)."""
    first, _ = superseded(factory)
    body = factory.body_of(first)
    row, events = factory.row(first.job_id), factory.jobs.events(first.job_id)
    for name, (call, expected) in WRITES.items():
        if isinstance(expected, type):
            with pytest.raises(expected) as raised:
                call(body)
            if expected is REFUSED:
                assert "superseded" in str(raised.value), name
        else:
            assert call(body) == expected, name
        assert factory.row(first.job_id) == row, name
    assert factory.jobs.events(first.job_id) == events


@pytest.mark.parametrize("ended_by", ["lost", "by hand"])
def test_superseded_body_cannot_resubmit_a_final_job(factory: JobFactory, ended_by: str) -> None:
    """The job is final, so a service may resubmit it; its superseded body may not (fault 43)."""
    handle = factory.jobs.handle()
    handle.submit(ADD)
    run = factory.claim(handle)
    body = factory.body_of(run)
    if ended_by == "lost":
        factory.store.recovery.lose(run, "gone", run.worker)
    else:
        handle.set_status("Error")
    row = factory.row(run.job_id)
    with pytest.raises(InvalidTransitionError, match="superseded"):
        body.resubmit_job()
    assert body.cancel_job() is JobStatus.ERROR  # too late, as for any caller
    assert body.set_status("Cancelled") is JobStatus.ERROR
    assert factory.row(run.job_id) == row


def test_body_of_current_attempt_may_use_every_method(factory: JobFactory) -> None:
    """The fence lets the run itself pass (fault 43)."""
    handle = factory.jobs.handle()
    handle.submit(ADD)
    body = factory.body_of(factory.claim(handle))
    assert body.set_status("Running") is JobStatus.RUNNING
    assert body.cancel_job() is JobStatus.RUNNING
    assert body.cancel_job(terminate=True) is JobStatus.RUNNING
    assert body.set_status_and_message("Error", "given up") is JobStatus.RUNNING
    assert handle.job_message() == "given up"

    handle.submit(Job(task="tests.add", args=[2, 3]))
    run = factory.claim(handle)
    body = factory.body_of(run)
    with pytest.raises(InvalidTransitionError, match="is Running"):
        body.resubmit_job()
    with pytest.raises(InvalidTransitionError, match="is Running"):
        body.release_job()
    factory.store.runs.finish(run, "5")
    body.resubmit_job()  # from `on_success`, say
    assert handle.job_status() in (JobStatus.RESUBMITTED, JobStatus.QUEUED)


def test_body_cancels_its_own_retry(factory: JobFactory) -> None:
    """A row that was requeued by the run itself still names that run (fault 43)."""
    handle = factory.jobs.handle()
    handle.submit(ADD)
    run = factory.claim(handle)
    factory.store.runs.retry(run, "{}", None, 60.0, "again")
    assert factory.body_of(run).cancel_job() is JobStatus.CANCELLED
