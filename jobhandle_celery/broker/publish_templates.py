"""Templates of what kombu sends for a message, which are recorded from kombu itself.

A fast transport has kombu publish one message of each template to a recorder, with placeholders for what
differs between messages. The recording, split at the placeholders, is the template of the others. kombu
itself publishes a message that cannot be recorded so.
"""

import uuid
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import AnyStr, Generic, TypeVar

from .kombu_transport import KombuTransport
from .messages import TEMPLATE_LIMIT, MessageTemplate, RenderedMessage

T = TypeVar("T")
Placeholders = Mapping[str, str]
"""The placeholder of each field: ``body``, ``correlation_id``, and one for each of its own headers."""


class PublishTemplates(Generic[T]):
    """The templates of one connection."""

    def __init__(
        self, kombu: KombuTransport, record: Callable[[RenderedMessage, Placeholders], T | None]
    ) -> None:
        """Record nothing yet; `record` returns a template of a message with placeholders, if it has one."""
        self._kombu = kombu
        self._record = record
        self._recorded: dict[tuple[MessageTemplate, frozenset[str]], T | None] = {}

    def get(self, message: RenderedMessage) -> T | None:
        """Return how messages like this one are sent; None if kombu has to publish them, now or always."""
        options = message.template.options
        if "serializer" in options:
            return None  # each message is signed
        # A member of a tree, or a job with custom headers, has some that others with the same template lack.
        key = message.template, frozenset(message.own_headers)
        if key not in self._recorded:
            if not self._kombu.declared.issuperset(queue.name for queue in options["declare"]):
                return None  # kombu declares a queue with the first message for it
            if len(self._recorded) >= TEMPLATE_LIMIT:
                self._recorded.clear()
            self._recorded[key] = self._record_like(message)
        return self._recorded[key]

    def _record_like(self, example: RenderedMessage) -> T | None:
        headers = {name: header_field(name) for name in example.own_headers}
        placeholders = {field: uuid.uuid4().hex for field in ("body", "correlation_id", *headers.values())}
        marked = replace(
            example,
            body=placeholders["body"],
            task_id=placeholders["correlation_id"],
            own_headers={name: placeholders[field] for name, field in headers.items()},
        )
        return self._record(marked, placeholders)


def header_field(name: str) -> str:
    """Return the field of a header; properties of the message have fields of other names."""
    return f"headers.{name}"


class SplitRecording(Generic[AnyStr]):
    """What was recorded, split at the fields that differ between messages."""

    def __init__(self, parts: list[AnyStr], fields: list[str]) -> None:
        self._parts: list[AnyStr] = parts
        self._fields = fields

    @classmethod
    def at(cls, recorded: AnyStr, marks: Mapping[AnyStr, str]) -> "SplitRecording[AnyStr] | None":
        """Split it at the marks of fields; None if one of them is not there exactly once."""
        if any(recorded.count(mark) != 1 for mark in marks):
            return None
        parts: list[AnyStr] = []
        fields: list[str] = []
        end = 0
        for start, mark in sorted((recorded.index(mark), mark) for mark in marks):
            parts.extend((recorded[end:start], mark))
            fields.append(marks[mark])
            end = start + len(mark)
        parts.append(recorded[end:])
        return cls(parts, fields)

    def fill(self, values: Mapping[str, AnyStr]) -> AnyStr:
        """Return it with these values of the fields."""
        parts = self._parts.copy()
        parts[1::2] = [values[field] for field in self._fields]
        return self._parts[0][:0].join(parts)
