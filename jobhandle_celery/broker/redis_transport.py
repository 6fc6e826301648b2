"""What Redis is given for a message, made by kombu once for its kind, with holes. May import messages.

On its way to Redis a message goes through kombu's producer, exchange and channel, and becomes JSON as a
whole, which takes more than a third of the time of a job that is one of many. So kombu sends one message of a
kind to a tape, with marks where messages of that kind differ, and the others are that text with the marks
replaced. What does not come out as a single LPUSH with each mark in its place (another exchange, a
compressed body, a queue that expires) has no stencil, and goes kombu's way; nor is there one where a method
on that way is not kombu's own, or where the tape holds anything that was not given.
"""

import json
import os
import re
import uuid
from base64 import b64encode
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from itertools import groupby
from operator import itemgetter
from types import FunctionType
from typing import Any

from .messages import RenderedMessage


class Client:
    """The one Redis client that a channel of ours uses for all its messages, or a tape in its place.

    kombu makes a new client for each message, all on the same pool of connections, which takes longer than
    to send one.
    """

    def __init__(self, channel: Any) -> None:
        """Take the channel's way to its clients over.

        Raises:
            AttributeError: this kombu's channel has no such way, and nothing was changed.
        """
        # Private to kombu's Redis channel: `_create_client` makes a client, `conn_or_acquire` lends one to
        # each publish. Without the second, what is meant for the tape would go to Redis.
        self._client: Any = channel._create_client()
        self._tape: _Tape | None = None
        self._channel = channel
        _ = channel.conn_or_acquire
        channel.conn_or_acquire = self._acquired

    def release(self) -> None:
        """Give the channel its own way back."""
        del self._channel.conn_or_acquire

    @contextmanager
    def _acquired(self, given: Any = None) -> Iterator[Any]:
        yield given or (self._client if self._tape is None else self._tape)

    @contextmanager
    def taped(self) -> Iterator["_Tape"]:
        """Have the channel tell a tape instead of Redis."""
        self._tape = _Tape()
        try:
            yield self._tape
        finally:
            self._tape = None

    def push(self, messages: Iterable[tuple[str, str]]) -> None:
        """Append texts to the lists that are named before them, in their order and in one piece."""
        lists = [(key, [text for _, text in some]) for key, some in groupby(messages, itemgetter(0))]
        if len(lists) == 1:
            self._client.lpush(lists[0][0], *lists[0][1])
            return
        with self._client.pipeline(transaction=False) as pipeline:
            for key, texts in lists:
                pipeline.lpush(key, *texts)
            pipeline.execute()


class _Tape:
    """Takes what kombu would append to a list, and nothing else."""

    def __init__(self) -> None:
        self.pushed: list[tuple[str, str]] = []

    def lpush(self, key: str, text: str) -> None:
        self.pushed.append((key, text))

    def __getattr__(self, name: str) -> Any:
        raise _MoreThanLpush(name)


class _MoreThanLpush(AttributeError):
    """kombu asked a tape for another command of Redis."""


_JSON = json.JSONEncoder().encode


_PROPERTIES = {
    *("correlation_id", "reply_to", "delivery_mode", "delivery_info", "delivery_tag"),
    *("priority", "body_encoding"),
}
_METHODS = {
    "producer": ("publish", "_publish", "_prepare", "_delivery_details"),
    "channel": ("prepare_message", "basic_publish", "_put", "_lookup", "encode_body", "typeof"),
}
"""kombu's methods on the way of a message to Redis, private ones included: only their origin is looked at."""


def is_kombus_own(producer: Any) -> bool:
    """Return False if a method on the way of a message is not kombu's: a tool's that patches it, say."""
    return all(
        _is_kombus(getattr(part, name, None))
        for part, names in ((producer, _METHODS["producer"]), (producer.channel, _METHODS["channel"]))
        for name in names
    )


def _is_kombus(method: Any) -> bool:
    # By the function's globals: a wrapper copies its names. By `type`: wrapt's proxies say they are it.
    function = getattr(method, "__func__", None)
    return type(function) is FunctionType and str(function.__globals__.get("__name__")).startswith("kombu.")


class Stencil:
    """The text of the messages of a kind."""

    def __init__(self, key: str, pieces: list[str], holes: list[str]) -> None:
        self._key = key
        self._pieces = pieces
        self._holes = holes

    @classmethod
    def cut(cls, example: RenderedMessage, client: Client, send: Any) -> "Stencil | None":
        """Return a stencil of what `send` makes of a message like this one; None if there can be none."""
        marks = {name: uuid.uuid4().hex for name in ("body", "correlation_id", *example.own)}
        body = marks.pop("body")
        own = {name: marks[name] for name in example.own}
        marked = RenderedMessage(example.task, body, example.kind, marks["correlation_id"], own)
        with client.taped() as tape:
            try:
                send(marked)
            except _MoreThanLpush:
                return None
        if len(tape.pushed) != 1:
            return None
        ((key, text),) = tape.pushed
        sent = json.loads(text)
        if sent["headers"] != marked.headers or not sent["properties"].keys() <= _PROPERTIES:
            return None  # something on the way has added to it, perhaps what is that one message's own
        tag = sent["properties"].get("delivery_tag")
        holes = {f'"{mark}"': name for name, mark in marks.items()}
        holes |= {f'"{_encoded(body)}"': "body", f'"{tag}"': "delivery_tag"}
        split = re.split(f"({'|'.join(map(re.escape, holes))})", text)
        found = [holes[hole] for hole in split[1::2]]
        if sorted(found) != sorted(holes.values()):
            return None
        return cls(key, split[::2], found)

    def filled(self, message: RenderedMessage) -> tuple[str, str]:
        """Return the name of the list, and what is appended to it for a message."""
        values: Mapping[str, str] = {
            **{name: _JSON(value) for name, value in message.own.items()},
            "correlation_id": _JSON(message.task_id),
            "body": f'"{_encoded(message.body)}"',
            "delivery_tag": f'"{os.urandom(16).hex()}"',  # by which a worker acknowledges it
        }
        text = [self._pieces[0]]
        for hole, piece in zip(self._holes, self._pieces[1:], strict=True):
            text.append(values[hole])
            text.append(piece)
        return self._key, "".join(text)


def _encoded(body: str) -> str:
    return b64encode(body.encode()).decode()
