"""What a worker does with a job's message that it cannot run. May import message_guard and below.

Celery logs such a message whole, arguments and all, and stores and sends a failure under its task id when it
only does not know the task. For a job the row says how it goes on: the sweep sends another message, perhaps
to a worker that knows the task. So the message is dropped, and what is logged does not quote it.
"""

import logging
from collections.abc import Callable
from functools import partial
from typing import Any

from celery import Celery, bootsteps, signals

from ..broker.headers import job_of
from ..runtime import DeferredWrite, runtime_of
from .message_guard import StrategyRefused, is_for_a_job

logger = logging.getLogger(__name__)


class RefusalStep(bootsteps.Step):
    """Puts itself before what the consumer does with messages that it cannot make a request of."""

    def create(self, parent: Any) -> None:
        """Replace the consumer's own ways, for a job's messages alone, before it reads them."""
        parent.on_unknown_task = _before(parent.on_unknown_task, _unknown_task, parent)
        parent.on_unknown_message = _before(parent.on_unknown_message, _malformed, parent)
        parent.on_invalid_task = _before(parent.on_invalid_task, _malformed, parent)
        parent.on_decode_error = _on_decode_error(parent, parent.on_decode_error)


def _before(plain: Callable[..., None], ours: Callable[..., None], consumer: Any) -> Callable[..., None]:
    def refuse(body: Any, message: Any, *error: Exception) -> None:
        if is_for_a_job(message, body):
            ours(consumer, message, *error)
        else:
            plain(body, message, *error)

    return refuse


def _on_decode_error(consumer: Any, plain: Callable[[Any, Exception], None]) -> Callable[..., None]:
    refuse = _before(lambda _, message, error: plain(message, error), _malformed, consumer)
    return lambda message, error: refuse(None, message, error)


def _unknown_task(consumer: Any, message: Any, error: Exception) -> None:
    logger.error(
        "%s (namespace %s) has no task %s: the message of %s was dropped, and is sent again later; "
        "import the task's module here or, if two services share this queue, give each its own",
        consumer.hostname,
        runtime_of(consumer.app).settings.namespace,
        message.headers.get("task"),
        _told(message),
    )
    message.reject_log_error(logger, consumer.connection_errors)
    signals.task_unknown.send(
        sender=consumer,
        message=message,
        exc=error,
        name=message.headers.get("task"),
        id=message.headers.get("id"),
    )


def _malformed(consumer: Any, message: Any, error: Exception | None = None) -> None:
    # By its type alone: the text of an error may quote what could not be read.
    because = "it is no task's" if error is None else getattr(error, "reason", type(error).__name__)
    logger.error("a message for %s was refused: %s", _told(message), because)
    message.reject_log_error(logger, consumer.connection_errors)
    if isinstance(error, StrategyRefused):
        _send_back(consumer, message, str(error))
    signals.task_rejected.send(sender=consumer, message=message, exc=error)


def _send_back(consumer: Any, message: Any, reason: str) -> None:
    runtime = runtime_of(consumer.app)
    try:
        job = job_of(message.headers)
    except ValueError:
        return
    if job is not None:
        task_id, task = str(message.headers.get("id")), str(message.headers.get("task"))
        write = partial(runtime.store.send_back, job[0], task_id, job[1], task, runtime.me(), reason)
        runtime.ends.put(DeferredWrite(task_id, write))


def _told(message: Any) -> str:
    try:
        job = job_of(message.headers)
    except ValueError:
        job = None
    return "no job that can be told" if job is None else f"job {job[0]}"


def install(app: Celery) -> None:
    """Add the step to every consumer of the app."""
    app.steps["consumer"].add(RefusalStep)
