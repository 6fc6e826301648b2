"""Contracts with Celery that durable tasks rest on: each test says what breaks when a release changes it."""

from typing import Any
from unittest.mock import Mock

import pytest
from celery import Celery, canvas, chain, chord, group
from celery.app.base import Celery as PlainCelery
from celery.result import GroupResult, ResultSet

from jobhandle_celery import JobResult, celery_compat
from tests.durable.service import make_service


def add(x: int, y: int) -> int:
    return x + y


@pytest.fixture
def eager() -> Any:
    app = Celery("eager", broker="memory://", set_as_current=False)
    app.conf.task_always_eager = True
    app.task(name="compat.add", shared=False)(add)
    return app


def test_eager_publish_is_recognised_by_its_options(eager: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise an eager call of a durable task is no job, or an inline call is one."""
    task, seen = eager.tasks["compat.add"], []
    plain = task.apply

    def apply(*args: Any, **options: Any) -> Any:
        seen.append(celery_compat.is_eager_publish(options))
        return plain(*args, **options)

    monkeypatch.setattr(task, "apply", apply)
    task.delay(1, 2)
    task.apply_async((1, 2), countdown=3, link=task.s(1), ignore_result=True)
    task.s(1, 2).apply_async()
    assert seen == [True] * 4  # with the callback
    seen.clear()
    task.apply((1, 2))
    task.s(1, 2).set(task_id="the id", ignore_result=True).apply()
    group(task.s(1, 2), task.s(1, 2)).apply()
    assert not any(seen)
    assert len(seen) > 3


def test_every_publish_ends_in_send_task(monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise a durable task is published as a plain message."""
    app = Celery("plain", broker="memory://", set_as_current=False)
    app.task(name="compat.add", shared=False)(add)
    task, names = app.tasks["compat.add"], []
    plain = celery_compat.plain_send_task(app)

    def send_task(name: str, *args: Any, **options: Any) -> Any:
        names.append((name, options.get("task_type")))
        return plain(name, *args, **options)

    monkeypatch.setattr(app, "send_task", send_task)
    task.delay(1, 2)
    task.apply_async((1, 2))
    task.s(1, 2).apply_async()
    assert names == [("compat.add", task)] * 3
    app.signature("elsewhere.add", (1, 2)).delay()
    assert names[3] == ("elsewhere.add", None)


def test_send_task_of_the_class_is_found_below_the_wrapper(
    sqlite_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise each submit makes a dry run, or none sees a tool's patch of the class."""
    app: Any = make_service("memory://", sqlite_url)
    assert "send_task" in vars(app)
    assert celery_compat.plain_send_task(app) == PlainCelery.send_task.__get__(app)
    assert celery_compat.is_published_by_celery(app, None)
    monkeypatch.setattr(PlainCelery, "send_task", lambda *_, **__: "patched")
    assert celery_compat.plain_send_task(app)("name") == "patched"
    assert app.send_task("elsewhere.task") == "patched"
    mock = Mock(return_value="mocked")
    monkeypatch.setattr(PlainCelery, "send_task", mock)
    assert app.send_task("elsewhere.task", countdown=1) == "mocked"
    mock.assert_called_once_with("elsewhere.task", countdown=1)
    assert not celery_compat.is_published_by_celery(app, None)


def test_own_send_task_of_the_app_is_called() -> None:
    app: Any = Celery("own", broker="memory://", set_as_current=False)
    app.send_task = lambda *_, **__: "own"
    celery_compat.wrap_send_task(app, lambda _: lambda *_, **__: "wrapped")
    assert app.send_task("name") == "wrapped"
    assert celery_compat.plain_send_task(app)("name") == "own"


def test_function_that_replaces_send_task_may_call_it(sqlite_url: str) -> None:
    """As a test's spy does, or a tool that counts calls."""
    app: Any = make_service("memory://", sqlite_url)
    wrapped, seen = app.send_task, []

    def send_task(*args: Any, **options: Any) -> Any:
        seen.append(args[0])
        return wrapped(*args, **options)

    app.send_task = send_task
    app.send_task("elsewhere.task")
    assert isinstance(app.tasks["shop.add"].delay(1, 2), JobResult)
    assert seen == ["elsewhere.task", "shop.add"]
    app.jobs.close()


def test_canvas_is_wrapped_once(sqlite_url: str) -> None:
    """Otherwise each `Jobs` of a process makes canvases slower, or a canvas is not a tree."""
    app: Any = make_service("memory://", sqlite_url)
    kinds: Any = (canvas._chain, canvas.group, canvas._chord)  # type: ignore[attr-defined]  # private
    wrapped = [kind.apply_async for kind in kinds]
    make_service("memory://", sqlite_url)
    assert [kind.apply_async for kind in kinds] == wrapped
    durable: Any = app.tasks["shop.add"]
    of_chain: Any = chain(durable.s(1, 2), durable.s(3))
    of_chord: Any = chord([durable.s(1, 2)], durable.s(3))
    assert all(isinstance(result, JobResult) for result in (of_chain(), of_chord.delay()))
    app.jobs.close()


def test_native_join_is_wrapped_once(sqlite_url: str) -> None:
    apps: list[Any] = [make_service("memory://", sqlite_url) for _ in range(2)]
    assert ResultSet.join_native is GroupResult.join_native  # which calls `iter_native`
    kinds: list[Any] = [ResultSet, GroupResult]
    wrapped = kinds[0].iter_native
    assert wrapped is kinds[1].iter_native
    plain: Any = wrapped.__wrapped__
    assert not hasattr(plain, "__wrapped__")
    for app in apps:
        app.jobs.close()
