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

from celery import Celery, signals
from celery.utils.saferepr import saferepr
from kombu import Exchange, Queue, serialization
from kombu.utils import json as kombu_json

from . import codec
from .header import CONTENT_TYPE, SIGNED_CONTENT_TYPE, job_headers
from .sensitive import masked
from .store import Outgoing

MOST_KINDS = 1_000
"""Kinds that are remembered; a caller may make up queue names without end."""

SERIALIZER, SIGNING_SERIALIZER = "jobhandle", "jobhandle-auth"
"""kombu's names for JSON, and for signed JSON, under a content type that workers without `Jobs` reject."""


def register_serializers() -> None:
    """Register the encoders with kombu, without decoders: only the guard of our own workers reads them."""
    serialization.register(SERIALIZER, kombu_json.dumps, None, CONTENT_TYPE)
    serialization.register(SIGNING_SERIALIZER, _signed, None, SIGNED_CONTENT_TYPE)


def _signed(body: Any) -> Any:
    return serialization.dumps(body, serializer="auth")[2]


@dataclass(frozen=True, eq=False)
class Kind:
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


@dataclass(frozen=True)
class Ready:
    """A message that is a copy of its kind, but for what is its own."""

    task: str
    body: str
    kind: Kind
    task_id: str
    own: Mapping[str, Any]
    """Headers."""

    @property
    def options(self) -> dict[str, Any]:
        """What kombu's producer is to be called with."""
        headers = {**self.kind.headers, **self.own}
        return {**self.kind.options, "headers": headers, "correlation_id": self.task_id}


class Messages:
    """Builds messages, for one thread of one process at a time."""

    def __init__(self, app: Celery) -> None:
        self._app = app
        self._amqp = app.amqp
        self._kinds: dict[tuple[Any, ...], Kind] = {}
        # Each look at Celery's configuration costs as much as a small message.
        self._signs = app.conf.task_serializer == "auth"
        self._tells_sent = bool(app.conf.task_send_sent_event)
        register_serializers()

    @property
    def one_by_one(self) -> bool:
        """True if somebody wants to hear of each message when it has been sent, by signal or event."""
        return bool(self._tells_sent or signals.after_task_publish.receivers or signals.task_sent.receivers)

    def ready(self, one: Outgoing) -> Ready | None:
        """Return a message as a copy of its kind; None for one that Celery has to build itself.

        That is one with a task's retry, one that is signed, and any that a receiver of Celery's signals
        would look at, and perhaps change.
        """
        looked_at = self.one_by_one or signals.before_task_publish.receivers
        if one.retry is not None or self._signs or looked_at:
            return None
        kind = self._kind(one)
        args, kwargs = _decoded(one.args), _decoded(one.kwargs)
        if not isinstance(args, list) or not isinstance(kwargs, dict):
            raise TypeError(f"the arguments of job {one.job_id} are none")
        if kind.sensitive:
            args, kwargs = masked(args, kwargs, kind.sensitive)
        amqp = self._amqp
        own = {
            "id": one.task_id,
            "argsrepr": kind.args_shown or args_shown(args, amqp.argsrepr_maxsize),
            "kwargsrepr": kwargs_shown(one.job_id, kwargs, kind.kwargs_shown, amqp.kwargsrepr_maxsize),
            **job_headers(one.job_id, one.attempt, kind.sensitive),
        }
        if kind.own_root:
            own["root_id"] = one.task_id
        return Ready(one.task, f"[{one.args}, {one.kwargs}, {kind.rest}]", kind, one.task_id, own)

    def _kind(self, one: Outgoing) -> Kind:
        limits = one.time_limit, one.soft_time_limit
        key = one.task, one.queue, one.routing, one.priority, *limits, id(self._known(one.queue))
        kind = self._kinds.get(key)
        if kind is None:
            if len(self._kinds) >= MOST_KINDS:
                self._kinds.clear()
            kind = self._kinds[key] = self._new_kind(one)
        return kind

    def _new_kind(self, one: Outgoing) -> Kind:
        message, options = self.whole(one)
        seen = _Recorder()
        self._amqp.send_task_message(seen, one.task, message, **options)
        routing = codec.decode(one.routing)
        return Kind(
            headers=seen.options.pop("headers"),
            options=seen.options,
            rest=kombu_json.dumps(seen.body[2]),
            own_root=not routing.get("root_id"),
            sensitive=routing.get("sensitive", ()),
            args_shown=routing.get("argsrepr"),
            kwargs_shown=routing.get("kwargsrepr"),
        )

    def whole(self, one: Outgoing) -> tuple[Any, dict[str, Any]]:
        """Return a message as Celery builds it, and the options to send it with."""
        routing = codec.decode(one.routing)
        sensitive = routing.get("sensitive", ())
        retry = codec.decode(one.retry) or {}
        options = retry.get("options", {})
        args = retry["args"] if retry else codec.decode(one.args)
        kwargs = retry["kwargs"] if retry else codec.decode(one.kwargs)
        shown_args, shown_kwargs = masked(args, kwargs, sensitive)
        message = self._amqp.as_task_v2(
            one.task_id,
            one.task,
            args,
            kwargs,
            retries=options.get("retries", 0),
            callbacks=options.get("link"),
            errbacks=options.get("link_error"),
            chord=options.get("chord"),
            chain=options.get("chain"),
            group_id=options.get("group_id"),
            group_index=options.get("group_index"),
            root_id=options.get("root_id") or routing.get("root_id"),
            parent_id=options.get("parent_id") or routing.get("parent_id"),
            shadow=options.get("shadow") or routing.get("shadow"),
            time_limit=options.get("time_limit", one.time_limit),
            soft_time_limit=options.get("soft_time_limit", one.soft_time_limit),
            ignore_result=options.get("ignore_result", routing.get("ignore_result")),
            replaced_task_nesting=options.get("replaced_task_nesting", 0),
            stamped_headers=options.get("stamped_headers"),
            **{name: options.get(name) for name in options.get("stamped_headers") or ()},
            origin=options.get("origin"),
            # What Flower shows and searches: `kwargs:job_id=42`. The body does not receive it.
            argsrepr=routing.get("argsrepr") or args_shown(shown_args, self._amqp.argsrepr_maxsize),
            kwargsrepr=kwargs_shown(
                one.job_id, shown_kwargs, routing.get("kwargsrepr"), self._amqp.kwargsrepr_maxsize
            ),
            create_sent_event=self._tells_sent,
        )
        declared = routing.get("declare")
        queue = None if one.queue is None else self._queue(one.queue, declared)
        headers = {**routing.get("headers", {}), **(options.get("headers") or {})}
        return message, {
            "queue": queue,
            "exchange": routing.get("exchange"),
            "routing_key": routing.get("routing_key"),
            "priority": options.get("priority", one.priority),
            # Never pickle or yaml; a signed message is JSON inside.
            "serializer": SIGNING_SERIALIZER if self._signs else SERIALIZER,
            "headers": headers | job_headers(one.job_id, one.attempt, sensitive),
        }

    def _queue(self, name: str, declared: Mapping[str, Any] | None) -> Queue:
        known = self._known(name)
        if known is not None:
            return known
        if declared is None or declared["name"] != name:
            declared = {"name": name, "exchange": "", "type": "direct", "routing_key": name}
        return Queue(
            name,
            Exchange(declared["exchange"], declared["type"]),
            routing_key=declared["routing_key"],
            queue_arguments=declared.get("arguments"),
        )

    def _known(self, name: str | None) -> Queue | None:
        queues: Mapping[str, Queue] = self._amqp.queues
        # Asked so, for [] makes what it lacks.
        return queues[name] if name is not None and dict.__contains__(queues, name) else None


class _Recorder:
    """In the place of a producer: what Celery would send."""

    body: Any
    options: dict[str, Any]

    def publish(self, body: Any, **options: Any) -> None:
        self.body, self.options = body, options


def _decoded(text: str) -> Any:
    # Mostly plain JSON, which needs none of kombu's looking for its own types.
    if text == "{}":
        return {}
    return codec.decode(text) if '"__type__"' in text else json.loads(text)


def args_shown(args: Sequence[Any], limit: int) -> str:
    """Return what is shown of positional arguments, at most some `limit` characters."""
    args = tuple(args)
    return repr(args) if _is_short(args, limit) else str(saferepr(args, limit))


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


def kwargs_shown(job_id: int, kwargs: Mapping[str, Any], given: str | None, limit: int) -> str:
    """Return what is shown of the keyword arguments, the job's id before them, so that Flower finds it.

    Flower's search reads literals alone, and the last of two equal keys; what it could not read, or would
    read as another job's, goes into a string.
    """
    if given is None and "job_id" not in kwargs and _is_short([*kwargs, *kwargs.values()], limit):
        return repr({"job_id": job_id, **kwargs})
    shown = str(saferepr(dict(kwargs), limit)) if given is None else given
    comma = "" if shown == "{}" else ", "
    beside = f"{{'job_id': {job_id}{comma}{shown.removeprefix('{')}"
    try:
        found = ast.literal_eval(beside) if shown.startswith("{") and "job_id" not in kwargs else {}
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        found = {}
    return beside if found.get("job_id") == job_id else repr({"job_id": job_id, "kwargs": shown})
