"""Rows to Celery messages, handed to the broker in bounded time. May import store and below.

The message is only a wake-up. It carries the arguments because Celery wants them there, and in one header
of ours which job, and which attempt of it, it is for. It carries neither `expires` nor an ETA: the row has
both, and a worker that has discarded a message as expired discards all later ones of that task id.
"""

import ast
import logging
import os
import threading
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from celery import Celery
from celery.utils.saferepr import saferepr
from kombu import Exchange, Queue
from kombu.exceptions import EncodeError

from . import codec
from .broker import Line, Refused
from .header import job_headers
from .sensitive import masked
from .store import Outgoing

logger = logging.getLogger(__name__)

PAUSES = (5.0, 10.0, 20.0, 40.0, 60.0)
"""Seconds for which nobody tries again after the first, second, … failure in a row."""


@dataclass(frozen=True)
class Published:
    """What became of messages; what is in neither list was not tried, or not taken."""

    sent: list[Outgoing] = field(default_factory=list)
    unsendable: dict[str, list[Outgoing]] = field(default_factory=dict)
    """Those that are not sent by trying again at once, by the reason."""

    def put_off(self, one: Outgoing, because: str) -> None:
        """Add one that cannot be sent."""
        self.unsendable.setdefault(because, []).append(one)

    def __len__(self) -> int:
        return len(self.sent) + sum(map(len, self.unsendable.values()))


class Dispatcher:
    """Sends messages for one app, from any process and thread of it."""

    def __init__(self, app: Celery) -> None:
        self._app = app
        self._local = threading.local()
        self._failures = 0
        self._again_at = 0.0

    @property
    def eager(self) -> bool:
        """True if `task_always_eager` asks that jobs run right here, as users' own tests do."""
        return bool(self._app.conf.task_always_eager)

    def _run_eagerly(self, one: Outgoing) -> None:
        # In this thread, through the same claim as in a worker.
        result = self._app.tasks[one.task].apply(
            codec.decode(one.args),
            codec.decode(one.kwargs),
            task_id=one.task_id,
            headers=job_headers(one.job_id, one.attempt),
            throw=False,
        )
        if self._app.conf.task_eager_propagates:
            result.maybe_throw()

    @property
    def reachable(self) -> bool:
        """False for a while after the broker was not reached."""
        return time.monotonic() >= self._again_at

    def publish(self, messages: Iterable[Outgoing]) -> Published:
        """Hand messages to the broker; return those that it took, and those that no broker could take.

        Eagerly, the jobs run right here, and nothing is sent. Never raises for a broker that is down, and
        takes no longer than a few times `BOUND`: what was not sent stays due, and the sweep sends it. After a
        failure nobody in this process tries for a while.
        """
        if self.eager:
            for one in messages:
                self._run_eagerly(one)
            return Published()
        published = Published()
        for one in messages:
            if not self.reachable:
                break
            try:
                self._send(one)
            except _Unreachable as error:
                self._pause(error)
                break
            except Refused as error:
                logger.error("the broker refused the message of job %s: %s", one.job_id, error)
                published.put_off(one, f"the broker refused its message: {error}")
                continue
            except Exception as error:
                # One row that cannot be sent must not hold up the others. The error may quote arguments.
                quotes = None if "sensitive" in one.routing else error
                name = type(error).__name__
                logger.error("job %s cannot be made into a message: %s", one.job_id, name, exc_info=quotes)
                published.put_off(one, "it cannot be made into a message; see the log of whoever sends")
                continue
            self._failures = 0
            published.sent.append(one)
        return published

    def _pause(self, error: Exception) -> None:
        pause = PAUSES[min(self._failures, len(PAUSES) - 1)]
        self._failures += 1
        self._again_at = time.monotonic() + pause
        logger.warning(
            "broker not reached (%s); no further try for %g s, the sweep sends the jobs", error, pause
        )

    def _send(self, one: Outgoing) -> None:
        # What fails here is the row's fault, for good; what fails below, the broker's, or its URL's.
        message, options = self._message(one)
        fresh = True
        try:
            line = self._line()
            fresh = line.fresh
            line.send(one.task, message, options)
        except EncodeError:
            raise
        except Refused:
            self._hang_up()  # the broker has closed the channel
            raise
        except Exception as error:
            self._hang_up()
            if fresh:
                raise _Unreachable(f"{type(error).__name__}: {error}") from error
            # An old connection that the broker has closed meanwhile says nothing about the broker.
            self._send(one)

    def _message(self, one: Outgoing) -> tuple[Any, dict[str, Any]]:
        routing = codec.decode(one.routing)
        sensitive = routing.get("sensitive", ())
        retry = codec.decode(one.retry) or {}
        options = retry.get("options", {})
        args = retry["args"] if retry else codec.decode(one.args)
        kwargs = retry["kwargs"] if retry else codec.decode(one.kwargs)
        shown_args, shown_kwargs = masked(args, kwargs, sensitive)
        message = self._app.amqp.as_task_v2(
            one.task_id,
            one.task,
            args,
            kwargs,
            retries=options.get("retries", 0),
            callbacks=options.get("link"),
            errbacks=options.get("link_error"),
            chord=options.get("chord"),
            chain=options.get("chain"),
            group_id=options.get("group_id"),
            group_index=options.get("group_index"),
            root_id=options.get("root_id") or routing.get("root_id"),
            parent_id=options.get("parent_id") or routing.get("parent_id"),
            shadow=options.get("shadow") or routing.get("shadow"),
            time_limit=options.get("time_limit", one.time_limit),
            soft_time_limit=options.get("soft_time_limit", one.soft_time_limit),
            ignore_result=options.get("ignore_result", routing.get("ignore_result")),
            replaced_task_nesting=options.get("replaced_task_nesting", 0),
            stamped_headers=options.get("stamped_headers"),
            **{name: options.get(name) for name in options.get("stamped_headers") or ()},
            origin=options.get("origin"),
            # What Flower shows and searches: `kwargs:job_id=42`. The body does not receive it.
            argsrepr=routing.get("argsrepr") or saferepr(shown_args, self._app.amqp.argsrepr_maxsize),
            kwargsrepr=kwargs_shown(one.job_id, shown_kwargs, routing.get("kwargsrepr"), self._app),
            create_sent_event=self._app.conf.task_send_sent_event,
        )
        declared = routing.get("declare")
        queue = None if one.queue is None else self._queue(one.queue, declared)
        headers = {**routing.get("headers", {}), **(options.get("headers") or {})}
        return message, {
            "queue": queue,
            "exchange": routing.get("exchange"),
            "routing_key": routing.get("routing_key"),
            "priority": options.get("priority", one.priority),
            # Never pickle or yaml; a signed message is JSON inside.
            "serializer": "auth" if self._app.conf.task_serializer == "auth" else "json",
            "headers": headers | job_headers(one.job_id, one.attempt, sensitive),
        }

    def _queue(self, name: str, declared: Mapping[str, Any] | None) -> Queue:
        known: Mapping[str, Queue] = self._app.amqp.queues
        if dict.__contains__(known, name):  # a dict that makes what it lacks
            return known[name]
        if declared is None or declared["name"] != name:
            declared = {"name": name, "exchange": "", "type": "direct", "routing_key": name}
        return Queue(
            name,
            Exchange(declared["exchange"], declared["type"]),
            routing_key=declared["routing_key"],
            queue_arguments=declared.get("arguments"),
        )

    def depth(self, queue: str) -> int | None:
        """Return how many messages a queue holds that no worker has taken; None if the broker cannot say."""
        if not self.reachable:
            return None
        line = self._line()
        try:
            return line.depth(queue)
        except line.errors:
            self._hang_up()
            return None

    def _line(self) -> Line:
        line: Line | None = getattr(self._local, "line", None)
        if line is None or line.pid != os.getpid():
            line = self._local.line = Line(self._app)
        return line

    def _hang_up(self) -> None:
        line: Line | None = getattr(self._local, "line", None)
        self._local.line = None
        if line is not None and line.pid == os.getpid():
            line.close()

    def close(self) -> None:
        """Close this thread's connection to the broker; the next message opens another."""
        self._hang_up()


class _Unreachable(Exception):
    """The broker did not take a message on a fresh connection."""


def kwargs_shown(job_id: int, kwargs: Mapping[str, Any], given: str | None, app: Celery) -> str:
    """Return what is shown of the keyword arguments, the job's id before them, so that Flower finds it.

    Flower's search reads literals alone, and the last of two equal keys; what it could not read, or would
    read as another job's, goes into a string.
    """
    shown = str(saferepr(dict(kwargs), app.amqp.kwargsrepr_maxsize)) if given is None else given
    comma = "" if shown == "{}" else ", "
    beside = f"{{'job_id': {job_id}{comma}{shown.removeprefix('{')}"
    try:
        found = ast.literal_eval(beside) if shown.startswith("{") and "job_id" not in kwargs else {}
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        found = {}
    return beside if found.get("job_id") == job_id else repr({"job_id": job_id, "kwargs": shown})
