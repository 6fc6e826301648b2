"""`task_always_eager`, for users' own tests: a job runs where it is submitted, through the same claim."""

import logging
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, assert_type

import pytest
from celery import Celery
from sqlalchemy import create_engine
from sqlalchemy.orm import Session

from jobhandle_celery import (
    HandleClosedError,
    Job,
    JobCancelledError,
    JobFailedError,
    JobHandle,
    Jobs,
    JobStatus,
    ValidationError,
    current_job,
)
from tests.apps import lines_of
from tests.job_factory import ADD
from tests.support import sweep_until

NO_GOOD = Job(task="tests.fail", args=["no good"])


@pytest.fixture
def make(sqlite_url: str, make_jobs_app: Callable[..., Any]) -> Callable[..., Any]:
    return partial(make_jobs_app, sqlite_url, task_always_eager=True)


@pytest.fixture
def app(make: Callable[..., Any]) -> Any:
    return make()


def test_result_has_the_type_of_the_signature(app: Celery) -> None:
    """Mypy checks the types (`assert_type`), the run the value."""

    @app.task
    def double(number: int) -> int:
        return 2 * number

    jobs: Jobs = app.jobs  # type: ignore[attr-defined]  # made by Jobs
    handle: JobHandle[int] = jobs.handle()
    handle.submit(double.s(3))
    assert_type(handle.result(), int)
    assert handle.result() == 6


def history(handle: Any, app: Any) -> list[str]:
    return [str(event.status) for event in app.jobs.events(handle.job_id)]


def test_eager_job_runs_and_is_finished(database_url: str, make_jobs_app: Callable[..., Any]) -> None:
    app = make_jobs_app(database_url, task_always_eager=True)
    handle = app.jobs.handle(username="ann")
    handle.submit(app.tasks["tests.add"].s(1, y=2))
    assert handle.result(timeout=0) == 3
    job = handle.get_job()
    assert (job.status, job.attempt, job.username) == (JobStatus.FINISHED, 1, "ann")
    assert job.submitted <= job.started <= job.finished
    assert history(handle, app) == ["Submitted", "Running", "Finished"]
    assert app.jobs.submit_many([ADD, ADD])
    assert app.jobs.count_by_status()[JobStatus.FINISHED] == 3


def test_eager_failure_ends_in_error_and_submit_returns(app: Any) -> None:
    handle = app.jobs.handle()
    handle.submit(NO_GOOD)
    with pytest.raises(JobFailedError, match="ValueError: no good") as caught:
        handle.result(timeout=0)
    assert caught.value.failure.kind == "task"
    assert "raise ValueError(message)" in caught.value.failure.traceback


def test_eager_propagates_raises_error_from_submit(make: Callable[..., Any]) -> None:
    app = make(task_eager_propagates=True)
    handle = app.jobs.handle()
    handle.submit(ADD)
    assert handle.result(timeout=0) == 5
    with pytest.raises(ValueError, match="no good"):
        handle.submit(NO_GOOD)
    assert [job.status for job in app.jobs.find(task="tests.fail")] == [JobStatus.ERROR]


def test_eager_propagates_with_tblib_raises_bodys_error(
    make: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Celery makes tracebacks by tblib where it is installed, but not of eager results (fault 70)."""
    monkeypatch.setattr("celery.result.tblib", object())
    handle = make(task_eager_propagates=True).jobs.handle()
    with pytest.raises(ValueError, match="no good"):
        handle.submit(NO_GOOD)


@pytest.mark.parametrize("propagates", [False, True])
def test_eager_retry_runs_at_once_through_the_row(
    propagates: bool, make: Callable[..., Any], tmp_path: Path
) -> None:
    app = make(task_eager_propagates=propagates)
    handle = app.jobs.handle()
    handle.submit(Job(task="tests.retry_times", args=[str(tmp_path / "lines"), 3, 60]))
    assert handle.result(timeout=0) == 3
    assert handle.get_job().attempt == 4
    assert lines_of(tmp_path / "lines") == ["0", "1", "2", "3"]
    assert history(handle, app) == ["Submitted", *["Running", "Requeued"] * 3, "Running", "Finished"]


def test_eager_task_out_of_retries_ends_in_error(app: Any) -> None:
    @app.task(name="flaky", shared=False, autoretry_for=(OSError,), max_retries=2, retry_backoff=True)  # type: ignore[untyped-decorator]  # Celery's
    def flaky() -> None:
        raise OSError("the disk is away")

    handle = app.jobs.handle()
    handle.submit(flaky.s())
    with pytest.raises(JobFailedError, match="the disk is away"):
        handle.result(timeout=0)
    assert handle.get_job().attempt == 3


def test_eager_held_job_runs_when_released_unless_cancelled(app: Any, tmp_path: Path) -> None:
    handle = app.jobs.handle()
    held = Job(task="tests.append_line", args=[str(tmp_path / "lines"), "ran"], status=JobStatus.WAITING)
    handle.submit(held)
    assert handle.job_status() is JobStatus.WAITING
    assert handle.cancel_job() is JobStatus.CANCELLED
    assert lines_of(tmp_path / "lines") == []
    handle.submit(held)
    handle.release_job()
    assert handle.job_status() is JobStatus.FINISHED
    handle.resubmit_job()
    assert handle.job_status() is JobStatus.FINISHED
    assert handle.get_job().attempt == 2
    assert lines_of(tmp_path / "lines") == ["ran", "ran"]


def test_eager_expired_job_does_not_run(app: Any, tmp_path: Path) -> None:
    handle = app.jobs.handle()
    handle.submit(app.tasks["tests.append_line"].s(str(tmp_path / "lines"), "ran").set(expires=-1))
    assert handle.job_status() is JobStatus.CANCELLED
    assert "expired" in handle.job_message()
    assert lines_of(tmp_path / "lines") == []


def test_eager_body_that_stops_on_request_is_cancelled(app: Any) -> None:
    @app.task(name="stops", shared=False)  # type: ignore[untyped-decorator]  # Celery's
    def stops() -> None:
        job = current_job()
        assert job is not None
        assert job.cancel_job() is JobStatus.RUNNING
        job.set_message("half way")
        job.raise_if_cancelled()

    @app.task(name="retries", shared=False, bind=True)  # type: ignore[untyped-decorator]  # Celery's
    def retries(self: Any) -> None:
        job = current_job()
        assert job is not None
        job.cancel_job()
        self.retry(countdown=1)

    handle = app.jobs.handle()
    for task in (stops, retries):
        handle.submit(task.s())
        assert handle.job_status() is JobStatus.CANCELLED
        with pytest.raises(JobCancelledError):
            handle.result(timeout=0)
        assert handle.get_job().attempt == 1


def test_eager_body_submits_other_jobs_and_keeps_its_own(app: Any) -> None:
    seen: dict[str, Any] = {}

    @app.task(name="inner", shared=False)  # type: ignore[untyped-decorator]  # Celery's
    def inner(number: int) -> int:
        job = current_job()
        assert job is not None
        seen[f"inner {number}"] = job.job_id
        return number * 2

    @app.task(name="outer", shared=False)  # type: ignore[untyped-decorator]  # Celery's
    def outer() -> int:
        job = current_job()
        assert job is not None
        total = 0
        for number in (1, 2):
            with app.jobs.handle() as other:
                seen[f"given {number}"] = other.submit(inner.s(number))
                total += other.result(timeout=0)
        again = current_job()
        assert again is not None
        assert again.job_id == job.job_id
        job.set_message("both done")
        # Called without a job, a task has none, here as anywhere.
        seen["plain"] = plain.delay().get()
        return total

    @app.task(name="plain", shared=False)  # type: ignore[untyped-decorator]  # Celery's
    def plain() -> bool:
        return current_job() is None

    handle = app.jobs.handle()
    job_id = handle.submit(outer.s())
    assert handle.result(timeout=0) == 6
    assert handle.job_message() == "both done"
    assert seen["plain"] is True
    assert seen["inner 1"] == seen["given 1"]
    assert seen["inner 2"] == seen["given 2"]
    assert len({job_id, seen["inner 1"], seen["inner 2"]}) == 3
    assert app.jobs.count_by_status()[JobStatus.FINISHED] == 3


def test_closed_handle_of_eager_body_writes_nothing(app: Any) -> None:
    refused = []

    @app.task(name="closes", shared=False)  # type: ignore[untyped-decorator]  # Celery's
    def closes() -> None:
        job = current_job()
        assert job is not None
        job.close()
        for write in (lambda: job.set_progress(1), lambda: job.set_message("a"), job.cancel_requested):
            with pytest.raises(HandleClosedError):
                write()
            refused.append(write)

    handle = app.jobs.handle()
    handle.submit(closes.s())
    assert handle.wait(0) is JobStatus.FINISHED
    assert len(refused) == 3
    assert handle.get_job().progress is None


def test_progress_and_message_of_eager_body_are_in_the_row(app: Any) -> None:
    @app.task(name="speaks", shared=False)  # type: ignore[untyped-decorator]  # Celery's
    def speaks() -> None:
        job = current_job()
        assert job is not None
        job.set_progress(3, 4)
        assert job.set_message("nearly") == "from the importer"
        assert job.job_running()
        assert job.get_job().progress.fraction == 0.75  # type: ignore[union-attr]

    handle = app.jobs.handle()
    handle.submit(Job(task="speaks", message="from the importer"))
    assert handle.result(timeout=0) is None
    assert handle.job_message() == "nearly"
    assert handle.get_job().progress.fraction == 0.75


def test_eager_result_that_is_not_json_ends_in_error(app: Any) -> None:
    handle = app.jobs.handle()
    for job in (Job(task="tests.unserialisable_result"), Job(task="tests.big_result", args=[1024 * 1024])):
        handle.submit(job)
        assert handle.job_status() is JobStatus.ERROR
        assert "result" in handle.job_message()


def test_eager_submit_of_unregistered_task_is_refused(app: Any) -> None:
    with pytest.raises(ValidationError, match=r"^task: 'unregistered'"):
        app.jobs.handle().submit(Job(task="unregistered"))
    assert app.jobs.find() == []


def test_eager_scheduled_job_runs_at_its_time(app: Any) -> None:
    handle = app.jobs.handle()
    handle.submit(app.tasks["tests.add"].s(1, 2).set(countdown=0.2))
    assert handle.job_status() is JobStatus.WAITING
    sweep_until(app.jobs, lambda: handle.job_status() is JobStatus.FINISHED)


def test_plain_calls_are_plain_eager_calls(app: Any) -> None:
    assert app.tasks["tests.add"].delay(1, 2).get() == 3
    assert app.tasks["tests.add"].apply_async((1, 2), countdown=5).get() == 3
    assert app.jobs.find() == []


def test_eager_request_has_headers_priority_and_route(app: Any) -> None:
    """As in a worker (fault 18)."""
    seen = dict[str, Any]()

    @app.task(name="looks", bind=True, shared=False)  # type: ignore[untyped-decorator]  # Celery's
    def looks(self: Any) -> None:
        request = self.request
        seen.update(
            headers=request.headers["tenant"],
            attribute=request.tenant,
            ignored=request.ignore_result,
            stamps=request.stamps,
            priority=request.delivery_info["priority"],
            routing_key=request.delivery_info["routing_key"],
        )

    given = {"headers": {"tenant": "acme"}, "ignore_result": True, "priority": 4, "queue": "q"}
    app.jobs.handle().submit(looks.s().set(**given, stamped_headers=["batch"], batch="monday"))
    assert seen == {
        "headers": "acme",
        "attribute": "acme",
        "ignored": True,
        "stamps": {"batch": ["monday"]},
        "priority": 4,
        "routing_key": "q",
    }


def test_eager_retry_keeps_headers_of_the_submit(app: Any) -> None:
    seen: list[str] = []

    @app.task(name="retries", bind=True, shared=False)  # type: ignore[untyped-decorator]  # Celery's
    def retries(self: Any) -> None:
        seen.append(self.request.tenant)
        if not self.request.retries:
            self.retry(countdown=5)

    handle = app.jobs.handle()
    headers = {"tenant": "acme"}
    for given in (retries.s().set(headers=headers), Job(task="retries", headers=headers)):
        handle.submit(given)
        assert (seen, handle.job_status()) == (["acme", "acme"], JobStatus.FINISHED)
        assert handle.get_job().headers == headers
        seen.clear()


def test_eager_jobs_all_run_before_first_error_is_raised(make: Callable[..., Any]) -> None:
    app = make(task_eager_propagates=True)
    with pytest.raises(ValueError, match="no good"):
        app.jobs.submit_many([ADD, NO_GOOD, ADD])
    counts = app.jobs.count_by_status()
    assert (counts[JobStatus.FINISHED], counts[JobStatus.ERROR]) == (2, 1)


def test_log_reports_eager_failure_after_commit(
    make: Callable[..., Any], sqlite_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    app = make(task_eager_propagates=True)
    engine = create_engine(sqlite_url)
    with Session(engine) as session, caplog.at_level(logging.INFO, "jobhandle_celery"):
        app.jobs.submit_many([NO_GOOD, ADD], session=session)
        session.commit()
    engine.dispose()
    assert "ran eagerly after the commit, and a body failed" in caplog.text
    assert "not sent" not in caplog.text
    counts = app.jobs.count_by_status()
    assert (counts[JobStatus.FINISHED], counts[JobStatus.ERROR]) == (1, 1)
