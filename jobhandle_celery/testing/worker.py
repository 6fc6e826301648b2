"""This process as a worker: what it takes from the mailbox goes the way of a worker's messages.

The checks of a message, Celery's request, the claim, Celery's tracer with its signals, and the writes of the
main process are those of a real worker. What is missing is the pool and its processes: bodies run in the
calling thread, and time limits do not hold.
"""

import os
import socket
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import SimpleNamespace
from typing import Any

from celery import Celery, current_app, signals
from celery.exceptions import InvalidTaskError
from celery.result import denied_join_result
from celery.worker import state
from kombu.exceptions import ContentDisallowed, DecodeError

from .. import celery_compat
from ..errors import DatabaseUnavailableError
from ..runtime import Runtime
from ..store import Worker
from ..worker import message_guard
from ..worker.deferred_writes import DeferredWrites
from ..worker.events import EventSender
from .mailbox import connect


class _Consumer:
    """What the library and receivers of signals look at in a worker's consumer."""

    connection = None
    connection_errors = ()
    event_dispatcher = None

    def __init__(self, app: Celery, hostname: str) -> None:
        self.app = app
        self.hostname = hostname

    def call_soon(self, call: Callable[..., object], *args: Any) -> None:
        call(*args)


class InProcessWorker:
    """A worker without a consumer: it runs the messages that it is given."""

    def __init__(self, app: Celery, runtime: Runtime) -> None:
        self._app = app
        self._runtime = runtime
        self.me = runtime.worker = named("test")
        self._channel = connect().default_channel
        self._consumer = _Consumer(app, self.me.name)
        events = EventSender(SimpleNamespace(consumer=self._consumer, app=app))
        self._writes = DeferredWrites(runtime, events)

    def renew(self) -> None:
        """Renew its lease, which the clock of a test may have ended."""
        self._runtime.store.leases.renew(self.me)

    def deliver(self, raw: Any) -> None:
        """Run a message."""
        message = self._channel.message_to_python(raw)
        task = self._app.tasks.get(message.headers["task"])
        with _current(self._app), denied_join_result():
            if task is None:
                message_guard.unknown_task(self._consumer, message, KeyError(message.headers["task"]))
            else:
                self._handle(task, message)
        self.write()

    def write(self) -> None:
        """Write what a body could not write, unless the database is still away."""
        with suppress(DatabaseUnavailableError):
            self._writes.make()

    def _handle(self, task: Any, message: Any) -> None:
        def strategy(checked: Any, _: Any) -> Any:
            return celery_compat.request_run_here(task, checked, self.me.name)

        try:
            request, pool = message_guard.guard_strategy(strategy, task)(message, None)
        except (InvalidTaskError, ContentDisallowed, DecodeError) as error:
            message_guard.malformed(self._consumer, message, error)
            return
        signals.task_received.send(sender=self._consumer, request=request)
        state.task_reserved(request)
        request.execute_using_pool(pool)


def named(name: str) -> Worker:
    """Return a worker of this process, without a lease."""
    return Worker(f"{name}@{socket.gethostname()}", str(uuid.uuid4()), os.getpid())


@contextmanager
def _current(app: Celery) -> Iterator[None]:
    former = current_app._get_current_object()  # type: ignore[attr-defined]  # of a proxy
    app.set_current()
    try:
        yield
    finally:
        former.set_current()
