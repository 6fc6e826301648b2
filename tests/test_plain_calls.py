"""What `Jobs` adds to a plain task of its app, counted: calls of Python functions, however fast they are."""

import gc
import os
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from celery import Celery
from celery.app.trace import build_tracer
from celery.worker import state
from celery.worker.request import Request

from jobhandle_celery import Jobs
from jobhandle_celery.worker.request import JobRequest
from tests.in_process import message_of

MAX_OF_PUBLISH = 2
"""The wrapper of `send_task`, and the look-up of what it wraps."""

MAX_OF_MAIN_PROCESS = 2
"""The wrapper of the task's strategy, and the look at the message."""

MAX_OF_POOL_PROCESS = 2
"""The task's tracer, and the descriptor of its `run`."""


def add(x: int, y: int) -> int:
    return x + y


@pytest.fixture(params=["apply_async", "delay", "signature", "by name"])
def way(request: pytest.FixtureRequest) -> Callable[[Any], Callable[[], Any]]:
    ways: dict[str, Callable[[Any], Callable[[], Any]]] = {
        "apply_async": lambda app: partial(app.tasks["add"].apply_async, (1, 2)),
        "delay": lambda app: partial(app.tasks["add"].delay, 1, 2),
        "signature": lambda app: app.tasks["add"].s(1, 2).apply_async,
        "by name": lambda app: partial(app.send_task, "add", (1, 2)),
    }
    return ways[request.param]


@pytest.fixture
def apps(tmp_path: Path) -> Iterator[tuple[Any, Any]]:
    """An app without and one with `Jobs`."""
    made: list[Any] = []
    for name in ("without", "with"):
        app = Celery(name, broker="memory://", set_as_current=False)
        app.conf.task_ignore_result = True
        app.task(name="add", shared=False, lazy=False)(add)
        app.finalize()
        made.append(app)
    with Jobs(made[1], f"sqlite:///{tmp_path}/jobs.sqlite3"):
        yield made[0], made[1]
    for app in made:
        app.close()


def calls_of(work: Callable[[], object]) -> int:
    """Return how many Python functions some work calls in this thread, once it has been done before."""
    calls = 0

    def count(_frame: Any, event: str, _: Any) -> None:
        nonlocal calls
        calls += event == "call"

    counts = []
    for _ in range(5):
        calls = 0
        former = sys.getprofile()
        gc.disable()  # a collection may call functions
        sys.setprofile(count)
        try:
            work()
        finally:
            sys.setprofile(former)
            gc.enable()
        counts.append(calls)
    return min(counts)


class PlainMessage:
    """A message of a plain task, as a worker's main process and its pool handle it."""

    def __init__(self, app: Any) -> None:
        self._pool: Any = SimpleNamespace(apply_async=self._keep)
        names = "timer apply_eta_task task_buckets _limit_task _limit_post_eta controller"
        consumer: Any = SimpleNamespace(
            **{name: SimpleNamespace() for name in names.split()},
            hostname="w1@here",
            connection_errors=(),
            event_dispatcher=None,
            disable_rate_limits=True,
            pool=self._pool,
            on_task_request=lambda request: request.execute_using_pool(self._pool),
        )
        consumer.timer.call_at, consumer.task_buckets = None, {}
        consumer.controller.state = state
        self._task = app.tasks["add"]
        self._task.__trace__ = build_tracer("add", self._task, hostname="w1@here", app=app)
        self._strategy = self._task.start_strategy(app, consumer)
        self._task.delay(1, 2)
        self._message = message_of(app)
        self.requests: list[Any] = []

    def _keep(self, _: Any, args: Any, accept_callback: Any, callback: Any, **__: Any) -> None:
        self._request, self._accepted, self._ended = args[2], accept_callback, callback
        self.requests.append(accept_callback.__self__)

    def in_main_process(self) -> None:
        """Receive it, and handle the messages of the pool about its start and its end."""
        state.successful_requests.clear()  # it refreshes itself now and then
        self._strategy(self._message, None, lambda *_: None, lambda *_: None, [])
        self._accepted(os.getpid(), time.monotonic())
        self._ended((0, "3", 0.1))

    def in_pool_process(self) -> None:
        """Run the task."""
        assert self._task.__trace__("1", (1, 2), {}, self._request)[0] == 3


def test_publish_of_plain_task_calls_little_more(
    apps: tuple[Any, Any], way: Callable[[Any], Callable[[], Any]]
) -> None:
    without, with_jobs = (calls_of(way(app)) for app in apps)
    assert with_jobs - without <= MAX_OF_PUBLISH


def test_worker_calls_little_more_for_plain_task(apps: tuple[Any, Any]) -> None:
    """Requests of plain messages are Celery's own: each of their methods would be called twice."""
    without, with_jobs = (PlainMessage(app) for app in apps)
    in_main = [calls_of(message.in_main_process) for message in (without, with_jobs)]
    assert in_main[1] - in_main[0] <= MAX_OF_MAIN_PROCESS
    in_pool = [calls_of(message.in_pool_process) for message in (without, with_jobs)]
    assert in_pool[1] - in_pool[0] <= MAX_OF_POOL_PROCESS
    assert all(isinstance(request, Request) for request in with_jobs.requests)
    assert not any(isinstance(request, JobRequest) for request in with_jobs.requests)


def test_requests_of_a_task_are_for_jobs_after_its_strategy_started(apps: tuple[Any, Any]) -> None:
    """The strategy of plain messages leaves no trace in the task."""
    PlainMessage(apps[1])
    assert issubclass(apps[1].tasks["add"].Request, JobRequest)
    assert "Request" not in vars(apps[1].tasks["add"])
