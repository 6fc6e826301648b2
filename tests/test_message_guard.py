"""Only a worker with `Jobs` reads a job's message, and only a task that claims may be a job (faults 4, 5)."""

import os
import time
from collections.abc import Callable
from typing import Any

import pytest
from celery import Task
from celery.exceptions import TaskRevokedError
from celery.worker.request import Request
from kombu.exceptions import ContentDisallowed

from jobhandle_celery import Job, ValidationError
from jobhandle_celery.worker.message_guard import TaskRefused, guard_strategy
from tests.apps import add
from tests.faults import misconfigured_apps
from tests.in_process import become_worker, message_of, run


@pytest.fixture
def app(sqlite_url: str, make_jobs_app: Callable[..., Any]) -> Any:
    app = make_jobs_app(sqlite_url)
    become_worker(app)
    return app


def test_message_cannot_be_read_without_the_guard(app: Any) -> None:
    """A consumer of JSON rejects it; one that accepts any type has no decoder for it (fault 4)."""
    app.jobs.handle().submit(Job(task="tests.add", args=[1, 2]))
    message = message_of(app)
    message.accept = {"application/json", "application/data"}
    with pytest.raises(ContentDisallowed):
        message.decode()
    message.accept = None
    assert isinstance(message.decode(), str)


def test_guard_leaves_the_message_as_the_broker_gave_it(app: Any) -> None:
    """A message that a worker requeues is still unreadable to others (fault 4)."""
    handle = app.jobs.handle()
    handle.submit(Job(task="tests.add", args=[1, 2]))
    message = message_of(app)
    before = message.serializable()
    run(app, message)
    assert handle.result(timeout=5) == 3
    assert message.serializable() == before


class Collects(Task):  # type: ignore[type-arg]  # not generic at run time
    abstract = True

    def Strategy(self, task: Any, app: Any, consumer: Any) -> Callable[..., None]:  # type: ignore[override]
        raise AssertionError


class Starts(Task):  # type: ignore[type-arg]  # not generic at run time
    abstract = True

    def start_strategy(self, app: Any, consumer: Any, **kwargs: Any) -> Any:
        raise AssertionError


OWN: dict[str, dict[str, Any]] = {
    "a method": {"base": Collects},
    "an option": {"Strategy": "tests.faults.misconfigured_apps:eager_strategy"},
    "start_strategy": {"base": Starts},
}


@pytest.mark.parametrize("options", OWN.values(), ids=OWN)
def test_task_with_its_own_strategy_is_refused_by_name(app: Any, options: dict[str, Any]) -> None:
    """At submit if the task is registered there, and by a worker for every message (fault 5)."""
    handle = app.jobs.handle()
    handle.submit(Job(task="guarded.own", args=[1, 2]))
    message = message_of(app)
    app.task(name="guarded.own", shared=False, **options)(add)
    with pytest.raises(ValidationError, match=r"the task guarded\.own has a \w+ of its own"):
        handle.submit(Job(task="guarded.own", args=[1, 2]))
    with pytest.raises(TaskRefused, match=r"guarded\.own has a"):
        run(app, message)


def request_of(app: Any, task: Any, **options: Any) -> Any:
    """Return the request that Celery's strategy makes of the next message."""
    made: list[Any] = []

    def strategy(opened: Any, *_: Any) -> None:
        made.append(task.Request(opened, app=app, task=task, **options))

    guard_strategy(strategy, task)(message_of(app), None)
    return made[0]


class Requested:
    """A task whose own request class runs its body, and the request of one message."""

    def __init__(self, app: Any, own: str, is_job: bool) -> None:
        self.ran: list[str] = []
        self.rejected: list[bool] = []
        self.app = app

        def body(text: str) -> None:
            self.ran.append(text)

        options = {"shared": False, "lazy": False, "Request": misconfigured_apps.REQUESTS[own]}
        self.task = app.task(name="guarded.requested", **options)(body)
        if is_job:
            app.jobs.submit(Job(task="guarded.requested", args=["job"]))
        else:
            self.task.apply_async(["plain"])

    def request(self) -> Any:
        return request_of(self.app, self.task, on_reject=self._reject)

    def _reject(self, _logger: Any, _errors: Any, requeue: bool) -> None:
        self.rejected.append(requeue)


def test_request_class_that_runs_the_body_is_refused(app: Any) -> None:
    """A job's body runs behind the claim alone (fault 5)."""
    requested = Requested(app, "request", is_job=True)
    with pytest.raises(TaskRefused, match="has a Request of its own that runs its body"):
        requested.request()
    assert requested.ran == []


def test_request_class_that_runs_the_body_in_revoked_is_refused(app: Any) -> None:
    """Celery has taken a slot of the pool by then, and releases it for a revoked message (fault 5)."""
    requested = Requested(app, "revoked", is_job=True)
    request = requested.request()
    with pytest.raises(TaskRevokedError):
        request.execute_using_pool(None)
    assert request.revoked()
    assert (requested.ran, requested.rejected, request.acknowledged) == ([], [False], True)


def test_request_class_that_runs_the_body_in_on_accepted_does_not(app: Any) -> None:
    """The process that has accepted the message claims and runs it, so the request goes on (fault 5)."""
    requested = Requested(app, "accepted", is_job=True)
    request = requested.request()
    request.on_accepted(os.getpid(), time.monotonic())
    assert (requested.ran, requested.rejected) == ([], [])
    assert (request.worker_pid, request.acknowledged) == (os.getpid(), True)


@pytest.mark.parametrize("own", misconfigured_apps.REQUESTS)
def test_plain_message_runs_in_its_own_request_class(app: Any, own: str) -> None:
    """A plain task is as in plain Celery (fault 5)."""
    requested = Requested(app, own, is_job=False)
    request = requested.request()
    if own == "revoked":
        assert not request.revoked()
    if own == "accepted":
        request.on_accepted(os.getpid(), time.monotonic())
    assert requested.ran == ["plain"]


class TellingRequest(Request):
    """Calls another task's body, as a notification, when a body takes long."""

    app: Any

    def on_timeout(self, soft: bool, timeout: float) -> None:
        self.app.tasks["guarded.notified"].run(f"longer than {timeout}")


def ignore() -> None: ...


def test_request_class_may_run_the_body_of_another_task(app: Any) -> None:
    """It is not the job's body, and needs no claim."""
    notes: list[str] = []

    def note(text: str) -> None:
        notes.append(text)

    app.task(name="guarded.notified", shared=False, lazy=False)(note)
    task = app.task(name="guarded.telling", shared=False, lazy=False, Request=TellingRequest)(ignore)
    app.jobs.submit(Job(task="guarded.telling"))
    request_of(app, task).on_timeout(soft=True, timeout=5.0)
    assert notes == ["longer than 5.0"]
