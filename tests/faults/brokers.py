"""Brokers that a test may break, and queries of their queues."""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, Protocol
from urllib.parse import quote

import redis
from celery import Celery

from jobhandle_celery.broker.headers import HEADER
from tests.servers import RabbitmqServer, RedisServer


class PrivateBroker(Protocol):
    """A broker used by one test only."""

    @property
    def url(self) -> str: ...

    def kill(self) -> None: ...

    def start(self) -> None: ...

    def pause(self) -> None:
        """Pause the process: connections stay open, without answers."""

    def resume(self) -> None: ...

    def start_with_nothing(self) -> None:
        """Start it after a kill, without any messages."""

    def lose_messages(self) -> None:
        """Delete the messages in its queues."""

    def cut_connections(self) -> None:
        """Disconnect all its clients."""


@contextmanager
def away(broker: PrivateBroker) -> Iterator[None]:
    """Keep it stopped within the block; persistent data stays."""
    broker.kill()
    yield
    broker.start()


class PrivateRedis:
    """Without persistence: it is empty after a kill."""

    def __init__(self, server: RedisServer) -> None:
        self._server = server
        self.url = server.url
        self.kill, self.start = server.kill, server.start
        self.pause, self.resume = server.pause, server.resume
        self.start_with_nothing = server.start

    def lose_messages(self) -> None:
        with redis.Redis.from_url(self.url) as client:
            client.flushall()

    def cut_connections(self) -> None:
        with redis.Redis.from_url(self.url) as client:
            client.client_kill_filter(_type="normal", skipme=True)
            client.client_kill_filter(_type="pubsub")


class PrivateRabbitmq:
    """It keeps durable queues and their persistent messages when it is killed."""

    def __init__(self, server: RabbitmqServer) -> None:
        self._server = server
        self.url = server.url
        self.kill, self.start = server.kill, server.start
        self.pause, self.resume = server.pause, server.resume

    def start_with_nothing(self) -> None:
        self._server.forget()
        self._server.start()

    def lose_messages(self) -> None:
        self._delete_from_each("queues/%2F", "contents")

    def delete_queues(self) -> None:
        self._delete_from_each("queues/%2F")

    def cut_connections(self) -> None:
        self._delete_from_each("connections")

    def _delete_from_each(self, path: str, *what: str) -> None:
        management = self._server.management
        for queue in management.ask("GET", f"{path}?columns=name"):
            with suppress(OSError):  # it may be gone by now
                management.ask("DELETE", "/".join([path, quote(queue["name"], safe=""), *what]))


def lying_in(app: Celery, queue: str) -> list[int]:
    """Return the jobs whose messages a queue holds; no worker may consume it meanwhile."""
    with app.connection_for_read() as connection:
        channel: Any = connection.default_channel
        # Not acknowledged, so that RabbitMQ requeues them at the end.
        return [message.headers[HEADER]["id"] for message in iter(lambda: channel.basic_get(queue), None)]


def depth(app: Celery, queue: str) -> int:
    """Return the number of messages in a queue, without reserved ones."""
    with app.connection_for_read() as connection:
        channel: Any = connection.default_channel
        try:
            return int(channel.queue_declare(queue=queue, passive=True).message_count)
        except connection.channel_errors as error:
            if str(getattr(error, "reply_code", "")) != "404":  # kombu writes it as text
                raise
            return 0
