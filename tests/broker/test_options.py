"""A job's message has the options that plain Celery's has, also from another service and after a retry."""

import inspect
import uuid
from collections.abc import Callable
from contextlib import contextmanager
from typing import Any

import pytest
from celery import Celery, Task
from celery.app import task as celerys_task
from celery.app.amqp import AMQP
from kombu import Producer

from jobhandle_celery import Job, ValidationError
from jobhandle_celery.broker import publish_options
from jobhandle_celery.store import Run
from jobhandle_celery.worker.current_run import CurrentRun
from jobhandle_celery.worker.executor import conclude
from tests.broker.messages import Make, received
from tests.broker.options import (
    ATTRIBUTES,
    CASES,
    OPTIONS,
    QUEUES,
    REFUSED,
    by_attribute,
    by_route,
    declare,
)
from tests.broker.plain import comparable

ARGS = (["a", {"b": [[1]]}], 2)


def taken(app: Any) -> Any:
    """The only message in the queues, which is taken out."""
    messages = [message for queue in QUEUES for message in received(app, queue.name)]
    assert len(messages) == 1
    return messages[0]


@contextmanager
def handled(task: Any, message: Any) -> Any:
    """Make a message the request of a task, as a worker does."""
    properties, info = message.properties, message.delivery_info
    context = {
        **message.headers,
        "args": list(ARGS),
        "kwargs": {},
        "called_directly": False,
        "reply_to": properties.get("reply_to"),
        "correlation_id": properties.get("correlation_id"),
        "delivery_info": {
            "exchange": info["exchange"],
            "routing_key": info["routing_key"],
            "priority": properties.get("priority"),
            "redelivered": False,
        },
    }
    task.push_request(**context)
    try:
        yield task.request
    finally:
        task.pop_request()


def retry_job(app: Any, message: Any, **given: Any) -> None:
    """Retry the job of a message as a worker does, which publishes the next one."""
    task, runtime = app.tasks["tests.add"], app.jobs._runtime
    header = message.headers["jobhandle"]
    run = Run(
        header["id"], message.headers["id"], header["attempt"], str(uuid.uuid4()), runtime.eager_worker()
    )
    runtime.store.runs.claim(run, task.name)
    with handled(task, message) as request:
        signature = task.signature_from_request(request, retries=1, **given)
        conclude(task, CurrentRun(run, request, retry=signature))


def retry_plain(app: Any, message: Any, **given: Any) -> None:
    task = app.tasks["tests.add"]
    with handled(task, message) as request:
        signature = task.signature_from_request(request, retries=1, **given)
    signature.apply_async()


@pytest.mark.parametrize("case", CASES)
def test_job_message_equals_plain_celerys(case: str, make: Make) -> None:
    """Also if a service with another configuration publishes it, and after a retry (faults 13, 19)."""
    compare(case, "memory://", make)


def compare(case: str, url: str, make: Make) -> None:
    settings, given = CASES[case]
    app = make(url, **{"task_queues": QUEUES, "task_default_queue": "default", **settings})
    other = make(url, task_default_delivery_mode=2, task_default_priority=9)
    declare(app)
    task = app.tasks["tests.add"]
    task.apply_async(ARGS, **given)
    sent = taken(app)
    expected = comparable(sent)
    handle = app.jobs.handle()
    for _ in range(3):  # the first declares the queue, the second makes the template, the third uses it
        handle.submit(task.s(*ARGS).set(**given))
        message = taken(app)
        assert comparable(message) == expected
    other.jobs._runtime.submitter.send([stored(app, task.s(*ARGS).set(**given))])
    assert comparable(taken(app)) == expected
    retry_plain(app, sent)
    retried = comparable(taken(app))
    retry_job(app, message)
    # A job's retry keeps the options of its submit; plain Celery drops some of them.
    kept = {name: expected[name] for name in ("properties", "route", "shown", "compression")}
    kept["headers"] = retried["headers"] | {"ignore_result": expected["headers"]["ignore_result"]}
    assert comparable(taken(app)) == {**retried, **kept}


@pytest.mark.parametrize("wrong", [5, "text", [1], {"a": 1}])
def test_retry_with_wrong_stamped_headers_fails_its_job(make: Make, wrong: object) -> None:
    """Else its row keeps it, and no message can be built of the row (issue 12)."""
    app = make(task_queues=QUEUES, task_default_queue="default")
    declare(app)
    handle = app.jobs.handle()
    handle.submit(app.tasks["tests.add"].s(*ARGS))
    retry_job(app, taken(app), stamped_headers=wrong)
    error = handle.get_job().error
    assert "its retry cannot be kept: stamped_headers: " in error.message


def stored(app: Any, given: object) -> int:
    """Store a job as if its process had died before publishing it."""
    submitter = app.jobs._runtime.submitter
    job_id: int = app.jobs._runtime.store.inserter.submit([submitter.preparer._new(given, None, None)])[
        0
    ].job_id
    return job_id


exec_options: Any = celerys_task.extract_exec_options  # type: ignore[attr-defined]  # Celery's


SOURCES: dict[str, Callable[[], set[str]]] = {
    "Task.apply_async": lambda: parameters(Task.apply_async),
    "Celery.send_task": lambda: parameters(Celery.send_task) - {"name"},
    "AMQP.as_task_v2": lambda: parameters(AMQP.as_task_v2) - {"name", "callbacks", "errbacks"},
    "AMQP.send_task_message": lambda: (
        parameters(Celery().amqp.send_task_message) - {"name", "message", "event_dispatcher"}
    ),
    "Producer.publish": lambda: parameters(Producer.publish) - {"body"},
    "attributes of a task": lambda: set(exec_options(_Everything())),
}


class _Everything:
    def __getattr__(self, name: str) -> str:
        return name


def parameters(function: Any) -> set[str]:
    return {
        name
        for name, parameter in inspect.signature(function).parameters.items()
        if parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
    } - {"self", "args", "kwargs"}


@pytest.mark.parametrize("source", SOURCES)
def test_every_option_of_celery_is_kept_or_refused(source: str) -> None:
    """An option that Celery adds later makes this fail, until it is classified (fault 13)."""
    decided = publish_options.SIGNATURE | publish_options.CANVAS | REFUSED
    assert SOURCES[source]() - decided == set()


def test_every_kept_option_is_compared() -> None:
    row = {"countdown", "eta", "expires"}
    assert set(OPTIONS) == publish_options.FIELDS - row | publish_options.ROUTE | publish_options.DESCRIPTION
    assert set(ATTRIBUTES) == SOURCES["attributes of a task"]() - REFUSED - row | {"ignore_result"}


@pytest.mark.parametrize("name", sorted(REFUSED - {"now", "timezone", "task_type"}))
def test_unkept_option_is_refused_by_name(name: str, make: Make) -> None:
    app = make(task_routes={"tests.add": {name: "a value"}})
    task = app.tasks["tests.add"]
    with pytest.raises(ValidationError, match=f"^{name}: "):
        app.jobs.handle().submit(task.s(1, 2).set(**{name: "a value"}))
    assert app.jobs.find() == []


BY_ROUTE = ["mandatory", "immediate", "retry", "timeout", "expiration", "declare", "app_id"]
BY_ATTRIBUTE = ["serializer", "mandatory", "immediate"]


@pytest.mark.parametrize(
    ("settings", "name"),
    [(by_route(**{name: "pickle"}), name) for name in BY_ROUTE]
    + [(by_attribute(**{name: "pickle"}), name) for name in BY_ATTRIBUTE],
)
def test_unkept_option_of_route_or_task_is_refused(settings: dict[str, Any], name: str, make: Make) -> None:
    accepted = "accepted: 'json', 'auth', or that" if name == "serializer" else "accepted: not set"
    with pytest.raises(ValidationError, match=f"^{name}: .*{accepted}"):
        make(**settings).jobs.handle().submit(Job(task="tests.add", args=[1, 2]))
