"""What a worker checks of a job's message before Celery decodes it. May import request and below.

A job's message has a content type that no consumer accepts (see header). The guard stands before the strategy
of every task: what passes it gets the content type that Celery knows, in a copy, so that a broker that is
given the message back gets it as it was. A pickle would have run by the time that a request is made, and JSON
that is no task's arguments, or is nested too deep for a pickle, would end the worker. What is refused here is
dropped (see refusals); the sweep sends the job again.
"""

import json
import logging
from collections.abc import Callable
from copy import copy
from functools import partial
from typing import Any

from celery.exceptions import InvalidTaskError
from kombu.exceptions import ContentDisallowed, DecodeError

from .. import celery_compat, text
from ..broker.headers import CONTENT_TYPE, HEADER, PLAIN_CONTENT_TYPES, SIGNED_CONTENT_TYPE, job_of
from ..runtime import DeferredWrite, Suspect, runtime_of

logger = logging.getLogger(__name__)

DEEPEST = 300
"""Levels of nesting that a worker takes: more than a submit (`codec.DEEPEST`), for rows of earlier versions.

Celery pickles the decoded arguments for the pool's child; from some 500 levels on that is a RecursionError.
"""


class MessageRefused(InvalidTaskError):
    """A job's message that must not be run here."""

    @property
    def reason(self) -> str:
        """Why, without anything that the message held."""
        return str(self)


class StrategyRefused(MessageRefused):
    """A job's message for a task that takes messages by a strategy of its own, past the claim."""


def is_for_a_job(message: Any, body: Any = None) -> bool:
    """Say whether a message says that it is a job's, by a header, its content type or its body."""
    marked = any(isinstance(part, dict) and HEADER in part for part in (message.headers, body))
    return marked or message.content_type in (CONTENT_TYPE, SIGNED_CONTENT_TYPE)


def guarded_strategy(strategy: Callable[..., Any], task: Any, consumer: Any = None) -> Callable[..., Any]:
    """Put the checks of a job's message before the strategy of a task.

    A message that was sent before, and not claimed, may have ended the worker that took it. In a worker it
    waits until that is noted in its row, so that such losses are counted (see `Losing.take_up`).
    """
    own = celery_compat.custom_strategy(task)

    def handle(message: Any, body: Any, *args: Any, **kwargs: Any) -> Any:
        if not is_for_a_job(message, body):
            return strategy(message, body, *args, **kwargs)
        if own is not None:
            raise StrategyRefused(own)
        if consumer is not None and body is None and (key := _key_if_sent_before(message)) is not None:
            _take_later(consumer, message, key, partial(take, message, body, *args, **kwargs))
            return None
        return take(message, body, *args, **kwargs)

    def take(message: Any, body: Any, *args: Any, **kwargs: Any) -> Any:
        try:
            return strategy(_checked(message, body), body, *args, **kwargs)
        except (InvalidTaskError, ContentDisallowed, DecodeError):
            raise
        except Exception as error:
            raise MessageRefused(f"it cannot be read: {type(error).__name__}") from error

    return handle


def _key_if_sent_before(message: Any) -> tuple[int, str, int] | None:
    """Return job id, task id and attempt of a message that was sent, or delivered, before."""
    try:
        job = job_of(message.headers)
    except ValueError:
        return None
    if job is None:
        return None
    redelivered = (message.delivery_info or {}).get("redelivered") or message.headers.get("redelivered")
    if not redelivered and not message.headers[HEADER].get("again"):
        return None
    return job[0], str(message.headers.get("id")), job[1]


def _take_later(consumer: Any, message: Any, key: tuple[int, str, int], take: Callable[[], Any]) -> None:
    runtime, connection = runtime_of(consumer.app), consumer.connection

    def taken() -> None:
        if consumer.connection is not connection:
            return  # the broker delivers it again
        try:
            take()
        except DecodeError as error:
            consumer.on_decode_error(message, error)
        except (InvalidTaskError, ContentDisallowed) as error:
            consumer.on_invalid_task(None, message, error)
        finally:
            me = runtime.me()
            runtime.ends.put(DeferredWrite(key[1], lambda: runtime.store.put_down([key], me)))

    drop = partial(message.reject_log_error, logger, consumer.connection_errors)
    runtime.suspects.put(Suspect(key, partial(consumer.call_soon, taken), partial(consumer.call_soon, drop)))


def _checked(message: Any, body: Any) -> Any:
    content_type = PLAIN_CONTENT_TYPES.get(message.content_type)
    if content_type is None or body is not None:  # protocol 1 has a body here
        raise MessageRefused(f"the type {message.content_type}")
    if job_of(message.headers) is None:
        raise MessageRefused("it names no job")
    opened = copy(message)
    opened.content_type = content_type
    signed = content_type == PLAIN_CONTENT_TYPES[SIGNED_CONTENT_TYPE]
    # What is signed is looked at once its signature is verified, which decodes it.
    said = json.dumps(opened.payload, default=str) if signed else _text_of(message.body)
    if text.is_nested_deeper(said, DEEPEST):
        raise MessageRefused(f"its arguments are nested deeper than {DEEPEST} levels")
    match opened.payload:
        case [[*_], dict(), dict()]:
            return opened
    raise MessageRefused("no task's arguments")


def _text_of(body: Any) -> str:
    # The brackets of JSON are the same bytes in any encoding that kombu reads as UTF-8.
    return body if isinstance(body, str) else bytes(body).decode("latin-1")
