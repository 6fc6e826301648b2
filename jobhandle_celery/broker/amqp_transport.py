"""Publishes batches to RabbitMQ and waits for their confirmations together.

py-amqp waits for the confirmation of each message before it sends the next one: that is a round trip, and a
write to the broker's disk, for each. RabbitMQ numbers the messages on a channel from 1 and confirms numbers.
"""

from collections.abc import Sequence
from typing import Any

from amqp.exceptions import MessageNacked

from .. import celery_compat
from .kombu_transport import KombuTransport
from .messages import RenderedMessage


class AmqpTransport:
    """Publishes batches on a channel of its own, and single messages by kombu."""

    def __init__(self, kombu: KombuTransport, timeout: float) -> None:
        """Open nothing yet; `timeout` is the seconds to wait for each answer of the broker."""
        self._kombu = kombu
        self._timeout = timeout
        self._producer: Any = None
        self._channel: Any = None
        self._published = 0
        self._unconfirmed: set[int] = set()
        self._nacked = False

    def send(self, messages: Sequence[RenderedMessage]) -> None:
        """Publish messages and wait until the broker has confirmed all of them.

        Raises:
            MessageNacked: the broker has refused one of them; it is not known which.
            OSError, amqp's errors: the broker is silent, or has closed the channel because of one of them.
        """
        if len(messages) == 1:
            self._kombu.send(messages)
            return
        if self._producer is None:
            self._open_channel()
        for message in messages:
            self._kombu.publish(message, self._producer)
        self._wait_for_confirms()

    def _open_channel(self) -> None:
        producer = self._kombu.producer
        self._channel = celery_compat.open_confirm_channel(
            producer.connection, self._publish, self._on_ack, self._on_nack
        )
        self._producer = type(producer)(self._channel, auto_declare=False)

    def _publish(self, *args: Any, confirm_timeout: Any = None, **kwargs: Any) -> None:
        self._published += 1
        self._unconfirmed.add(self._published)
        celery_compat.publish_unconfirmed(self._channel, *args, **kwargs)

    def _on_ack(self, number: int, multiple: bool) -> None:
        first = min(self._unconfirmed, default=number) if multiple else number
        self._unconfirmed.difference_update(range(first, number + 1))

    def _on_nack(self, number: int, multiple: bool) -> None:
        self._nacked = True
        self._on_ack(number, multiple)

    def _wait_for_confirms(self) -> None:
        while self._unconfirmed:
            self._kombu.producer.connection.drain_events(timeout=self._timeout)
        if self._nacked:
            self._nacked = False
            raise MessageNacked
