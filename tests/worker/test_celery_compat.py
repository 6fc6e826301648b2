"""Contracts with Celery's worker: each test says what breaks when a release changes private API."""

import inspect
import pickle
from typing import Any

import pytest
from billiard.einfo import ExceptionInfo
from celery import Celery, Task, states
from celery.app import trace
from celery.app.task import Context
from celery.app.trace import build_tracer
from celery.concurrency import prefork
from celery.concurrency.base import BasePool
from celery.concurrency.solo import TaskPool as SoloPool
from celery.concurrency.thread import TaskPool as ThreadPool
from celery.exceptions import Ignore
from celery.worker import request as celery_request
from celery.worker.consumer.consumer import Consumer

from jobhandle_celery import celery_compat


@pytest.fixture
def app() -> Any:
    return Celery("contract", broker="memory://", backend="cache+memory://", set_as_current=False)


def define(app: Any, body: Any, **options: Any) -> Any:
    return app.task(name=body.__name__, shared=False, lazy=False, **options)(body)


def ignores() -> None:
    raise Ignore("why")


def test_running_task_is_the_current_one(app: Any) -> None:
    """Otherwise `current_job()` is None in every body."""
    seen: list[Any] = []

    def body() -> None:
        seen.append(celery_compat.current_task())

    task = define(app, body)
    task.apply()
    assert seen == [task]
    assert celery_compat.current_task() is None


def test_registered_tasks_are_observed(app: Any) -> None:
    """Otherwise tasks that are registered after `Jobs(app)` run jobs unclaimed."""
    seen: list[str] = []
    registry = celery_compat.registered_tasks(app)
    celery_compat.on_register(app, lambda task: seen.append(task.name))
    define(app, ignores)
    assert "ignores" in seen
    assert registry is celery_compat.registered_tasks(app) is app.tasks


def test_ignored_trace_is_what_the_tracer_returns(app: Any) -> None:
    """Otherwise the main process treats a rejected message as a result."""
    task = define(app, ignores)
    request = {"id": "1", "is_eager": False, "delivery_info": {}}
    tracer: Any = build_tracer(task.name, task, app=app)
    expected = tracer("1", (), {}, request)
    try:
        raise Ignore("why")
    except Ignore as error:
        ignored = celery_compat.ignored_trace(task, Context(request), error, None)
    assert ignored._fields == expected._fields
    assert ignored.info.state == expected.info.state == states.IGNORED
    assert type(ignored.retval) is type(expected.retval)
    assert ignored.retval.internal is expected.retval.internal is True


class UnpickleableError(Exception):
    """Its pickle lacks an argument."""

    def __init__(self, reason: str, code: int) -> None:
        super().__init__(reason)
        self.code = code


def test_failed_trace_is_what_the_tracer_returns(app: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise the main process takes an internal error for a result, or cannot unpickle it."""
    task = define(app, ignores)
    request = {"id": "1", "is_eager": False, "delivery_info": {}}
    tracer: Any = build_tracer(task.name, task, app=app)

    def broken(*_: Any) -> None:
        raise UnpickleableError("why", 5)

    # Outside the body, where Celery's tracer reports an internal error.
    monkeypatch.setattr(trace.TraceInfo, "handle_ignore", broken)
    with pytest.warns(RuntimeWarning, match="outside body"):
        expected = tracer("1", (), {}, request)
    try:
        broken()
    except UnpickleableError as error:
        failed = celery_compat.failed_trace(error)
    assert failed._fields == expected._fields
    assert failed.info.state == expected.info.state == states.FAILURE
    assert failed.runtime is expected.runtime is None
    for returned in (failed.retval, expected.retval):
        assert type(returned) is ExceptionInfo
        assert returned.internal is True
        assert "UnpickleableError" in str(returned.exception)
        assert "broken" in str(returned.traceback)
        assert "UnpickleableError" in str(pickle.loads(pickle.dumps(returned)).exception)


@pytest.mark.parametrize("ignored", [True, False])
def test_ignored_result_is_recognised(app: Any, ignored: bool) -> None:
    """Otherwise an ignored result must be JSON, or a kept one is null."""
    task = define(app, ignores, ignore_result=ignored)
    assert celery_compat.ignores_result(task, Context({"id": "1", "ignore_result": ignored})) is ignored


def test_pools_that_cannot_end_a_body_are_recognised() -> None:
    """Otherwise a cancel with `terminate` raises in the worker, or time limits are ignored silently."""
    for pool in (SoloPool, ThreadPool):
        assert pool.terminate_job is BasePool.terminate_job
        assert celery_compat.ignored_time_limits({pool.__module__}) == ("hard", "soft")
    assert "self.terminate_job =" in inspect.getsource(prefork.TaskPool.on_start)
    assert celery_compat.ignored_time_limits({prefork.TaskPool.__module__}) == ()


def test_backends_read_requests_by_one_method(app: Any) -> None:
    """Otherwise a result backend stores sensitive arguments."""
    read: list[Any] = []

    def wrap(plain: Any) -> Any:
        def reads(result: Any, state: Any, traceback: Any, request: Any, **options: Any) -> Any:
            read.append((result, state, request))
            return plain(result, state, traceback, request, **options)

        return reads

    celery_compat.wrap_request_reader(app.backend, wrap)
    celery_compat.wrap_request_reader(app.backend, wrap)
    request = Context({"id": "1"})
    app.backend.store_result("1", 3, states.SUCCESS, request=request)
    assert read == [(3, states.SUCCESS, request)]


def test_derived_request_overrides_two_methods(app: Any) -> None:
    """Otherwise time limits do not reach the pool process, and its reports are treated as runtimes."""
    pool: Any = type("Pool", (), {"apply_async": None})
    derive: Any = celery_request.create_request_cls  # type: ignore[attr-defined]  # not in its stubs

    class Own(celery_request.Request): ...

    derived = derive(Own, define(app, ignores), pool, "w1@here", None, app=app)
    assert {"execute_using_pool", "on_success"} <= vars(derived).keys()
    assert "failed__retval__runtime" in inspect.signature(derived.on_success).parameters
    wrapped: list[Any] = []

    def wrap(method: Any) -> Any:
        wrapped.append(method)
        return method

    celery_compat.wrap_derived_request(Own, execute_using_pool=wrap, on_success=wrap)
    assert wrapped == []
    celery_compat.wrap_derived_request(derived, execute_using_pool=wrap, on_success=wrap)
    assert wrapped == [derived.execute_using_pool, derived.on_success]


@pytest.mark.parametrize(
    ("owner", "names"),
    [
        (
            celery_request.Request,
            "on_failure on_timeout cancel terminate info send_event maybe_expire _announce_revoked",
        ),
        (Consumer, "on_unknown_task on_unknown_message on_invalid_task on_decode_error call_soon"),
        (
            Task,
            "start_strategy signature_from_request update_state apply replace add_to_chord bind "
            "__trace__ Request",
        ),
    ],
    ids=["Request", "Consumer", "Task"],
)
def test_overridden_methods_are_there(owner: Any, names: str) -> None:
    """Otherwise an override is never called: jobs stay Running, or messages are logged with arguments."""
    assert [name for name in names.split() if not hasattr(owner, name)] == []
