"""Publishes by kombu's producer: right for every broker and every message."""

from collections.abc import Mapping, Sequence
from typing import Any

from .. import celery_compat, serialization
from .headers import CONTENT_TYPE
from .messages import RenderedMessage

JSON_BODY = {"content_type": CONTENT_TYPE, "content_encoding": "utf-8", "serializer": None}
"""Options for a body that is JSON already."""


class KombuTransport:
    """Publishes on one connection. The other transports are made of one, and fall back to it."""

    def __init__(self, producer: Any, retry_policy: Mapping[str, Any]) -> None:
        self.producer = producer
        self.declared: set[str] = set()
        """Names of the queues that were declared on this connection."""
        self._retry = {"retry": True, "retry_policy": retry_policy}

    def send(self, messages: Sequence[RenderedMessage]) -> None:
        """Publish messages, as one batch if kombu can."""
        if len(messages) == 1:
            # With `retry`, kombu looks at the connection before it uses it.
            self.publish(messages[0], **self._retry)
            return
        with celery_compat.batch(self.producer, 2 * len(messages)):
            for message in messages:
                self.publish(message)

    def publish(self, message: RenderedMessage, producer: Any = None, **retry: Any) -> None:
        """Publish a message, by another producer if one is given."""
        options: dict[str, Any] = {"retry": False, **message.options, **retry}
        body: Any = message.body
        if "serializer" in options:
            body = serialization.decode(body)  # the serializer signs all of it
        else:
            options |= JSON_BODY
        # kombu remembers declared queues, too, but binds a copy of the queue to ask itself.
        queues = {queue.name for queue in options.pop("declare")}
        if queues - self.declared:
            options["declare"] = message.options["declare"]
        (producer or self.producer).publish(body, **options)
        self.declared |= queues
