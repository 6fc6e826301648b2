"""What the message of a job is: built by Celery once for its kind, and copied. May import store and below.

The message is only a wake-up. It carries the arguments because Celery wants them there, and in one header
of ours which job, and which attempt of it, it is for. It carries neither `expires` nor an ETA: the row has
both, and a worker that has discarded a message as expired discards all later ones of that task id.

Celery takes longer to build a message than Redis to take it. But the messages of one task on one way differ
in their ids and arguments alone; so Celery builds one of them, and the others are its copies.
"""

import ast
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from celery import Celery
from celery.utils.saferepr import saferepr
from kombu import Exchange, Queue
from kombu import serialization as kombu_serialization
from kombu.utils import json as kombu_json

from .. import serialization
from ..redaction import masked
from ..store import PendingMessage
from .headers import CONTENT_TYPE, SIGNED_CONTENT_TYPE, job_headers
from .publish_options import LEVELS_SHOWN
from .queue_declarations import declared, is_partial

MOST_KINDS = 1_000
"""Kinds that are remembered; a caller may make up queue names without end."""

SERIALIZER, SIGNING_SERIALIZER = "jobhandle", "jobhandle-auth"
"""kombu's names for JSON, and for signed JSON, under a content type that workers without `Jobs` reject."""


def register_serializers() -> None:
    """Register the encoders with kombu, without decoders: only the guard of our own workers reads them."""
    kombu_serialization.register(SERIALIZER, kombu_json.dumps, None, CONTENT_TYPE)
    kombu_serialization.register(SIGNING_SERIALIZER, _signed, None, SIGNED_CONTENT_TYPE)


def _signed(body: Any) -> Any:
    return kombu_serialization.dumps(body, serializer="auth")[2]


@dataclass(frozen=True, eq=False)
class MessageTemplate:
    """What the messages of one task on one way have in common."""

    headers: Mapping[str, Any]
    options: Mapping[str, Any]
    rest: str
    """What stands in the body after the arguments, as JSON."""
    own_root: bool
    """Each is the root of what it starts, unless whoever submitted it is."""
    sensitive: Sequence[str | int]
    args_shown: str | None
    kwargs_shown: str | None
    levels: int
    """How deep arguments are shown."""


@dataclass(frozen=True)
class RenderedMessage:
    """A message that is a copy of its kind, but for what is its own."""

    task: str
    body: str
    kind: MessageTemplate
    task_id: str
    own: Mapping[str, Any]
    """Headers."""

    @property
    def headers(self) -> dict[str, Any]:
        """All of them."""
        return {**self.kind.headers, **self.own}

    @property
    def options(self) -> dict[str, Any]:
        """What kombu's producer is to be called with."""
        return {**self.kind.options, "headers": self.headers, "correlation_id": self.task_id}

    @property
    def event(self) -> dict[str, Any]:
        """Celery's event of a task that was sent."""
        headers, options = self.headers, self.kind.options
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


class Messages:
    """Builds messages, for one thread of one process at a time."""

    def __init__(self, app: Celery) -> None:
        self._app = app
        self._amqp: Any = app.amqp
        self._kinds: dict[tuple[Any, ...], MessageTemplate] = {}
        # Each look at Celery's configuration costs as much as a small message.
        self._signs = app.conf.task_serializer == "auth"
        self.one_by_one = bool(app.conf.task_send_sent_event)
        """True if each message is followed by Celery's event `task-sent`."""
        register_serializers()

    def ready(self, one: PendingMessage) -> RenderedMessage:
        """Return the message of a job, as a copy of its kind; that of a retry is of its own kind.

        No handler of Celery's publish signals is called: those had their say at the submit, or in the body
        that asked for the retry.
        """
        retry = serialization.decode(one.retry) if one.retry else None
        kind = self._kind(one) if retry is None else self._new_kind(one, retry)
        if retry is None:
            args_text, kwargs_text = one.args, one.kwargs
            args, kwargs = _decoded(one.args), _decoded(one.kwargs)
        else:
            args, kwargs = retry["args"], retry["kwargs"]
            args_text, kwargs_text = kombu_json.dumps(args), kombu_json.dumps(kwargs)
        if not isinstance(args, list) or not isinstance(kwargs, dict):
            raise TypeError(f"the arguments of job {one.job_id} are none")
        if kind.sensitive:
            args, kwargs = masked(args, kwargs, kind.sensitive)
        amqp = self._amqp
        own = {
            "id": one.task_id,
            "argsrepr": kind.args_shown or args_shown(args, amqp.argsrepr_maxsize, kind.levels),
            # What Flower shows and searches: `kwargs:job_id=42`. The body does not receive it.
            "kwargsrepr": kwargs_shown(
                one.job_id, kwargs, kind.kwargs_shown, amqp.kwargsrepr_maxsize, kind.levels
            ),
            **job_headers(one.job_id, one.attempt, kind.sensitive, again=one.publish_count > 0),
        }
        if kind.own_root:
            own["root_id"] = one.task_id
        return RenderedMessage(one.task, f"[{args_text}, {kwargs_text}, {kind.rest}]", kind, one.task_id, own)

    def _kind(self, one: PendingMessage) -> MessageTemplate:
        key = one.task, one.queue, one.routing, one.priority, one.time_limit, one.soft_time_limit
        kind = self._kinds.get(key)
        if kind is None:
            if len(self._kinds) >= MOST_KINDS:
                self._kinds.clear()
            kind = self._kinds[key] = self._new_kind(one, {})
        return kind

    def _new_kind(self, one: PendingMessage, retry: Mapping[str, Any]) -> MessageTemplate:
        routing, options = serialization.decode(one.routing), retry.get("options", {})
        stamps = options.get("stamped_headers") or ()
        said = {
            "time_limit": one.time_limit,
            "soft_time_limit": one.soft_time_limit,
            **routing,
            **routing.get("stamps", {}),
            **options,
            **{name: options.get(name) for name in stamps},
            **retry.get("way", {}),
        }
        (headers, _, body, _) = self._amqp.as_task_v2(
            one.task_id,
            one.task,
            # The arguments, and what is shown of them, are each message's own.
            argsrepr="",
            kwargsrepr="",
            callbacks=said.get("link"),
            errbacks=said.get("link_error"),
            **{name: said[name] for name in _BUILT_FROM if name in said},
            **{name: said.get(name) for name in said.get("stamped_headers") or ()},
        )
        custom = {**retry.get("added", {}), **routing.get("headers", {}), **(options.get("headers") or {})}
        return MessageTemplate(
            headers={**headers, **custom},
            options=self._options(one, said),
            rest=kombu_json.dumps(body[2]),
            own_root=not said.get("root_id"),
            sensitive=routing.get("sensitive", ()),
            args_shown=said.get("argsrepr"),
            kwargs_shown=said.get("kwargsrepr"),
            levels=said.get("levels", LEVELS_SHOWN),
        )

    def _options(self, one: PendingMessage, said: Mapping[str, Any]) -> dict[str, Any]:
        exchange, routing_key = said.get("exchange"), said.get("routing_key")
        queue = None if one.queue is None else self._queue(one.queue, said.get("declare"))
        if exchange is None or routing_key is None:
            # A row of an older version: as Celery does when it publishes.
            kind = "direct" if queue is None else queue.exchange.type
            if (not exchange or not routing_key) and kind == "direct":
                exchange, routing_key = "", one.queue
            elif queue is not None:
                exchange, routing_key = exchange or queue.exchange.name, routing_key or queue.routing_key
        priority = said["priority"] if said.get("priority") is not None else one.priority
        optional = {
            "priority": priority,
            "compression": said.get("compression"),
            # Never pickle or yaml; a signed message is JSON inside.
            "serializer": SIGNING_SERIALIZER if self._signs else None,
        }
        return {
            "exchange": exchange,
            "routing_key": routing_key,
            "declare": [] if queue is None else [queue],
            "delivery_mode": said.get("delivery_mode") or self._app.conf.task_default_delivery_mode,
            "reply_to": said.get("reply_to") or "",
            **{name: value for name, value in optional.items() if value is not None},
        }

    def _queue(self, name: str, record: Mapping[str, Any] | None) -> Queue | None:
        """Return the queue to declare: as the submitter knew it, for this process may know another one."""
        if record is None:
            return None
        if record["name"] == name and not is_partial(record):
            return declared(record)
        queues: Mapping[str, Queue] = self._amqp.queues
        # Asked so, for [] makes what it lacks.
        if dict.__contains__(queues, name):
            return queues[name]
        return declared(record) if record["name"] == name else Queue(name, Exchange(""), routing_key=name)


_BUILT_FROM = (
    *("retries", "chord", "chain", "group_id", "group_index", "root_id", "parent_id", "shadow"),
    *("time_limit", "soft_time_limit", "ignore_result", "replaced_task_nesting", "stamped_headers", "origin"),
)
"""Parameters of `AMQP.as_task_v2` that the row, or its retry, has a value for."""


def _decoded(text: str) -> Any:
    # Mostly plain JSON, which needs none of kombu's looking for its own types.
    if text == "{}":
        return {}
    return serialization.decode(text) if '"__type__"' in text else json.loads(text)


def args_shown(args: Sequence[Any], limit: int, levels: int = LEVELS_SHOWN) -> str:
    """Return what is shown of positional arguments: some `limit` characters, so many levels deep."""
    args = tuple(args)
    return repr(args) if _is_short(args, limit) else str(saferepr(args, limit, maxlevels=levels))


def _is_short(values: Sequence[Any], limit: int) -> bool:
    """Say whether Celery's own way to show values, which is slow, would show the same as `repr`."""
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
    """Return what is shown of the keyword arguments, the job's id before them, so that Flower finds it.

    Flower's search reads literals alone, and the last of two equal keys; what it could not read, or would
    read as another job's, goes into a string.
    """
    if given is None and "job_id" not in kwargs and _is_short([*kwargs, *kwargs.values()], limit):
        return repr({"job_id": job_id, **kwargs})
    shown = str(saferepr(dict(kwargs), limit, maxlevels=levels)) if given is None else given
    comma = "" if shown == "{}" else ", "
    beside = f"{{'job_id': {job_id}{comma}{shown.removeprefix('{')}"
    try:
        found = ast.literal_eval(beside) if shown.startswith("{") and "job_id" not in kwargs else {}
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        found = {}
    return beside if found.get("job_id") == job_id else repr({"job_id": job_id, "kwargs": shown})
