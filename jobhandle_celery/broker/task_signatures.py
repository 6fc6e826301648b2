"""Translates Celery's task signatures: a submitted one into a `Job`, a retry's into what the row stores."""

from collections.abc import Mapping
from typing import Any

from celery.canvas import Signature
from celery.utils.abstract import CallableSignature
from kombu import Queue

from ..errors import ApiUsageError, shown
from ..models import Job
from . import publish_options
from .dry_run import has_signal_handlers
from .headers import custom_headers
from .publish_options import OF_JOB, ROUTE, parse_moment
from .routing import Routing
from .signatures import ROUTE_NAME

MAPS = ("celery.map", "celery.starmap")
"""Tasks of Celery that apply another one to each element of an iterable, which may be lazy."""

_COPIED = ("queue", "priority", "time_limit", "soft_time_limit", "headers", *OF_JOB)
"""Options that are fields of a `Job` of the same name."""


def as_job(given: object) -> tuple[Job, dict[str, Any]]:
    """Return a Job, and the further message options, of one task that a caller submits.

    Raises:
        ApiUsageError: it is neither a Job nor a Celery signature.
        ValidationError: it has a callback, or an option that a job does not keep.
    """
    if isinstance(given, Job):
        return given, {}
    if not isinstance(given, (dict, Mapping)) or not isinstance(given, CallableSignature):
        raise ApiUsageError(f"{shown(given)} is neither a Job nor a Celery signature (a task's .s(...))")
    job, further = task_job(given)
    if type(given).__name__ in ("xmap", "xstarmap"):
        # As its `apply_async` does. Celery clones one in a canvas, and routes it by its own name.
        further["route_name"] = given["kwargs"]["task"]["task"]
    return job, further


def task_job(signature: Mapping[str, Any]) -> tuple[Job, dict[str, Any]]:
    """Return a Job, and the further message options, of the signature of a task.

    Raises:
        ValidationError: it has an option that a job does not keep.
    """
    further = {name: value for name, value in (signature.get("options") or {}).items() if value is not None}
    kwargs = signature.get("kwargs") or {}
    if signature["task"] in MAPS and not isinstance(kwargs.get("it"), (list, tuple)):
        kwargs = {**kwargs, "it": list(kwargs.get("it") or ())}
    # Most members of a canvas have no options.
    fields = _take_fields(further) if further else {}
    job = Job(task=signature["task"], args=signature.get("args") or (), kwargs=kwargs, **fields)
    if ROUTE_NAME in signature:
        further["route_name"] = signature[ROUTE_NAME]
    return job, further


def _take_fields(options: dict[str, Any]) -> dict[str, Any]:
    """Remove from options what are fields of a `Job`, and return these."""
    publish_options.check_given(options)
    for name in publish_options.CANVAS & options.keys():
        del options[name]
    countdown = parse_moment("countdown", options.pop("countdown", None))
    eta = options.pop("eta", None)
    fields = {name: options.pop(name) for name in _COPIED if name in options}
    fields["scheduled_for"] = countdown or parse_moment("eta", eta)
    fields["expires"] = parse_moment("expires", options.pop("expires", None))
    return fields


def retry_record(routing: Routing, signature: Signature[Any], request: Any) -> dict[str, Any]:
    """Return a retry's arguments and options, and its route if that differs from the message's.

    Handlers of Celery's publish signals run in the context of the task that asks for the retry. Headers of
    the submit take precedence over what they add. The task's own ``apply_async`` is not called again.

    Raises:
        ValidationError: the queue may not be created, or a job does not keep an option.
    """
    given = {name: value for name, value in dict(signature.options).items() if value is not None}
    delivery: Mapping[str, Any] = request.delivery_info or {}
    publish_options.check_retry(given, request)
    record: dict[str, Any] = {
        "args": list(signature.args or ()),
        "kwargs": dict(signature.kwargs or {}),
        "options": {name: given[name] for name in publish_options.kept_of_retry(given)},
    }
    before = _route_of_message(delivery)
    asked = _new_route(given, before)
    if not asked and not has_signal_handlers():
        return record
    if not asked.keys() & {"queue", "exchange"}:
        asked = before | asked
    unrouted = {"queue", "task_id", *ROUTE, *(delivery.keys() - {"priority"})}
    options = {name: value for name, value in given.items() if name not in unrouted}
    name, arguments = str(signature.task), (record["args"], record["kwargs"])
    message = routing.dry_run.publish(None, name, *arguments, request.id, options | asked)
    if asked != before:
        route = routing.route_of(message)
        record["queue"] = route.queue
        record["route"] = {name: route.options[name] for name in ("declare", *ROUTE) if name in route.options}
    added = custom_headers(message)
    record["added_headers"] = {
        name: added[name] for name in added if name not in (given.get("headers") or {})
    }
    return record


def _route_of_message(delivery: Mapping[str, Any]) -> dict[str, Any]:
    """Return the route of the message that is retried as options, as `signature_from_request` does."""
    if delivery.get("exchange") == "" and delivery.get("routing_key"):
        return {"queue": delivery["routing_key"]}
    return {name: delivery[name] for name in ("exchange", "routing_key") if delivery.get(name)}


def _new_route(given: Mapping[str, Any], before: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options of a retry that give it another route than the message had."""
    asked = {name: given[name] for name in ROUTE if name in given and given[name] != before.get(name)}
    queue = given.get("queue")
    if (queue.name if isinstance(queue, Queue) else queue) not in (None, before.get("queue")):
        asked["queue"] = queue
    return asked
