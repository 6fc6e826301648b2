"""What Redis is given for a message, made by kombu once for its kind, with holes. May import messages.

On its way to Redis a message goes through kombu's producer, exchange and channel, and becomes JSON as a
whole, which takes more than a third of the time of a job that is one of many. So kombu sends one message of a
kind to a tape, with marks where messages of that kind differ, and the others are that text with the marks
replaced. What does not come out as a single LPUSH with each mark in its place (another exchange, a
compressed body, a queue that expires) has no stencil, and goes kombu's way.
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
from typing import Any

from .messages import Ready


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


class Stencil:
    """The text of the messages of a kind."""

    def __init__(self, key: str, pieces: list[str], holes: list[str]) -> None:
        self._key = key
        self._pieces = pieces
        self._holes = holes

    @classmethod
    def cut(cls, example: Ready, client: Client, send: Any) -> "Stencil | None":
        """Return a stencil of what `send` makes of a message like this one; None if there can be none."""
        marks = {name: uuid.uuid4().hex for name in ("body", "correlation_id", *example.own)}
        body = marks.pop("body")
        own = {name: marks[name] for name in example.own}
        marked = Ready(example.task, body, example.kind, marks["correlation_id"], own)
        with client.taped() as tape:
            try:
                send(marked)
            except _MoreThanLpush:
                return None
        if len(tape.pushed) != 1:
            return None
        ((key, text),) = tape.pushed
        tag = json.loads(text)["properties"].get("delivery_tag")
        holes = {f'"{mark}"': name for name, mark in marks.items()}
        holes |= {f'"{_encoded(body)}"': "body", f'"{tag}"': "delivery_tag"}
        split = re.split(f"({'|'.join(map(re.escape, holes))})", text)
        found = [holes[hole] for hole in split[1::2]]
        if sorted(found) != sorted(holes.values()):
            return None
        return cls(key, split[::2], found)

    def filled(self, message: Ready) -> tuple[str, str]:
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
