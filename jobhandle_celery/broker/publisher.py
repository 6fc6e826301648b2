"""Publishes the messages of jobs in bounded time: back-off, rejections and batches."""

import logging
import os
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

from billiard.exceptions import SoftTimeLimitExceeded
from celery import Celery
from celery.app.task import Context
from kombu.exceptions import EncodeError

from .. import internal_errors, serialization
from ..batching import batches
from ..store import PendingMessage
from .connection import (
    BrokerConnection,
    BrokerUnreachable,
    ConnectFailed,
    RejectedByBroker,
    UnusableBrokerUrl,
    broker_name,
)
from .connection_pool import ConnectionPool, PoolExhausted
from .messages import MessageBuilder, RenderedMessage

logger = logging.getLogger(__name__)

BATCH = 500
BATCH_BYTES = 4 * 2**20
"""Messages, and bytes of arguments, that are published together."""

Built = tuple[PendingMessage, RenderedMessage]
"""A job, and its message."""

PAUSES = (5.0, 10.0, 20.0, 40.0, 60.0)
"""Seconds without another try after the first, second, … failure in a row."""


@dataclass(frozen=True)
class Published:
    """The outcome of a publish. A job in neither field was not tried, or not taken."""

    sent: list[PendingMessage] = field(default_factory=list)
    unsendable: dict[str, list[PendingMessage]] = field(default_factory=dict)
    """Jobs that another try at once would not publish either, by the reason."""

    def reject(self, job: PendingMessage, reason: str) -> None:
        """Note that a job cannot be published, and why."""
        self.unsendable.setdefault(reason, []).append(job)

    def __len__(self) -> int:
        return len(self.sent) + sum(map(len, self.unsendable.values()))


class Publisher:
    """Publishes for one app, in every process and thread of it."""

    def __init__(self, app: Celery, *, fast_publish: bool = True) -> None:
        self._app = app
        self._pool = ConnectionPool(app, fast_publish=fast_publish)
        self._builder: MessageBuilder | None = None
        self._pid = 0
        self._failures = 0
        self._retry_at = 0.0

    @property
    def eager(self) -> bool:
        """True with `task_always_eager`: jobs run where they are published."""
        return bool(self._app.conf.task_always_eager)

    @property
    def reachable(self) -> bool:
        """False for a while after the broker was not reached."""
        return time.monotonic() >= self._retry_at

    def publish(self, jobs: Iterable[PendingMessage]) -> Published:
        """Publish the messages of jobs; with `task_always_eager`, run the jobs instead.

        It takes a few times `BOUND` at most and raises nothing for a broker that is down: what was not sent
        stays due, and the sweeper publishes it. After a failure this process does not try for a while.
        """
        if self.eager:
            self._run_eagerly(jobs)
            return Published()
        published = Published()
        for batch in batches(jobs, BATCH, _length, BATCH_BYTES):
            with self._connection() as connection:
                if connection is None:
                    break
                self._send(connection, self._build(batch, published), published)
        return published

    @contextmanager
    def _connection(self) -> Iterator[BrokerConnection | None]:
        """Borrow a connection; None during the back-off, or if none is free."""
        with ExitStack() as stack:
            connection = None
            try:
                if self.reachable:
                    connection = stack.enter_context(self._pool.acquire())
            except UnusableBrokerUrl as error:
                self._back_off(error)
            except PoolExhausted as error:
                logger.info("%s; the sweeper publishes the jobs", error)
            # Another thread may have found the broker unreachable while this one waited for a connection.
            yield connection if self.reachable else None

    def _build(self, jobs: Sequence[PendingMessage], published: Published) -> list[Built]:
        """Return the jobs whose messages could be built, with their messages."""
        built = []
        builder = self._process_builder()
        for job in jobs:
            try:
                built.append((job, builder.build(job)))
            except SoftTimeLimitExceeded:
                raise
            except Exception as error:
                self._reject_malformed(job, error, published)
        return built

    def _send(self, connection: BrokerConnection, built: Sequence[Built], published: Published) -> None:
        """Send messages together. If the broker takes no batches, or not this one, send each by itself.

        That shows which messages the broker accepts, and which it rejects.
        """
        if not built or not self.reachable:
            return
        jobs, single = [job for job, _ in built], len(built) == 1
        try:
            if single or connection.batches:
                connection.send([message for _, message in built])
                self._failures = 0
                published.sent.extend(jobs)
                return
        except SoftTimeLimitExceeded:
            raise
        except Exception as error:
            if isinstance(error, BrokerUnreachable if single else ConnectFailed):
                self._back_off(error)
                return
            if not isinstance(error, (BrokerUnreachable, RejectedByBroker, EncodeError)):
                state = f"job {jobs[0].job_id} is published later" if single else "all are sent one by one"
                hide = any(map(_is_sensitive, jobs))
                internal_errors.report("publishing a message", error, state, hide=hide)
            if single:
                self._reject(jobs[0], error, published)
                return
            logger.debug("%d messages are sent one by one: %s", len(jobs), type(error).__name__)
        for each in built:
            self._send(connection, [each], published)

    def _reject(self, job: PendingMessage, error: Exception, published: Published) -> None:
        match error:
            case RejectedByBroker():
                logger.error("the broker rejected the message of job %s: %s", job.job_id, error)
                published.reject(job, f"the broker rejected its message: {error}")
            case EncodeError():
                self._reject_malformed(job, error, published)
            case _:
                published.reject(job, "publishing its message failed by an internal error; see the log")

    def _reject_malformed(self, job: PendingMessage, error: Exception, published: Published) -> None:
        # The error may quote arguments.
        trace = None if _is_sensitive(job) else error
        name = type(error).__name__
        logger.error("no message can be built of job %s: %s", job.job_id, name, exc_info=trace)
        published.reject(job, "no message can be built of it; see the publisher's log")

    def _back_off(self, error: Exception) -> None:
        pause = PAUSES[min(self._failures, len(PAUSES) - 1)]
        self._failures += 1
        self._retry_at = time.monotonic() + pause
        logger.warning(
            "broker not reached (%s); this process does not try again for %g s, then the sweeper "
            "publishes the jobs",
            error if isinstance(error, UnusableBrokerUrl) else f"{broker_name(self._app)}: {error}",
            pause,
        )

    def depth(self, queue: str) -> int | None:
        """Return how many messages a queue holds that no worker has taken; None if the broker cannot say."""
        with self._connection() as connection:
            if connection is None:
                return None
            try:
                return connection.depth(queue)
            except connection.errors:
                connection.close()
                return None

    def _run_eagerly(self, jobs: Iterable[PendingMessage]) -> None:
        """Run all jobs in this thread, through the same claim as in a worker.

        Raises:
            Exception: with `task_eager_propagates`, the first that a task raised.
        """
        results = [self._apply(job) for job in jobs]
        if self._app.conf.task_eager_propagates:
            for result in results:
                result.get(disable_sync_subtasks=False)  # its maybe_throw() fails where tblib is installed

    def _apply(self, job: PendingMessage) -> Any:
        message = self._process_builder().build(job)
        headers, options = message.headers, message.options
        stamps = headers["stamps"] | {"stamped_headers": headers["stamped_headers"]}
        # The fields from which a worker makes the task's request.
        task: Any = self._app.tasks[job.task]
        return task.apply(
            serialization.decode(job.args),
            serialization.decode(job.kwargs),
            task_id=job.task_id,
            headers=Context(headers).headers,
            throw=False,
            **{name: options.get(name) for name in ("exchange", "routing_key", "priority")},
            **({} if headers["ignore_result"] is None else {"ignore_result": headers["ignore_result"]}),
            **(stamps if headers["stamped_headers"] else {}),
        )

    def _process_builder(self) -> MessageBuilder:
        # A message names the process that it is from.
        if self._builder is None or self._pid != os.getpid():
            self._builder, self._pid = MessageBuilder(self._app), os.getpid()
        return self._builder

    def close(self) -> None:
        """Close this process's connections to the broker; the next message opens another."""
        self._pool.close()


def _is_sensitive(job: PendingMessage) -> bool:
    return "sensitive" in job.routing


def _length(job: PendingMessage) -> int:
    return len(job.args) + len(job.kwargs)
