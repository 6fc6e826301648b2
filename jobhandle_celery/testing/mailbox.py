"""A broker for tests: a transport of kombu that keeps the messages of jobs in this process.

Whatever an app publishes goes through kombu, as to any broker. Messages of plain tasks, events and remote
control are dropped: nothing receives them.
"""

import threading
from collections.abc import Collection
from typing import Any, ClassVar

from kombu import Connection
from kombu.transport import memory, virtual

from ..broker.headers import HEADER, readable_job_of


class Mailbox:
    """The messages of jobs, in the order in which they were published."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._waiting: list[dict[str, Any]] = []
        self._delivered: list[dict[str, Any]] = []

    def put(self, message: dict[str, Any]) -> None:
        """Keep a message, if it is a job's."""
        if HEADER in (message.get("headers") or {}):
            with self._lock:
                self._waiting.append(message)

    def take(self, job_ids: Collection[int] | None = None) -> dict[str, Any] | None:
        """Take the oldest message, of one of these jobs if they are given; None if there is none."""
        with self._lock:
            for index, message in enumerate(self._waiting):
                if job_ids is None or _job_id(message) in job_ids:
                    self._delivered.append(message)
                    return self._waiting.pop(index)
        return None

    def duplicate(self, job_id: int) -> bool:
        """Put a copy of a job's newest message, waiting or delivered, behind it; False if it has none."""
        with self._lock:
            for index in reversed(range(len(self._waiting))):
                if _job_id(self._waiting[index]) == job_id:
                    self._waiting.insert(index + 1, self._waiting[index])
                    return True
            for message in reversed(self._delivered):
                if _job_id(message) == job_id:
                    self._waiting.append(message)
                    return True
        return False

    def count(self, queue: str) -> int:
        """Return how many messages wait for a queue, by their routing key."""
        with self._lock:
            keys = [message["properties"]["delivery_info"]["routing_key"] for message in self._waiting]
        return keys.count(queue)


def _job_id(message: dict[str, Any]) -> int | None:
    job = readable_job_of(message["headers"])
    return None if job is None else job[0]


class Channel(memory.Channel):
    """Puts what is published into the mailbox, whatever its exchange is."""

    queues: dict[str, Any] = {}

    def basic_publish(self, message: dict[str, Any], exchange: str, routing_key: str, **_: Any) -> None:
        self._inplace_augment_message(message, exchange, routing_key)
        Transport.mailbox.put(message)

    def _has_queue(self, queue: str, **_: Any) -> bool:
        return True

    def _size(self, queue: str) -> int:
        return Transport.mailbox.count(queue)


class Transport(memory.Transport):
    """One class for the process, because kombu keeps a pool for each."""

    Channel = Channel
    global_state = virtual.BrokerState()
    mailbox: ClassVar[Mailbox] = Mailbox()


def connect(*_: Any, **__: Any) -> Any:
    """Return a connection to the mailbox, not opened yet, whatever broker is asked for."""
    return Connection(transport=Transport)
