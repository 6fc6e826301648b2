"""What the row keeps of a task's retry for its next message. May import routing and below."""

from collections.abc import Mapping
from typing import Any

from celery.canvas import Signature

from . import publish_options, publish_recorder
from .routing import Routing, custom_headers, queue_name


def record_of(routing: Routing, signature: Signature[Any], request: Any) -> dict[str, Any]:
    """Return a retry's arguments and options, and its way if it is to go another one.

    Handlers of Celery's publish signals are called, in the context of the body that asks for the retry;
    headers of the submit win over what they add. The task's own ``apply_async`` is not called again.

    Raises:
        ValidationError: the queue may not be made, or an option is not kept.
    """
    given = {name: value for name, value in dict(signature.options).items() if value is not None}
    came: Mapping[str, Any] = request.delivery_info or {}
    publish_options.check_retry(given, request.id, came)
    record: dict[str, Any] = {
        "args": list(signature.args or ()),
        "kwargs": dict(signature.kwargs or {}),
        "options": {name: given[name] for name in publish_options.kept_of_retry(given)},
    }
    before, asked = _before(came), _asked(given, came)
    if not asked and not publish_recorder.is_observed():
        return record
    if not asked.keys() & {"queue", "exchange"}:
        asked = before | asked
    message = {
        name: value for name, value in given.items() if name not in ("queue", "task_id", *publish_options.WAY)
    }
    for name in came.keys() - {"priority"}:
        message.pop(name, None)
    name, arguments = str(signature.task), (record["args"], record["kwargs"])
    recorded = routing.published(None, name, *arguments, request.id, message | asked)
    if asked != before:
        way = routing.way_of(recorded)
        record["queue"] = way.queue
        record["way"] = {
            name: way.record[name] for name in ("declare", *publish_options.WAY) if name in way.record
        }
    added = custom_headers(recorded)
    record["added"] = {name: added[name] for name in added if name not in (given.get("headers") or {})}
    return record


def _before(came: Mapping[str, Any]) -> dict[str, Any]:
    """Return the way of the message that is retried as options, as `signature_from_request` does."""
    if came.get("exchange") == "" and came.get("routing_key"):
        return {"queue": came["routing_key"]}
    return {name: came[name] for name in ("exchange", "routing_key") if came.get(name)}


def _asked(given: Mapping[str, Any], came: Mapping[str, Any]) -> dict[str, Any]:
    """Return what was given to the retry of another way."""
    before = _before(came)
    asked = {
        name: given[name] for name in publish_options.WAY if name in given and given[name] != before.get(name)
    }
    if queue_name(given.get("queue")) not in (None, before.get("queue")):
        asked["queue"] = given["queue"]
    return asked
