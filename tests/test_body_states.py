"""What a body does by means of Celery: it sets a state, waits, changes its canvas."""

import uuid
from collections.abc import Callable
from typing import Any

import pytest
from celery import states
from celery.contrib.abortable import AbortableTask
from celery.exceptions import Ignore, Reject
from celery.result import allow_join_result, denied_join_result

from jobhandle_celery import Job, JobResult, JobStatus, Progress, WaitTimeoutError, current_job
from jobhandle_celery.serialization import LIMIT


@pytest.fixture
def app(sqlite_url: str, make_jobs_app: Callable[..., Any]) -> Any:
    eager = {"task_always_eager": True, "task_store_eager_result": True}
    return make_jobs_app(sqlite_url, result_backend="cache+memory://", **eager)


def submitted(app: Any, body: Any, **options: Any) -> Any:
    """Run a body as a job, eagerly; return its handle."""
    name = f"states.{uuid.uuid4().hex}"
    app.task(name=name, shared=False, **options)(body)
    handle = app.jobs.handle()
    handle.submit(app.tasks[name].s())
    return handle


@pytest.mark.parametrize("returned", [object(), [1, 2]], ids=["no JSON", "JSON"])
def test_ignored_result_is_null_and_may_be_anything(app: Any, returned: object) -> None:
    """An ignored result need not be JSON (fault 14)."""

    def body() -> object:
        return returned

    handle = submitted(app, body, ignore_result=True)
    assert handle.job_status() is JobStatus.FINISHED
    assert handle.result(timeout=0) is None


EXPECTED: dict[str, tuple[Any, JobStatus, str]] = {
    "FAILURE as Celery's documentation": (
        {"exc_type": "BadInput", "exc_message": "no such column", "custom": 1},
        JobStatus.ERROR,
        "BadInput: no such column",
    ),
    "FAILURE with several words": (
        {"exc_type": "BadInput", "exc_message": ["no", "column"]},
        JobStatus.ERROR,
        "BadInput: no, column",
    ),
    "FAILURE with an exception": (ValueError("wrong"), JobStatus.ERROR, "ValueError: wrong"),
    "FAILURE with a text": ("wrong", JobStatus.ERROR, "FAILURE: wrong"),
    "FAILURE with nothing": (None, JobStatus.ERROR, "FAILURE: the task set the state FAILURE"),
    "REVOKED": ("not needed", JobStatus.CANCELLED, "not needed"),
    "SUCCESS": ({"rows": 7}, JobStatus.FINISHED, ""),
    "REJECTED": (
        None,
        JobStatus.ERROR,
        "Rejected: the task set the state REJECTED and published no message",
    ),
    "SUCCESS with too much": (
        "x" * LIMIT,
        JobStatus.ERROR,
        "ResultError: the result is 1,048,578 bytes of JSON, more than 1,048,576",
    ),
    "RETRY": (None, JobStatus.ERROR, "Retry: the task set the state RETRY and published no message"),
    "PROGRESS": ({"done": 7}, JobStatus.FINISHED, ""),
    "IGNORED": (None, JobStatus.FINISHED, ""),
}


def test_every_final_state_of_celery_is_in_the_table() -> None:
    assert {name.split()[0] for name in EXPECTED} >= states.READY_STATES | states.EXCEPTION_STATES


@pytest.mark.parametrize("case", EXPECTED)
def test_state_set_by_body_before_ignore_is_the_row(app: Any, case: str) -> None:
    """`update_state` and `raise Ignore()` end the row in that state (fault 15)."""
    meta, status, message = EXPECTED[case]

    def body(task: Any) -> None:
        task.update_state(state=case.split(maxsplit=1)[0], meta=meta)
        raise Ignore

    handle = submitted(app, body, bind=True)
    job = handle.get_job()
    assert (job.status, job.message) == (status, message)
    assert job.result == ({"rows": 7} if case == "SUCCESS" else None)
    if status is JobStatus.ERROR:
        assert job.error.kind == "task"


def test_last_state_set_by_body_counts(app: Any) -> None:
    def body(task: Any) -> None:
        task.update_state(state="FAILURE", meta={"exc_type": "E", "exc_message": "first", "exc_module": "m"})
        task.update_state("another task", "SUCCESS", None)
        task.update_state(None, "PROGRESS", {"done": 1})
        raise Ignore

    assert submitted(app, body, bind=True).job_status() is JobStatus.FINISHED


def test_state_set_by_body_that_returns_does_not_count(app: Any) -> None:
    def body(task: Any) -> str:
        task.update_state(state="FAILURE", meta={"exc_type": "E", "exc_message": "x", "exc_module": "m"})
        return "done"

    assert submitted(app, body, bind=True).result(timeout=0) == "done"


def test_state_set_for_another_task_does_not_count(app: Any) -> None:
    def body(task: Any) -> None:
        task.update_state("another", "FAILURE", "its own")
        raise Ignore

    assert submitted(app, body, bind=True).job_status() is JobStatus.FINISHED


PROGRESS: dict[str, tuple[Any, Any, Progress | None, str]] = {
    "all": ("PROGRESS", {"current": 3, "total": 10, "message": "copying"}, Progress(3, 10), "copying"),
    "status": ("UPLOADING", {"current": 0.5, "status": "hashing"}, Progress(0.5), "hashing"),
    "no message": ("PROGRESS", {"current": 3, "total": None, "message": 5}, Progress(3), "as submitted"),
    "no number": ("PROGRESS", {"current": "3", "message": "copying"}, None, "as submitted"),
    "no mapping": ("PROGRESS", [3, 10], None, "as submitted"),
    "infinite": ("PROGRESS", {"current": 3, "total": float("inf")}, Progress(3), "as submitted"),
    "Celery's state": ("STARTED", {"current": 3, "message": "copying"}, None, "as submitted"),
}


@pytest.mark.parametrize("case", PROGRESS)
def test_progress_that_a_body_sets_as_its_state_is_in_the_row(app: Any, case: str) -> None:
    state, meta, progress, message = PROGRESS[case]
    seen = []

    def body(task: Any) -> None:
        task.update_state(state=state, meta=meta)
        task.update_state("yet another", "PROGRESS", {"current": 99, "message": "another's"})
        job = current_job()
        assert job is not None
        seen.append(job.get_job())

    app.task(name="tests.progressing", bind=True, shared=False)(body)
    app.jobs.submit(Job(task="tests.progressing", message="as submitted"))
    assert [(job.progress, job.message) for job in seen] == [(progress, message)]


def test_progress_is_the_state_and_info_of_the_result(app: Any) -> None:
    seen: list[Any] = []

    def body(task: Any) -> None:
        seen.append(JobResult(task.request.id, app=app).state)
        task.update_state(state="PROGRESS", meta={"current": 3, "total": 10, "message": "copying"})
        result = JobResult(task.request.id, app=app)
        seen.append((result.state, result.info))

    app.task(name="tests.progressing", bind=True, durable=True, shared=False)(body).delay()
    info = {"current": 3, "total": 10, "message": "copying"}
    assert seen == ["STARTED", ("PROGRESS", info)]


def test_rejected_message_is_an_error(app: Any) -> None:
    def body(task: Any) -> None:
        task.update_state(state="SUCCESS")
        raise Reject("no", requeue=False)

    job = submitted(app, body, bind=True).get_job()
    assert (job.status, job.message) == (JobStatus.ERROR, "Reject: no")


@pytest.mark.parametrize("backend", ["cache+memory://", None])
def test_abortable_task_is_aborted_by_a_cancel(app: Any, backend: str | None) -> None:
    """`is_aborted` of Celery's AbortableTask is true for a job with a stop request (fault 35)."""
    app.conf.result_backend = backend
    answers: list[bool] = []

    def body(task: Any) -> None:
        job = current_job()
        assert job is not None
        answers.append(task.is_aborted())
        job.cancel_job()
        answers.append(task.is_aborted())

    submitted(app, body, bind=True, base=AbortableTask)
    assert answers == [False, True]


@pytest.mark.parametrize("ask", ["wait", "result"])
def test_wait_within_a_task_is_refused_as_celerys_get(app: Any, ask: str) -> None:
    """A body that waits for a job would hold the process which that job needs (fault 16)."""
    handle = app.jobs.handle()
    handle.submit(app.tasks["tests.add"].s(1, 2))
    with denied_join_result():
        with pytest.raises(RuntimeError, match=f"job {handle.job_id}.*allow_join_result"):
            getattr(handle, ask)()
        with allow_join_result():
            getattr(handle, ask)()


def test_wait_of_no_time_within_a_task_looks_once(app: Any) -> None:
    app.conf.task_always_eager = False
    handle = app.jobs.handle()
    handle.submit(app.tasks["tests.add"].s(1, 2))
    with denied_join_result(), pytest.raises(WaitTimeoutError):
        handle.result(timeout=0)


@pytest.mark.parametrize("method", ["replace", "add_to_chord"])
def test_change_of_canvas_in_body_is_refused_by_name(app: Any, method: str) -> None:
    def body(task: Any) -> None:
        getattr(task, method)(app.signature("tests.add", args=(1, 2)))

    error = submitted(app, body, bind=True).get_job().error
    assert (error.kind, error.type) == ("task", "ApiUsageError")
    assert error.message.startswith(f"{method}: ")
    assert "submit another job" in error.message
