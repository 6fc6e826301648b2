"""A task of an app with `Jobs` that is called without a job: its class, attributes, hints and patches are
those of plain Celery. What is read from it is compared with the same task of an app without `Jobs`.
"""

import gc
import inspect
import traceback
import typing
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import Mock, patch

import pytest
from celery import Celery, Task, signals
from celery.app import trace
from celery.app.trace import build_tracer, task_has_custom
from celery.worker.request import Request

from jobhandle_celery import Job, Jobs, JobStatus
from jobhandle_celery.broker.headers import HEADER
from jobhandle_celery.worker.message_guard import RejectionStep
from jobhandle_celery.worker.result_backend import hide_sensitive


def new_app(database: str | None = None) -> Any:
    app = Celery("plain", broker="memory://", backend="cache+memory://", set_as_current=False)
    if database is not None:
        Jobs(app, database)
    return app


@pytest.fixture
def app(tmp_path: Path) -> Any:
    return new_app(f"sqlite:///{tmp_path}/jobs.sqlite3")


@pytest.fixture
def plain_app() -> Any:
    return new_app()


@pytest.fixture
def jobs_app(sqlite_url: str) -> Any:
    """An app that runs jobs where they are submitted."""
    app = new_app(sqlite_url)
    app.conf.task_always_eager = True
    return app


def define(app: Any, **options: Any) -> Any:
    def add(x: int, y: "int" = 2) -> "int":
        """Add."""
        return x + y

    return app.task(name="add", shared=False, lazy=False, **options)(add)


def trace_plain(task: Any, /, *args: Any, **kwargs: Any) -> Any:
    """Trace a plain message, as a pool process does."""
    task.__trace__ = build_tracer(task.name, task, app=task.app)
    return task.__trace__("1", args, kwargs, {"id": "1", "is_eager": False, "delivery_info": {}})


def trace_job(task: Any) -> Any:
    """Trace a job's message, as a pool process does."""
    return task.__trace__("1", (), {}, {"id": "1", "delivery_info": {}, HEADER: {"id": 1, "attempt": 1}})


class WithCall(Task):  # type: ignore[type-arg]  # not generic at run time
    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.run(*args, **kwargs)


class WithHook(Task):  # type: ignore[type-arg]  # not generic at run time
    track_started = True

    def before_start(self, task_id: str, args: Any, kwargs: Any) -> None:
        self.request.update(hooked=True)


# What is read from a task.

READ: dict[str, Callable[[Any], Any]] = {
    "type hints": lambda task: typing.get_type_hints(task.__wrapped__) | task.__annotations__,
    "annotations": lambda task: task.__annotations__,
    "qualified name": lambda task: task.__qualname__,
    "class's names": lambda task: (type(task).__name__, type(task).__qualname__, type(task).__module__),
    "docstring": lambda task: task.__doc__,
    "signature": inspect.signature,
    "signature of run": lambda task: inspect.signature(task.run),
    "body is the function": lambda task: task.run is task.__wrapped__,
    "coroutine": lambda task: inspect.iscoroutinefunction(task.run),
    "track_started": lambda task: task.track_started,
    "hooks of its own": lambda task: [
        hook
        for hook in ("__call__", "before_start", "on_success", "on_failure", "on_retry", "after_return")
        if task_has_custom(task, hook)
    ],
    "backend": lambda task: type(task.backend),
    "hooks": lambda task: [
        getattr(value, "__func__", value).__code__
        for value in (task.run, task.before_start, task.__call__)
        if getattr(value, "__module__", "") == __name__
    ],
    "in its instance": lambda task: sorted(vars(task).keys() - {"__trace__"}),
}


@pytest.mark.parametrize("base", [Task, WithCall, WithHook], ids=lambda base: base.__name__)
@pytest.mark.parametrize("read", READ)
def test_task_attributes_equal_those_of_plain_celery(
    app: Any, plain_app: Any, read: str, base: "type[Task[..., Any]]"
) -> None:
    """Type hints, `run`, `track_started` and their like are the task's own (faults 60, 61, 68, 71)."""
    plain = READ[read](define(plain_app, base=base))

    assert READ[read](define(app, base=base)) == plain


def test_type_hints_of_a_task_are_its_functions(app: Any) -> None:
    """A mixin's annotations do not hide the task's (fault 60)."""
    assert typing.get_type_hints(define(app)) == {"x": int, "y": int, "return": int}


def test_coroutine_function_is_recognised(app: Any) -> None:
    """Inspection of `run` finds the body (fault 68)."""

    @app.task(shared=False)  # type: ignore[untyped-decorator]  # Celery's
    async def body() -> None: ...

    assert inspect.iscoroutinefunction(body.run)


@pytest.mark.parametrize("base", [Task, WithCall, WithHook], ids=lambda base: base.__name__)
def test_tracebacks_of_plain_tasks_have_no_library_frame(app: Any, base: "type[Task[..., Any]]") -> None:
    """Celery's tracer calls the body itself (fault 71)."""
    frames = {}
    for each in (app, new_app()):
        task = define(each, base=base)
        frames[each is app] = [frame.name for frame in traceback.extract_tb(_failure(task))]

    assert frames[True] == frames[False]


def _failure(task: Any) -> Any:
    raised: list[BaseException] = []

    def keep(info: Any, *_: Any, **__: Any) -> None:
        raised.append(info.retval)

    with patch.object(trace.TraceInfo, "handle_error_state", keep), patch.object(trace, "traceback_clear"):
        trace_plain(task, None)
    return raised[0].__traceback__


def test_plain_tasks_call_no_receiver_of_the_library(jobs_app: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process without jobs has no overhead from signal receivers (fault 71)."""
    run = [signals.task_success, signals.task_failure, signals.task_retry, signals.task_internal_error]
    for signal in run:
        monkeypatch.setattr(signal, "receivers", [])
    Jobs(new_app(), "sqlite:///never.sqlite3")
    task = define(jobs_app)
    trace_plain(task, 1)
    task.delay(1)
    assert [signal.receivers for signal in run] == [[]] * 4
    handle = jobs_app.jobs.handle()
    handle.submit(Job(task="add", args=[1]))
    assert handle.result(0) == 3
    assert [len(signal.receivers) for signal in run] == [1, 1, 1, 0]


# Names.

NAMES = ["task", "self", "body", "run", "call", "args", "kwargs", "current", "request", "name", "hook"]
"""Those that our wrappers have."""


@pytest.mark.parametrize("base", [Task, WithCall, WithHook], ids=lambda base: base.__name__)
def test_task_takes_keywords_of_any_name(jobs_app: Any, base: "type[Task[..., Any]]") -> None:
    """A wrapper's own parameters do not clash with the body's (fault 40)."""

    @jobs_app.task(name="named", shared=False, base=base)  # type: ignore[untyped-decorator]  # Celery's
    def named(**given: Any) -> Any:
        return sorted(given)

    names = [name for name in NAMES if name != "self" or base is Task]  # Celery's own __call__ has a self
    given = dict.fromkeys(names, 1)

    assert trace_plain(named, **given).info is None
    assert named.apply_async(kwargs=given).get() == sorted(names)
    handle = jobs_app.jobs.handle()
    handle.submit(Job(task="named", kwargs=given))
    assert handle.result(0) == sorted(names)


# Patches.


class Patched(Task):  # type: ignore[type-arg]  # not generic at run time
    name = "patched"

    def run(self) -> str:
        return "plain"


def _on_the_class(task: Any) -> Any:
    return patch.object(Patched, "run", lambda self: "patched")


def _on_the_instance(task: Any) -> Any:
    return patch.object(task, "run", lambda: "patched")


def _on_the_class_of_the_instance(task: Any) -> Any:
    return patch.object(type(task), "run", lambda self: "patched")


@pytest.mark.parametrize("place", [_on_the_class, _on_the_instance, _on_the_class_of_the_instance])
def test_patched_run_is_what_runs(jobs_app: Any, place: Callable[[Any], Any]) -> None:
    """A patch applies to calls and to jobs, until it is undone (fault 68)."""
    task = jobs_app.register_task(Patched())
    outcomes = []
    for patched in (place(task), patch.object(task, "rate_limit", None)):
        with patched:
            handle = jobs_app.jobs.handle()
            handle.submit(Job(task="patched"))
            outcomes.append((task(), task.apply().get(), handle.result(0)))

    assert outcomes == [("patched",) * 3, ("plain",) * 3]


def test_track_started_is_read_as_it_was_set(app: Any) -> None:
    """Before the task is registered, after it, and by a monkeypatch (fault 61)."""
    task = Patched()
    task.track_started = True
    app.register_task(task)
    assert task.track_started is True
    task.track_started = False
    assert task.track_started is False
    with patch.object(task, "track_started", True):
        assert task.track_started is True


def test_hook_that_is_no_function_is_kept(app: Any) -> None:
    """A test's Mock as hook, or a tracer set and unset by a patch, is what the task has (faults 61, 68)."""
    hook = Mock()
    task = define(app, before_start=hook)
    assert task.before_start is hook
    trace_plain(task, 1)
    hook.assert_called_once()
    with patch.object(task, "__trace__", None):
        assert task.__trace__ is None
    del task.__trace__
    assert task.__trace__ is None


def test_call_wrapped_on_the_class_keeps_results(jobs_app: Any) -> None:
    """Tracers replace `type(task).__call__` by a wrapper of it."""

    class DoesAll(Task):  # type: ignore[type-arg]  # not generic at run time
        def __call__(self, *args: Any, **kwargs: Any) -> Any:
            return "by the call"

    task = define(jobs_app, base=DoesAll)
    type(task).__call__ = type(task).__call__
    handle = jobs_app.jobs.handle()
    handle.submit(Job(task="add", args=[1]))
    assert handle.result(0) == "by the call"


@pytest.mark.parametrize("backend", [Mock(), object()])
def test_backend_set_on_a_task_is_used(app: Any, backend: Any) -> None:
    """Also one that is no class of Celery's (fault 69)."""

    class Owns(Task):  # type: ignore[type-arg]  # not generic at run time
        name = "owns"
        backend = Mock()

    for task in (define(app), app.register_task(Owns())):
        task.backend = backend
        assert task.backend is backend
    hide_sensitive(object())


def test_replace_keeps_the_base_class_signature(app: Any) -> None:
    """A base class's wider signature reaches it (fault 66)."""

    class Wider(Task):  # type: ignore[type-arg]  # not generic at run time
        def replace(self, sig: Any, *, note: str = "") -> Any:
            return sig, note

    assert define(app, base=Wider).replace("sig", note="more") == ("sig", "more")


# Registries.


@pytest.mark.parametrize("thing", [Mock(), "text", None, object()])
def test_registry_takes_what_is_no_task(app: Any, thing: Any) -> None:
    """Such as the test doubles of users (fault 59)."""
    app.tasks["thing"] = thing
    app._tasks.update(other=thing)
    assert app.tasks["thing"] is thing
    assert type(app.tasks["thing"]) is type(thing)


def test_proxy_put_into_a_registry_claims(app: Any, plain_app: Any) -> None:
    """`@app.task` returns a proxy, which is evaluated (fault 59)."""
    ran = []

    @plain_app.task(name="proxied", shared=False)  # type: ignore[untyped-decorator]  # Celery's
    def proxied() -> None:
        ran.append("body")

    app.tasks["proxied"] = proxied

    assert trace_plain(proxied).info is None
    assert trace_job(proxied).info.state == "IGNORED"
    assert ran == ["body"]


def test_task_of_two_apps_runs_in_both(app: Any, plain_app: Any) -> None:
    """A task instance shared with an app without `Jobs`, which runs no jobs (fault 67)."""
    task = Patched()
    task.track_started = True
    app.register_task(task)
    plain_app.register_task(task)

    assert trace_plain(task).info is None
    assert task.apply().get() == "plain"
    assert trace_job(task).info.state == "IGNORED"


@pytest.mark.parametrize("headers", [Mock(), None, {}, "text", {"task": "add"}])
def test_unreadable_message_is_refused_as_in_celery(app: Any, headers: Any) -> None:
    """A message of another form, or a test's Mock, is none of ours (fault 59)."""
    consumer = Mock()
    plain = consumer.on_decode_error, consumer.on_unknown_message
    RejectionStep(consumer).create(consumer)
    message, error = Mock(headers=headers), KeyError("read")

    consumer.on_decode_error(message, error)
    consumer.on_unknown_message(None, message)

    plain[0].assert_called_once_with(message, error)
    plain[1].assert_called_once_with(None, message)


# Memory.


def test_app_with_jobs_is_garbage_collected(sqlite_url: str) -> None:
    """No table of the library keeps an app or its tasks alive (fault 65)."""

    def used() -> list[weakref.ref[Any]]:
        class OwnRequest(Request): ...

        class Own(Task):  # type: ignore[type-arg]  # not generic at run time
            Request = OwnRequest  # type: ignore[assignment]  # a class does as well

        app = new_app(sqlite_url)
        app.conf.task_always_eager = True
        define(app, base=Own)
        handle = app.jobs.handle()
        handle.submit(Job(task="add", args=[1]))
        assert handle.wait(0) is JobStatus.FINISHED
        app.jobs.close()
        return [weakref.ref(app), weakref.ref(OwnRequest)]

    kept = used()
    gc.collect()
    assert [each() for each in kept] == [None, None]
