"""Publishes batches to RabbitMQ by one write each, and waits for their confirmations together.

py-amqp encodes each message in Python, writes it by itself, and waits for its confirmation before it sends
the next one: that is a round trip, and a write to the broker's disk, for each. But the frames of messages
that are alike differ in a few values (see `PublishTemplates`), and RabbitMQ numbers the messages on a channel
from 1 and confirms numbers.
"""

import struct
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

from amqp.exceptions import MessageNacked

from .. import celery_compat
from ..celery_compat import encode_amqp
from .kombu_transport import KombuTransport
from .messages import RenderedMessage
from .publish_templates import Placeholders, PublishTemplates, SplitRecording, header_field

_METHOD, _PROPERTIES, _BODY = 1, 2, 3
"""The types of the frames of a message, in their order. A large body has several."""
_FRAME = struct.Struct(">BHI")
"""Type of a frame, channel, and length of its payload, which `_END` follows."""
_END = b"\xce"
_CLASS = 4
"""The length of what is before the length of the body: AMQP's class, and its weight."""
_BODY_LENGTH = struct.Struct(">Q")
_LENGTH = struct.Struct(">I")


class AmqpTransport:
    """Publishes on a channel of its own, in confirm mode."""

    def __init__(self, kombu: KombuTransport, timeout: float) -> None:
        """Open nothing yet; `timeout` is the seconds to wait for each answer of the broker."""
        self._kombu = kombu
        self._timeout = timeout
        self._producer: Any = None
        self._channel: Any = None
        self._templates = PublishTemplates(kombu, self._record)
        self._published = 0
        self._unconfirmed: set[int] = set()
        self._nacked = False

    def send(self, messages: Sequence[RenderedMessage]) -> None:
        """Publish messages and wait until the broker has confirmed all of them.

        Raises:
            MessageNacked: the broker has refused one of them; it is not known which.
            OSError, amqp's errors: the broker is silent, or has closed the channel because of one of them.
        """
        if self._producer is None:
            self._open_channel()
        by_templates = celery_compat.publishes_by_kombu(self._producer)
        frames: list[bytes] = []
        for message in messages:
            template = self._templates.get(message) if by_templates else None
            if template is not None:
                frames.append(template.render(message))
                continue
            self._write(frames)
            frames = []
            self._expect_confirms(1)
            self._kombu.publish(message, self._producer)
        self._write(frames)
        self._wait_for_confirms()

    def _open_channel(self) -> None:
        producer = self._kombu.producer
        self._channel = celery_compat.open_confirm_channel(producer.connection, self._on_ack, self._on_nack)
        self._producer = type(producer)(self._channel, auto_declare=False)

    def _record(self, marked: RenderedMessage, placeholders: Placeholders) -> "FramesTemplate | None":
        publish = partial(self._kombu.publish, marked, self._producer)
        frames = celery_compat.record_frames(self._channel, publish)
        return FramesTemplate.of(frames, marked, placeholders, celery_compat.max_payload(self._channel))

    def _write(self, frames: Sequence[bytes]) -> None:
        if frames:
            self._expect_confirms(len(frames))
            celery_compat.write_frames(self._channel, b"".join(frames))

    def _expect_confirms(self, count: int) -> None:
        self._unconfirmed.update(range(self._published + 1, self._published + count + 1))
        self._published += count

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


class FramesTemplate:
    """The frames of the messages of a template: that of the method, of the properties, and of the body.

    The payload of the second begins with the length of the body. One of the properties is the table of
    headers, which begins with its length.
    """

    def __init__(
        self,
        channel: int,
        method: bytes,
        before: bytes,
        headers: SplitRecording[bytes],
        after: SplitRecording[bytes],
        max_payload: int,
    ) -> None:
        self._channel = channel
        self._method = self._frame(_METHOD, method)
        self._class, self._before = before[:_CLASS], before[_CLASS + _BODY_LENGTH.size :]
        self._headers = headers
        self._after = after
        self._max_payload = max_payload

    @classmethod
    def of(
        cls, frames: bytes, marked: RenderedMessage, placeholders: Placeholders, max_payload: int
    ) -> "FramesTemplate | None":
        """Return the template of recorded frames; None if the message was changed between kombu and amqp."""
        (_, channel, method), (_, _, properties), *bodies = _split(frames)
        table = encode_amqp("F", marked.headers)
        before, _, after = properties.partition(table)
        marks = {_item(placeholders[header_field(name)]): header_field(name) for name in marked.own_headers}
        headers = SplitRecording.at(table[_LENGTH.size :], marks)
        rest = SplitRecording.at(after, {encode_amqp("s", marked.task_id): "correlation_id"})
        if headers is None or rest is None or bodies != [(_BODY, channel, marked.body.encode())]:
            return None
        return cls(channel, method, before, headers, rest, max_payload)

    def render(self, message: RenderedMessage) -> bytes:
        """Return the frames of a message."""
        body = message.body.encode()
        own = message.own_headers.items()
        headers = self._headers.fill({header_field(name): _item(value) for name, value in own})
        after = self._after.fill({"correlation_id": encode_amqp("s", message.task_id)})
        content = (self._class, _BODY_LENGTH.pack(len(body)), self._before)
        table = (_LENGTH.pack(len(headers)), headers)
        properties = self._frame(_PROPERTIES, b"".join((*content, *table, after)))
        parts = (body[start : start + self._max_payload] for start in range(0, len(body), self._max_payload))
        return b"".join((self._method, properties, *(self._frame(_BODY, part) for part in parts)))

    def _frame(self, kind: int, payload: bytes) -> bytes:
        return _FRAME.pack(kind, self._channel, len(payload)) + payload + _END


def _split(frames: bytes) -> Iterator[tuple[int, int, bytes]]:
    """Yield type, channel and payload of each frame."""
    start = 0
    while start < len(frames):
        kind, channel, length = _FRAME.unpack_from(frames, start)
        end = start + _FRAME.size + length
        yield kind, channel, frames[start + _FRAME.size : end]
        start = end + len(_END)


def _item(value: Any) -> bytes:
    """Return the value of a header as a table has it, after its name."""
    if type(value) is str:  # amqp's encoder takes longer
        text = value.encode("utf-8", "surrogatepass")
        return b"S" + _LENGTH.pack(len(text)) + text
    return encode_amqp("A", [value])[_LENGTH.size :]
