"""Builds the messages of jobs: Celery builds one of each template, and the others are copies of it.

A message is only a wake-up. It carries the arguments because Celery expects them there, and one header of
ours: the job's id and attempt. It carries neither `expires` nor an ETA: the row has both, and a worker that
has discarded a message as expired discards all later messages of that task id.

Celery takes longer to build a message than Redis to take it. But the messages of one task with the same
routing differ in their ids, arguments and custom headers alone.
"""

import ast
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from celery import Celery
from celery.utils.saferepr import saferepr
from kombu import Exchange, Queue
from kombu import serialization as kombu_serialization
from kombu.utils import json as kombu_json

from .. import serialization
from ..redaction import masked, shifted
from ..store import PendingMessage
from . import stored_options
from .headers import CONTENT_TYPE, SIGNED_CONTENT_TYPE, job_headers
from .publish_options import LEVELS_SHOWN
from .stored_options import declared

TEMPLATE_LIMIT = 1_000
"""Templates that are cached: callers may invent queue names without end."""

SERIALIZER, SIGNING_SERIALIZER = "jobhandle", "jobhandle-auth"
"""kombu's names for JSON and signed JSON with a content type that workers without `Jobs` reject."""


def register_serializers() -> None:
    """Register the encoders with kombu, without decoders: only the message guard of a worker reads them."""
    kombu_serialization.register(SERIALIZER, kombu_json.dumps, None, CONTENT_TYPE)
    kombu_serialization.register(SIGNING_SERIALIZER, _signed, None, SIGNED_CONTENT_TYPE)


def _signed(body: Any) -> Any:
    return kombu_serialization.dumps(body, serializer="auth")[2]


@dataclass(frozen=True, eq=False)
class MessageTemplate:
    """What the messages of one task with the same routing have in common."""

    headers: Mapping[str, Any]
    options: Mapping[str, Any]
    embed: str
    """What follows the arguments in the body, as JSON."""
    own_root: bool
    """True if each job is its own root: no task submitted it."""
    sensitive: Sequence[str | int]
    """Arguments that are masked where messages are displayed."""
    argsrepr: str | None
    kwargsrepr: str | None
    """Given by the caller; None: shown as Celery does."""
    levels: int
    """How deep arguments are shown."""


@dataclass(frozen=True)
class RenderedMessage:
    """A message: its template, and the fields that differ."""

    task: str
    body: str
    template: MessageTemplate
    task_id: str
    own_headers: Mapping[str, Any]

    @property
    def headers(self) -> dict[str, Any]:
        return {**self.template.headers, **self.own_headers}

    @property
    def options(self) -> dict[str, Any]:
        """The arguments for kombu's producer."""
        return {**self.template.options, "headers": self.headers, "correlation_id": self.task_id}

    @property
    def event(self) -> dict[str, Any]:
        """The fields of Celery's ``task-sent`` event."""
        headers, options = self.headers, self.template.options
        queue = next((queue.name for queue in options["declare"]), None)
        return {
            "uuid": self.task_id,
            "name": self.task,
            "args": headers["argsrepr"],
            "kwargs": headers["kwargsrepr"],
            **{name: headers[name] for name in ("root_id", "parent_id", "retries", "eta", "expires")},
            "queue": queue or options["routing_key"],
            "exchange": options["exchange"],
            "routing_key": options["routing_key"],
        }


class MessageBuilder:
    """Builds messages and caches their templates, for one process."""

    def __init__(self, app: Celery) -> None:
        self._app = app
        self._amqp: Any = app.amqp
        self._templates: dict[tuple[Any, ...], MessageTemplate] = {}
        # To read Celery's configuration takes as long as to build a small message.
        self._signs = app.conf.task_serializer == "auth"
        register_serializers()

    def build(self, job: PendingMessage) -> RenderedMessage:
        """Return the message of a job. That of a retry has a template of its own.

        No handler of Celery's publish signals is called: they were called at the submit, or in the task that
        asked for the retry.

        Raises:
            Exception: the row has a value from which Celery builds no message.
        """
        retry = serialization.decode(job.retry) if job.retry else None
        routing, tree, headers = stored_options.split(job.routing)
        if retry is None:
            template = self._template(job, routing)
            args_text, kwargs_text = job.args, job.kwargs
            args, kwargs = _decoded(job.args), _decoded(job.kwargs)
        else:
            template, headers = self._build_with_celery(job, routing, retry, headers), {}
            args, kwargs = retry["args"], retry["kwargs"]
            args_text, kwargs_text = kombu_json.dumps(args), kombu_json.dumps(kwargs)
        if not isinstance(args, list) or not isinstance(kwargs, dict):
            raise TypeError(f"job {job.job_id}: args must be a list and kwargs an object")
        body = f"[{args_text}, {kwargs_text}, {template.embed}]"
        return RenderedMessage(
            job.task,
            body,
            template,
            job.task_id,
            {**headers, **self._headers(job, template, args, kwargs), **_headers_of(tree)},
        )

    def _headers(
        self, job: PendingMessage, template: MessageTemplate, args: Sequence[Any], kwargs: Mapping[str, Any]
    ) -> dict[str, Any]:
        if template.sensitive:
            hidden = shifted(template.sensitive) if job.lacks_results else template.sensitive
            args, kwargs = masked(args, kwargs, hidden)
        amqp, levels = self._amqp, template.levels
        headers = {
            "id": job.task_id,
            "argsrepr": template.argsrepr or args_shown(args, amqp.argsrepr_maxsize, levels),
            # Flower shows and searches it (`kwargs:job_id=42`). The task does not receive it.
            "kwargsrepr": kwargs_shown(
                job.job_id, kwargs, template.kwargsrepr, amqp.kwargsrepr_maxsize, levels
            ),
            **job_headers(
                job.job_id,
                job.attempt,
                template.sensitive,
                again=job.publish_count > 0,
                **_place_in_tree(job),
            ),
        }
        if template.own_root:
            headers["root_id"] = job.task_id
        return headers

    def _template(self, job: PendingMessage, routing: str) -> MessageTemplate:
        key = job.task, job.queue, routing, job.priority, job.time_limit, job.soft_time_limit
        template = self._templates.get(key)
        if template is None:
            if len(self._templates) >= TEMPLATE_LIMIT:
                self._templates.clear()
            template = self._templates[key] = self._build_with_celery(job, routing, {})
        return template

    def _build_with_celery(
        self,
        job: PendingMessage,
        routing_json: str,
        retry: Mapping[str, Any],
        own_headers: Mapping[str, Any] = MappingProxyType({}),
    ) -> MessageTemplate:
        routing, options = serialization.decode(routing_json), retry.get("options", {})
        stamps = options.get("stamped_headers") or ()
        given = {
            "time_limit": job.time_limit,
            "soft_time_limit": job.soft_time_limit,
            **routing,
            **routing.get("stamps", {}),
            **options,
            **{name: options.get(name) for name in stamps},
            **retry.get("route", {}),
        }
        (headers, _, body, _) = self._amqp.as_task_v2(
            job.task_id,
            job.task,
            # The arguments differ from message to message.
            argsrepr="",
            kwargsrepr="",
            callbacks=given.get("link"),
            errbacks=given.get("link_error"),
            # None, as of Celery's `send_task`: the task of the worker decides.
            **{"ignore_result": None, **{name: given[name] for name in _BUILT_FROM if name in given}},
            **{name: given.get(name) for name in given.get("stamped_headers") or ()},
        )
        custom = {
            **retry.get("added_headers", {}),
            **routing.get("headers", {}),
            **own_headers,
            **(options.get("headers") or {}),
        }
        return MessageTemplate(
            headers={**headers, **custom},
            options=self._options(job, given),
            embed=kombu_json.dumps(body[2]),
            own_root=not given.get("root_id"),
            sensitive=routing.get("sensitive", ()),
            argsrepr=given.get("argsrepr"),
            kwargsrepr=given.get("kwargsrepr"),
            levels=given.get("levels", LEVELS_SHOWN),
        )

    def _options(self, job: PendingMessage, given: Mapping[str, Any]) -> dict[str, Any]:
        queue = None if job.queue is None else self._queue(job.queue, given.get("declare"))
        priority = given["priority"] if given.get("priority") is not None else job.priority
        optional = {
            "priority": priority,
            "compression": given.get("compression"),
            # Never pickle or yaml; a signed message is JSON inside.
            "serializer": SIGNING_SERIALIZER if self._signs else None,
        }
        return {
            "exchange": given.get("exchange", ""),
            "routing_key": given.get("routing_key", job.queue),
            "declare": [] if queue is None else [queue],
            "delivery_mode": given.get("delivery_mode") or self._app.conf.task_default_delivery_mode,
            "reply_to": given.get("reply_to") or "",
            **{name: value for name, value in optional.items() if value is not None},
        }

    def _queue(self, name: str, record: Mapping[str, Any] | None) -> Queue | None:
        """Return the queue to declare: as the submitter declares it, whatever this process knows of it."""
        if record is None:
            return None
        if record["name"] == name:
            return declared(record)
        queues: Mapping[str, Queue] = self._amqp.queues
        # `queues[name]` would create a missing queue.
        if dict.__contains__(queues, name):
            return queues[name]
        return Queue(name, Exchange(""), routing_key=name)


_BUILT_FROM = (
    *("retries", "chord", "chain", "group_id", "group_index", "root_id", "parent_id", "shadow"),
    *("time_limit", "soft_time_limit", "ignore_result", "replaced_task_nesting", "stamped_headers", "origin"),
)
"""Parameters of `AMQP.as_task_v2` that the row, or its retry, has values for."""


def _place_in_tree(job: PendingMessage) -> dict[str, Any]:
    """Return the fields of its header by which a worker treats a job with needs, or a member of a tree."""
    place: dict[str, Any] = {"needs": True} if job.lacks_results else {}
    if job.parent_id is not None:
        place["parent"] = job.parent_id
        if job.is_first:
            place["first"] = True
    return place


def _headers_of(tree: Mapping[str, Any]) -> dict[str, Any]:
    """Return the headers that say where in a canvas a task is."""
    return {"group" if name == "group_id" else name: value for name, value in tree.items()}


def _decoded(text: str) -> Any:
    # Most is plain JSON, and kombu's decoder for its own types is slow.
    if text == "{}":
        return {}
    return serialization.decode(text) if '"__type__"' in text else json.loads(text)


def args_shown(args: Sequence[Any], limit: int, levels: int = LEVELS_SHOWN) -> str:
    """Return what is shown of positional arguments: about `limit` characters, `levels` deep."""
    args = tuple(args)
    return repr(args) if _is_short(args, limit) else str(saferepr(args, limit, maxlevels=levels))


def _is_short(values: Sequence[Any], limit: int) -> bool:
    """Return True if Celery's slow `saferepr` would show the same as `repr`."""
    room = limit - 2
    for value in values:
        if type(value) is str:
            if not value.isprintable() or "'" in value or "\\" in value:
                return False
            room -= len(value) + 4
        elif value is None or type(value) is bool or (type(value) is int and abs(value) < 2**63):
            room -= 24
        else:
            return False
    return room > 0


def kwargs_shown(
    job_id: int, kwargs: Mapping[str, Any], given: str | None, limit: int, levels: int = LEVELS_SHOWN
) -> str:
    """Return what is shown of keyword arguments, after the job's id, so that Flower's search finds it.

    Flower parses Python literals only, and takes the last of two equal keys. What it could not parse, or
    would take for another job's id, becomes a string.
    """
    if given is None and "job_id" not in kwargs and _is_short([*kwargs, *kwargs.values()], limit):
        return repr({"job_id": job_id, **kwargs})
    shown = str(saferepr(dict(kwargs), limit, maxlevels=levels)) if given is None else given
    comma = "" if shown == "{}" else ", "
    combined = f"{{'job_id': {job_id}{comma}{shown.removeprefix('{')}"
    try:
        found = ast.literal_eval(combined) if shown.startswith("{") and "job_id" not in kwargs else {}
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        found = {}
    return combined if found.get("job_id") == job_id else repr({"job_id": job_id, "kwargs": shown})
