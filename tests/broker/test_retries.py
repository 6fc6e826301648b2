"""Route and time of a task's retry are as in Celery, or refused at once."""

import os
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from kombu import Exchange, Queue
from sqlalchemy import update

from jobhandle_celery import ValidationError
from jobhandle_celery.broker.publisher import Published
from jobhandle_celery.broker.task_signatures import retry_record
from jobhandle_celery.schema import clock, job
from tests.broker.messages import Make, received
from tests.broker.options import QUEUES, declare
from tests.broker.retries import handled, retry_job, taken


@pytest.fixture
def new_york() -> Iterator[None]:
    before = os.environ.get("TZ")
    os.environ["TZ"] = "America/New_York"
    time.tzset()
    yield
    if before is None:
        del os.environ["TZ"]
    else:
        os.environ["TZ"] = before
    time.tzset()


@pytest.mark.usefixtures("new_york")
@pytest.mark.parametrize("settings", [{}, {"timezone": "Asia/Shanghai"}, {"enable_utc": False}])
def test_retry_at_naive_time_is_in_utc(settings: dict[str, Any], make: Make) -> None:
    """As in Celery, whatever the time zone of the machine (fault 6)."""
    app = make(**settings)
    handle = app.jobs.handle()
    handle.submit(app.tasks["tests.add"].s(1, 2))
    (message,) = received(app)
    at = datetime.now(UTC) + timedelta(hours=2)
    retry_job(app, message, eta=at.replace(tzinfo=None))
    not_before = app.jobs._runtime.store.diagnostics.details(handle.job_id).internals.not_before
    assert abs(not_before - at) < timedelta(seconds=1)


@pytest.mark.parametrize("field", ["eta", "expires"])
def test_naive_time_is_refused_at_submit(field: str, make: Make) -> None:
    app = make()
    for value in (datetime(2100, 1, 1), "2100-01-01T00:00:00"):  # noqa: DTZ001
        with pytest.raises(ValidationError, match=field):
            app.jobs.handle().submit(app.tasks["tests.add"].s(1, 2).set(**{field: value}))


def test_retry_to_unknown_queue_is_refused(make: Make) -> None:
    """In the task, where Celery rejects what cannot be published (fault 27)."""
    app = make(task_create_missing_queues=False, task_queues=[Queue("known")], task_default_queue="known")
    app.jobs.handle().submit(app.tasks["tests.add"].s(1, 2))
    (message,) = received(app, "known")
    task = app.tasks["tests.add"]
    with handled(task, message) as request:
        signature = task.signature_from_request(request, retries=1, queue="unknown")
        with pytest.raises(ValidationError, match="queue: 'unknown'"):
            retry_record(app.jobs._runtime.routing, signature, request)


def test_retry_to_another_queue_drops_exchange_of_submit(make: Make) -> None:
    """A publisher that knows neither declares the new queue as the worker declares it (faults 52, 19)."""
    urgent = Queue("fast", Exchange(""), routing_key="fast", queue_arguments={"x-max-priority": 9})
    app = make(task_queues=[*QUEUES[:3], urgent], task_default_queue="default")
    declare(app)
    handle = app.jobs.handle()
    handle.submit(app.tasks["tests.add"].s(1, 2).set(exchange="exact", routing_key="the.key"))
    retry_job(app, taken(app), queue="fast", countdown=3600)
    assert handle.get_job().queue == "fast"
    sent: list[Any] = []
    other = make()

    def publish(jobs: Any) -> Published:
        sent.extend(jobs)
        return Published()

    other.jobs._runtime.publisher.publish = publish
    with other.jobs._runtime.store.database.transaction() as connection:
        connection.execute(update(job).values(not_before=clock(), due_at=clock()))
    other.jobs.sweep()
    options = other.jobs._runtime.publisher._process_builder().build(sent[0]).options
    assert (options["exchange"], options["routing_key"]) == ("", "fast")
    assert options["declare"] == [urgent]


@pytest.mark.parametrize("name", ["expires", "retry_policy", "declare", "delivery_info_of_mine"])
def test_unkept_option_of_retry_is_refused(name: str, make: Make) -> None:
    app = make()
    app.jobs.handle().submit(app.tasks["tests.add"].s(1, 2))
    (message,) = received(app)
    task = app.tasks["tests.add"]
    with handled(task, message) as request:
        signature = task.signature_from_request(request, retries=1, **{name: 60})
        with pytest.raises(ValidationError, match=f"^{name}: "):
            retry_record(app.jobs._runtime.routing, signature, request)
