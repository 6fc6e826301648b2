"""A job to send, and what a broker then holds of it."""

from collections.abc import Callable
from typing import Any

from jobhandle_celery import Job
from jobhandle_celery.broker.headers import PLAIN_CONTENT_TYPES

ADD = Job(task="tests.add", args=[1, 2])
NOBODY_LISTENS = {"redis": "redis://127.0.0.1:1/0", "amqp": "amqp://127.0.0.1:1//"}

Make = Callable[..., Any]


def received(app: Any, queue: str | None = None) -> list[Any]:
    """What the broker holds in a queue; it forgets it."""
    messages = []
    with app.connection() as connection:
        channel = connection.default_channel
        while message := channel.basic_get(queue or app.conf.task_default_queue, no_ack=True):
            messages.append(message)
    return messages


def way_of(message: Any) -> Any:
    """How a message went and how it is packed, whatever it says."""
    properties = message.properties
    return (
        message.delivery_info["exchange"],
        message.delivery_info["routing_key"],
        properties["priority"],
        properties["delivery_mode"],
        # A worker takes a job's for this once it has checked it (tests/test_message_guard.py).
        PLAIN_CONTENT_TYPES[message.content_type],
        message.content_encoding,
        message.headers.get("compression"),
    )
