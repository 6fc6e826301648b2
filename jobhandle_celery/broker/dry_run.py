"""Publishes a task by Celery's own code and sends nothing: what kombu's producer would have got is recorded.

`Task.apply_async` (of a base class, or patched), `Celery.send_task`, the routes, the task's attributes, the
configuration and the handlers of Celery's publish signals all contribute to a message. They run here as in
plain Celery, in the caller's context.
"""

import inspect
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from functools import cache, cached_property, partial
from types import SimpleNamespace
from typing import Any

from celery import Celery, signals
from celery.backends.base import DisabledBackend
from celery.exceptions import QueueNotFound
from celery.result import AsyncResult
from kombu import Queue

from .. import celery_compat
from ..errors import ValidationError

CALLED_BY = "jobhandle_called_by"
"""Key among the options of a call of `Celery.send_task`: the task that made it by its ``apply_async``."""

BY_NAME = "by name"
"""Takes the place of that task if there is none."""


OWN_OPTIONS = frozenset({"sensitive", "max_attempts", "unique_key"})
"""Options of this library, which Celery does not know: no message has them."""


@dataclass(frozen=True)
class UnsentMessage:
    """The message that Celery would have sent."""

    arguments: Mapping[str, Any]
    """Of ``AMQP.as_task_v2``, by its parameters' names."""
    queue: Queue | None
    options: Mapping[str, Any]
    """Of ``AMQP.send_task_message``: the options of the call, the task and the route."""
    headers: Mapping[str, Any]
    """As Celery has built them from `arguments`, before any handler changed them."""
    body: tuple[Any, Any, Any]
    published: Mapping[str, Any]
    """The arguments of kombu's producer."""
    own: Mapping[str, Any]
    """The options of this library with which Celery was called."""

    @property
    def changed_headers(self) -> dict[str, Any]:
        """The headers that the call or a handler has added or changed."""
        return {
            name: value
            for name, value in self.published["headers"].items()
            if name not in self.headers or self.headers[name] != value
        }


def has_signal_handlers() -> bool:
    """Return True if a handler of one of Celery's publish signals is connected."""
    published = signals.before_task_publish, signals.after_task_publish, signals.task_sent
    return any(signal.receivers for signal in published)


class DryRun:
    """Publishes tasks of one app without a broker."""

    def __init__(self, app: Celery) -> None:
        self._app = app

    @cached_property
    def _send(self) -> Any:
        # A job is accepted even if the broker's URL is invalid.
        return celery_compat.task_sender(self._app.amqp, _Layer)

    @cached_property
    def _results(self) -> Any:
        return DisabledBackend(self._app)

    def publish(
        self, task: Any, name: str, args: Any, kwargs: Any, task_id: str, options: Mapping[str, Any]
    ) -> UnsentMessage:
        """Publish a task as Celery does, and return what it would have sent instead of sending it.

        Raises:
            ValidationError: the queue may not be created, or the task's own ``apply_async`` has sent no
                message, several, or one with another task id.
        """
        recorder = _Recorder(self._app, name, self._send, self._results)
        called_by = options.get(CALLED_BY)
        try:
            if called_by is not None:
                # The task's ``apply_async`` has run.
                options = {key: value for key, value in options.items() if key != CALLED_BY}
                if called_by is not BY_NAME:
                    options["task_type"] = called_by
                recorder.app.send_task(name, args, kwargs, task_id=task_id, **options)
            elif task is None:
                recorder.app.send_task(name, args, kwargs, task_id=task_id, **options)
            else:
                _bound_to(recorder.app, task).apply_async(args, kwargs, task_id=task_id, **options)
        except QueueNotFound as error:
            queue = options.get("queue")
            raise ValidationError("queue", queue, f"a queue that task_queues has ({error})") from None
        if len(recorder.messages) != 1:
            sent = len(recorder.messages) or "none"
            raise ValidationError("task", name, f"a task whose apply_async sends one message; it sent {sent}")
        (message,) = recorder.messages
        if message.arguments["task_id"] != task_id:
            accepted = "a task whose apply_async keeps the task id that it was given"
            raise ValidationError("task_id", message.arguments["task_id"], accepted)
        return message


class _Recorder:
    """Replaces the parts of an app that `Celery.send_task` uses to reach the broker."""

    def __init__(self, app: Celery, name: str, send: Any, results: Any) -> None:
        self._sends = send
        self.messages: list[UnsentMessage] = []
        self._amqp: Any = app.amqp
        self._arguments: dict[str, Any] = {}
        self._own: dict[str, Any] = {}
        kind: Any = type(app)
        stand_in: Any = object.__new__(_stand_in(kind))
        self.connection = connection = celery_compat.offline_connection()
        vars(stand_in).update(
            jobhandle_real=app,
            jobhandle_name=name,
            jobhandle_results=results,
            jobhandle_own=self._own,
            conf=_Layer(app.conf, task_always_eager=False),
            amqp=_Layer(
                self._amqp,
                create_task_message=self._create,
                send_task_message=self._send,
                Producer=lambda *_, **__: self,
            ),
            backend=_Layer(results, on_task_call=lambda *_, **__: None),
            producer_pool=SimpleNamespace(connections=SimpleNamespace(connection=connection)),
            producer_or_acquire=lambda _=None: nullcontext(self),
        )
        self.app: Celery = stand_in

    def _create(self, *args: Any, **kwargs: Any) -> Any:
        kind: Any = type(self._amqp)
        bound = _signature(kind).bind(self._amqp, *args, **kwargs)
        bound.arguments["create_sent_event"] = False  # no message is sent
        stamps = bound.arguments.get("stamped_headers") or ()
        further = bound.arguments.get("options", {})
        self._arguments = {name: further[name] for name in stamps} | {
            name: value for name, value in bound.arguments.items() if name not in ("self", "options")
        }
        return self._amqp.as_task_v2(**self._arguments)

    def _send(self, _: Any, name: str, message: Any, **options: Any) -> None:
        self._options, self._headers = options, dict(message[0])
        self._sends(self, name, message, **options)

    def publish(self, body: Any, **published: Any) -> None:
        """Record a call of kombu's producer."""
        declared = published.get("declare") or ()
        queue = next((entity for entity in declared if isinstance(entity, Queue)), self._options.get("queue"))
        if isinstance(queue, str):
            queue = self._amqp.queues[queue]
        self.messages.append(
            UnsentMessage(
                self._arguments, queue, self._options, self._headers, body, published, dict(self._own)
            )
        )


@cache
def _signature(amqp: Any) -> inspect.Signature:
    return inspect.signature(amqp.as_task_v2)


class _Layer:
    """A view of an object with some attributes replaced."""

    def __init__(self, real: Any, **replaced: Any) -> None:
        self._real = real
        vars(self).update(replaced)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._real, name)

    def __getitem__(self, key: str) -> Any:
        return self._real[key]


@cache
def _stand_in(kind: Any) -> Any:
    """Return a class of apps that have the app's `send_task`, patched or overridden, and nothing else."""

    class StandIn(kind):  # type: ignore[misc]  # whatever class the app has
        def __getattribute__(self, name: str) -> Any:
            own = object.__getattribute__(self, "__dict__")
            if name in own:
                return own[name]
            if name in ("send_task", "__class__", "__dict__"):
                return object.__getattribute__(self, name)
            return getattr(own["jobhandle_real"], name)

        def send_task(self, name: str, *args: Any, **kwargs: Any) -> Any:
            if name != self.jobhandle_name:  # another task, which a handler sends
                return self.jobhandle_real.send_task(name, *args, **kwargs)
            # A job's result is in its row: it needs no result backend, and is no child of the running task.
            for option in OWN_OPTIONS & kwargs.keys():
                self.jobhandle_own[option] = kwargs.pop(option)
            result = partial(AsyncResult, backend=self.jobhandle_results, app=self.jobhandle_real)
            return super().send_task(name, *args, **{**kwargs, "result_cls": result, "add_to_parent": False})

    return StandIn


def _bound_to(app: Celery, task: Any) -> Any:
    """Return the task bound to another app, with the same state."""
    kind: Any = type(task)
    metaclass: Any = type(kind)
    own = {"_app": app, "app": app, "__module__": kind.__module__}
    bound = object.__new__(metaclass(kind.__name__, (kind,), own))
    bound.__dict__ = task.__dict__
    return bound
