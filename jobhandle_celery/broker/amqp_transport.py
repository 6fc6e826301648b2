"""Messages to RabbitMQ whose confirmations are waited for together. Imports nothing of ours.

py-amqp waits for the confirmation of each message before it sends the next, which is a round trip, and the
broker's own write to disk, for each. RabbitMQ numbers what it gets on a channel from 1, and confirms by these
numbers, many at a time.
"""

from types import TracebackType
from typing import Any

from amqp import Channel
from amqp.exceptions import MessageNacked


class Confirmed:
    """A channel of its own, in confirm mode; each `with` ends when all that was sent in it is confirmed."""

    def __init__(self, connection: Any, bound: float) -> None:
        self._connection = connection
        self._bound = bound
        """Seconds for which the broker may say nothing."""
        self.channel: Any = connection.channel()
        self.channel.confirm_select()
        self._published = 0
        self._missing: set[int] = set()
        self._nacked = False
        self.channel.basic_publish = self._publish  # instead of the one that waits
        self.channel.events["basic_ack"].add(self._on_ack)
        self.channel.events["basic_nack"].add(self._on_nack)

    def _publish(self, *args: Any, confirm_timeout: Any = None, **kwargs: Any) -> None:
        self._published += 1
        self._missing.add(self._published)
        Channel.basic_publish(self.channel, *args, **kwargs)

    def _on_ack(self, number: int, multiple: bool) -> None:
        self._missing -= set(range(min(self._missing, default=number), number + 1)) if multiple else {number}

    def _on_nack(self, number: int, multiple: bool) -> None:
        self._nacked = True
        self._on_ack(number, multiple)

    def __enter__(self) -> None:
        """Begin."""

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Wait for the confirmations.

        Raises:
            MessageNacked: the broker has not taken one of them, it is not known which.
            OSError, amqp's errors: it is silent, or has closed the channel for one of them.
        """
        if error is not None:
            return
        while self._missing:
            self._connection.drain_events(timeout=self._bound)
        if self._nacked:
            self._nacked = False
            raise MessageNacked
