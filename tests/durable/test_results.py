"""`JobResult` and the result backend ``jobhandle``: Celery's interface of a result, read from the row."""

import copy
import pickle
from typing import Any

import pytest
from celery import chain, chord, states
from celery.bin.base import CLIContext
from celery.bin.result import result as command
from celery.contrib.abortable import AbortableAsyncResult
from celery.exceptions import Retry, TaskRevokedError
from celery.result import AsyncResult, result_from_tuple
from click.testing import CliRunner

from jobhandle_celery import (
    DatabaseUnavailableError,
    JobFailedError,
    JobResult,
    JobStatus,
    UnknownJobError,
    ValidationError,
)
from jobhandle_celery.durable.meta import STATES
from tests.durable.results import result_in
from tests.durable.service import make_service
from tests.in_process import become_worker, message_of, run
from tests.job_factory import JobFactory


@pytest.mark.parametrize("status", sorted(JobStatus))
def test_state_is_that_of_the_row(status: str, sqlite_factory: JobFactory, app: Any) -> None:
    job_result = result_in(status, sqlite_factory, app)
    results: list[Any] = [job_result, AsyncResult(job_result.id, app=app)]
    for result in results:
        assert result.state == result.status == STATES[JobStatus(status)]
        assert result.ready() == JobStatus(status).final
        assert result.successful() == (status == "Finished")
        assert result.failed() == (status == "Error")
        kinds: dict[str, type] = {
            states.REVOKED: TaskRevokedError,
            states.FAILURE: JobFailedError,
            states.RETRY: Retry,
            states.SUCCESS: int,
        }
        assert isinstance(result.info, kinds.get(result.state, type(None)))
        assert (result.name, result.args, result.kwargs) == ("tests.add", [2, 3], {})
        assert (result.date_done is None) != result.ready()


def test_get_returns_the_result_or_raises_what_the_task_raised(sqlite_factory: JobFactory, app: Any) -> None:
    assert result_in("Finished", sqlite_factory, app).get() == 5
    failed = result_in("Error", sqlite_factory, app)
    with pytest.raises(ValueError, match="no good") as raised:
        failed.get()
    assert isinstance(raised.value, JobFailedError)
    assert isinstance(failed.get(propagate=False), ValueError)
    with pytest.raises(TaskRevokedError):
        result_in("Cancelled", sqlite_factory, app).get()


def test_plain_task_has_no_result(app: Any) -> None:
    result = app.tasks["shop.plain_add"].delay(1, 2)
    assert not isinstance(result, JobResult)
    assert result.state == "PENDING"
    with pytest.raises(NotImplementedError, match="a plain task has none"):
        result.get(timeout=60)
    canvas: Any = chord([app.tasks["shop.plain_add"].s(1, 2)] * 2)
    with pytest.raises(NotImplementedError, match="A chord of durable tasks is a tree"):
        canvas(app.tasks["shop.plain_add"].si(1, 2))


def test_revoke_cancels_the_job(sqlite_factory: JobFactory, app: Any) -> None:
    waiting, running = result_in("Queued", sqlite_factory, app), result_in("Running", sqlite_factory, app)
    assert waiting.revoke() == "Cancelled"
    assert waiting.state == "REVOKED"
    with pytest.raises(ValidationError, match=r"^signal: "):
        running.revoke(terminate=True, signal="KILL")
    assert app.jobs.attach(running.job_id).get_job().cancel_requested is None
    assert running.revoke(terminate=True, signal="TERM") == "Running"
    assert app.jobs.attach(running.job_id).get_job().cancel_requested is not None


@pytest.mark.parametrize("operation", ["revoke", "abort", "is_aborted"])
def test_result_without_a_job_cannot_be_revoked(app: Any, operation: str) -> None:
    with pytest.raises(UnknownJobError, match="no job with the task id nope"):
        getattr(JobResult("nope", app=app), operation)()


def test_abort_cancels_the_job(sqlite_factory: JobFactory, app: Any) -> None:
    running = result_in("Running", sqlite_factory, app)
    AbortableAsyncResult(running.id, app=app).abort()
    assert app.jobs.attach(running.job_id).get_job().cancel_requested is not None
    AbortableAsyncResult("unknown", app=app).abort()  # does nothing, as in Celery


def test_result_is_copied_pickled_and_forgotten(sqlite_factory: JobFactory, app: Any) -> None:
    result = result_in("Finished", sqlite_factory, app)
    app.set_current()
    for other in (copy.copy(result), pickle.loads(pickle.dumps(result))):
        assert (other, other.job_id, other.get()) == (result, result.job_id, 5)
    assert result.as_tuple() == ((result.id, None), None)
    assert result.as_list() == [result.id]
    assert (result.parent, result.children) == (None, [])
    result.forget()
    assert result.get() == 5  # the row stays


def test_result_of_a_chain_is_its_last_and_its_children_are_its_members(app: Any) -> None:
    app.conf.task_always_eager = True
    canvas: Any = chain(app.tasks["shop.add"].s(1, 2), app.tasks["shop.plain_add"].s(3))
    result = canvas.delay()
    assert result.get(timeout=60) == 6
    assert [child.get(timeout=60) for child in result.children] == [3, 6]


@pytest.mark.parametrize("options", [[], ["--task", "shop.add"]], ids=repr)
def test_command_result_shows_the_row(options: list[str], sqlite_factory: JobFactory, app: Any) -> None:
    """``celery -A app result ID``."""
    context = CLIContext(app=app, no_color=True, workdir=None)
    ran = CliRunner().invoke(command, [result_in("Finished", sqlite_factory, app).id, *options], obj=context)
    assert (ran.output, ran.exit_code) == ("5\n", 0)
    ran = CliRunner().invoke(command, [result_in("Error", sqlite_factory, app).id, *options], obj=context)
    assert isinstance(ran.exception, ValueError)


def test_children_of_a_task_are_its_callbacks(app: Any) -> None:
    app.conf.task_always_eager = True
    add = app.tasks["shop.add"]
    first = add.apply_async((1, 2), link=[add.s(3), chain(add.s(4), add.s(5))])
    step, steps = first.children
    assert (step.get(), steps.get()) == (6, 12)
    assert [type(child) for child in (step, steps)] == [JobResult, JobResult]
    assert step.children == []
    assert len(steps.children) == 2
    assert [value for _, value in first.collect()] == [3, 6, 12, 7, 12]
    of_member: Any = chain(add.si(1, 2), add.s(1)).delay()
    assert [child.children for child in of_member.children] == [[], []]


def test_children_leave_out_what_the_body_has_submitted(sqlite_url: str) -> None:
    """As in the table of the guide: all else is as in Celery; the job of the body names its parent."""
    settings = {"result_backend": "cache+memory://", "result_extended": True}
    app: Any = make_service("memory://", sqlite_url, settings)
    app.set_current()
    become_worker(app)
    callback = app.tasks["shop.plain_add"].si(3, 4)
    names: dict[str, list[str]] = {}
    for task in ("shop.plain_submit_other", "shop.submit_other"):
        result = app.tasks[task].apply_async((1,), link=callback)
        inner: list[Any] = []
        while message := message_of(app):
            inner += [message] if message.headers["task"] == "shop.add" else []
            run(app, message)
        (submitted,) = inner
        assert submitted.headers["parent_id"] == submitted.headers["root_id"] == result.id
        assert result.successful()
        names[task] = [child.name for child in result.children]
    assert names == {
        "shop.plain_submit_other": ["shop.add", "shop.plain_add"],
        "shop.submit_other": ["shop.plain_add"],
    }
    app.jobs.close()


def test_exists_is_true_of_every_row(sqlite_factory: JobFactory, app: Any) -> None:
    if not hasattr(AsyncResult, "exists"):
        pytest.skip("Celery 5.6 has no exists()")
    unknown: Any = JobResult("unknown", app=app)
    assert not unknown.exists()
    for status in ("Queued", "Finished"):
        assert result_in(status, sqlite_factory, app).exists()


def test_result_that_a_body_returns_is_stored_as_in_celery(app: Any) -> None:
    app.conf.task_always_eager = True

    def submit() -> Any:
        return app.tasks["shop.add"].delay(1, 2)

    body: Any = app.task(name="shop.returns", durable=True, shared=False)(submit)
    value = body.delay().get(timeout=60)
    assert result_from_tuple(value, app).get(timeout=60) == 3


def test_abortable_task_is_aborted_by_its_result(sqlite_factory: JobFactory, app: Any) -> None:
    for status, aborted in (("Queued", True), ("Running", True), ("Finished", False)):
        result = result_in(status, sqlite_factory, app)
        assert not result.is_aborted()
        result.abort()
        assert result.is_aborted() == aborted


def test_unavailable_database_is_an_error() -> None:
    app: Any = make_service("memory://", "postgresql+psycopg://127.0.0.1:1/none")
    result = JobResult("the id", app=app, job_id=1)
    for read in (result.ready, result.get, result.revoke):
        with pytest.raises(DatabaseUnavailableError):
            read()
    app.jobs.close()
