"""Runs a canvas as plain Celery does, its messages consumed one after the other in this process.

Celery publishes to kombu's memory transport; each message is executed by the `Request` of a worker, which
publishes what follows (the rest of a chain, callbacks, a chord's body) as a worker does. The messages are
recorded.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from queue import Empty
from typing import Any

import celery
import pytest
from celery import Celery, _state
from celery.result import allow_join_result
from celery.worker.request import Request

from jobhandle_celery.broker.plans import Plan

needs_celery_5_7 = pytest.mark.skipif(
    celery.VERSION < (5, 7),
    reason="Celery 5.6 gives some canvases other group ids and options, fails at empty groups, or never ends",
)


@dataclass(frozen=True)
class Sent:
    """A message that Celery has published, and what its task returned."""

    task_id: str
    task: str
    headers: dict[str, Any]
    args: list[Any]
    kwargs: dict[str, Any]
    properties: dict[str, Any]
    queue: str


class PlainCelery:
    """An app without `Jobs`, with a worker in this process."""

    def __init__(
        self, results: str, tasks: dict[str, Callable[..., Any]], queues: tuple[str, ...] = ()
    ) -> None:
        self.app = Celery("plain", broker="memory://", backend=results, set_as_current=False)
        self.app.conf.update(
            result_expires=60, task_default_queue="plain", broker_connection_retry_on_startup=False
        )
        for name, body in tasks.items():
            self.app.task(name=name)(body)
        self.app.finalize()
        backend: Any = self.app.backend
        self._consumer = backend.result_consumer
        # Results unsubscribe when they are garbage, which may be after the end of the server.
        self._consumer.cancel_for = lambda _: None
        self._queues = ("plain", *queues)
        self.sent: list[Sent] = []

    def close(self) -> None:
        """Close the connections."""
        self._consumer.stop()
        self.app.close()

    def is_empty(self, signature: Any) -> bool:
        """Return True if Celery would send nothing for a canvas, and return no result."""
        if signature.subtask_type != "chain":
            return False
        clone = signature.clone()
        return not clone.prepare_steps((), {}, clone.tasks)[0]

    def run(self, signature: Any) -> Any:
        """Return the result of a canvas, once all of its messages are executed."""
        self.sent = []
        before = _state.get_current_app()
        # A worker's app is the current one.
        self.app.set_current()
        try:
            handle = signature.apply_async()
            self._work()
            return gathered(handle)
        finally:
            before.set_current()

    def _work(self) -> None:
        with self.app.connection_for_read() as connection:
            while True:
                found = False
                for queue in self._queues:
                    for message in _messages(connection, queue):
                        found = True
                        self._execute(message, queue)
                if not found:
                    return

    def _execute(self, message: Any, queue: str) -> None:
        message.ack()
        headers = message.headers
        args, kwargs, _ = message.payload
        self.sent.append(
            Sent(headers["id"], headers["task"], dict(headers), args, kwargs, dict(message.properties), queue)
        )
        task = self.app.tasks[headers["task"]]
        Request(message, app=self.app, task=task, on_ack=lambda *_: None, hostname="here").execute()


def _messages(connection: Any, queue: str) -> Iterator[Any]:
    with connection.SimpleQueue(queue) as messages:
        while True:
            try:
                yield messages.get(block=False)
            except Empty:
                return


def gathered(result: Any) -> Any:
    """Return the value of a result, in lists as its groups are."""
    with allow_join_result():
        return result.get(timeout=1, disable_sync_subtasks=False)


def children(planned: Plan, index: int) -> list[int]:
    return [number for number, member in enumerate(planned.members) if member.parent == index]


def end_of(planned: Plan, index: int) -> int:
    """Return the task or group whose result is that of a row."""
    while planned.members[index].kind in ("chain", "chord"):
        index = max(
            number for number in children(planned, index) if planned.members[number].position is not None
        )
    return index


def hangs_in_celery(planned: Plan) -> bool:
    """Return True if a member of a group or header ends in a group without tasks, for which Celery waits."""
    for index, member in enumerate(planned.members):
        if member.kind == "group":
            ends = [end_of(planned, number) for number in children(planned, index)]
            if any(planned.members[end].kind == "group" and not children(planned, end) for end in ends):
                return True
    return False


def repeats_in_celery(planned: Plan) -> bool:
    """Return True if a chord that ends in a group has a next step: Celery runs that once for each member."""
    for index, member in enumerate(planned.members):
        if member.kind == "chain":
            for number in children(planned, index)[:-1]:
                chord = planned.members[number].kind == "chord"
                if chord and planned.members[end_of(planned, number)].kind == "group":
                    return True
    return False
