"""Decides what becomes of each option of Celery's publishing in the message of a job.

An option of a signature, a task, a route or a handler that is in none of these sets is refused by name,
before anything is written.
"""

from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Any

from kombu import Exchange
from kombu.compression import get_encoder
from kombu.entity import maybe_delivery_mode

from .. import validation
from ..errors import ValidationError
from .dry_run import OWN_OPTIONS, UnsentMessage

FIELDS = frozenset({"queue", "priority", "countdown", "eta", "expires", "time_limit", "soft_time_limit"})
"""Kept in columns of the row. The message carries none of the times."""

ROUTE = frozenset({"exchange", "exchange_type", "routing_key", "delivery_mode", "compression"})
"""Kept in the row as Celery resolves them at the submit."""

DESCRIPTION = frozenset(
    {"headers", "shadow", "ignore_result", "argsrepr", "kwargsrepr", "reply_to", "stamped_headers"}
)
"""Kept in the row as they are given."""

CANVAS = frozenset({"link", "link_error", "chord", "chain", "group_id", "group_index"})
"""Refused unless empty: a job is one task."""

_IN_A_CANVAS = "none: submit a whole chain, group or chord (celery.chain, celery.group, celery.chord)"
_INSTEAD = {
    "link": "a list of signatures, of a signature that is submitted",
    "link_error": "no errback: submit Job(task=..., after=[job_id], when='failed') as well",
    **dict.fromkeys(("chord", "chain", "group_id", "group_index"), _IN_A_CANVAS),
}

TREE = ("parent_id", "root_id", "group_id", "group_index")
"""Kept in the row for the member of a canvas, as this library gives them to Celery."""

LEVELS_SHOWN = 3
"""How deep arguments are shown: the default of `task_repr_maxlevels`."""

SIGNATURE = FIELDS | ROUTE | DESCRIPTION

OF_JOB = OWN_OPTIONS
"""Fields of a `Job` that a signature, a task's own ``apply_async`` and its attributes may give, too."""

_KNOWN = SIGNATURE | OF_JOB | CANVAS

_PLACED = {"task_id", "name", "args", "kwargs", "callbacks", "errbacks", "create_sent_event"}
_EXPECTED = {"declare", "correlation_id", "retry", "retry_policy", "timeout", "confirm_timeout"}
"""Options that Celery itself passes to kombu's producer."""


_TEXT: tuple[tuple[type, ...], str] = (str,), "text"
_TYPES = {
    **dict.fromkeys(("shadow", "routing_key", "exchange_type", "argsrepr", "kwargsrepr", "reply_to"), _TEXT),
    "exchange": ((str, Exchange), "text, or an Exchange of kombu"),
    "ignore_result": ((bool,), "True or False"),
}
"""The types of options that nothing else checks before the row is written, and how an error names them."""


def check_given(options: Mapping[str, Any]) -> None:
    """Refuse an option of a signature that a job does not keep, or whose value is of a wrong type.

    Raises:
        ValidationError: names the option.
    """
    stamps = stamped_headers(options)
    for name, value in options.items():
        if name in CANVAS and value:
            raise ValidationError(name, value, _INSTEAD[name])
        if name not in _KNOWN and name not in stamps:
            raise ValidationError(name, value, f"the options {', '.join(sorted(_KNOWN - CANVAS))}")
        if name in _TYPES and not isinstance(value, _TYPES[name][0]):
            # By its type alone: what is shown in place of arguments may quote sensitive ones.
            raise ValidationError(name, type(value), _TYPES[name][1])


def stamped_headers(options: Mapping[str, Any]) -> list[str]:
    """Return the names of the options that are stamps.

    Raises:
        ValidationError: `stamped_headers` is no list of names.
    """
    names = options.get("stamped_headers") or ()
    if not isinstance(names, (list, tuple, set, frozenset)) or not all(isinstance(it, str) for it in names):
        raise ValidationError("stamped_headers", names, "a list of names of headers")
    return list(names)


def check_built(message: UnsentMessage, serializer: str, asked: Mapping[str, Any]) -> None:
    """Refuse an option that a task, a route or a handler adds to a message and a job does not keep.

    A job's message is JSON, whatever the serializer of the configuration is. `asked` are the options that
    Celery was called with.

    Raises:
        ValidationError: names the option.
    """
    arguments, options = message.arguments, message.options
    stamps = arguments.get("stamped_headers") or ()
    kept = SIGNATURE | {name for name in ("expiration",) if arguments.get("expires") is not None}
    placed = {*_PLACED, "root_id", "parent_id", *stamps, *(name for name in TREE if name in asked)}
    for name, value in arguments.items():
        if value and name not in kept | placed:
            raise _unkept(name, value)
    for name, value in {**message.published, **options}.items():
        if value is None or (name == "serializer" and value in ("json", "auth", serializer)):
            continue
        if name in kept or (name in _EXPECTED and options.get(name) is None):
            continue
        raise _unkept(name, value)
    for given, name in (("callbacks", "link"), ("errbacks", "link_error")):
        if arguments.get(given):
            raise ValidationError(name, arguments[given], "one task without callbacks, chord or chain")


_RETRY = ROUTE | DESCRIPTION | {"queue", "priority", "time_limit", "soft_time_limit"}
_OF_A_REQUEST = {
    *("root_id", "parent_id", "group_id", "group_index", "chord", "chain", "link", "link_error"),
    *("retries", "replaced_task_nesting", "origin"),
}
"""Options that `Task.signature_from_request` copies from the message that is retried."""


def kept_of_retry(given: Mapping[str, Any]) -> set[str]:
    """Return the options of a retry that its message keeps, without those of its route.

    Raises:
        ValidationError: `stamped_headers` is no list of names.
    """
    return given.keys() & (((_RETRY | _OF_A_REQUEST) - ROUTE - {"queue"}) | {*stamped_headers(given)})


def check_retry(given: Mapping[str, Any], request: Any) -> None:
    """Refuse an option of a retry that a job does not keep. Celery copies some of the request's.

    Raises:
        ValidationError: names the option.
    """
    task_id, delivery = request.id, request.delivery_info or {}
    known = kept_of_retry(given) | _RETRY | {"countdown", "eta"}
    for name, value in given.items():
        if name in known or (name in delivery and delivery[name] == value):
            continue
        if (name == "task_id" and value == task_id) or (name == "serializer" and value in ("json", "auth")):
            continue
        accepted = "not given to retry(): a job does not keep it"
        if name == "expires":
            accepted = (
                "not given to retry(): that of a job is for its first start; check the time in the body"
            )
        raise ValidationError(name, value, accepted)


def _unkept(name: str, value: Any) -> ValidationError:
    if name == "serializer":
        return ValidationError(
            name, value, "'json', 'auth', or that of the configuration; the message is JSON"
        )
    return ValidationError(name, value, "not set by the task, its route or a handler: a job does not keep it")


def parse_moment(field: str, value: Any) -> datetime | timedelta | None:
    """Return a moment that an option of Celery gives as seconds, a datetime or ISO text.

    Raises:
        ValidationError: it is none of these.
    """
    if value is None:
        return None
    accepted = "seconds, or an aware datetime"
    if isinstance(value, str):
        try:
            value = datetime.fromisoformat(value)
        except ValueError:
            raise ValidationError(field, value, accepted) from None
    if isinstance(value, datetime):
        return validation.moment(field, value)
    given = validation.duration(value)
    if given is None:
        raise ValidationError(field, value, accepted)
    return validation.moment(field, given)


def delivery_mode(given: Any) -> int:
    """Return a delivery mode as a number; that of persistent messages if none is given."""
    try:
        mode: int | None = maybe_delivery_mode(given)
        return mode or 2
    except (KeyError, TypeError, ValueError):
        raise ValidationError("delivery_mode", given, "1, 2, 'transient' or 'persistent'") from None


def compression(given: Any) -> str | None:
    """Check the name of a compression; None for None."""
    if given is None:
        return None
    try:
        get_encoder(given)
    except KeyError:
        raise ValidationError("compression", given, "a compression that kombu has here") from None
    return str(given)
