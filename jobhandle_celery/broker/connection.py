"""A connection to the broker whose every wait is bounded, and the choice of its transport.

Celery's own producers retry for as long as a Redis that drops packets makes them wait, and a publish to
RabbitMQ without a confirmation can vanish without an error.
"""

import logging
import os
import re
import struct
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Protocol

from amqp.exceptions import ChannelError, MessageNacked
from billiard.exceptions import SoftTimeLimitExceeded
from celery import Celery
from kombu.exceptions import EncodeError, OperationalError

from .. import celery_compat, internal_errors
from .amqp_transport import AmqpTransport
from .kombu_transport import KombuTransport
from .messages import RenderedMessage
from .redis_transport import RedisTransport

logger = logging.getLogger(__name__)

BOUND = 2.0
"""Seconds that one try to reach the broker may take, and as many for each answer."""

FAST = {"redis", "amqp"}
"""Drivers for which this library has a transport of its own."""


class Transport(Protocol):
    """Publishes on one open connection."""

    def send(self, messages: Sequence[RenderedMessage]) -> None:
        """Publish messages. After an error it is not known which of them the broker has taken."""


class RejectedByBroker(Exception):
    """The broker answers, and rejects this message: no such exchange, a queue with other arguments."""


class BrokerUnreachable(Exception):
    """The broker did not take a message on a new connection."""


class ConnectFailed(BrokerUnreachable):
    """No new connection to the broker could be opened, so that it has taken nothing."""


class UnusableBrokerUrl(Exception):
    """`broker_url` names no transport, or one that is not installed."""


_AT_ONCE = {"interval_start": 0, "interval_step": 0, "interval_max": 0}
"""How long kombu waits between its tries. It makes one for each broker of a list."""

_WRONG_TYPE = re.compile(r"(Command # 1 \(LLEN .*\) of pipeline caused error: )?WRONGTYPE", re.DOTALL)
"""Redis' error for a queue's key that is not a list, on LPUSH or on kombu's LLEN."""

_ENCODERS = {"amqp", "celery", "json", "kombu", "redis"}
"""Packages that encode a message."""

_VALUE_ERRORS = (struct.error, TypeError, ValueError, ArithmeticError)
"""What encoders raise for values that the protocol cannot carry."""

_MALFORMED = {501, 502, 503, 505, 506, 540}
"""AMQP's reply codes for an error of the client, with which a broker ends the connection."""


def driver_of(app: Celery) -> str:
    """Return the type of the broker: redis, amqp, filesystem, …

    Raises:
        UnusableBrokerUrl: kombu has no transport for it.
    """
    try:
        return str(app.connection_for_write().transport.driver_type)
    except (ImportError, LookupError, ValueError) as error:
        raise UnusableBrokerUrl(f"broker_url: {error}") from error


def broker_name(app: Celery) -> str:
    """Return the type and host of the broker for a log message: no password can be in it."""
    connection: Any = app.connection_for_write()
    host, port = connection.hostname, connection.port
    if not host or "/" in host:  # a path, or the URL of a database
        return str(connection.transport_cls)
    return f"{connection.transport_cls} at {host}:{port}" if port else f"{connection.transport_cls} at {host}"


def bounded(app: Celery) -> tuple[Any, dict[str, Any]]:
    """Return a kombu connection whose every wait is bounded, not opened yet, and the policy to open it with.

    Raises:
        UnusableBrokerUrl: kombu has no transport for it.
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
    """A connection for one thread at a time. It opens when it is first used, and again after a close."""

    def __init__(self, app: Celery, *, fast_publish: bool = True) -> None:
        """Connect to nothing yet.

        Raises:
            UnusableBrokerUrl: it can never be opened.
        """
        self.pid = os.getpid()
        self._app = app
        self._driver = driver_of(app)
        self._fast = fast_publish and self._driver in FAST
        self._task_sent_events = bool(app.conf.task_send_sent_event)
        self._reset()

    def _reset(self) -> None:
        self._fresh = True
        """True until it has carried a message: until then a failure means that the broker is unreachable."""
        self._connection, self._once = bounded(self._app)
        self.transport: Transport | None = None
        """None until the connection is opened."""
        self._producer: Any = None
        self._dispatcher: Any = None
        listed = (*self._connection.connection_errors, *self._connection.channel_errors)
        self.errors: tuple[type[BaseException], ...] = (
            OperationalError,
            OSError,
            MessageNacked,  # kombu wraps it, but not in a batch of this library
            # kombu 5.7 lists KeyError for Redis, but any bug may raise that.
            *(kind for kind in listed if kind.__module__ != "builtins" or issubclass(kind, OSError)),
        )

    def _open(self) -> Transport:
        if self.transport is None:
            self._connection.ensure_connection(**self._once)
            self._producer = self._new_producer()
            self._dispatcher = self._app.events.Dispatcher(enabled=False)
            self.transport = kombu = KombuTransport(self._producer, self._once)
            if self._fast and self._driver == "redis":
                self.transport = RedisTransport(kombu)
            elif self._fast:
                self.transport = AmqpTransport(kombu, BOUND)
        return self.transport

    @property
    def batches(self) -> bool:
        """False if messages are to be sent one by one."""
        if self._task_sent_events or self._fast:
            return not self._task_sent_events
        # kombu knows before it connects; a connection that fails here would count as a try of its own.
        return celery_compat.supports_batches(self._producer or self._new_producer())

    def _new_producer(self) -> Any:
        return self._app.amqp.Producer(self._connection, auto_declare=False)

    def send(self, messages: Sequence[RenderedMessage]) -> None:
        """Publish messages, more than one if `batches` only.

        When it raises, it is not known which of them the broker has taken. To send one again is harmless.

        Raises:
            RejectedByBroker: the broker rejects one of these messages; others may pass.
            ConnectFailed: no connection could be opened.
            BrokerUnreachable: they could not be sent on a new connection either.
            EncodeError: kombu cannot encode one of them.
            Exception: a bug in this library, or in how it calls the driver.
        """
        while True:
            fresh = self._fresh
            try:
                self._send(messages)
            except EncodeError:
                raise
            except Exception as error:
                surprise, opened = self._is_fast_transport_bug(error), self.transport is not None
                self.close()
                if isinstance(error, SoftTimeLimitExceeded):
                    raise
                if surprise:
                    self._fall_back(error, messages)
                elif rejection := self._rejection(error):
                    raise RejectedByBroker(rejection) from error
                elif not isinstance(error, self.errors) and internal_errors.is_bug(error):
                    raise
                elif fresh:
                    kind = BrokerUnreachable if opened else ConnectFailed
                    raise kind(f"{type(error).__name__}: {error}") from error
                # Otherwise the broker has closed an old connection, and may be reachable.
            except BaseException:
                self.close()
                raise
            else:
                self._fresh = False
                return

    def _send(self, messages: Sequence[RenderedMessage]) -> None:
        try:
            self._open().send(messages)
            if self._task_sent_events:
                once = {"retry": True, "retry_policy": self._once}
                for message in messages:
                    self._dispatcher.publish("task-sent", message.event, self._producer, **once)
        except OperationalError as error:
            # kombu wraps every error that its transport lists, and so a bug.
            if error.__cause__ is not None and internal_errors.is_bug(error.__cause__):
                raise error.__cause__ from None
            raise

    def _is_fast_transport_bug(self, error: Exception) -> bool:
        """Return True if a fast transport has failed, and neither the broker nor a message's values did."""
        if not self._fast or self.transport is None or isinstance(error, self.errors):
            return False
        # Redis is sent texts, which can always be encoded.
        return self._driver == "redis" or not _is_encoding_error(error)

    def _fall_back(self, error: Exception, messages: Sequence[RenderedMessage]) -> None:
        """Publish only by kombu from now on: kombu, amqp or Redis' client changed, or this is a bug."""
        self._fast = False
        hide = any(message.template.sensitive for message in messages)
        state = "messages are published by kombu alone"
        internal_errors.report(f"fast publishing to {self._driver}", error, state, hide=hide)

    def _rejection(self, error: Exception) -> str | None:
        """Return why the broker, or its client, rejects this very message; None if that is not the reason."""
        if isinstance(error, self.errors):
            for cause in (error, error.__cause__):  # kombu wraps some errors
                if _is_about_the_message(cause):
                    return f"{type(cause).__name__}: {cause}".rstrip(": ")
        elif _is_encoding_error(error):
            # A number or a name is too long for the protocol. The text may quote a value.
            return type(error).__name__
        return None

    def send_events(self, hostname: str, events: Iterable[tuple[str, Mapping[str, Any]]]) -> None:
        """Send events in the name of a worker; raises one of `errors`."""
        self._connection.ensure_connection(**self._once)
        with self._app.events.Dispatcher(self._connection, hostname=hostname) as dispatcher:
            for event_type, fields in events:
                dispatcher.send(event_type, **fields)

    def depth(self, queue: str) -> int:
        """Return how many messages a queue holds that no worker has taken; raises one of `errors`."""
        channel: Any = self._connection.default_channel
        try:
            return int(channel.queue_declare(queue=queue, passive=True).message_count)
        except self._connection.channel_errors as error:
            # Redis has no empty queues; kombu reports that by this code, as text.
            if str(getattr(error, "reply_code", "")) == "404":
                return 0
            raise

    def close(self, *, orderly: bool = False) -> bool:
        """Close it in bounded time, whatever state it is in.

        Args:
            orderly: Close by a handshake, without which RabbitMQ logs a warning.

        Returns:
            False if the broker did not answer the handshake.
        """
        connection = self._connection
        if self.pid != os.getpid():
            return True  # a handshake would end the parent's connection
        self._reset()
        try:
            celery_compat.disconnect(connection, handshake=orderly)
        except Exception:
            logger.debug("closing a broken connection to the broker failed", exc_info=True)
            return False
        return True


def _is_encoding_error(error: Exception) -> bool:
    """Return True if an error about a value was raised by code that encodes messages, not by its caller."""
    trace = error.__traceback__
    if trace is None or not isinstance(error, _VALUE_ERRORS):
        return False
    while trace.tb_next is not None:
        trace = trace.tb_next
    return str(trace.tb_frame.f_globals.get("__name__")).partition(".")[0] in _ENCODERS


def _is_about_the_message(error: BaseException | None) -> bool:
    """Return True if a broker that raises this would take another message."""
    if isinstance(error, (ChannelError, MessageNacked)) or getattr(error, "reply_code", None) in _MALFORMED:
        return True
    redis = sys.modules.get("redis.exceptions")  # an extra; an error of Redis' client implies its import
    # This user may not use that key, or the key is no list. Any other error of Redis is about Redis itself.
    return redis is not None and (
        isinstance(error, redis.NoPermissionError)
        or (isinstance(error, redis.ResponseError) and _WRONG_TYPE.match(str(error)) is not None)
    )
