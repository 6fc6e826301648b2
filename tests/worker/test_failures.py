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
from tests.worker.cluster import Cluster, NewCluster, statuses


@pytest.fixture(scope="module")
def cluster(module_cluster: NewCluster) -> Cluster:
    cluster = module_cluster()
    cluster.start(concurrency=2)
    return cluster


@pytest.fixture(autouse=True)
def _the_worker_lives_on(cluster: Cluster) -> Any:
    yield
    assert cluster.submit("add", 20, 22).result(timeout=20) == 42


def failure_of(handle: JobHandle, timeout: float = 120) -> Failure:
    assert handle.wait(timeout) is JobStatus.ERROR
    error = handle.get_job().error
    assert error is not None
    return error


def test_exception_is_a_failure_of_the_task(cluster: Cluster) -> None:
    handle = cluster.submit("raise_value_error", "no good")

    failure = failure_of(handle)

    assert (failure.kind, failure.type, failure.message) == ("task", "ValueError", "no good")
    assert "raise ValueError(message)" in failure.traceback
    assert handle.job_message() == "ValueError: no good"
    assert statuses(cluster, handle) == ["Submitted", "Running", "Error"]


def test_unpicklable_exception_keeps_its_message(cluster: Cluster) -> None:
    failure = failure_of(cluster.submit("raise_unpicklable"))

    assert failure.kind == "task"
    assert "Unpicklable" in failure.type
    assert "can not be rebuilt" in failure.message


def test_soft_time_limit_is_a_system_failure(cluster: Cluster) -> None:
    failure = failure_of(cluster.submit("deaf", str(cluster.new_file()), 30, soft_time_limit=1))

    assert (failure.kind, failure.type) == ("system", "SoftTimeLimitExceeded")
    assert "soft time limit" in failure.message
    assert "was exceeded" in failure.message


def test_body_may_finish_after_its_soft_time_limit(cluster: Cluster) -> None:
    path = cluster.new_file()

    handle = cluster.submit("clean_up_at_soft_limit", str(path), soft_time_limit=1)

    assert handle.result(timeout=20) == "in time after all"
    assert lines_of(path) == ["cleaned up"]


@pytest.mark.parametrize("task", ["deaf", "deaf_late"])
def test_hard_time_limit_ends_the_body(cluster: Cluster, task: str) -> None:
    path = cluster.new_file()

    handle = cluster.submit(task, str(path), 30, time_limit=1)

    failure = failure_of(handle)
    assert (failure.kind, failure.type) == ("system", "TimeLimitExceeded")
    assert failure.message == "the time limit of 1 s was exceeded"
    assert handle.job_message() == failure.message
    assert lines_of(path) == ["begun"]


def test_time_limit_by_remote_control_applies_to_later_jobs(cluster: Cluster) -> None:
    def limit(seconds: float | None) -> None:
        answers: Any = cluster.app.control.time_limit(
            "worker.attentive", hard=seconds, reply=True, limit=1, timeout=10
        )
        assert "'ok'" in str(answers)

    limit(1)
    try:
        failure = failure_of(cluster.submit("attentive", str(cluster.new_file()), 60))
    finally:
        limit(None)
    assert (failure.kind, failure.type) == ("system", "TimeLimitExceeded")
    assert cluster.submit("attentive", str(cluster.new_file()), 1.5).wait(30) is JobStatus.FINISHED


def test_sys_exit_in_body_is_a_failure_of_the_task(cluster: Cluster) -> None:
    failure = failure_of(cluster.submit("exit_in_body", 3))

    assert failure.kind == "task"
    assert "SystemExit: 3" in failure.message
    assert "sys.exit(code)" in failure.traceback


@pytest.mark.faults
@pytest.mark.parametrize("task", ["kill_own_process", "raise_keyboard_interrupt"])
def test_lost_process_is_a_system_failure(cluster: Cluster, task: str) -> None:
    handle = cluster.submit(task)

    failure = failure_of(handle)
    assert (failure.kind, failure.type) == ("system", "WorkerLostError")
    assert "the process that ran it was lost" in failure.message
    assert handle.get_job().attempt == 1


@pytest.mark.faults
def test_lost_process_is_restarted_up_to_max_attempts(cluster: Cluster) -> None:
    handle = cluster.submit("kill_own_process", max_attempts=2)

    failure = failure_of(handle, timeout=30)

    assert failure.type == "WorkerLostError"
    assert handle.get_job().attempt == 2


@pytest.mark.faults
def test_redelivery_of_lost_late_ack_task_does_not_restart_it(cluster: Cluster) -> None:
    path = cluster.new_file()

    handle = cluster.submit("kill_own_process_late", str(path))

    assert failure_of(handle).type == "WorkerLostError"
    cluster.submit("add", 1, 1).result(timeout=20)
    assert lines_of(path) == ["begun"]


def test_reject_with_requeue_runs_again(cluster: Cluster) -> None:
    path = cluster.new_file()

    handle = cluster.submit("reject_once", str(path))

    assert handle.result(timeout=20) == "second"
    assert lines_of(path) == ["begun", "begun"]
    assert statuses(cluster, handle) == ["Submitted", "Running", "Requeued", "Running", "Finished"]


@pytest.mark.parametrize("task", ["bad_on_success", "bad_after_return"])
def test_failing_hook_after_success_changes_nothing(cluster: Cluster, task: str) -> None:
    handle = cluster.submit(task)

    assert handle.result(timeout=20) == "done"


@pytest.mark.parametrize("task", ["bad_on_failure", "bad_on_retry"])
def test_failing_hook_is_an_internal_error(cluster: Cluster, task: str) -> None:
    handle = cluster.submit(task)

    failure = failure_of(handle)

    assert failure.kind == "system"
    assert "internal error outside the task's body" in failure.message
    assert "the hook broke" in failure.message


def test_failing_before_start_prevents_the_body(cluster: Cluster) -> None:
    path = cluster.new_file()

    failure = failure_of(cluster.submit("bad_before_start", str(path)))

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
def test_before_start_may_end_the_job_as_a_body_may(cluster: Cluster, task: str, status: JobStatus) -> None:
    path = cluster.new_file()

    handle = cluster.submit(task, str(path))

    assert handle.wait(20) is status
    assert "does not run it any more" not in handle.job_message()
    assert "lost" not in handle.job_message()
    assert lines_of(path) == []


def test_retry_raised_by_hand_ends_in_error(cluster: Cluster) -> None:
    # Celery stores RETRY and publishes nothing, for there is no signature to publish.
    failure = failure_of(cluster.submit("raise_retry_by_hand"))

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
    cluster: Cluster, task: str, arguments: list[int], words: str
) -> None:
    handle = cluster.submit(task, *arguments)

    failure = failure_of(handle)

    assert "the result" in failure.message
    assert words in failure.message
    assert failure.message in handle.job_message()


def test_result_keeps_its_types_up_to_the_size_limit(cluster: Cluster) -> None:
    given = [datetime(2024, 2, 29, tzinfo=UTC), UUID(int=7), Decimal("3.1400"), b"\x00\xff"]
    length = LIMIT - len('""')

    assert cluster.submit("same", given).result(timeout=20) == given
    assert len(cluster.submit("result_of_length", length).result(timeout=20)) == length


@pytest.mark.parametrize("fails", [False, True])
def test_nul_characters_do_not_end_the_worker(cluster: Cluster, fails: bool) -> None:
    handle = cluster.submit("nul_everywhere", fails)

    if fails:
        assert failure_of(handle).message == "cd"
        return
    eventually(lambda: handle.job_status().final)
    assert handle.get_job().status in (JobStatus.FINISHED, JobStatus.ERROR)


def test_unknown_task_waits_for_a_worker_that_knows_it(new_cluster: NewCluster) -> None:
    cluster = new_cluster(settings={"jobhandle_republish_after": 1})
    cluster.start(pool="solo")
    handle = cluster.submit("known_to_few", message="the user's own")
    events = eventually(
        lambda: [e for e in cluster.jobs.events(handle.job_id) if "does not know" in e.message]
    )
    assert "worker.known_to_few" in events[0].message
    assert handle.job_message() == "the user's own"

    cluster.workers[0].end()
    cluster.start(pool="solo", environment={"KNOWS_MORE": "1"})

    assert handle.result(timeout=20) == "known"
    assert handle.get_job().attempt == 1


def test_memory_error_is_a_failure_with_a_message(new_cluster: NewCluster) -> None:
    # A cluster of its own: Celery ends a worker whose task has raised MemoryError.
    cluster = new_cluster()
    cluster.start(concurrency=1)

    failure = failure_of(cluster.submit("raise_memory_error"))

    assert (failure.kind, failure.type, failure.message) == ("task", "MemoryError", "no room")
