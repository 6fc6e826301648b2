"""Routes of jobs, beside those that test_options.py compares with plain Celery's."""

from typing import Any

import pytest
from kombu import Exchange, Queue

from jobhandle_celery import ConfigurationError, Job, JobStatus, ValidationError
from tests.broker.messages import REFUSING_BROKERS, Make, received
from tests.support import sweep_until

QUEUES = [
    Queue("default", Exchange(""), routing_key="default"),
    Queue("images", Exchange("media", "topic"), routing_key="image.#"),
    Queue("fan", Exchange("fan", "fanout")),
]


def to(**route: Any) -> dict[str, Any]:
    return {"task_routes": {"tests.add": route}}


def test_job_for_a_fanout_exchange_goes_to_its_queue(make: Make) -> None:
    app = make(task_queues=QUEUES, task_default_queue="default", **to(queue="fan"))
    with app.connection() as connection:
        QUEUES[-1](connection.default_channel).declare()
    app.jobs.submit(Job(task="tests.add", args=[1, 2]))
    (message,) = received(app, "fan")
    assert message.delivery_info["exchange"] == "fan"


def test_route_is_kept_for_a_publisher_that_lacks_it(make: Make) -> None:
    route = to(queue="images", routing_key="image.large")
    elsewhere = make(REFUSING_BROKERS["redis"], task_queues=QUEUES, **route)
    handle = elsewhere.jobs.handle()
    handle.submit(elsewhere.tasks["tests.add"].s(1, 2).set(priority=5))
    assert handle.job_status() is JobStatus.SUBMITTED
    sweeper = make(jobhandle_publish_grace=0.1)
    sweep_until(sweeper.jobs, lambda: handle.job_status() is JobStatus.QUEUED)
    (message,) = received(sweeper, "images")
    info = message.delivery_info
    assert (info["exchange"], info["routing_key"]) == ("media", "image.large")
    assert message.properties["priority"] == 5
    assert handle.get_job().queue == "images"


def test_queue_that_may_not_be_created_is_refused(make: Make) -> None:
    app = make(task_create_missing_queues=False, task_queues=[Queue("known")], task_default_queue="known")
    with pytest.raises(ValidationError, match=r"queue: .*unknown.*task_queues"):
        app.jobs.handle().submit(Job(task="tests.add", args=[1, 2], queue="unknown"))
    assert app.jobs.find() == []


@pytest.mark.parametrize(
    "settings",
    [
        {"accept_content": ["pickle"]},
        {"accept_content": ["json"], "task_serializer": "auth"},
        {"task_protocol": 1},
    ],
)
def test_configuration_that_accepts_no_jobs_is_refused(settings: dict[str, Any], make: Make) -> None:
    """At the submit, not by workers that drop each message (fault 29)."""
    app = make(**settings)
    with pytest.raises(ConfigurationError, match=r"accept_content|task_protocol"):
        app.jobs.handle().submit(Job(task="tests.add", args=[1, 2]))
    assert app.jobs.find() == []
