"""Contracts of the private API of Celery that the test kit needs."""

import threading
from types import SimpleNamespace
from typing import Any

import pytest
from celery import Celery, states
from kombu import Connection

from jobhandle_celery import celery_compat
from tests.testing import service


def test_apps_of_the_process_are_known() -> None:
    """Else the fixture `jobs` finds no app that is not named."""
    assert service.app in celery_compat.apps_of_process()


def test_app_without_servers_connects_and_stores_elsewhere() -> None:
    """Else tests of a service reach its broker and its result backend."""
    app: Any = Celery(
        "there", broker="redis://127.0.0.1:1", backend="redis://127.0.0.1:1", set_as_current=False
    )
    pool, producers, backend = app.pool, app.producer_pool, app.backend
    other = SimpleNamespace(thread_safe=True)
    with celery_compat.without_servers(app, lambda *_, **__: Connection("memory://"), other):
        for connection in (app.connection(), app.connection_for_read(), app.connection_for_write()):
            assert connection.as_uri().startswith("memory://")
        assert app.pool is not pool
        with app.producer_pool.acquire() as producer:
            assert producer.connection.as_uri().startswith("memory://")
        seen: list[Any] = [app.backend]
        thread = threading.Thread(target=lambda: seen.append(app.backend))
        thread.start()
        thread.join()
        assert seen == [other, other]
    assert (app.pool, app.producer_pool, app.backend) == (pool, producers, backend)
    assert app.connection_for_write().as_uri().startswith("redis://")


def message_of(task: Any) -> Any:
    headers = {"id": "1", "task": task.name, "lang": "py", "argsrepr": "", "kwargsrepr": ""}
    return SimpleNamespace(
        headers=headers,
        body="[[], {}, {}]",
        payload=([], {}, {}),
        content_type="application/json",
        content_encoding="utf-8",
        delivery_info={},
        properties={},
    )


def test_request_runs_in_the_calling_thread() -> None:
    """Else `run_jobs` runs no body, or one that a test cannot patch."""
    app: Any = Celery("here", broker="memory://", backend="cache+memory://", set_as_current=False)
    threads: list[int] = []

    @app.task(shared=False)  # type: ignore[untyped-decorator]  # of an app of any type
    def body() -> None:
        threads.append(threading.get_ident())

    @app.task(shared=False)  # type: ignore[untyped-decorator]
    def interrupted() -> None:
        raise KeyboardInterrupt

    request, pool = celery_compat.request_run_here(body, message_of(body), "w1@here")
    request.execute_using_pool(pool)
    assert threads == [threading.get_ident()]
    assert app.AsyncResult("1").state == states.SUCCESS
    request, pool = celery_compat.request_run_here(interrupted, message_of(interrupted), "w1@here")
    with pytest.raises(KeyboardInterrupt):
        request.execute_using_pool(pool)
