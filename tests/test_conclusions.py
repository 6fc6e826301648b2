"""When a run's outcome is written: once its body has left, and before anything else may hang or exit."""

import uuid
from collections.abc import Callable
from typing import Any

import pytest
from celery import signals
from celery.app.trace import trace_task_ret
from celery.exceptions import Ignore, Reject, Retry

from jobhandle_celery import JobStatus, current_job
from jobhandle_celery.errors import DatabaseUnavailableError, StopRequested
from jobhandle_celery.runtime import runtime_of
from jobhandle_celery.store import Run
from jobhandle_celery.worker.current_run import CurrentRun
from jobhandle_celery.worker.decision import decide
from jobhandle_celery.worker.outcomes import Failed, Finished, Report
from tests.in_process import become_worker, message_of, run


@pytest.fixture
def app(sqlite_url: str, make_jobs_app: Callable[..., Any]) -> Any:
    return make_jobs_app(sqlite_url, result_backend="cache+memory://")


@pytest.fixture
def postrun(request: pytest.FixtureRequest) -> Callable[[Callable[[], None]], None]:
    def connect(receive: Callable[[], None]) -> None:
        def receiver(**_: Any) -> None:
            receive()

        signals.task_postrun.connect(receiver, weak=False)
        request.addfinalizer(lambda: signals.task_postrun.disconnect(receiver))

    return connect


def _stop(task: Any) -> None:
    job = current_job()
    assert job is not None
    job.cancel_job()
    job.raise_if_cancelled()


def _retry(task: Any) -> None:
    task.retry(countdown=60)


def _retry_then_ignore(task: Any) -> None:
    task.retry(countdown=60, throw=False)
    job = current_job()
    assert job is not None
    assert job.job_status() is JobStatus.RUNNING
    raise Ignore


def _retry_with_stop(task: Any) -> None:
    job = current_job()
    assert job is not None
    job.cancel_job()
    stop: Any = StopRequested("enough")
    raise Retry(exc=stop)


def _return(task: Any) -> str:
    return "done"


def _ignore(task: Any) -> None:
    raise Ignore


def _reject(task: Any) -> None:
    raise Reject("no", requeue=False)


def _requeue(task: Any) -> None:
    raise Reject("not yet", requeue=True)


ENDS: dict[str, tuple[Callable[[Any], None], JobStatus]] = {
    "stop": (_stop, JobStatus.CANCELLED),
    "Retry of a stop": (_retry_with_stop, JobStatus.CANCELLED),
    "retry": (_retry, JobStatus.REQUEUED),
    "retry, then Ignore": (_retry_then_ignore, JobStatus.REQUEUED),
    "Ignore": (_ignore, JobStatus.FINISHED),
    "Reject": (_reject, JobStatus.ERROR),
    "Reject, requeue": (_requeue, JobStatus.REQUEUED),
}


def submitted(app: Any, body: Callable[[Any], Any], **options: Any) -> Any:
    task = app.task(name=f"ends.{uuid.uuid4().hex}", shared=False, bind=True, **options)(body)
    app.finalize()
    handle = app.jobs.handle()
    handle.submit(task.s())
    become_worker(app)
    return handle


@pytest.mark.parametrize(
    "option",
    [{"expires": 60}, {"serializer": "pickle"}, {"task_id": "another"}],
    ids=str,
)
def test_option_of_retry_that_a_job_cannot_keep_is_named(app: Any, option: dict[str, Any]) -> None:
    def body(task: Any) -> None:
        task.retry(countdown=0, **option)

    handle = submitted(app, body)
    run(app, message_of(app))
    record = handle.get_job()
    assert (record.status, record.error.type) == (JobStatus.ERROR, "ValidationError")
    assert any(record.error.message.startswith(f"{name}: ") for name in option)


@pytest.mark.parametrize("end", ENDS)
def test_outcome_is_written_before_postrun(app: Any, end: str, postrun: Any) -> None:
    """A receiver of ``task_postrun`` may hang, until a hard limit ends its process."""
    body, status = ENDS[end]
    handle, seen = submitted(app, body), list[JobStatus]()
    postrun(lambda: seen.append(handle.job_status()))
    run(app, message_of(app))
    assert seen == [status]
    assert handle.job_status() is status


@pytest.mark.filterwarnings("ignore:Exception raised outside body:RuntimeWarning")
@pytest.mark.parametrize("end", ENDS)
def test_outcome_is_kept_when_cleanup_has_no_memory(
    app: Any, end: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    body, status = ENDS[end]
    handle = submitted(app, body)

    def cleanup() -> None:
        raise MemoryError

    message = message_of(app)
    monkeypatch.setattr(app.backend, "process_cleanup", cleanup)
    run(app, message)
    assert handle.job_status() is status


@pytest.mark.parametrize("end", ENDS)
def test_outcome_is_kept_when_postrun_exits(app: Any, end: str, postrun: Any) -> None:
    body, status = ENDS[end]
    handle = submitted(app, body)

    def leave() -> None:
        raise SystemExit(1)

    postrun(leave)
    with pytest.raises(SystemExit):
        run(app, message_of(app))
    assert handle.job_status() is status


def test_outcome_is_kept_when_on_retry_exits(app: Any) -> None:
    """The hook comes before Celery's signal of the retry."""

    def leave(*_: Any) -> None:
        raise SystemExit(1)

    handle = submitted(app, _retry, on_retry=leave)
    with pytest.raises(SystemExit):
        run(app, message_of(app))
    assert handle.job_status() is JobStatus.REQUEUED


def test_before_start_that_the_body_calls_is_a_part_of_it(app: Any) -> None:
    """Its ``Ignore`` is not the end of the body."""
    ran = []

    def before_start(*_: Any) -> None:
        ran.append("hook")
        if len(ran) > 1:
            raise Ignore

    def body(task: Any) -> str:
        with pytest.raises(Ignore):
            task.before_start()
        job = current_job()
        assert job is not None
        assert job.job_status() is JobStatus.RUNNING
        return "done"

    handle = submitted(app, body, before_start=before_start)
    run(app, message_of(app))
    assert handle.result(timeout=0) == "done"


@pytest.mark.parametrize(
    "error",
    [StopRequested("enough"), Ignore(), Reject("no"), Reject("no", requeue=True)],
    ids=["stop", "Ignore", "Reject", "Reject, requeue"],
)
def test_error_outside_the_body_leaves_its_decision(app: Any, error: BaseException) -> None:
    """MemoryError in the backend's cleanup, say, when nothing was concluded before it."""
    task, run = app.tasks["tests.add"], Run(1, "id", 1, "claim", become_worker(app))
    current = CurrentRun(run, context=None, entered=True, error=error)
    outcome = decide(task, current, None)
    assert decide(task, current, MemoryError()) == outcome
    current.error = None
    outcome = decide(task, current, MemoryError())
    assert isinstance(outcome, Failed)
    assert outcome.failure.kind == "system"


def test_retry_of_cancelled_job_is_reported_though_body_ignores(
    app: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def body(task: Any) -> None:
        task.retry(throw=False)
        job = current_job()
        assert job is not None
        job.cancel_job()
        raise Ignore

    handle = submitted(app, body)
    [returned] = traced(app, message_of(app))
    assert handle.job_status() is JobStatus.CANCELLED
    assert isinstance(returned[2], Report)
    assert returned[2].revoked == "revoked"
    assert app.AsyncResult(handle.get_job().task_id).state == "REVOKED"


def traced(app: Any, message: Any) -> list[Any]:
    """Run a message; return what its process reports to the main process."""
    with pytest.MonkeyPatch.context() as patch:
        returned: list[Any] = []

        def trace(*args: Any, **options: Any) -> None:
            returned.append(trace_task_ret(*args, **options))

        patch.setattr("tests.in_process.trace_task_ret", trace)
        run(app, message)
    return returned


@pytest.mark.filterwarnings("ignore:Exception raised outside body:RuntimeWarning")
def test_outcome_is_reported_when_database_and_backend_are_away(
    app: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Celery's tracer raises then, and only this process knows how the body ended."""
    handle = submitted(app, _return)

    def away(*_: Any, **__: Any) -> None:
        raise DatabaseUnavailableError("away")

    def refused(*_: Any, **__: Any) -> None:
        raise ConnectionError("no result backend")

    message = message_of(app)
    with monkeypatch.context() as patch:
        patch.setattr(runtime_of(app).store.runs, "finish", away)
        for name in ("mark_as_done", "mark_as_failure"):
            patch.setattr(app.backend, name, refused)
        [(failed, returned, report)] = traced(app, message)
    assert failed
    assert type(returned.exception.exc) is ConnectionError
    assert isinstance(report, Report)
    assert isinstance(report.unwritten, Finished)
    assert handle.job_status() is JobStatus.RUNNING
    report.unwritten.write(runtime_of(app).store)
    assert handle.result(timeout=0) == "done"


def test_claim_that_gives_up_is_logged(
    app: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    handle = submitted(app, _return)

    def away(*_: Any) -> None:
        raise DatabaseUnavailableError("away")

    message = message_of(app)
    monkeypatch.setattr("jobhandle_celery.worker.claim.CLAIM_TIMEOUT", 0)
    with monkeypatch.context() as patch:
        patch.setattr(runtime_of(app).store.runs, "claim", away)
        run(app, message)
    assert f"job {handle.job_id} was not started: the database did not answer" in caplog.text
    assert handle.job_status() is JobStatus.QUEUED
