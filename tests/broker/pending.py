"""Pending messages of jobs with each kind of options, and what Redis has of them when they are sent."""

import itertools
import json
from dataclasses import replace
from typing import Any

import pytest
import redis
from kombu import Exchange, Queue
from kombu.utils import json as kombu_json

from jobhandle_celery import validation
from jobhandle_celery.broker.connection import BrokerConnection
from jobhandle_celery.broker.messages import MessageBuilder
from jobhandle_celery.broker.routing import Routing
from jobhandle_celery.broker.task_signatures import as_job
from jobhandle_celery.store import PendingMessage
from tests.apps import make_app

QUEUES = [
    Queue("default", Exchange(""), routing_key="default"),
    Queue("images", Exchange("media", "topic"), routing_key="image.#"),
    Queue("urgent", Exchange(""), routing_key="urgent", queue_arguments={"x-max-priority": 9}),
]
OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "an undeclared queue": {"queue": "other"},
    "a queue with arguments and a priority": {"queue": "urgent", "priority": 7},
    "an exchange of its own": {"queue": "images", "routing_key": "image.small"},
    "limits": {"time_limit": 60, "soft_time_limit": 50},
    "a shadow, and headers": {"shadow": "nice name", "headers": {"trace": "abc"}},
    "its own argsrepr": {"argsrepr": "(a file)", "kwargsrepr": "{'a': 'file'}"},
    "no result": {"ignore_result": True},
    "sensitive arguments": {"sensitive": ["a", 0]},
}


def anything(*args: Any, **kwargs: Any) -> None: ...


def an_app(broker_url: str = "memory://", **settings: Any) -> Any:
    app: Any = make_app(
        broker_url, None, {"task_queues": QUEUES, "task_default_queue": "default", **settings}
    )
    app.task(name="tests.anything", shared=False)(anything)
    return app


def pending(app: Any, options: dict[str, Any], args: list[Any], kwargs: dict[str, Any]) -> PendingMessage:
    given, further = as_job(app.tasks["tests.anything"].s(*args, **kwargs).set(**options))
    job = validation.job(given)
    routed = Routing(app).route(job, further, "an id")
    return PendingMessage(
        job_id=42,
        task_id="0e7ba2ae-5ccd-4d2b-a8e5-0a2d8bc0a0b6",
        task="tests.anything",
        attempt=3,
        args=kombu_json.dumps(routed.args),
        kwargs=kombu_json.dumps(routed.kwargs),
        queue=routed.queue,
        routing=routed.options,
        priority=routed.priority,
        time_limit=job.time_limit,
        soft_time_limit=job.soft_time_limit,
        retry=None,
        publish_count=0,
        republish_deferrals=0,
        status=None,  # type: ignore[arg-type]  # not read
    )


def pushed(redis_url: str) -> list[tuple[str, Any]]:
    """Return all messages in push order, each after its list's name."""
    with redis.Redis.from_url(redis_url, decode_responses=True) as client:
        lists = sorted(key for key in client.scan_iter() if client.type(key) == "list")
        return [(key, json.loads(text)) for key in lists for text in reversed(client.lrange(key, 0, -1))]


def send(connection: BrokerConnection, builder: MessageBuilder, jobs: list[PendingMessage]) -> None:
    connection.send([builder.build(job) for job in jobs])


def templates(connection: BrokerConnection) -> list[Any]:
    transport: Any = connection.transport
    return list(transport._templates._recorded.values())


def three(app: Any, options: dict[str, Any]) -> list[PendingMessage]:
    given: list[tuple[list[Any], dict[str, Any]]] = [
        (["a.tif", 96], {"a": 1}),
        ([], {}),
        (['it\'s "é"', "\\", "\n%s{0}", 2**70], {"a": [1.5, None]}),
    ]
    return [
        replace(pending(app, options, args, kwargs), job_id=number, task_id=f"{number:08}")
        for number, (args, kwargs) in enumerate(given, 1)
    ]


def add_request_numbers(owner: Any, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Patch a method so that it adds a header of its own to each message."""
    numbers, original = itertools.count(), getattr(owner, name)

    def patched(self: Any, *args: Any, **options: Any) -> Any:
        headers = options.get("headers")
        if headers is None:
            headers = next(value for value in args if isinstance(value, dict) and "task" in value)
        headers["request"] = f"request-{next(numbers)}"
        return original(self, *args, **options)

    monkeypatch.setattr(owner, name, patched)
