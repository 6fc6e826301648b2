"""Rows handed to the broker as messages, in bounded time. May import lines, messages, broker and below."""

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
from ..batching import pieces
from ..store import PendingMessage
from .connection import BrokerConnection, RejectedByBroker, Unusable
from .connection_pool import Busy, ConnectionPool
from .messages import Messages, RenderedMessage

logger = logging.getLogger(__name__)

TOGETHER = 500
TOGETHER_BYTES = 4 * 2**20
"""Messages, and bytes of arguments, that go to the broker in one piece."""

PAUSES = (5.0, 10.0, 20.0, 40.0, 60.0)
"""Seconds for which nobody tries again after the first, second, … failure in a row."""


@dataclass(frozen=True)
class Published:
    """What became of messages; what is in neither list was not tried, or not taken."""

    sent: list[PendingMessage] = field(default_factory=list)
    unsendable: dict[str, list[PendingMessage]] = field(default_factory=dict)
    """Those that are not sent by trying again at once, by the reason."""

    def put_off(self, one: PendingMessage, because: str) -> None:
        """Add one that cannot be sent."""
        self.unsendable.setdefault(because, []).append(one)

    def __len__(self) -> int:
        return len(self.sent) + sum(map(len, self.unsendable.values()))


class Publisher:
    """Sends messages for one app, from any process and thread of it."""

    def __init__(self, app: Celery) -> None:
        self._app = app
        self._lines = ConnectionPool(app)
        self._messages: Messages | None = None
        self._pid = 0
        self._failures = 0
        self._again_at = 0.0

    @property
    def eager(self) -> bool:
        """True if `task_always_eager` asks that jobs run right here, as users' own tests do."""
        return bool(self._app.conf.task_always_eager)

    def _run_eagerly(self, jobs: Iterable[PendingMessage]) -> None:
        """Run jobs in this thread, through the same claim as in a worker, all of them.

        Raises:
            Exception: the first that a body has raised, with `task_eager_propagates`.
        """
        results = [self._result_of(job) for job in jobs]
        if self._app.conf.task_eager_propagates:
            for result in results:
                result.get(disable_sync_subtasks=False)  # its maybe_throw() fails where tblib is installed

    def _result_of(self, job: PendingMessage) -> Any:
        message = self._messages_of_this_process().ready(job)
        headers, way = message.headers, message.options
        stamps = headers["stamps"] | {"stamped_headers": headers["stamped_headers"]}
        # What a worker would make the task's request of.
        task: Any = self._app.tasks[job.task]
        return task.apply(
            serialization.decode(job.args),
            serialization.decode(job.kwargs),
            task_id=job.task_id,
            headers=Context(headers).headers,
            throw=False,
            **{name: way.get(name) for name in ("exchange", "routing_key", "priority")},
            **({} if headers["ignore_result"] is None else {"ignore_result": headers["ignore_result"]}),
            **(stamps if headers["stamped_headers"] else {}),
        )

    @property
    def reachable(self) -> bool:
        """False for a while after the broker was not reached."""
        return time.monotonic() >= self._again_at

    def publish(self, messages: Iterable[PendingMessage]) -> Published:
        """Hand messages to the broker; return those that it took, and those that no broker could take.

        Eagerly, the jobs run right here, and nothing is sent. Never raises for a broker that is down, and
        takes no longer than a few times `BOUND`: what was not sent stays due, and the sweep sends it. After a
        failure nobody in this process tries for a while.
        """
        if self.eager:
            self._run_eagerly(messages)
            return Published()
        published = Published()
        for part in pieces(messages, TOGETHER, _length, TOGETHER_BYTES):
            with self._line() as line:
                if line is None:
                    break
                self._send_each(line, self._send_together(line, part, published), published)
        return published

    @contextmanager
    def _line(self) -> Iterator[BrokerConnection | None]:
        """Borrow a connection; None if the broker is not to be tried now."""
        with ExitStack() as lent:
            line = None
            try:
                if self.reachable:
                    line = lent.enter_context(self._lines.lent())
            except Unusable as error:
                self._pause(error)
            except Busy as error:
                logger.info("%s; the sweep sends the jobs", error)
            # While it waited for a connection, another thread may have found the broker away.
            yield line if self.reachable else None

    def _send_together(
        self, line: BrokerConnection, part: Sequence[PendingMessage], published: Published
    ) -> Sequence[PendingMessage]:
        """Send in one piece what can be sent so; return the others, and all if that did not succeed."""
        messages = self._messages_of_this_process()
        if len(part) == 1 or messages.one_by_one:
            return part
        try:
            if not line.takes_many:
                return part
            built: list[RenderedMessage] = []
            together, alone = [], []
            for one in part:
                try:
                    built.append(messages.ready(one))
                    together.append(one)
                except SoftTimeLimitExceeded:
                    raise
                except Exception:
                    alone.append(one)  # what is wrong with it is said where it goes by itself
            line.send_together(built)
        except BaseException as error:
            if _interrupts(error):
                raise
            line.close()
            if line.is_bug(error):
                hide = any("sensitive" in one.routing for one in part)
                internal_errors.report(
                    "publishing in batches", error, "jobs are published one by one", hide=hide
                )
            # It is not known which were taken, nor whose fault it was: that shows when each goes by itself,
            # and to send one again is harmless.
            logger.debug("%d messages are sent one by one: %s", len(part), type(error).__name__)
            return part
        self._failures = 0
        published.sent.extend(together)
        return alone

    def _send_each(
        self, line: BrokerConnection, part: Sequence[PendingMessage], published: Published
    ) -> None:
        for one in part:
            if not self.reachable:
                return
            try:
                self._send(line, one)
            except _Unreachable as error:
                self._pause(error)
                return
            except RejectedByBroker as error:
                logger.error("the broker refused the message of job %s: %s", one.job_id, error)
                published.put_off(one, f"the broker refused its message: {error}")
                continue
            except _Fault as error:
                hide = "sensitive" in one.routing
                internal_errors.report(
                    "publishing a message", error.error, f"job {one.job_id} is put off", hide=hide
                )
                published.put_off(one, "publishing its message failed by an internal error; see the log")
                continue
            except SoftTimeLimitExceeded:
                raise
            except Exception as error:
                # One row that cannot be sent must not hold up the others. The error may quote arguments.
                quotes = None if "sensitive" in one.routing else error
                name = type(error).__name__
                logger.error("job %s cannot be made into a message: %s", one.job_id, name, exc_info=quotes)
                published.put_off(one, "it cannot be made into a message; see the log of whoever sends")
                continue
            self._failures = 0
            published.sent.append(one)

    def _pause(self, error: Exception) -> None:
        pause = PAUSES[min(self._failures, len(PAUSES) - 1)]
        self._failures += 1
        self._again_at = time.monotonic() + pause
        logger.warning(
            "broker not reached (%s); no further try for %g s, the sweep sends the jobs", error, pause
        )

    def _send(self, line: BrokerConnection, one: PendingMessage) -> None:
        # What fails here is the row's fault, for good; what fails below, the broker's, or ours.
        messages = self._messages_of_this_process()
        message = messages.ready(one)
        fresh = line.fresh
        try:
            line.send(message)
        except EncodeError:
            raise
        except RejectedByBroker:
            line.close()  # the broker has closed the channel
            raise
        except BaseException as error:
            if _interrupts(error):
                raise
            line.close()
            if line.is_bug(error):
                raise _Fault(error) from error
            if fresh:
                raise _Unreachable(f"{type(error).__name__}: {error}") from error
            # An old connection that the broker has closed meanwhile says nothing about the broker.
            self._send(line, one)

    def depth(self, queue: str) -> int | None:
        """Return how many messages a queue holds that no worker has taken; None if the broker cannot say."""
        with self._line() as line:
            if line is None:
                return None
            try:
                return line.depth(queue)
            except line.errors:
                line.close()
                return None

    def _messages_of_this_process(self) -> Messages:
        # A message says which process it is from.
        if self._messages is None or self._pid != os.getpid():
            self._messages, self._pid = Messages(self._app), os.getpid()
        return self._messages

    def close(self) -> None:
        """Close this process's connections to the broker; the next message opens another."""
        self._lines.close()


def _interrupts(error: BaseException) -> bool:
    """Say whether an error came from outside: whoever sends is the body of a job, and its time is up, say."""
    return isinstance(error, SoftTimeLimitExceeded) or not isinstance(error, Exception)


class _Unreachable(Exception):
    """The broker did not take a message on a fresh connection."""


class _Fault(Exception):
    """It is neither the broker's fault nor the row's that a message was not sent."""

    def __init__(self, error: BaseException) -> None:
        super().__init__(str(error))
        self.error = error


def _length(one: PendingMessage) -> int:
    return len(one.args) + len(one.kwargs)
