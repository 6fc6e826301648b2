"""A way to the broker that gives up in bounded time. May import stencil, confirms, faults and below.

Celery's own producers retry for as long as a Redis that drops packets makes them wait, and a publish to
RabbitMQ without a confirmation can vanish without an error.
"""

import logging
import os
import re
import struct
import sys
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any

from amqp.exceptions import ChannelError, MessageNacked
from billiard.exceptions import SoftTimeLimitExceeded
from celery import Celery
from kombu.exceptions import EncodeError, OperationalError

from .. import internal_errors, serialization
from .amqp_transport import Confirmed
from .headers import CONTENT_TYPE
from .messages import MOST_KINDS, MessageTemplate, RenderedMessage
from .redis_transport import Client, Stencil, is_kombus_own

logger = logging.getLogger(__name__)

BOUND = 2.0
"""Seconds that one try to reach the broker may take, and as many for its answer."""

_AT_ONCE = {"interval_start": 0, "interval_step": 0, "interval_max": 0}
"""How long kombu waits between its tries: it has one for each broker of a list."""


_JSON = {"content_type": CONTENT_TYPE, "content_encoding": "utf-8", "serializer": None}
"""What a body is that has been made by kombu's JSON already."""


class RejectedByBroker(Exception):
    """The broker is there, and does not take this message: no such exchange, another queue's arguments."""


class Unusable(Exception):
    """`broker_url` names no transport, or one that is not installed."""


_NO_LIST = re.compile(r"(Command # 1 \(LLEN .*\) of pipeline caused error: )?WRONGTYPE", re.DOTALL)
"""What Redis says of a queue that is none, to a message, or to kombu when it asks for the queue's length."""

_ENCODERS = {"amqp", "celery", "json", "kombu", "redis"}
"""Packages that turn a message into what goes over the wire."""

_VALUE_ERRORS = (struct.error, TypeError, ValueError, ArithmeticError)
"""What encoders raise for values that the protocol has no place for."""

_MALFORMED = {501, 502, 503, 505, 506, 540}
"""AMQP's codes of what a broker ends a connection for, and what its client alone is to blame for."""


def driver_of(app: Celery) -> str:
    """Return the kind of broker: redis, amqp, filesystem, …

    Raises:
        Unusable: there is none.
    """
    try:
        return str(app.connection_for_write().transport.driver_type)
    except (ImportError, LookupError, ValueError) as error:
        raise Unusable(f"broker_url: {error}") from error


def bounded(app: Celery) -> tuple[Any, dict[str, Any]]:
    """Return a connection whose every wait is bounded, not opened yet, and the retry policy to open it with.

    Raises:
        Unusable: there can be none.
    """
    bounds: dict[str, Any] = {}
    match driver_of(app):
        case "redis":
            bounds = {"socket_connect_timeout": BOUND, "socket_timeout": BOUND}
        case "amqp":
            bounds = {"read_timeout": BOUND, "write_timeout": BOUND, "confirm_publish": True}
    connection: Any = app.connection_for_write(connect_timeout=BOUND, transport_options=bounds)
    once = {"max_retries": max(len(connection.alt), 1) - 1, **_AT_ONCE}
    connection.transport_options = {**(connection.transport_options or {}), **once}
    return connection, once


class BrokerConnection:
    """A connection to the broker, for one thread at a time. The first message opens it, after a close too."""

    def __init__(self, app: Celery) -> None:
        """Connect to nothing yet.

        Raises:
            Unusable: it never can.
        """
        self.pid = os.getpid()
        self._app = app
        self._driver = driver_of(app)
        self._reset()

    def _reset(self) -> None:
        self.fresh = True
        """True until it has carried its first message: only then does a failure tell of the broker."""
        self._connection, self._once = bounded(self._app)
        self._kept: Any = None
        self._kept_for_many: Any = None
        self._confirmed: Confirmed | None = None
        self._declared: set[str] = set()
        self._client: Client | None = None
        """Redis alone has one."""
        self._stencils: dict[MessageTemplate, Stencil | None] = {}
        self._sends_together = self._driver == "amqp"
        self._sent_events: Any = None
        """Sends Celery's events of tasks that are sent, if the configuration asks for them."""
        if self._app.conf.task_send_sent_event:
            self._sent_events = self._app.events.Dispatcher(enabled=False)
        self.errors: tuple[type[BaseException], ...] = (
            OperationalError,
            OSError,
            *self._connection.connection_errors,
            *self._connection.channel_errors,
        )

    def send(self, message: RenderedMessage) -> None:
        """Publish a message, and Celery's event of that if it is to send those.

        Raises:
            Refused: it is this message that the broker does not take; others may pass.
        """
        try:
            producer = self._producer()
            if not self._pushed(producer, [message]):
                # With `retry` kombu looks at the connection before it uses it.
                self._publish(producer, message, retry=True, retry_policy=self._once)
            if self._sent_events is not None:
                once = {"retry": True, "retry_policy": self._once}
                self._sent_events.publish("task-sent", message.event, producer, **once)
        except EncodeError:
            raise
        except self.errors as error:
            for said in (error, error.__cause__):  # kombu wraps some of it
                if _is_about_the_message(said):
                    raise RejectedByBroker(f"{type(said).__name__}: {said}".rstrip(": ")) from error
            raise
        except _VALUE_ERRORS as error:
            if not _is_by_an_encoder(error):
                raise
            # The protocol has no place for it: a number, a name that is too long. It may quote a value.
            raise RejectedByBroker(type(error).__name__) from error
        self.fresh = False

    @property
    def takes_many(self) -> bool:
        """False if this broker takes messages one by one alone."""
        producer = self._producer()
        # kombu has batches for Redis from 5.7 on; ours are pushed together with an older one, too.
        batches = bool(getattr(producer, "supports_batch_publish", False))
        return batches or self._sends_together or self._driver == "redis"

    def send_together(self, messages: Sequence[RenderedMessage]) -> None:
        """Publish messages in one piece.

        When it raises, whatever it is, it is not known which of them the broker has taken.
        """
        producer = self._producer()
        if self._pushed(producer, messages):
            self.fresh = False
            return
        together: AbstractContextManager[object]
        if self._sends_together:
            if self._confirmed is None:
                self._confirmed = Confirmed(self._connection, BOUND)
                self._kept_for_many = self._app.amqp.Producer(self._confirmed.channel, auto_declare=False)
            producer, together = self._kept_for_many, self._confirmed
        else:
            batch = getattr(producer, "batch", None)
            together = nullcontext() if batch is None else batch(max_size=2 * len(messages))
        with together:
            for message in messages:
                self._publish(producer, message, retry=False)
        self.fresh = False

    def _pushed(self, producer: Any, messages: Sequence[RenderedMessage]) -> bool:
        """Push messages to lists of Redis, if that is all there is to do for them; say whether it was."""
        if self._client is None or not is_kombus_own(producer):
            return False
        texts = []
        try:
            for message in messages:
                stencil = self._stencil(self._client, producer, message)
                if stencil is None:
                    return False
                texts.append(stencil.filled(message))
            self._client.push(texts)
        except Exception as error:
            self._fall_back(error)
            return False
        return True

    def _fall_back(self, error: Exception) -> None:
        """Leave messages to kombu from here on: its inner parts are not as we know them, or we have a bug."""
        if isinstance(error, (*self.errors, SoftTimeLimitExceeded)):
            raise error
        if self._client is not None:
            self._client.release()
        self._client = None
        internal_errors.report("fast publishing to Redis", error, "messages are published by kombu alone")

    def _stencil(self, client: Client, producer: Any, message: RenderedMessage) -> Stencil | None:
        """Return the stencil of a message's kind; None if kombu has to send it, for now or always."""
        if "serializer" in message.kind.options:
            return None  # each is signed by itself
        if message.kind not in self._stencils:
            queues = message.kind.options["declare"]
            if not self._declared.issuperset(queue.name for queue in queues):
                return None  # yet: kombu declares a queue with the first message for it
            if len(self._stencils) >= MOST_KINDS:
                self._stencils.clear()
            send = partial(self._publish, producer, retry=False)
            self._stencils[message.kind] = Stencil.cut(message, client, send)
        return self._stencils[message.kind]

    def _producer(self) -> Any:
        if self._kept is None:
            self._connection.ensure_connection(**self._once)
            self._kept = self._app.amqp.Producer(self._connection, auto_declare=False)
            if self._driver == "redis":
                try:
                    self._client = Client(self._kept.channel)
                except Exception as error:
                    self._fall_back(error)
        return self._kept

    def _publish(self, producer: Any, message: RenderedMessage, **retry: Any) -> None:
        options: dict[str, Any] = {**message.options, **retry}
        body: Any = message.body
        if "serializer" in options:
            body = serialization.decode(body)  # it is signed as a whole
        else:
            options |= _JSON
        # kombu keeps count of what is declared on this connection, too, but binds a copy to ask itself.
        queues = {queue.name for queue in options.pop("declare")}
        if queues - self._declared:
            options["declare"] = message.options["declare"]
        producer.publish(body, **options)
        self._declared |= queues

    def is_bug(self, error: BaseException) -> bool:
        """Say whether an error comes neither from the broker or its driver, nor from a message's values."""
        if isinstance(error, self.errors) or not internal_errors.is_bug(error):
            return False
        return not (isinstance(error, _VALUE_ERRORS) and _is_by_an_encoder(error))

    def tell(self, hostname: str, events: Iterable[tuple[str, Mapping[str, Any]]]) -> None:
        """Send events in the name of a worker; raises one of `errors`."""
        self._connection.ensure_connection(**self._once)
        with self._app.events.Dispatcher(self._connection, hostname=hostname) as publisher:
            for kind, fields in events:
                publisher.send(kind, **fields)

    def depth(self, queue: str) -> int:
        """Return how many messages a queue holds that no worker has taken."""
        channel: Any = self._connection.default_channel
        try:
            return int(channel.queue_declare(queue=queue, passive=True).message_count)
        except self._connection.channel_errors as error:
            # Redis has no empty queues; kombu says so by this number as text.
            if str(getattr(error, "reply_code", "")) == "404":
                return 0
            raise

    def close(self, *, orderly: bool = False) -> bool:
        """Close it, in bounded time, whatever state it is in; the next message opens another.

        Args:
            orderly: Say good-bye, without which RabbitMQ logs a warning. A broken one is better just cut.

        Returns:
            False if it was to be closed in an orderly way, and the broker did not answer.
        """
        connection = self._connection
        if self.pid != os.getpid():
            return True  # to close it would end the conversation of our parent
        self._reset()
        try:
            if orderly:
                connection.release()
            else:
                connection.collect(socket_timeout=BOUND)
        except Exception:
            logger.debug("closing a broken connection", exc_info=True)
            return False
        return True


def _is_by_an_encoder(error: BaseException) -> bool:
    """Say whether an error about a value was raised where a message is encoded, not by who calls that."""
    trace = error.__traceback__
    if trace is None:
        return False
    while trace.tb_next is not None:
        trace = trace.tb_next
    return str(trace.tb_frame.f_globals.get("__name__")).partition(".")[0] in _ENCODERS


def _is_about_the_message(error: BaseException | None) -> bool:
    """Say whether a broker that says this would take another message."""
    if isinstance(error, (ChannelError, MessageNacked)) or getattr(error, "reply_code", None) in _MALFORMED:
        return True
    redis = sys.modules.get("redis.exceptions")  # an extra; an error of Redis' client implies its import
    # This user may not use that key, or the key is no list. Any other error of Redis is about Redis itself.
    return redis is not None and (
        isinstance(error, redis.NoPermissionError)
        or (isinstance(error, redis.ResponseError) and _NO_LIST.match(str(error)) is not None)
    )
