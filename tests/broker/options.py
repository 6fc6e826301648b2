"""Every option of a message, by each means that Celery has to set it."""

import inspect
from collections.abc import Callable
from typing import Any

from celery import Celery, Task
from celery.app import defaults
from celery.app import task as celerys_task
from celery.app.amqp import AMQP
from kombu import Exchange, Producer, Queue

MEDIA, EXACT = Exchange("media", "topic", delivery_mode=1), Exchange("exact", "direct")
QUEUES = [
    Queue("default", Exchange(""), routing_key="default"),
    Queue("images", MEDIA, routing_key="image.#"),
    Queue("exact", EXACT, routing_key="the.key"),
    Queue("fast", Exchange(""), routing_key="fast"),
]
Case = tuple[dict[str, Any], dict[str, Any]]

REFUSED = frozenset(
    {
        # Objects of the calling process.
        "producer", "publisher", "connection", "router", "result_cls", "task_type", "declare", "now",
        "timezone",
        # This library decides them: the id, how often and how long a message is published, its events.
        "task_id", "add_to_parent", "root_id", "parent_id", "route_name", "retries", "origin",
        "replaced_task_nesting", "retry", "retry_policy", "timeout", "confirm_timeout", "create_sent_event",
        "expiration",
        # The encoding of the body (JSON, or signed JSON), and options that Celery has deprecated.
        "serializer", "content_type", "content_encoding", "immediate", "mandatory",
    }
)  # fmt: skip
"""Every other parameter of Celery's and kombu's publishing, key of a route and attribute of a task."""


def by_attribute(**attributes: Any) -> dict[str, Any]:
    return {"task_annotations": {"tests.add": attributes}}


def by_route(**route: Any) -> dict[str, Any]:
    return {"task_routes": {"tests.add": route}}


OPTIONS: dict[str, dict[str, Any]] = {
    "queue": {"queue": "fast"},
    "exchange": {"exchange": "exact", "routing_key": "the.key"},
    "routing_key": {"queue": "images", "routing_key": "image.large"},
    "exchange_type": {"queue": "images", "exchange_type": "direct"},
    "priority": {"priority": 7},
    "delivery_mode": {"delivery_mode": 1},
    "compression": {"compression": "gzip"},
    "time_limit": {"time_limit": 60},
    "soft_time_limit": {"soft_time_limit": 50},
    "headers": {"headers": {"trace": "abc", "nested": {"a": [1, None]}}},
    "shadow": {"shadow": "a nice name"},
    "ignore_result": {"ignore_result": True},
    "argsrepr": {"argsrepr": "(a file)"},
    "kwargsrepr": {"kwargsrepr": "{'a': 'file'}"},
    "reply_to": {"reply_to": "a.queue"},
    "stamped_headers": {"stamped_headers": ["batch"], "batch": "monday"},
}
"""A value for each option that a job's messages keep."""

ATTRIBUTES: dict[str, dict[str, Any]] = {
    "queue": {"queue": "fast"},
    "exchange": {"exchange": "exact", "routing_key": "the.key"},
    "routing_key": {"queue": "images", "routing_key": "image.small"},
    "priority": {"priority": 2},
    "delivery_mode": {"delivery_mode": "transient"},
    "compression": {"compression": "bzip2"},
    "time_limit": {"time_limit": 600},
    "soft_time_limit": {"soft_time_limit": 500},
    "ignore_result": {"ignore_result": True},
}
"""Attributes of a task."""

CONFIGURATION: dict[str, dict[str, Any]] = {
    "task_compression": {"task_compression": "gzip"},
    "task_default_delivery_mode": {"task_default_delivery_mode": 1},
    "task_default_exchange": {"task_default_exchange": "media", "task_default_exchange_type": "topic"},
    "task_default_priority": {"task_default_priority": 4},
    "task_default_routing_key": {"task_default_routing_key": "elsewhere"},
    "task_ignore_result": {"task_ignore_result": True},
    "task_repr_maxlevels": {"task_repr_maxlevels": 1},
    "task_time_limit": {"task_time_limit": 300},
    "task_soft_time_limit": {"task_soft_time_limit": 200},
}
"""Keys of the configuration that change a message."""
for later in CONFIGURATION.keys() - defaults.SETTING_KEYS:
    del CONFIGURATION[later]  # of a later Celery than the installed one

CASES: dict[str, Case] = {
    "nothing": ({}, {}),
    **{f"option {name}": ({}, given) for name, given in OPTIONS.items()},
    **{f"attribute {name}": (by_attribute(**given), {}) for name, given in ATTRIBUTES.items()},
    **{f"route {name}": (by_route(**given), {}) for name, given in OPTIONS.items() if name in (
        "queue", "exchange", "routing_key", "exchange_type", "priority", "delivery_mode", "compression",
        "headers",
    )},
    "route headers, and option headers": (by_route(headers={"a": 1}), {"headers": {"b": 2}}),
    "a route by pattern": ({"task_routes": ([("tests.*", {"queue": "fast"})],)}, {}),
    "an option before a route": (by_route(queue="images"), {"queue": "fast"}),
    "a route that is a function": ({"task_routes": (lambda *_, **__: {"queue": "fast", "priority": 5},)}, {}),
    "a queue's own delivery mode": ({}, {"queue": "images"}),
    **{f"configuration {name}": (given, {}) for name, given in CONFIGURATION.items()},
}  # fmt: skip


def declare(app: Celery) -> None:
    with app.connection() as connection:
        for queue in QUEUES:
            queue(connection.default_channel).declare()


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
"""The names of all options, by what Celery and kombu read them from."""


class _Everything:
    def __getattr__(self, name: str) -> str:
        return name


def parameters(function: Any) -> set[str]:
    return {
        name
        for name, parameter in inspect.signature(function).parameters.items()
        if parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
    } - {"self", "args", "kwargs"}
