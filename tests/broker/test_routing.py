"""A job is routed as Celery routes its task."""

from typing import Any

import pytest
from kombu import Exchange, Queue

from jobhandle_celery import ConfigurationError, Job, JobStatus, ValidationError
from tests.broker.messages import REFUSING_BROKERS, Make, envelope_of, received
from tests.support import eventually

MEDIA, EXACT, FAN = Exchange("media", "topic"), Exchange("exact", "direct"), Exchange("fan", "fanout")
QUEUES = [
    Queue("default", Exchange(""), routing_key="default"),
    Queue("images", MEDIA, routing_key="image.#"),
    Queue("exact", EXACT, routing_key="the.key"),
    Queue("fan", FAN),
]


def to(**route: Any) -> dict[str, Any]:
    return {"task_routes": {"tests.add": route}}


ROUTES: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    # The queue where it arrives, settings, options of the signature.
    "the default queue": ("default", {}, {}),
    "a queue by its name": ("other", {}, {"queue": "other"}),
    "a route by name": ("slow", to(queue="slow"), {}),
    "a route by pattern": ("slow", {"task_routes": ([("tests.*", {"queue": "slow"})],)}, {}),
    "a route by function": ("slow", {"task_routes": (lambda *_, **__: {"queue": "slow"},)}, {}),
    "a queue before a route": ("fast", to(queue="slow"), {"queue": "fast"}),
    "a topic exchange": ("images", to(exchange="media", routing_key="image.small"), {}),
    "a topic exchange by its queue": ("images", {}, {"queue": "images"}),
    "a queue and a routing key": ("images", to(queue="images", routing_key="image.large"), {}),
    "a direct exchange": ("exact", {}, {"exchange": "exact", "routing_key": "the.key"}),
    "a fanout exchange": ("fan", to(queue="fan"), {}),
    "a priority of the options": ("default", {}, {"priority": 7}),
    "a priority of the route": ("default", to(priority=6), {}),
    "a priority by default": ("default", {"task_default_priority": 4}, {}),
    "a priority by annotation": ("default", {"task_annotations": {"tests.add": {"priority": 2}}}, {}),
    "compression": ("default", {"task_compression": "gzip"}, {}),
}


@pytest.mark.parametrize("case", ROUTES)
def test_job_is_routed_as_celery_routes_its_task(case: str, make: Make) -> None:
    arrives, settings, options = ROUTES[case]
    app = make(task_queues=QUEUES, task_default_queue="default", **settings)
    with app.connection() as connection:
        for queue in QUEUES:
            queue(connection.default_channel).declare()
    app.tasks["tests.add"].apply_async((1, 2), **options)
    (plain,) = received(app, arrives)
    handle = app.jobs.handle()
    handle.submit(app.tasks["tests.add"].s(1, 2).set(**options))
    (message,) = received(app, arrives)
    assert envelope_of(message) == envelope_of(plain)
    # Also when it is published again.
    handle.cancel_job()
    handle.resubmit_job()
    (again,) = received(app, arrives)
    assert envelope_of(again) == envelope_of(plain)


def test_route_is_kept_for_a_publisher_that_lacks_it(make: Make) -> None:
    route = to(queue="images", routing_key="image.large")
    elsewhere = make(REFUSING_BROKERS["redis"], task_queues=QUEUES, **route)
    handle = elsewhere.jobs.handle()
    handle.submit(elsewhere.tasks["tests.add"].s(1, 2).set(priority=5))
    assert handle.job_status() is JobStatus.SUBMITTED
    sweeper = make(jobhandle_publish_grace=0.1)
    eventually(lambda: sweeper.jobs.sweep() and handle.job_status() is JobStatus.QUEUED)
    (message,) = received(sweeper, "images")
    assert envelope_of(message)[:3] == ("media", "image.large", 5)
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
