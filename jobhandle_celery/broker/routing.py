"""Where Celery would send a job, and with what, resolved at its submit. May import signatures and below.

A task on one way (queue, exchange, priority, …) is resolved once and remembered, unless code that is not
Celery's own has a say in each message: then each job is published to a recorder.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import cached_property
from typing import Any

from celery import Celery
from celery.app.routes import MapRoute
from celery.exceptions import QueueNotFound
from celery.utils.saferepr import saferepr
from kombu import Exchange, Queue
from kombu.compression import get_encoder
from kombu.entity import maybe_delivery_mode
from kombu.serialization import prepare_accept_content

from .. import celery_compat, serialization, validation
from ..errors import ConfigurationError, ValidationError
from ..models import CheckedJob
from ..redaction import HIDDEN, masked, resolved
from . import publish_options, publish_recorder
from .headers import HEADER
from .queue_declarations import described
from .signatures import moment_of

_LIMITS = ("time_limit", "soft_time_limit")
_DIRECTIONS = ("queue", "priority", *sorted(publish_options.WAY))
_KEPT = ("headers", "ignore_result", "argsrepr", "kwargsrepr", "reply_to")
_NAMED = ("argsrepr", "kwargsrepr", "root_id", "parent_id", "shadow")
"""Headers of Celery's that a handler may have changed, and that are not among the custom ones in a row."""
_NEVER = {"id", "task", "eta", "expires", "retries"}
"""Headers that say which task a message is of, or when: no handler or caller sets them for a job."""

MOST_WAYS = 1_000
"""Ways that are remembered; a caller may make up queue names without end."""


@dataclass(frozen=True)
class Way:
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
    scheduled_for: datetime | timedelta | None
    expires: datetime | timedelta | None
    text: str
    """What a publisher has to know, as JSON."""


class Routing:
    """Where the jobs of one app go."""

    def __init__(self, app: Celery) -> None:
        self._app = app
        self._recording = publish_recorder.Recording(app)
        self._router: Any = None
        self._ways: dict[tuple[Any, ...], Way] = {}

    @cached_property
    def _amqp(self) -> Any:
        return self._app.amqp  # which costs a lock each time

    def route(self, job: CheckedJob, given: Mapping[str, Any], task_id: str) -> Routed:
        """Resolve what Celery, the task and the handlers of publish signals say about a job's messages.

        All of it is kept in the row, so that a publisher on another machine needs
        nothing of this process's configuration or context.

        Raises:
            ValidationError: the queue is not among `task_queues` and may not be made, an option is not kept,
                the arguments do not fit the signature of a task that is registered here, or its own
                ``apply_async`` sends nothing.
            ConfigurationError: the app is configured so that its workers take no job.
        """
        task: Any = self._app.tasks.get(job.task)
        args, kwargs = list(job.args), dict(job.kwargs)
        sensitive = list(job.sensitive)
        if task is not None:
            sensitive += validation.sensitive(getattr(task, "sensitive", ()))
            args, kwargs = _checked(task, args, kwargs, hide=bool(sensitive))
        elif self._app.conf.task_always_eager:
            raise ValidationError("task", job.task, "a task of this app, where task_always_eager is set")
        if publish_recorder.is_observed() or not celery_compat.is_published_by_celery(self._app, task):
            return self._route_by_publishing(job, given, task, task_id, sensitive)
        way = self._way(job, given, args, kwargs, task, task_id)
        if sensitive:
            sensitive = resolved(sensitive, getattr(task, "run", None), args)
        further: dict[str, Any] = {name: given[name] for name in _KEPT if name in given}
        shadow = given.get("shadow") or (task and task.shadow_name(args, kwargs, dict(given)))
        if shadow:
            further["shadow"] = shadow
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
            job.scheduled_for,
            moment_of("expires", way.expires) if job.expires is None else job.expires,
            _text(way, {**further, **_stamps(given)}, sensitive),
        )

    def _route_by_publishing(
        self, job: CheckedJob, given: Mapping[str, Any], task: Any, task_id: str, sensitive: list[str | int]
    ) -> Routed:
        """Resolve a job by publishing it as Celery does, to a recorder: for code that has a say in that."""
        run = getattr(task, "run", None)
        times = {"countdown" if isinstance(job.scheduled_for, timedelta) else "eta": job.scheduled_for}
        asked = {
            **given,
            **_directions(job),
            **{name: _as_celery_takes_it(value) for name, value in {**times, "expires": job.expires}.items()},
        }
        if sensitive:
            sensitive = resolved(sensitive, run, job.args)
            hidden = masked(job.args, job.kwargs, sensitive)
            asked = {"argsrepr": str(saferepr(hidden[0])), "kwargsrepr": str(saferepr(hidden[1]))} | asked
        asked = {name: value for name, value in asked.items() if value is not None}
        recorded = self._recorded(task, job.task, list(job.args), dict(job.kwargs), task_id, asked)
        args, kwargs, _ = recorded.body
        said = recorded.arguments
        way = self.way_of(recorded)
        further: dict[str, Any] = {
            name: said[name] for name in ("shadow", "root_id", "parent_id") if said.get(name)
        }
        further |= {name: given[name] for name in ("argsrepr", "kwargsrepr") if name in given}
        changed = recorded.changed_headers
        further |= {name: changed[name] for name in _NAMED if name in changed}
        further["headers"] = custom_headers(recorded)
        if said.get("reply_to") != self._app.thread_oid:
            further["reply_to"] = said.get("reply_to")
        if sensitive:
            sensitive = resolved(sensitive, run, args)
        return Routed(
            list(args),
            dict(kwargs),
            sensitive,
            way.queue,
            way.priority,
            _time_of(job.scheduled_for, asked, said, "countdown", "eta"),
            _time_of(job.expires, asked, said, "expires"),
            _text(way, {**further, **_stamps(said)}, sensitive),
        )

    def _way(
        self, job: CheckedJob, given: Mapping[str, Any], args: Any, kwargs: Any, task: Any, task_id: str
    ) -> Way:
        router: Any = self._amqp.router
        if router is not self._router:
            self._router, self._ways = router, {}
        asked = {**given, **_directions(job)}
        limits = job.time_limit, job.soft_time_limit
        key = (job.task, task is None, *limits, self._inherited(), *(asked.get(name) for name in _DIRECTIONS))
        # A route that is a function may look at the arguments.
        known = all(isinstance(route, MapRoute) for route in router.routes) and all(
            one is None or type(one) in (str, int, float) for one in key[2:]
        )
        way = self._ways.get(key) if known else None
        if way is None:
            asked = {name: asked[name] for name in (*_DIRECTIONS, *_LIMITS) if asked.get(name) is not None}
            way = self.way_of(self._recorded(task, job.task, args, kwargs, task_id, asked))
            if known and len(self._ways) < MOST_WAYS:
                self._ways[key] = way
        return way

    def _inherited(self) -> Any:
        """Return the priority that a job inherits from the task that submits it, if Celery is to do that."""
        parent = self._app.current_worker_task
        if not parent or not self._app.conf.task_inherit_parent_priority:
            return None
        return (parent.request.delivery_info or {}).get("priority")

    def _recorded(
        self, task: Any, name: str, args: Any, kwargs: Any, task_id: str, asked: Mapping[str, Any]
    ) -> publish_recorder.Recorded:
        conf = self._app.conf
        word, kind = (
            ("auth", "application/data") if conf.task_serializer == "auth" else ("json", "application/json")
        )
        if kind not in (prepare_accept_content(conf.accept_content) or ()):
            raise ConfigurationError(f"accept_content has no {word}, which jobs are sent as: add it")
        if conf.task_protocol != 2:
            raise ConfigurationError(
                f"task_protocol is {conf.task_protocol}: a job's message is of version 2"
            )
        if task is not None and (strategy := celery_compat.custom_strategy(task)):
            raise ValidationError("task", name, f"a task that Celery's default strategy runs; {strategy}")
        recorded = self.published(task, name, args, kwargs, task_id, asked)
        publish_options.check_built(
            recorded.arguments, recorded.options, recorded.published, conf.task_serializer
        )
        return recorded

    def published(
        self, task: Any, name: str, args: Any, kwargs: Any, task_id: str, asked: Mapping[str, Any]
    ) -> publish_recorder.Recorded:
        """Publish a task as Celery does, to a recorder.

        Raises:
            ValidationError: the queue may not be made, or the task's own ``apply_async`` sends nothing.
        """
        try:
            return self._recording.record(task, name, args, kwargs, task_id, asked)
        except QueueNotFound as error:
            queue = asked.get("queue")
            raise ValidationError("queue", queue, f"a queue that task_queues has ({error})") from None

    def way_of(self, recorded: publish_recorder.Recorded) -> Way:
        """Return the way that a recorded message goes.

        Raises:
            ValidationError: it is none that can be kept.
        """
        said, published, queue = recorded.arguments, recorded.published, recorded.queue
        record = {
            "exchange": _name(published["exchange"]) or "",
            "routing_key": published["routing_key"] or "",
            "declare": described(queue)
            if queue is not None and queue in (published["declare"] or ())
            else None,
            "delivery_mode": _delivery_mode(published["delivery_mode"]),
            "compression": _compression(published["compression"]),
            "headers": recorded.options.get("headers"),
            "levels": self._app.conf.get("task_repr_maxlevels"),  # from 5.7 on
            **{name: said.get(name) for name in ("ignore_result", *_LIMITS)},
        }
        record = {name: value for name, value in record.items() if value is not None}
        if record.get("levels") == publish_options.LEVELS_SHOWN:
            del record["levels"]
        return Way(
            None if queue is None else queue.name,
            published.get("priority"),
            said.get("expires"),
            record,
            serialization.encode_given("options", record),
        )


def _checked(
    task: Any, args: list[Any], kwargs: dict[str, Any], *, hide: bool
) -> tuple[list[Any], dict[str, Any]]:
    args, kwargs = celery_compat.dump_pydantic_arguments(task, args, kwargs)
    if task.typing and hasattr(task, "__header__"):
        try:
            task.__header__(*args, **kwargs)
        except TypeError as error:
            raise ValidationError(
                "args", HIDDEN if hide else (args, kwargs), f"what {task.name} takes ({error})"
            ) from None
    return list(args), dict(kwargs)


def _name(exchange: Any) -> str | None:
    return exchange.name if isinstance(exchange, Exchange) else exchange


def queue_name(queue: Any) -> str | None:
    """Return the name of a queue that is given by it, or as an object of kombu's."""
    return queue.name if isinstance(queue, Queue) else queue


def _directions(job: CheckedJob) -> dict[str, Any]:
    return {name: getattr(job, name) for name in ("queue", "priority", *_LIMITS)}


def _as_celery_takes_it(value: datetime | timedelta | None) -> datetime | float | None:
    return value.total_seconds() if isinstance(value, timedelta) else value


def _time_of(
    given: datetime | timedelta | None, asked: Mapping[str, Any], said: Mapping[str, Any], *names: str
) -> datetime | timedelta | None:
    """Return a time of a job, as it was given unless its task has changed it."""
    if all(said.get(name) == asked.get(name) for name in names):
        return given
    return next((moment_of(name, said[name]) for name in names if said.get(name) is not None), None)


def _stamps(said: Mapping[str, Any]) -> dict[str, Any]:
    names = list(said.get("stamped_headers") or ())
    return {"stamped_headers": names, "stamps": {name: said.get(name) for name in names}} if names else {}


def _text(way: Way, further: dict[str, Any], sensitive: list[str | int]) -> str:
    if sensitive:
        further["sensitive"] = sensitive
    if not further:
        return way.text
    if further.get("headers"):
        further["headers"] = checked_headers(further["headers"])
    return serialization.encode_given("options", {**way.record, **further})


def custom_headers(recorded: publish_recorder.Recorded) -> dict[str, Any]:
    """Return the headers of a message that Celery itself does not give it."""
    changed = {name: value for name, value in recorded.changed_headers.items() if name not in _NAMED}
    return checked_headers(changed)


def checked_headers(headers: Mapping[str, Any]) -> dict[str, Any]:
    """Return custom headers without our own, which a body may have passed on.

    Raises:
        ValidationError: they are no JSON, or one of them is Celery's for what the row says.
    """
    custom = {name: value for name, value in headers.items() if name != HEADER}
    for name in _NEVER & custom.keys():
        raise ValidationError("headers", name, "other names: that one says which task it is, or when")
    serialization.encode_given("headers", custom)
    return custom


def _delivery_mode(given: Any) -> int:
    try:
        mode: int | None = maybe_delivery_mode(given)
        return mode or 2
    except (KeyError, TypeError, ValueError):
        raise ValidationError("delivery_mode", given, "1, 2, 'transient' or 'persistent'") from None


def _compression(given: Any) -> str | None:
    if given is None:
        return None
    try:
        get_encoder(given)
    except KeyError:
        raise ValidationError("compression", given, "what kombu compresses by here") from None
    return str(given)
