"""A job to publish, and the messages that a broker then holds."""

from collections.abc import Callable
from typing import Any

from jobhandle_celery import Job

ADD = Job(task="tests.add", args=[1, 2])
REFUSING_BROKERS = {"redis": "redis://127.0.0.1:1/0", "amqp": "amqp://127.0.0.1:1//"}

Make = Callable[..., Any]


def received(app: Any, *queues: str) -> list[Any]:
    """The messages in these queues, else in the default one, which are taken out."""
    messages = []
    with app.connection() as connection:
        channel = connection.default_channel
        for queue in queues or (app.conf.task_default_queue,):
            while message := channel.basic_get(queue, no_ack=True):
                messages.append(message)
    return messages
