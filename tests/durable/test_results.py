"""`JobResult` and the result backend ``jobhandle``: Celery's interface of a result, read from the row."""

import copy
import pickle
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest
from celery import chain, chord, group, states
from celery.bin.base import CLIContext
from celery.bin.result import result as command
from celery.contrib.abortable import AbortableAsyncResult
from celery.exceptions import Retry, TaskRevokedError, TimeoutError
from celery.result import AsyncResult, GroupResult, ResultSet, denied_join_result, result_from_tuple
from click.testing import CliRunner

from jobhandle_celery import (
    ApiUsageError,
    DatabaseUnavailableError,
    JobFailedError,
    JobResult,
    JobStatus,
    UnknownJobError,
    ValidationError,
)
from jobhandle_celery.durable.meta import STATES
from jobhandle_celery.durable.results import JobGroupResult
from tests.durable.service import make_service
from tests.in_process import become_worker, message_of, run
from tests.job_factory import JobFactory


@pytest.fixture
def app(sqlite_url: str) -> Iterator[Any]:
    app: Any = make_service("memory://", sqlite_url, {"result_backend": "jobhandle"})
    yield app
    app.jobs.close()


@pytest.fixture
def database_url(sqlite_url: str) -> str:
    """That of the job factory, too."""
    return sqlite_url


def result_in(status: str, factory: JobFactory, app: Any) -> Any:
    """The result of a job in that status."""
    job = factory.job_in(JobStatus(status)).get_job()
    return JobResult(job.task_id, app=app, job_id=job.id)


@pytest.mark.parametrize("status", sorted(JobStatus))
def test_state_is_that_of_the_row(status: str, factory: JobFactory, app: Any) -> None:
    job_result = result_in(status, factory, app)
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


def test_get_returns_the_result_or_raises_what_the_task_raised(factory: JobFactory, app: Any) -> None:
    assert result_in("Finished", factory, app).get() == 5
    failed = result_in("Error", factory, app)
    with pytest.raises(ValueError, match="no good") as raised:
        failed.get()
    assert isinstance(raised.value, JobFailedError)
    assert isinstance(failed.get(propagate=False), ValueError)
    with pytest.raises(TaskRevokedError):
        result_in("Cancelled", factory, app).get()


def test_get_waits_for_the_end(factory: JobFactory, app: Any) -> None:
    result = result_in("Running", factory, app)
    asked: list[str] = []

    def end() -> None:
        asked.append(result.state)
        factory.jobs.attach(result.job_id).set_status("Finished")

    assert result.get(timeout=60, interval=0.01, on_interval=end) is None
    assert asked == ["STARTED"]  # Celery calls it once
    called: list[Any] = []
    result.get(callback=lambda *given: called.append(given))
    assert called == [(result.id, None)]


def test_get_ends_with_its_timeout(factory: JobFactory, app: Any) -> None:
    for result in (result_in("Running", factory, app), JobResult("unknown", app=app, job_id=12345)):
        with pytest.raises(TimeoutError):
            result.get(timeout=0.05)
        with pytest.raises(TimeoutError):
            result.get(timeout=0)


def test_get_waits_for_a_row_that_is_not_committed(sqlite_url: str, app: Any) -> None:
    result = JobResult("unknown", app=app, job_id=1)
    assert (result.state, result.children) == ("PENDING", None)
    assert result.get(timeout=60, interval=0.01, on_interval=lambda: submit_first(app)) is None


def submit_first(app: Any) -> None:
    if not app.jobs.find():
        handle = app.jobs.attach(app.tasks["shop.add"].delay(1, 2).job_id)
        handle.set_status("Running")
        handle.set_status("Finished")


@pytest.mark.parametrize("interval", [0, 0.0, -1, None, 1e-9])
def test_any_interval_is_allowed(factory: JobFactory, app: Any, interval: float | None) -> None:
    """Celery allows 0: it polls as often as it can."""

    def finish(results: list[Any]) -> None:
        for result in results:
            if not app.jobs.attach(result.job_id).job_status().final:
                app.jobs.attach(result.job_id).set_status("Finished")

    for way in ("get", "join", "join_native"):
        results = [result_in("Running", factory, app) for _ in range(1 if way == "get" else 2)]
        waiting = results[0] if way == "get" else GroupResult("the id", results, app=app)
        getattr(waiting, way)(timeout=30, interval=interval, on_interval=partial(finish, results))
        assert waiting.successful()


def test_messages_of_the_states_that_a_wait_sees(factory: JobFactory, app: Any) -> None:
    waiting, running = result_in("Submitted", factory, app), result_in("Running", factory, app)
    group = JobGroupResult("the id", [running, waiting], app=app, job_id=1)
    seen: list[tuple[str, str, Any]] = []
    steps: Iterator[Callable[[], Any]] = iter(
        [
            lambda: app.jobs.attach(running.job_id).set_progress(1, 2),
            lambda: None,
            lambda: app.jobs.attach(running.job_id).set_progress(2, 2),
            lambda: app.jobs.attach(running.job_id).set_status("Error"),
            lambda: app.jobs.attach(waiting.job_id).cancel_job(),
        ]
    )

    def note(meta: dict[str, Any]) -> None:
        progress = meta["result"]["current"] if meta["status"] == "PROGRESS" else None
        seen.append((meta["task_id"], meta["status"], progress))

    of_running = [
        (running.id, "STARTED", None),
        (running.id, "PROGRESS", 1),
        (running.id, "PROGRESS", 2),
        (running.id, "FAILURE", None),
    ]
    waits: dict[str, Any] = {"timeout": 30, "interval": 0, "propagate": False}
    values = group.get(**waits, on_message=note, on_interval=lambda: next(steps)())  # noqa: PLW0108
    assert [type(value) for value in values][1] is TaskRevokedError
    assert seen == [*of_running, (waiting.id, "REVOKED", None)]
    seen.clear()
    again = result_in("Running", factory, app)
    app.jobs.attach(again.job_id).set_progress(1, 2)
    finish = lambda: app.jobs.attach(again.job_id).set_status("Finished")  # noqa: E731
    again.get(**waits, on_message=note, on_interval=finish)
    assert seen == [(again.id, "PROGRESS", 1), (again.id, "SUCCESS", None)]


def test_native_joins_read_the_rows(sqlite_url: str, factory: JobFactory) -> None:
    """Whatever the result backend of the app is: nothing listens there."""
    app: Any = make_service("memory://", sqlite_url, {"result_backend": "redis://127.0.0.1:1/0"})
    results = [result_in(status, factory, app) for status in ("Finished", "Error", "Finished")]
    group: Any = JobGroupResult("the id", results, app=app, job_id=1)
    native: Any
    for native in (group, ResultSet(results, app=app), ResultSet(results)):
        found = dict(native.iter_native(timeout=60))
        assert [found[result.id]["status"] for result in results] == ["SUCCESS", "FAILURE", "SUCCESS"]
        first, error, third = native.join_native(timeout=60, propagate=False)
        assert (first, type(error).__name__, third) == (5, "ValueError", 5)
        with pytest.raises(ValueError, match="no good"):
            native.join_native(timeout=60)
    running = result_in("Running", factory, app)
    with pytest.raises(TimeoutError):
        ResultSet([*results, running], app=app).join_native(timeout=0, propagate=False)
    app.jobs.close()


def test_native_join_of_a_mixed_set_is_refused(factory: JobFactory, app: Any) -> None:
    results = [result_in("Finished", factory, app)]
    group: Any = JobGroupResult("the id", results, app=app, job_id=1)
    plain: Any = AsyncResult("plain", app=app)
    mixed: Any
    for mixed in ([*results, plain], [*results, group], [group]):
        with pytest.raises(ApiUsageError, match=r"use join\(\)"):
            ResultSet(mixed, app=app).join_native(timeout=60)


def test_backend_finds_many_results_by_their_ids(factory: JobFactory, app: Any) -> None:
    finished, running = result_in("Finished", factory, app), result_in("Running", factory, app)
    found = app.backend.get_many([finished.id, running.id], max_iterations=1)
    assert [(task_id, meta["result"]) for task_id, meta in found] == [(finished.id, 5)]
    with pytest.raises(TimeoutError):
        dict(app.backend.get_many([finished.id, running.id], timeout=0))
    with pytest.raises(NotImplementedError, match="a plain task has none"):
        dict(app.backend.get_many(["plain"]))


def test_then_of_a_group_is_called_when_all_have_ended(factory: JobFactory, app: Any) -> None:
    for ending in ("get", "ready", "join_native"):
        for of_celery in (True, False):
            results = [result_in("Finished", factory, app) for _ in range(2)]
            kind: Any = ResultSet(results, app=app)
            if not of_celery:
                kind = JobGroupResult("the id", results, app=app, job_id=1)
            called: list[str] = []
            kind.then(lambda _, called=called: called.append("then"))
            assert called == []
            getattr(kind, ending)()
            assert called == ["then"], ending


def test_get_refuses_what_it_cannot_do(factory: JobFactory, app: Any) -> None:
    result = result_in("Running", factory, app)
    with denied_join_result(), pytest.raises(RuntimeError, match="Never call result"):
        result.get()


def test_plain_task_has_no_result(app: Any) -> None:
    result = app.tasks["shop.plain_add"].delay(1, 2)
    assert not isinstance(result, JobResult)
    assert result.state == "PENDING"
    with pytest.raises(NotImplementedError, match="a plain task has none"):
        result.get(timeout=60)
    canvas: Any = chord([app.tasks["shop.plain_add"].s(1, 2)] * 2)
    with pytest.raises(NotImplementedError, match="A chord of durable tasks is a tree"):
        canvas(app.tasks["shop.plain_add"].si(1, 2))


def test_revoke_cancels_the_job(factory: JobFactory, app: Any) -> None:
    waiting, running = result_in("Queued", factory, app), result_in("Running", factory, app)
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


def test_abort_cancels_the_job(factory: JobFactory, app: Any) -> None:
    running = result_in("Running", factory, app)
    AbortableAsyncResult(running.id, app=app).abort()
    assert app.jobs.attach(running.job_id).get_job().cancel_requested is not None
    AbortableAsyncResult("unknown", app=app).abort()  # does nothing, as in Celery


def test_sets_and_groups_of_results_are_celerys(factory: JobFactory, app: Any) -> None:
    results = [result_in("Finished", factory, app) for _ in range(2)]
    for kind in (ResultSet(results), GroupResult("the id", results)):
        assert kind.get(timeout=60) == kind.join(timeout=60) == [5, 5]
        assert kind.successful()
        assert kind.ready()
        assert kind.completed_count() == 2
    both = GroupResult("the id", [*results, result_in("Error", factory, app)])
    assert both.failed()
    with pytest.raises(ValueError, match="no good"):
        both.get(timeout=60)
    done: list[Any] = []
    results[0].then(done.append)
    assert results[0].get() == 5
    assert done == [results[0]]


def test_result_is_copied_pickled_and_forgotten(factory: JobFactory, app: Any) -> None:
    result = result_in("Finished", factory, app)
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
def test_command_result_shows_the_row(options: list[str], factory: JobFactory, app: Any) -> None:
    """``celery -A app result ID``."""
    context = CLIContext(app=app, no_color=True, workdir=None)
    ran = CliRunner().invoke(command, [result_in("Finished", factory, app).id, *options], obj=context)
    assert (ran.output, ran.exit_code) == ("5\n", 0)
    ran = CliRunner().invoke(command, [result_in("Error", factory, app).id, *options], obj=context)
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


def test_exists_is_true_of_every_row(factory: JobFactory, app: Any) -> None:
    if not hasattr(AsyncResult, "exists"):
        pytest.skip("Celery 5.6 has no exists()")
    unknown: Any = JobResult("unknown", app=app)
    assert not unknown.exists()
    for status in ("Queued", "Finished"):
        assert result_in(status, factory, app).exists()


def test_group_is_restored_from_its_rows(app: Any) -> None:
    app.conf.task_always_eager = True
    app.set_current()
    tasks: Any = group(app.tasks["shop.add"].s(number, 1) for number in range(3))
    result = tasks.delay()
    assert result.save() is result
    for other in (
        GroupResult.restore(result.id, app=app),
        result_from_tuple(result.as_tuple(), app),
        pickle.loads(pickle.dumps(result)),
    ):
        assert (other, other.get(timeout=60)) == (result, [1, 2, 3])
    assert pickle.loads(pickle.dumps(result)).job_id == result.job_id
    result.delete()
    assert app.backend.restore_group("unknown") is None
    with pytest.raises(NotImplementedError, match="finds a group by its row"):
        GroupResult("unknown", [app.AsyncResult(result.results[0].id)], app=app).save()


def test_group_is_saved_in_the_result_backend_of_the_app(sqlite_url: str) -> None:
    app: Any = make_service("memory://", sqlite_url, {"result_backend": "cache+memory://"})
    tasks: Any = group(app.tasks["shop.add"].s(number, 1) for number in range(3))
    result = tasks.delay()
    result.save()
    assert GroupResult.restore(result.id, app=app) == result
    result.delete()
    assert app.backend.restore_group(result.id, cache=False) is None
    app.jobs.close()


def test_group_needs_no_result_backend(sqlite_url: str) -> None:
    app: Any = make_service("memory://", sqlite_url, {"task_always_eager": True})
    tasks: Any = group(app.tasks["shop.add"].s(number, 1) for number in range(3))
    result = tasks.delay()
    assert result.get(timeout=60) == result.join(timeout=60) == [1, 2, 3]
    assert result.save() is result
    result.delete()
    assert ResultSet(result.results).get(timeout=60) == [1, 2, 3]
    result.forget()
    app.jobs.close()


def test_result_that_a_body_returns_is_stored_as_in_celery(app: Any) -> None:
    app.conf.task_always_eager = True

    def submit() -> Any:
        return app.tasks["shop.add"].delay(1, 2)

    body: Any = app.task(name="shop.returns", durable=True, shared=False)(submit)
    value = body.delay().get(timeout=60)
    assert result_from_tuple(value, app).get(timeout=60) == 3


def test_abortable_task_is_aborted_by_its_result(factory: JobFactory, app: Any) -> None:
    for status, aborted in (("Queued", True), ("Running", True), ("Finished", False)):
        result = result_in(status, factory, app)
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
