"""A job's message has the options that plain Celery's has, also from another service and after a retry."""

from typing import Any

import pytest

from jobhandle_celery import Job, ValidationError
from jobhandle_celery.broker import publish_options
from tests.broker.messages import Make
from tests.broker.options import (
    ATTRIBUTES,
    CASES,
    OPTIONS,
    QUEUES,
    REFUSED,
    SOURCES,
    by_attribute,
    by_route,
    declare,
)
from tests.broker.plain import compare
from tests.broker.retries import ARGS, retry_job, taken


@pytest.mark.parametrize("case", CASES)
def test_job_message_equals_plain_celerys(case: str, make: Make) -> None:
    """Also if a service with another configuration publishes it, and after a retry (faults 13, 19)."""
    compare(case, "memory://", make)


@pytest.mark.parametrize("wrong", [5, "text", [1], {"a": 1}])
def test_retry_with_wrong_stamped_headers_fails_its_job(make: Make, wrong: object) -> None:
    """Else its row keeps it, and no message can be built of the row."""
    app = make(task_queues=QUEUES, task_default_queue="default")
    declare(app)
    handle = app.jobs.handle()
    handle.submit(app.tasks["tests.add"].s(*ARGS))
    retry_job(app, taken(app), stamped_headers=wrong)
    error = handle.get_job().error
    assert "its retry cannot be kept: stamped_headers: " in error.message


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
