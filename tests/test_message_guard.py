"""Only a worker with `Jobs` reads a job's message, and only a task that claims may be a job (faults 4, 5)."""

import uuid
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from celery import Task
from kombu.exceptions import ContentDisallowed

from jobhandle_celery import Job, ValidationError
from jobhandle_celery.worker.message_guard import TaskRefused, guard_strategy
from tests.apps import add, make_app
from tests.faults import misconfigured_apps
from tests.in_process import become_worker, message_of, run


@pytest.fixture
def app(sqlite_url: str) -> Iterator[Any]:
    app: Any = make_app("memory://", sqlite_url, {"task_default_queue": f"queue-{uuid.uuid4().hex}"})
    become_worker(app)
    yield app
    app.jobs.close()


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


@pytest.mark.parametrize("is_job", [True, False])
def test_request_class_that_runs_the_body_is_refused(app: Any, is_job: bool) -> None:
    """A job's body runs behind the claim alone; a plain task's runs as in plain Celery (fault 5)."""
    ran: list[str] = []

    def body(text: str) -> None:
        ran.append(text)

    own = "tests.faults.misconfigured_apps:ImpatientRequest"
    task = app.task(name="guarded.impatient", shared=False, lazy=False, Request=own)(body)
    assert issubclass(task.Request, misconfigured_apps.ImpatientRequest)
    if is_job:
        app.jobs.submit(Job(task="guarded.impatient", args=["job"]))
    else:
        task.apply_async(["plain"])

    def strategy(opened: Any, *_: Any) -> None:
        task.Request(opened, app=app, task=task)

    handle = guard_strategy(strategy, task)
    if is_job:
        with pytest.raises(TaskRefused, match="has a Request of its own that runs its body"):
            handle(message_of(app), None)
    else:
        handle(message_of(app), None)
    assert ran == ([] if is_job else ["plain"])
