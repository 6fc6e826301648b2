"""Publishes to Redis by LPUSH, without kombu's work for each message.

On its way to Redis a message passes kombu's producer, exchange and channel, and becomes JSON as a whole. That
takes more than a third of the time of a job in a batch. So the text that kombu pushes is recorded (see
`PublishTemplates`). kombu itself publishes a message that is not recorded as a single LPUSH with each
placeholder in its place (another exchange, a compressed body, a queue that expires), and every message while
a method on that way is not kombu's own.
"""

import json
import os
from base64 import b64encode
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import groupby
from operator import itemgetter
from typing import Any

from kombu.utils import json as kombu_json

from .. import celery_compat
from .kombu_transport import KombuTransport
from .messages import RenderedMessage
from .publish_templates import Placeholders, PublishTemplates, SplitRecording, header_field

_PROPERTIES = {
    *("correlation_id", "reply_to", "delivery_mode", "delivery_info", "delivery_tag"),
    *("priority", "body_encoding"),
}
_to_json = json.JSONEncoder().encode


class RedisTransport:
    """Appends messages to the lists of one Redis, all by the same client."""

    def __init__(self, kombu: KombuTransport) -> None:
        """Take over how kombu's channel gets its clients.

        Raises:
            AttributeError: this kombu's channel gets them otherwise.
        """
        self._kombu = kombu
        self._recorder: _LpushRecorder | None = None
        self._client = celery_compat.share_redis_client(kombu.producer.channel, self._lend_client)
        self._templates = PublishTemplates(kombu, self._record)

    @contextmanager
    def _lend_client(self, client: Any = None) -> Iterator[Any]:
        yield client or self._recorder or self._client

    def send(self, messages: Sequence[RenderedMessage]) -> None:
        """Publish messages in their order, in one round trip if each has a template."""
        entries = self._render(messages)
        if entries is None:
            self._kombu.send(messages)
        else:
            self.push(entries)

    def _render(self, messages: Sequence[RenderedMessage]) -> list[tuple[str, str]] | None:
        if not celery_compat.publishes_by_kombu(self._kombu.producer):
            return None
        entries = []
        for message in messages:
            template = self._templates.get(message)
            if template is None:
                return None
            entries.append(template.render(message))
        return entries

    def push(self, entries: Sequence[tuple[str, str]]) -> None:
        """Append texts to the lists named before them."""
        lists = [(key, [text for _, text in group]) for key, group in groupby(entries, itemgetter(0))]
        if len(lists) == 1:
            self._client.lpush(lists[0][0], *lists[0][1])
            return
        with self._client.pipeline(transaction=False) as pipeline:
            for key, texts in lists:
                pipeline.lpush(key, *texts)
            pipeline.execute()

    def _record(self, marked: RenderedMessage, placeholders: Placeholders) -> "LpushTemplate | None":
        self._recorder = recorder = _LpushRecorder()
        try:
            self._kombu.publish(marked)
        except _OtherCommand:
            return None
        finally:
            self._recorder = None
        if len(recorder.pushed) != 1:
            return None
        return LpushTemplate.of(*recorder.pushed[0], marked, placeholders)


class _LpushRecorder:
    """Stands in for a Redis client, and records what is appended to lists."""

    def __init__(self) -> None:
        self.pushed: list[tuple[str, str]] = []

    def lpush(self, key: str, text: str) -> None:
        self.pushed.append((key, text))

    def __getattr__(self, name: str) -> Any:
        raise _OtherCommand(name)


class _OtherCommand(AttributeError):
    """kombu has called another command of Redis."""


class LpushTemplate:
    """The list and the text of the messages of a template."""

    def __init__(self, key: str, text: SplitRecording[str]) -> None:
        self._key = key
        self._text = text

    @classmethod
    def of(
        cls, key: str, text: str, marked: RenderedMessage, placeholders: Placeholders
    ) -> "LpushTemplate | None":
        """Return the template of a recorded text; None if it was changed between kombu and Redis."""
        recorded = json.loads(text)
        if recorded["headers"] != marked.headers or not recorded["properties"].keys() <= _PROPERTIES:
            return None
        tag = recorded["properties"].get("delivery_tag")
        marks = {f'"{mark}"': field for field, mark in placeholders.items() if field != "body"}
        marks |= {f'"{_base64(marked.body)}"': "body", f'"{tag}"': "delivery_tag"}
        split = SplitRecording.at(text, marks)
        return None if split is None else cls(key, split)

    def render(self, message: RenderedMessage) -> tuple[str, str]:
        """Return the name of the list, and the text of a message."""
        values: Mapping[str, str] = {
            **{header_field(name): _header_json(value) for name, value in message.own_headers.items()},
            "correlation_id": _to_json(message.task_id),
            "body": f'"{_base64(message.body)}"',
            "delivery_tag": f'"{os.urandom(16).hex()}"',  # by which a worker acknowledges the message
        }
        return self._key, self._text.fill(values)


def _header_json(value: Any) -> str:
    try:
        return _to_json(value)
    except TypeError:  # a type of kombu's JSON, in a custom header
        return str(kombu_json.dumps(value))


def _base64(body: str) -> str:
    return b64encode(body.encode()).decode()
