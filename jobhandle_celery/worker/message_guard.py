"""Checks a job's message before Celery decodes it, and drops what cannot be run here.

A job's message has a content type that no consumer accepts (see `broker.headers`). `guard_strategy` wraps
the strategy of every task. It passes on a copy of a valid message, with the content type that Celery knows:
the original may be returned to the broker, unchanged. The checks run before Celery makes a request. By then
a pickle would have been loaded, and JSON that is not a task's arguments, or is nested too deeply to be
pickled, would end the worker.

Celery logs a message that it cannot run in full, with its arguments. For an unknown task it also stores and
sends a failure under the message's task id. `RejectionStep` drops a job's message without quoting it: the
sweeper publishes another, perhaps to a worker that knows the task.
"""

import json
import logging
from collections.abc import Callable, Iterable
from copy import copy
from functools import partial
from typing import Any

from celery import Celery, bootsteps, signals
from celery.exceptions import InvalidTaskError
from kombu.exceptions import ContentDisallowed, DecodeError

from .. import celery_compat
from ..broker.headers import (
    CONTENT_TYPE,
    HEADER,
    PLAIN_CONTENT_TYPES,
    SIGNED_CONTENT_TYPE,
    job_of,
    readable_job_of,
)
from ..runtime import DeferredWrite, RedeliveredMessage, runtime_of
from ..serialization import is_nested_deeper
from ..store import MessageKey

logger = logging.getLogger(__name__)

MAX_DEPTH = 300
"""Levels of nesting that a worker takes: more than a submit (`serialization.MAX_DEPTH`), for older rows.

Celery pickles the decoded arguments for the pool's child; from some 500 levels on that is a RecursionError.
"""


class MessageRefused(InvalidTaskError):
    """A job's message that must not be run here; its text quotes nothing of the message."""


class TaskRefused(MessageRefused):
    """A job's message for a task whose own strategy, or own request, runs its body without the claim."""


def is_for_a_job(message: Any, body: Any = None) -> bool:
    """Return True if a message is marked as a job's, by a header, its content type or its body."""
    headers = message.headers
    return (
        (isinstance(headers, dict) and HEADER in headers)
        or message.content_type in (CONTENT_TYPE, SIGNED_CONTENT_TYPE)
        or (isinstance(body, dict) and HEADER in body)
    )


def guard_strategy(
    strategy: Callable[..., Any], task: Any, consumer: Any = None, plain: Callable[..., Any] | None = None
) -> Callable[..., Any]:
    """Put the checks of a job's message before the strategy of a task; `plain` is that of other messages.

    A message that was sent before, and not claimed, may have ended the worker that received it. In a worker
    it waits until that is noted in its row, so that such losses are counted (see `Housekeeping`).

    The strategy that is returned raises `MessageRefused` for a message that it does not accept, and
    `TaskRefused` if the task has a strategy of its own.
    """
    own = celery_compat.custom_strategy(task)
    plain = plain or strategy

    def handle(message: Any, body: Any, *args: Any, **kwargs: Any) -> Any:
        if not is_for_a_job(message, body):
            return plain(message, body, *args, **kwargs)
        if own is not None:
            raise TaskRefused(own)
        if consumer is not None and body is None and (key := _key_if_sent_before(message)) is not None:
            _accept_later(consumer, message, key, partial(accept, message, body, *args, **kwargs))
            return None
        return accept(message, body, *args, **kwargs)

    def accept(message: Any, body: Any, *args: Any, **kwargs: Any) -> Any:
        try:
            return strategy(_checked(message, body), body, *args, **kwargs)
        except (InvalidTaskError, ContentDisallowed, DecodeError):
            raise
        except Exception as error:
            raise MessageRefused(f"it cannot be read: {type(error).__name__}") from error

    return handle


def _key_if_sent_before(message: Any) -> MessageKey | None:
    """Return job id, task id and attempt of a message that was sent, or delivered, before."""
    job = readable_job_of(message.headers)
    if job is None:
        return None
    redelivered = (message.delivery_info or {}).get("redelivered") or message.headers.get("redelivered")
    if not redelivered and not message.headers[HEADER].get("again"):
        return None
    return job[0], str(message.headers.get("id")), job[1]


def _accept_later(consumer: Any, message: Any, key: MessageKey, accept: Callable[[], Any]) -> None:
    runtime, connection = runtime_of(consumer.app), consumer.connection

    def accept_now() -> None:
        if consumer.connection is not connection:
            return  # the broker delivers it again
        try:
            accept()
        except DecodeError as error:
            consumer.on_decode_error(message, error)
        except (InvalidTaskError, ContentDisallowed) as error:
            consumer.on_invalid_task(None, message, error)
        finally:
            me = runtime.current_worker()
            runtime.deferred_writes.put(
                DeferredWrite(*key[:2], lambda: runtime.store.recovery.clear_received([key], me))
            )

    drop = partial(message.reject_log_error, logger, consumer.connection_errors)
    runtime.redelivered.put(
        RedeliveredMessage(key, partial(consumer.call_soon, accept_now), partial(consumer.call_soon, drop))
    )


def _checked(message: Any, body: Any) -> Any:
    content_type = PLAIN_CONTENT_TYPES.get(message.content_type)
    if content_type is None or body is not None:  # protocol 1 has a body here
        raise MessageRefused(f"the type {message.content_type}")
    if job_of(message.headers) is None:
        raise MessageRefused("it names no job")
    opened = copy(message)
    opened.content_type = content_type
    signed = content_type == PLAIN_CONTENT_TYPES[SIGNED_CONTENT_TYPE]
    # A signed body is checked after its signature is verified, which decodes it.
    json_text = json.dumps(opened.payload, default=str) if signed else _text_of(message.body)
    if is_nested_deeper(json_text, MAX_DEPTH):
        raise MessageRefused(f"its arguments are nested deeper than {MAX_DEPTH} levels")
    # If the pool is busy, Celery pickles these in its event loop, where an error is not handled.
    if _is_nested_deeper([message.headers, message.properties], MAX_DEPTH):
        raise MessageRefused(f"its headers are nested deeper than {MAX_DEPTH} levels")
    match opened.payload:
        case [[*_], dict(), dict()]:
            return opened
    raise MessageRefused("no task's arguments")


def _is_nested_deeper(values: Iterable[Any], levels: int) -> bool:
    for _ in range(levels + 1):
        values = [
            inner
            for value in values
            if isinstance(value, (dict, list, tuple))
            for inner in (value.values() if isinstance(value, dict) else value)
        ]
        if not values:
            return False
    return True


def _text_of(body: Any) -> str:
    # The brackets of JSON are the same bytes in any encoding that kombu reads as UTF-8.
    return body if isinstance(body, str) else bytes(body).decode("latin-1")


class RejectionStep(bootsteps.Step):
    """Handles a job's messages that the consumer cannot turn into requests."""

    def create(self, parent: Any) -> None:
        """Replace the consumer's handlers, for a job's messages alone, before it reads them."""
        parent.on_unknown_task = _before(parent.on_unknown_task, unknown_task, parent)
        parent.on_unknown_message = _before(parent.on_unknown_message, malformed, parent)
        parent.on_invalid_task = _before(parent.on_invalid_task, malformed, parent)
        parent.on_decode_error = _on_decode_error(parent, parent.on_decode_error)


def _before(plain: Callable[..., None], ours: Callable[..., None], consumer: Any) -> Callable[..., None]:
    def refuse(body: Any, message: Any, *error: Exception) -> None:
        if is_for_a_job(message, body):
            ours(consumer, message, *error)
        else:
            plain(body, message, *error)

    return refuse


def _on_decode_error(consumer: Any, plain: Callable[[Any, Exception], None]) -> Callable[..., None]:
    refuse = _before(lambda _, message, error: plain(message, error), malformed, consumer)
    return lambda message, error: refuse(None, message, error)


def unknown_task(consumer: Any, message: Any, error: Exception) -> None:
    """Drop the message of a job whose task is not registered here, and return the job to Submitted."""
    logger.error(
        "%s: worker %s (namespace %s) does not know its task %s; dropped its message, the sweeper "
        "sends another; import the task's module here or, if two services share this queue, give each its "
        "own (task_default_queue)",
        _name_of(message),
        consumer.hostname,
        runtime_of(consumer.app).settings.namespace,
        message.headers.get("task"),
    )
    message.reject_log_error(logger, consumer.connection_errors)
    _send_back(consumer.app, message)
    signals.task_unknown.send(
        sender=consumer,
        message=message,
        exc=error,
        name=message.headers.get("task"),
        id=message.headers.get("id"),
    )


def malformed(consumer: Any, message: Any, error: Exception | None = None) -> None:
    """Drop a message that is marked as a job's and cannot be run here.

    If that is due to the task, and not to the message, the job returns to Submitted.
    """
    # By its type only: the text of another library's error may quote the message.
    reason = (
        str(error) if isinstance(error, MessageRefused) else type(error).__name__ if error else "no task's"
    )
    _log_refused(message, reason)
    message.reject_log_error(logger, consumer.connection_errors)
    if isinstance(error, TaskRefused):
        _send_back(consumer.app, message, reason)
    signals.task_rejected.send(sender=consumer, message=message, exc=error)


def refuse_request(request: Any, error: TaskRefused) -> None:
    """Refuse the message of a request that the consumer has already made."""
    _log_refused(request.message, str(error))
    request.on_reject(logger, request.connection_errors, False)
    request.acknowledged = True
    _send_back(request.app, request.message, str(error))


def _log_refused(message: Any, reason: str) -> None:
    logger.error("%s: refused its message (%s); the sweeper sends another", _name_of(message), reason)


def _send_back(app: Celery, message: Any, reason: str | None = None) -> None:
    runtime, job = runtime_of(app), readable_job_of(message.headers)
    if job is not None:
        task_id, task = str(message.headers.get("id")), str(message.headers.get("task"))
        write = partial(
            runtime.store.runs.send_back, job[0], task_id, job[1], task, runtime.current_worker(), reason
        )
        runtime.deferred_writes.put(DeferredWrite(job[0], task_id, write))


def _name_of(message: Any) -> str:
    job = readable_job_of(message.headers)
    return "a message that names no job" if job is None else f"job {job[0]}"


def install(app: Celery) -> None:
    """Add the step to the consumers of the app's workers."""
    app.steps["consumer"].add(RejectionStep)
