"""However a body ends, its job ends in the right status, with a readable message."""

from datetime import UTC, datetime
from decimal import Decimal
from typing import Any
from uuid import UUID

import pytest

from jobhandle_celery import Failure, JobHandle, JobStatus
from jobhandle_celery.serialization import LIMIT
from tests.apps import lines_of
from tests.support import eventually
from tests.worker.site import NewSite, Site, statuses


@pytest.fixture(scope="module")
def site(module_site: NewSite) -> Site:
    site = module_site()
    site.start(concurrency=2)
    return site


@pytest.fixture(autouse=True)
def _the_worker_lives_on(site: Site) -> Any:
    yield
    assert site.submit("add", 20, 22).result(timeout=20) == 42


def failure_of(handle: JobHandle, timeout: float = 20) -> Failure:
    assert handle.wait(timeout) is JobStatus.ERROR
    error = handle.get_job().error
    assert error is not None
    return error


def test_exception_is_a_failure_of_the_task(site: Site) -> None:
    handle = site.submit("raise_value_error", "no good")

    failure = failure_of(handle)

    assert (failure.kind, failure.type, failure.message) == ("task", "ValueError", "no good")
    assert "raise ValueError(message)" in failure.traceback
    assert handle.job_message() == "ValueError: no good"
    assert statuses(site, handle) == ["Submitted", "Running", "Error"]


def test_unpicklable_exception_keeps_its_message(site: Site) -> None:
    failure = failure_of(site.submit("raise_unpicklable"))

    assert failure.kind == "task"
    assert "Unpicklable" in failure.type
    assert "can not be rebuilt" in failure.message


def test_soft_time_limit_is_a_system_failure(site: Site) -> None:
    failure = failure_of(site.submit("deaf", str(site.new_file()), 30, soft_time_limit=1))

    assert (failure.kind, failure.type) == ("system", "SoftTimeLimitExceeded")
    assert "soft time limit" in failure.message
    assert "was exceeded" in failure.message


def test_body_may_finish_after_its_soft_time_limit(site: Site) -> None:
    path = site.new_file()

    handle = site.submit("clean_up_at_soft_limit", str(path), soft_time_limit=1)

    assert handle.result(timeout=20) == "in time after all"
    assert lines_of(path) == ["cleaned up"]


@pytest.mark.parametrize("task", ["deaf", "deaf_late"])
def test_hard_time_limit_ends_the_body(site: Site, task: str) -> None:
    path = site.new_file()

    handle = site.submit(task, str(path), 30, time_limit=1)

    failure = failure_of(handle)
    assert (failure.kind, failure.type) == ("system", "TimeLimitExceeded")
    assert failure.message == "the time limit of 1 s was exceeded"
    assert handle.job_message() == failure.message
    assert lines_of(path) == ["begun"]


def test_time_limit_by_remote_control_applies_to_later_jobs(site: Site) -> None:
    def limit(seconds: float | None) -> None:
        answers: Any = site.app.control.time_limit(
            "worker.attentive", hard=seconds, reply=True, limit=1, timeout=10
        )
        assert "'ok'" in str(answers)

    limit(1)
    try:
        failure = failure_of(site.submit("attentive", str(site.new_file()), 60))
    finally:
        limit(None)
    assert (failure.kind, failure.type) == ("system", "TimeLimitExceeded")
    assert site.submit("attentive", str(site.new_file()), 1.5).wait(30) is JobStatus.FINISHED


def test_sys_exit_in_body_is_a_failure_of_the_task(site: Site) -> None:
    failure = failure_of(site.submit("exit_in_body", 3))

    assert failure.kind == "task"
    assert "SystemExit: 3" in failure.message
    assert "sys.exit(code)" in failure.traceback


@pytest.mark.parametrize("task", ["kill_own_process", "raise_keyboard_interrupt"])
def test_lost_process_is_a_system_failure(site: Site, task: str) -> None:
    handle = site.submit(task)

    failure = failure_of(handle)
    assert (failure.kind, failure.type) == ("system", "WorkerLostError")
    assert "the process that ran it was lost" in failure.message
    assert handle.get_job().attempt == 1


def test_lost_process_is_restarted_up_to_max_attempts(site: Site) -> None:
    handle = site.submit("kill_own_process", max_attempts=2)

    failure = failure_of(handle, timeout=30)

    assert failure.type == "WorkerLostError"
    assert handle.get_job().attempt == 2


def test_redelivery_of_lost_late_ack_task_does_not_restart_it(site: Site) -> None:
    path = site.new_file()

    handle = site.submit("kill_own_process_late", str(path))

    assert failure_of(handle).type == "WorkerLostError"
    site.submit("add", 1, 1).result(timeout=20)
    assert lines_of(path) == ["begun"]


def test_reject_with_requeue_runs_again(site: Site) -> None:
    path = site.new_file()

    handle = site.submit("reject_once", str(path))

    assert handle.result(timeout=20) == "second"
    assert lines_of(path) == ["begun", "begun"]
    assert statuses(site, handle) == ["Submitted", "Running", "Requeued", "Running", "Finished"]


@pytest.mark.parametrize("task", ["bad_on_success", "bad_after_return"])
def test_failing_hook_after_success_changes_nothing(site: Site, task: str) -> None:
    handle = site.submit(task)

    assert handle.result(timeout=20) == "done"


@pytest.mark.parametrize("task", ["bad_on_failure", "bad_on_retry"])
def test_failing_hook_is_an_internal_error(site: Site, task: str) -> None:
    handle = site.submit(task)

    failure = failure_of(handle)

    assert failure.kind == "system"
    assert "internal error outside the task's body" in failure.message
    assert "the hook broke" in failure.message


def test_failing_before_start_prevents_the_body(site: Site) -> None:
    path = site.new_file()

    failure = failure_of(site.submit("bad_before_start", str(path)))

    assert (failure.type, failure.message) == ("RuntimeError", "the hook broke")
    assert lines_of(path) == []


@pytest.mark.parametrize(
    ("task", "status"),
    [
        ("before_start_ignores", JobStatus.FINISHED),
        ("before_start_rejects", JobStatus.ERROR),
        ("before_start_stops", JobStatus.CANCELLED),
    ],
)
def test_before_start_may_end_the_job_as_a_body_may(site: Site, task: str, status: JobStatus) -> None:
    path = site.new_file()

    handle = site.submit(task, str(path))

    assert handle.wait(20) is status
    assert "does not run it any more" not in handle.job_message()
    assert "lost" not in handle.job_message()
    assert lines_of(path) == []


def test_retry_raised_by_hand_ends_in_error(site: Site) -> None:
    # Celery stores RETRY and publishes nothing, for there is no signature to publish.
    failure = failure_of(site.submit("raise_retry_by_hand"))

    assert failure.kind == "task"
    assert "raised by hand" in failure.message


@pytest.mark.parametrize(
    ("task", "arguments", "words"),
    [
        ("result_of_length", [LIMIT], "more than 1,048,576"),
        ("unserialisable_result", [], "is not JSON"),
        ("result_holding_itself", [], "is not JSON"),
    ],
)
def test_result_that_cannot_be_stored_ends_in_error(
    site: Site, task: str, arguments: list[int], words: str
) -> None:
    handle = site.submit(task, *arguments)

    failure = failure_of(handle)

    assert "the result" in failure.message
    assert words in failure.message
    assert failure.message in handle.job_message()


def test_result_keeps_its_types_up_to_the_size_limit(site: Site) -> None:
    given = [datetime(2024, 2, 29, tzinfo=UTC), UUID(int=7), Decimal("3.1400"), b"\x00\xff"]
    length = LIMIT - len('""')

    assert site.submit("same", given).result(timeout=20) == given
    assert len(site.submit("result_of_length", length).result(timeout=20)) == length


@pytest.mark.parametrize("fails", [False, True])
def test_nul_characters_do_not_end_the_worker(site: Site, fails: bool) -> None:
    handle = site.submit("nul_everywhere", fails)

    if fails:
        assert failure_of(handle).message == "cd"
        return
    eventually(lambda: handle.job_status().final)
    assert handle.get_job().status in (JobStatus.FINISHED, JobStatus.ERROR)


def test_unknown_task_waits_for_a_worker_that_knows_it(new_site: NewSite) -> None:
    site = new_site(settings={"jobhandle_republish_after": 1})
    site.start(pool="solo")
    handle = site.submit("known_to_few", message="the user's own")
    events = eventually(lambda: [e for e in site.jobs.events(handle.job_id) if "does not know" in e.message])
    assert "worker.known_to_few" in events[0].message
    assert handle.job_message() == "the user's own"

    site.workers[0].end()
    site.start(pool="solo", environment={"KNOWS_MORE": "1"})

    assert handle.result(timeout=20) == "known"
    assert handle.get_job().attempt == 1


def test_memory_error_is_a_failure_with_a_message(new_site: NewSite) -> None:
    # A site of its own: Celery ends a worker whose task has raised MemoryError.
    site = new_site()
    site.start(concurrency=1)

    failure = failure_of(site.submit("raise_memory_error"))

    assert (failure.kind, failure.type, failure.message) == ("task", "MemoryError", "no room")
