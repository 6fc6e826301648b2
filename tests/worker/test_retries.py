"""Retries go through the row: their time, their count and their changed arguments."""

import time
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from jobhandle_celery import JobStatus
from tests.apps import lines_of
from tests.support import eventually
from tests.worker.cluster import Cluster, NewCluster, statuses


@pytest.fixture(scope="module")
def cluster(module_cluster: NewCluster) -> Cluster:
    cluster = module_cluster()
    cluster.start(concurrency=2, queues=["celery", "other"], ready=False)
    cluster.start(concurrency=2, queues=["celery", "other"], ready=False)
    for worker in cluster.workers:
        worker.wait_until_ready()
    return cluster


def times_of(path: Any) -> list[float]:
    """Return when each of the lines was written."""
    return [float(line.rsplit(maxsplit=1)[1]) for line in path.read_text().splitlines()]


@pytest.mark.faults
def test_many_immediate_retries_on_two_workers_all_end(cluster: Cluster) -> None:
    wanted = {}
    for number in range(200):
        path, times = cluster.new_file(), number % 3 + 1
        handle = cluster.submit("retry_times", str(path), times)
        wanted[handle.job_id] = (path, times)

    for job_id, (path, times) in wanted.items():
        handle = cluster.jobs.attach(job_id)
        assert handle.result(timeout=60) == times
        job = handle.get_job()
        assert (job.status, job.attempt) == (JobStatus.FINISHED, times + 1)
        assert lines_of(path) == [f"{retries}/3" for retries in range(times + 1)]
    workers = {job.worker for job in cluster.jobs.find(task="worker.retry_times", limit=200)}
    assert workers == {worker.nodename for worker in cluster.workers}


def test_result_backend_shows_retry_then_success(cluster: Cluster) -> None:
    handle = cluster.submit("retry_times", str(cluster.new_file()), 2)

    assert handle.result(timeout=20) == 2
    eventually(lambda: cluster.state(handle.get_job().task_id) == "SUCCESS")
    assert statuses(cluster, handle) == [
        "Submitted",
        *("Running", "Requeued"),
        *("Running", "Requeued"),
        *("Running", "Finished"),
    ]


@pytest.mark.parametrize(
    ("with_reason", "type_", "words"),
    [(True, "ValueError", "at last"), (False, "MaxRetriesExceededError", "Can't retry")],
)
def test_too_many_retries_end_in_error(cluster: Cluster, with_reason: bool, type_: str, words: str) -> None:
    path = cluster.new_file()

    handle = cluster.submit("retry_for_ever", str(path), with_reason)

    assert handle.wait(20) is JobStatus.ERROR
    error = handle.get_job().error
    assert error is not None
    assert (error.kind, error.type) == ("task", type_)
    assert words in error.message
    assert lines_of(path) == ["0", "1", "2"]
    assert handle.get_job().attempt == 3


@pytest.mark.parametrize("task", ["autoretry", "registered_autoretry"])
def test_autoretry_ends_with_the_last_error(cluster: Cluster, task: str) -> None:
    path = cluster.new_file()

    handle = cluster.submit(task, str(path))

    assert handle.wait(20) is JobStatus.ERROR
    error = handle.get_job().error
    assert error is not None
    assert (error.type, error.message) == ("ValueError", "every time")
    assert lines_of(path) == ["begun"] * 3


def test_retry_backoff_is_in_the_row_and_not_cut_short(cluster: Cluster) -> None:
    path = cluster.new_file()

    handle = cluster.submit("autoretry_with_backoff", str(path))

    eventually(lambda: handle.job_status() is JobStatus.REQUEUED)
    assert handle.result(timeout=20) == "second"
    first, second = times_of(path)
    assert second - first >= 1


def test_retry_countdown_is_in_the_row_and_not_cut_short(cluster: Cluster) -> None:
    path = cluster.new_file()

    handle = cluster.submit("retry_times", str(path), 2, kwargs={"countdown": 0.7})

    assert handle.result(timeout=20) == 2
    first, second, third = times_of(path)
    assert second - first >= 0.7
    assert third - second >= 0.7


def test_retry_with_eta_starts_at_that_time(cluster: Cluster) -> None:
    path = cluster.new_file()
    moment = datetime.now(UTC) + timedelta(seconds=1)

    handle = cluster.submit("retry_at", str(path), moment)

    assert handle.result(timeout=20) == "second"
    assert times_of(path)[1] >= moment.timestamp()


def test_job_cancelled_between_attempts_never_runs_again(cluster: Cluster) -> None:
    path = cluster.new_file()
    handle = cluster.submit("retry_times", str(path), 5, kwargs={"countdown": 1})
    eventually(lambda: handle.job_status() is JobStatus.REQUEUED)

    assert handle.cancel_job() is JobStatus.CANCELLED

    cancelled = time.monotonic()
    eventually(lambda: time.monotonic() - cancelled > 1.5)
    assert lines_of(path) == ["0/3"]
    assert handle.job_status() is JobStatus.CANCELLED


def test_job_with_a_stop_request_is_not_retried(cluster: Cluster) -> None:
    path, sign = cluster.new_file(), cluster.new_file()
    handle = cluster.submit("retry_when_there", str(path), str(sign))
    eventually(lambda: lines_of(path) == ["begun"])
    assert handle.cancel_job() is JobStatus.RUNNING

    sign.touch()

    assert handle.wait(20) is JobStatus.CANCELLED
    assert lines_of(path) == ["begun"]
    eventually(lambda: cluster.state(handle.get_job().task_id) == "REVOKED")


def test_retry_may_change_arguments(cluster: Cluster) -> None:
    options = {"args": ["new"], "kwargs": {"options": {"also": "new"}}}

    returned = cluster.submit("retry_with", "old", options).result(timeout=20)

    assert (returned["path"], returned["options"]) == ("new", {"also": "new"})


def test_retry_may_change_queue_limits_and_priority(cluster: Cluster) -> None:
    options = {"queue": "other", "time_limit": 30, "soft_time_limit": 20, "priority": 3}

    handle = cluster.submit("retry_with", "path", options)

    returned = handle.result(timeout=20)
    assert returned["queue"].startswith("other")
    assert returned["limits"] == [30, 20]
    assert returned["priority"] == 3
    assert handle.get_job().queue == "other"


def test_options_of_the_submit_survive_a_retry(cluster: Cluster) -> None:
    handle = cluster.submit(
        "retry_with", "path", {}, queue="other", time_limit=30, soft_time_limit=20, priority=4
    )

    returned = handle.result(timeout=20)

    assert returned["queue"].startswith("other")
    assert (returned["limits"], returned["priority"]) == ([30, 20], 4)


def test_next_attempt_starts_only_after_the_body_has_left(cluster: Cluster) -> None:
    """A retry written while its body still runs would allow two bodies at once (mutant 6)."""
    path = cluster.new_file()

    assert cluster.submit("retry_and_linger", str(path), 0.5).result(timeout=20) == "done"

    assert lines_of(path) == ["begun 0", "left 0", "begun 1", "left 1"]


@pytest.mark.parametrize("then", ["return", "raise", "retry", "ignore"])
def test_retry_without_throw_counts_after_the_body_has_left(cluster: Cluster, then: str) -> None:
    path = cluster.new_file()

    handle = cluster.submit("retry_without_throw", str(path), then)

    assert handle.result(timeout=20) == "second"
    assert lines_of(path) == ["0", "1"]
    assert handle.get_job().attempt == 2


def test_retry_with_arguments_that_are_no_json_is_an_error(cluster: Cluster) -> None:
    handle = cluster.submit("retry_with_nonsense")

    assert handle.wait(20) is JobStatus.ERROR
    assert "JSON" in handle.job_message()


def test_late_ack_task_runs_once_per_attempt(cluster: Cluster) -> None:
    path = cluster.new_file()

    handle = cluster.submit("retry_times_late", str(path), 5)

    assert handle.result(timeout=20) == 5
    assert lines_of(path) == [str(retries) for retries in range(6)]
    assert handle.get_job().attempt == 6


def test_resubmit_resets_the_retries(cluster: Cluster) -> None:
    path = cluster.new_file()
    handle = cluster.submit("retry_for_ever", str(path), False)
    assert handle.wait(20) is JobStatus.ERROR

    handle.resubmit_job()

    assert handle.wait(20) is JobStatus.ERROR
    assert lines_of(path) == ["0", "1", "2"] * 2


def test_retries_do_not_count_as_losses(cluster: Cluster) -> None:
    handle = cluster.submit("retry_then_die", str(cluster.new_file()), max_attempts=2)

    assert handle.result(timeout=30) == "at last"
    assert handle.get_job().attempt == 4
