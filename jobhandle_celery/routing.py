"""What a caller gives, in Celery's terms, and where Celery would send it. May import checks and below.

A signature becomes a `Job`; a Job's queue, exchange and priority are resolved once, at its submit; and what a
task's retry asks for is reduced to what its next message needs.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import cached_property
from typing import Any

from celery import Celery
from celery.app.routes import MapRoute
from celery.canvas import Signature
from celery.exceptions import QueueNotFound
from celery.utils.abstract import CallableSignature
from kombu import Exchange, Queue

from . import checks, codec, task_checks
from .durations import duration
from .errors import ApiUsageError, ValidationError, shown
from .header import HEADER
from .model import Job
from .sensitive import HIDDEN, resolved

_SIGNATURE_OPTIONS = {
    "queue",
    "exchange",
    "routing_key",
    "priority",
    "countdown",
    "eta",
    "expires",
    "time_limit",
    "soft_time_limit",
    "shadow",
    "headers",
    "ignore_result",
    "argsrepr",
    "kwargsrepr",
    "sensitive",
}
_DIRECTIONS = ("queue", "priority", "exchange", "routing_key")
_KEPT = ("headers", "ignore_result", "argsrepr", "kwargsrepr")
_CANVAS_TASKS = {
    "celery.chain": "chain",
    "celery.group": "group",
    "celery.chord": "chord",
    "celery.chunks": "chunks",
}
MOST_WAYS = 1_000
"""Ways that are remembered; a caller may make up queue names without end."""

_CANVAS_OPTIONS = {"link", "link_error", "chord", "chain", "group_id"}


def as_job(given: object) -> tuple[Job, dict[str, Any]]:
    """Return a Job, and the further message options, of what a caller submitted.

    Raises:
        ApiUsageError: it is neither a Job nor a Celery signature.
        ValidationError: a chain, group, chord or callback, or an option that a job does not have.
    """
    if isinstance(given, Job):
        return given, {}
    if not isinstance(given, (dict, Mapping)) or not isinstance(given, CallableSignature):
        raise ApiUsageError(f"{shown(given)} is neither a Job nor a Celery signature (a task's .s(...))")
    canvas = given.get("subtask_type") or _CANVAS_TASKS.get(str(given.get("task")))
    if canvas:
        raise ValidationError("job", given.get("task"), f"one task; a {canvas} cannot be a job yet")
    options = {name: value for name, value in dict(given.get("options") or {}).items() if value is not None}
    for name, value in options.items():
        if name in _CANVAS_OPTIONS and value:
            raise ValidationError(name, value, "one task without callbacks, chord or chain")
        if name not in _SIGNATURE_OPTIONS | _CANVAS_OPTIONS:
            raise ValidationError(name, value, f"the options {', '.join(sorted(_SIGNATURE_OPTIONS))}")
    job = Job(
        task=given["task"],
        args=tuple(given.get("args") or ()),
        kwargs=dict(given.get("kwargs") or {}),
        scheduled_for=_moment("countdown", options.pop("countdown", None))
        or _moment("eta", options.pop("eta", None)),
        expires=_moment("expires", options.pop("expires", None)),
        **{
            name: options.pop(name)
            for name in ("queue", "priority", "time_limit", "soft_time_limit", "sensitive")
            if name in options
        },
    )
    options.pop("eta", None)
    return job, {name: value for name, value in options.items() if name in _SIGNATURE_OPTIONS}


def _moment(field: str, value: Any) -> datetime | timedelta | None:
    """Return a moment as Celery's options give it: seconds, a datetime, or its text."""
    accepted = "seconds, or an aware datetime"
    if isinstance(value, str):
        try:
            value = datetime.fromisoformat(value)
        except ValueError:
            raise ValidationError(field, value, accepted) from None
    if value is None or isinstance(value, datetime):
        return checks.moment(field, value)
    given = duration(value)
    if given is None:
        raise ValidationError(field, value, accepted)
    return checks.moment(field, given)


@dataclass(frozen=True)
class _Way:
    """Where the messages of a task go, whatever their arguments are."""

    queue: str | None
    priority: int | None
    expires: Any
    record: Mapping[str, Any]
    text: str
    """The record as JSON, for a job that adds nothing to it."""


@dataclass(frozen=True)
class Routed:
    """A job's arguments as its task takes them, and where its messages go."""

    args: list[Any]
    kwargs: dict[str, Any]
    sensitive: list[str | int]
    queue: str | None
    priority: int | None
    expires: datetime | timedelta | None
    text: str
    """What a publisher has to know, as JSON."""


class Routing:
    """Where the jobs of one app go."""

    def __init__(self, app: Celery) -> None:
        self._app = app
        self._router: Any = None
        self._ways: dict[tuple[Any, ...], _Way] = {}

    @cached_property
    def _amqp(self) -> Any:
        return self._app.amqp  # which costs a lock each time

    def route(self, job: Job, options: Mapping[str, Any]) -> Routed:
        """Fill in what the task and Celery's routing say: the queue, the priority, the expiry.

        The routing is resolved now and kept in the row, so that whoever publishes the job again, on
        another machine, needs nothing of this process's configuration.

        Raises:
            ValidationError: the queue is not among `task_queues` and may not be made, or the arguments do
                not fit the signature of a task that is registered here.
        """
        task: Any = self._app.tasks.get(job.task)
        args, kwargs = list(job.args), dict(job.kwargs)
        sensitive = list(job.sensitive)
        if task is not None:
            sensitive += checks.sensitive(getattr(task, "sensitive", ()))
            args, kwargs = _checked(task, args, kwargs, hide=bool(sensitive))
        elif self._app.conf.task_always_eager:
            raise ValidationError("task", job.task, "a task of this app, where task_always_eager is set")
        way = self._way(job, options, args, kwargs, task)
        if sensitive:
            sensitive = resolved(sensitive, getattr(task, "run", None), args)
        shadow = options.get("shadow") or (task and task.shadow_name(args, kwargs, dict(options)))
        further: dict[str, Any] = {name: options[name] for name in _KEPT if name in options}
        if shadow:
            further["shadow"] = shadow
        if sensitive:
            further["sensitive"] = sensitive
        parent = self._app.current_worker_task
        if parent and parent.request.id:
            further |= {
                "parent_id": parent.request.id,
                "root_id": parent.request.root_id or parent.request.id,
            }
        return Routed(
            args,
            kwargs,
            sensitive,
            way.queue,
            way.priority,
            _moment("expires", way.expires) if job.expires is None else job.expires,
            codec.encode_given("options", {**way.record, **further}) if further else way.text,
        )

    def _way(self, job: Job, options: Mapping[str, Any], args: Any, kwargs: Any, task: Any) -> _Way:
        router: Any = self._amqp.router
        if router is not self._router:
            self._router, self._ways = router, {}
        given = {"queue": job.queue, "priority": job.priority, **options}
        key = (job.task, task is None, *(given.get(name) for name in _DIRECTIONS))
        # A route that is a function may look at the arguments.
        known = all(isinstance(route, MapRoute) for route in router.routes) and all(
            one is None or type(one) in (str, int) for one in key[2:]
        )
        way = self._ways.get(key) if known else None
        if way is None:
            way = self._new_way(job, given, args, kwargs, task)
            if known and len(self._ways) < MOST_WAYS:
                self._ways[key] = way
        return way

    def _new_way(self, job: Job, given: Mapping[str, Any], args: Any, kwargs: Any, task: Any) -> _Way:
        directions = {name: given[name] for name in _DIRECTIONS if given.get(name) is not None}
        if task is not None and (strategy := task_checks.own_strategy(task)):
            raise ValidationError("task", job.task, f"a task that Celery's default strategy runs; {strategy}")
        own = {} if task is None else task._get_exec_options()
        defaults = {name: value for name, value in own.items() if value is not None}
        try:
            routed = self._amqp.router.route(dict(defaults, **directions), job.task, args, kwargs, task)
            queue = routed.get("queue")
            if isinstance(queue, str):
                queue = self._amqp.queues[queue]
        except (QueueNotFound, KeyError) as error:
            raise ValidationError("queue", job.queue, f"a queue that task_queues has ({error})") from None
        if queue is None and routed.get("exchange") is None:
            queue = self._amqp.default_queue
        record = {
            "exchange": _name(routed.get("exchange")),
            "routing_key": routed.get("routing_key"),
            "declare": None if queue is None else _declaration(queue),
        }
        record = {name: value for name, value in record.items() if value is not None}
        return _Way(
            None if queue is None else queue.name,
            routed.get("priority"),
            defaults.get("expires"),
            record,
            codec.encode_given("options", record),
        )


def _checked(
    task: Any, args: list[Any], kwargs: dict[str, Any], *, hide: bool
) -> tuple[list[Any], dict[str, Any]]:
    dump = getattr(task, "_dump_pydantic_arguments", None)  # from Celery 5.7 on
    if dump is not None:
        args, kwargs = dump(args, kwargs)
    if task.typing and hasattr(task, "__header__"):
        try:
            task.__header__(*args, **kwargs)
        except TypeError as error:
            raise ValidationError(
                "args", HIDDEN if hide else (args, kwargs), f"what {task.name} takes ({error})"
            ) from None
    return list(args), dict(kwargs)


def _declaration(queue: Queue) -> dict[str, Any]:
    return {
        "name": queue.name,
        "exchange": queue.exchange.name,
        "type": queue.exchange.type,
        "routing_key": queue.routing_key,
        "arguments": queue.queue_arguments,
    }


def _name(exchange: Any) -> str | None:
    return exchange.name if isinstance(exchange, Exchange) else exchange


def signature_record(signature: Signature) -> dict[str, Any]:
    """Return what of a retry's signature its next message needs; its times and our header are the row's."""
    options = {
        name: value
        for name, value in dict(signature.options).items()
        if name not in ("countdown", "eta", "expires", "task_id", "exchange", "routing_key", "redelivered")
        and value is not None
    }
    headers = {name: value for name, value in (options.pop("headers", None) or {}).items() if name != HEADER}
    queue = options.pop("queue", None)
    return {
        "args": list(signature.args or ()),
        "kwargs": dict(signature.kwargs or {}),
        "options": {**options, **({"headers": headers} if headers else {})},
        "queue": queue.name if isinstance(queue, Queue) else queue,
    }
