"""`JobHandle`: OMERO's thirteen operations, as in its service and its unfinished tests."""

from typing import Any

import pytest

from jobhandle_celery import (
    ApiUsageError,
    HandleClosedError,
    InvalidTransitionError,
    Job,
    JobStatus,
    NotAttachedError,
    Progress,
    UnknownJobError,
    ValidationError,
)
from jobhandle_celery.status import FINAL, SETTABLE, STARTABLE
from jobhandle_celery.store import ClaimRejected, RejectionReason
from tests.handle_operations import OPERATIONS
from tests.job_factory import ADD, JobFactory
from tests.support import eventually


@pytest.mark.parametrize("operation", OPERATIONS)
def test_operation_before_submit_or_attach_raises_not_attached(operation: str, sqlite_url: str) -> None:
    handle = JobFactory(sqlite_url).jobs.handle()
    with pytest.raises(NotAttachedError, match="submit or attach"):
        OPERATIONS[operation](handle)
    handle.close()


@pytest.mark.parametrize("operation", [*OPERATIONS, "submit", "attach"])
def test_operation_after_close_raises_handle_closed(operation: str, sqlite_url: str) -> None:
    factory = JobFactory(sqlite_url)
    with factory.jobs.handle() as handle:
        job_id = handle.submit(ADD)
        before = factory.row(job_id)
    more = {"submit": lambda h: h.submit(ADD), "attach": lambda h: h.attach(job_id)}
    with pytest.raises(HandleClosedError):
        (OPERATIONS | more)[operation](handle)
    handle.close()
    assert factory.row(job_id) == before


def test_attach_to_unknown_id_raises_unknown_job(factory: JobFactory) -> None:
    for job_id in (1, 0, -1, 2**63 - 1, 2**63, 2**200):
        with pytest.raises(UnknownJobError, match=str(job_id)):
            factory.jobs.handle().attach(job_id)
        with pytest.raises(LookupError):
            factory.jobs.attach(job_id)


def test_attach_refuses_what_is_no_whole_number(factory: JobFactory) -> None:
    factory.jobs.handle().submit(ADD)
    for job_id in ("1", 1.0, None, True, b"1", [1]):
        with pytest.raises(ApiUsageError, match="job_id"):
            factory.jobs.handle().attach(job_id)


def test_attach_returns_current_status(factory: JobFactory) -> None:
    for status in JobStatus:
        job_id = factory.job_in(status).job_id
        assert factory.jobs.handle().attach(job_id) is status
        assert factory.jobs.attach(job_id).job_status() is status


def test_new_handle_attaches_after_close_of_another(factory: JobFactory) -> None:
    with factory.jobs.handle() as first:
        job_id = first.submit(ADD)
    with factory.jobs.handle() as second:
        second.attach(job_id)
        assert second.job_message() == "from the importer"


def test_close_leaves_row_unchanged(factory: JobFactory) -> None:
    for status in JobStatus:
        handle = factory.job_in(status)
        before = factory.row(handle.job_id)
        events = factory.jobs.events(before.id)
        handle.close()
        handle.close()
        assert factory.row(before.id) == before
        assert factory.jobs.events(before.id) == events


def test_second_submit_moves_handle_and_not_the_first_job(factory: JobFactory) -> None:
    handle = factory.jobs.handle()
    first = handle.submit(ADD)
    before = factory.row(first)
    second = handle.submit(Job(task="tests.add", args=[1, 1]))
    assert second != first
    assert handle.job_id == second
    assert handle.get_job().args == [1, 1]
    handle.cancel_job()
    assert factory.row(first) == before
    assert handle.attach(first) is JobStatus.QUEUED
    assert handle.job_id == first


def test_failed_submit_or_attach_leaves_handle_in_place(factory: JobFactory) -> None:
    handle = factory.jobs.handle()
    for wrong in (Job(task=""), Job(task="tests.add", args=[{1}]), "no job"):
        with pytest.raises((ValidationError, ApiUsageError)):
            handle.submit(wrong)
        with pytest.raises(NotAttachedError):
            handle.job_status()
    job_id = handle.submit(ADD)
    for wrong in (Job(task=""), Job(task="tests.add", args=[{1}]), "no job"):
        with pytest.raises((ValidationError, ApiUsageError)):
            handle.submit(wrong)
        assert handle.job_id == job_id
    for missing in (job_id + 1, "1"):
        with pytest.raises((UnknownJobError, ApiUsageError)):
            handle.attach(missing)
        assert handle.job_id == job_id
    assert handle.job_status() is JobStatus.QUEUED


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)  # store/test_control.py has all
@pytest.mark.parametrize("prior", JobStatus)
def test_set_status_from_each_status_returns_it_or_refuses(prior: JobStatus, factory: JobFactory) -> None:
    for status in JobStatus:
        handle = factory.job_in(prior)
        before, events = factory.row(handle.job_id), factory.jobs.events(handle.job_id)
        if status not in SETTABLE:
            with pytest.raises(ValidationError, match=f"status: .*{status}.*Running, Finished, Error"):
                handle.set_status(status.value)
        elif not _allowed(prior, status):
            with pytest.raises(InvalidTransitionError, match=f"is {prior}.*{status}"):
                handle.set_status(status.value)
        else:
            assert handle.set_status(status.value) is prior
            nothing_to_do = prior in FINAL or (prior is status is JobStatus.RUNNING)
            asked = prior is JobStatus.RUNNING and status is JobStatus.CANCELLED
            assert handle.job_status() is (prior if nothing_to_do or asked else status)
            assert (factory.row(handle.job_id) == before) is nothing_to_do
            continue
        assert factory.row(handle.job_id) == before
        assert factory.jobs.events(handle.job_id) == events


def _allowed(prior: JobStatus, status: JobStatus) -> bool:
    match status:
        case JobStatus.CANCELLED:
            return True
        case JobStatus.RUNNING:
            return prior in STARTABLE or prior is JobStatus.RUNNING
        case _:
            return prior is JobStatus.RUNNING


def test_set_status_of_unknown_word_is_refused(factory: JobFactory) -> None:
    handle = factory.job_in(JobStatus.QUEUED)
    before = factory.row(handle.job_id)
    words: list[Any] = ["running", "RenderedMessage", "", None, 4, True, ["Running"]]
    for word in words:
        with pytest.raises(ApiUsageError, match=r"Submitted.*Cancelled"):
            handle.set_status(word)
        with pytest.raises(ApiUsageError, match=r"Submitted.*Cancelled"):
            handle.set_status_and_message(word, "a message")
    assert factory.row(handle.job_id) == before


def test_set_status_and_message_writes_both_or_neither(factory: JobFactory) -> None:
    for prior in JobStatus:
        for status in (*SETTABLE, JobStatus.QUEUED):
            handle = factory.job_in(prior)
            before = factory.row(handle.job_id)
            if status in SETTABLE and _allowed(prior, status):
                assert handle.set_status_and_message(status.value, "a message") is prior
                stays = prior in FINAL
                assert handle.job_message() == (before.message if stays else "a message")
            else:
                with pytest.raises((ValidationError, InvalidTransitionError)):
                    handle.set_status_and_message(status.value, "a message")
                assert factory.row(handle.job_id) == before


def test_set_status_without_message_leaves_message(factory: JobFactory) -> None:
    handle = factory.job_in(JobStatus.QUEUED)
    assert handle.set_status_and_message("Running", None) is JobStatus.QUEUED
    assert handle.set_status("Finished") is JobStatus.RUNNING
    assert handle.job_message() == "from the importer"


def test_set_message_returns_previous_and_changes_only_it(factory: JobFactory) -> None:
    for status in JobStatus:
        handle = factory.job_in(status)
        first = handle.job_message()
        before, events = factory.row(handle.job_id), factory.jobs.events(handle.job_id)
        assert handle.set_message("half way") == first
        assert handle.set_message(None) == "half way"
        assert handle.set_message("") == "half way"
        assert handle.set_message(first) == ""
        assert factory.row(handle.job_id) == before
        assert factory.jobs.events(handle.job_id) == events


def test_two_handles_on_one_job_see_each_others_writes(factory: JobFactory) -> None:
    handle = factory.jobs.handle()
    other = factory.offline.attach(handle.submit(ADD))
    # The mark of the publish skips a row that is locked: it must not meet the writes of the other handle.
    eventually(lambda: handle.job_status() is JobStatus.QUEUED)
    assert other.set_message("from the other") == "from the importer"
    assert handle.job_message() == "from the other"
    assert handle.set_status("Running") is JobStatus.QUEUED
    assert other.job_running()
    other.set_progress(1, 4)
    assert handle.get_job().progress == Progress(1, 4)
    assert other.set_status_and_message("Error", "it broke") is JobStatus.RUNNING
    assert handle.job_error()
    assert not handle.job_running()
    assert handle.job_message() == "it broke"
    assert handle.job_finished() == other.job_finished() is not None


def test_set_status_cancelled_is_cancel_job(factory: JobFactory) -> None:
    for status in JobStatus:
        by_status, by_cancel = factory.job_in(status), factory.job_in(status)
        before, other_before = factory.row(by_status.job_id), factory.row(by_cancel.job_id)
        assert by_status.set_status("Cancelled") is status
        after = by_cancel.cancel_job()
        assert by_status.job_status() is after
        changed = _changed(before, factory.row(by_status.job_id))
        assert changed == _changed(other_before, factory.row(by_cancel.job_id))
        assert [_event(event) for event in factory.jobs.events(by_status.job_id)] == [
            _event(event) for event in factory.jobs.events(by_cancel.job_id)
        ]


def _changed(before: Any, after: Any) -> dict[str, Any]:
    """Return the differences between two rows; of times, only whether they are set."""
    moments = {"finished", "cancel_requested", "due_at"}
    return {
        name: value is not None if name in moments else value
        for name, value in after._mapping.items()
        if value != before._mapping[name]
    }


def _event(event: Any) -> Any:
    return event.status, event.attempt, event.message, event.actor


@pytest.mark.parametrize("prior", sorted(STARTABLE))
def test_job_cancelled_before_its_start_never_runs(prior: JobStatus, factory: JobFactory) -> None:
    handle = factory.job_in(prior)
    run, attempt = factory.run_of(handle), handle.get_job().attempt
    assert handle.cancel_job() is JobStatus.CANCELLED
    assert factory.store.runs.claim(run, "tests.add") == ClaimRejected(RejectionReason.CANCELLED)
    with pytest.raises(InvalidTransitionError):
        handle.set_status("Running")
    factory.jobs.sweep()
    job = handle.get_job()
    assert (job.status, job.attempt) == (JobStatus.CANCELLED, attempt)
    assert job.started is None or prior is JobStatus.REQUEUED
    assert job.finished is not None
    assert job.cancel_requested is not None
    assert handle.cancel_job() is JobStatus.CANCELLED
    assert handle.get_job() == job
