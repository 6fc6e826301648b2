"""Resolves where Celery would send a job, and with which options, when it is submitted.

A route is resolved once per task and options (queue, exchange, priority, …) and cached. But if code that is
not Celery's own takes part in publishing, there is a dry run for each job.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import cached_property
from types import NoneType
from typing import Any

from celery import Celery
from celery.app.routes import MapRoute, Router
from celery.utils.saferepr import saferepr
from kombu import Exchange
from kombu.serialization import prepare_accept_content

from .. import celery_compat, serialization, validation
from ..errors import ConfigurationError, ValidationError
from ..models import CheckedJob
from ..redaction import masked, resolved
from . import publish_options, stored_options
from .dry_run import BY_NAME, CALLED_BY, DryRun, UnsentMessage, has_signal_handlers
from .headers import CELERY_HEADERS, checked_headers, custom_headers
from .publish_options import parse_moment
from .stored_options import described
from .task_arguments import checked_arguments

_LIMITS = ("time_limit", "soft_time_limit")
_ROUTE_OPTIONS = ("queue", "priority", "route_name", *sorted(publish_options.ROUTE))
_SENT_OPTIONS = ("serializer", "ignore_result")
"""Further options of the route of a call of `Celery.send_task`, in which a task's attributes are options."""
_DESCRIPTION = ("headers", "ignore_result", "argsrepr", "kwargsrepr", "reply_to")

_KEY_OF_RESULTS = (
    "given by .set(unique_key=...), or an immutable signature: results of other jobs come before the task's "
    "arguments, and its apply_async does not know them yet"
)

_PLAIN = frozenset({NoneType, str, int, float})
"""The types of options by which a route is cached."""

ROUTE_LIMIT = 1_000
"""Routes that are cached: callers may invent queue names without end."""


@dataclass(frozen=True)
class Route:
    """Where the messages of a task go, whatever their arguments are."""

    queue: str | None
    priority: int | None
    expires: Any
    options: Mapping[str, Any]
    options_json: str


@dataclass(frozen=True)
class RoutedJob:
    """The arguments of a job as its task receives them, and where its messages go."""

    args: list[Any]
    kwargs: dict[str, Any]
    sensitive: list[str | int]
    queue: str | None
    priority: int | None
    scheduled_for: datetime | timedelta | None
    expires: datetime | timedelta | None
    max_attempts: int
    unique_key: str | None
    options: str
    """What every publisher of the job needs, as JSON."""


class Routing:
    """Routes the jobs of one app."""

    def __init__(self, app: Celery) -> None:
        self._app = app
        self.dry_run = DryRun(app)
        self._router: Any = None
        self._routes: dict[tuple[Any, ...], tuple[Any, Route]] = {}

    @cached_property
    def _amqp(self) -> Any:
        return self._app.amqp  # takes a lock each time

    @cached_property
    def _tasks(self) -> Any:
        return self._app.tasks

    def route(
        self,
        job: CheckedJob,
        given: Mapping[str, Any],
        task_id: str,
        tree: Mapping[str, Any] | None = None,
        results: int = 0,
    ) -> RoutedJob:
        """Resolve the options of a job's messages, from Celery, the task and the handlers of publish signals.

        The row keeps all of them, so that a publisher on another machine needs nothing of this process's
        configuration or context.

        Args:
            job: The request.
            given: Further options of its signature.
            task_id: Celery's id.
            tree: Celery's ids of its place in a canvas; None outside of one.
            results: How many results of other jobs will come before its arguments; None stands for each.

        Raises:
            ValidationError: the queue is not among `task_queues` and may not be created, a job does not keep
                an option, the arguments do not fit the signature of a task that is registered here, or the
                task's own ``apply_async`` sends no message.
            ConfigurationError: workers with this app's configuration accept no jobs.
        """
        task: Any = self._tasks.get(job.task)
        args, kwargs = [*[None] * results, *job.args], dict(job.kwargs)
        sensitive = list(job.sensitive)
        if task is not None:
            sensitive += validation.sensitive(getattr(task, "sensitive", ()))
            args, kwargs = checked_arguments(task, args, kwargs, sensitive, results)
        elif self._app.conf.task_always_eager:
            raise ValidationError("task", job.task, "a task of this app, where task_always_eager is set")
        sent = CALLED_BY in given
        if has_signal_handlers() or not celery_compat.is_published_by_celery(
            self._app, None if sent else task
        ):
            return self._route_by_dry_run(job, given, task, task_id, sensitive, tree, results)
        parent = self._app.current_worker_task
        route = self._cached_route(job, given, args, kwargs, task, task_id, parent)
        if sensitive:
            sensitive = resolved(sensitive, getattr(task, "run", None), args)
        further: dict[str, Any] = {name: given[name] for name in _DESCRIPTION if name in given}
        shadow = given.get("shadow")
        if sent:
            further.pop("ignore_result", None)  # the route has it
        elif not shadow and task:
            shadow = task.shadow_name(args, kwargs, dict(given))
        if shadow:
            further["shadow"] = shadow
        caller = _caller(parent)
        caller |= {name: given[name] for name in ("parent_id", "root_id") if name in given}
        if tree is None:
            further |= caller
        else:
            tree = {**caller, **tree}
        return RoutedJob(
            args[results:],
            kwargs,
            sensitive,
            route.queue,
            route.priority,
            job.scheduled_for,
            parse_moment("expires", route.expires) if job.expires is None else job.expires,
            *_of_job(job.max_attempts, job.unique_key, task),
            _options_json(route, {**further, **_stamps(given)}, sensitive, tree),
        )

    def cache_dependencies(self, name: str, *, sent: bool = False) -> tuple[Any, ...] | None:
        """Return the objects that a cached row of a task's job depends on; None if its rows are not cached.

        They are the router, the task, and its `max_attempts` and `unique_key`. A cached row is valid while
        they are the same objects; Celery's configuration is not read again, as for a cached route. Rows are
        not cached if a route may depend on the arguments (a function as a route, `shadow_name`, sensitive
        arguments), if code that is not Celery's takes part in publishing, or if the app may refuse the job.

        Args:
            name: Of the task.
            sent: For calls of `Celery.send_task`, after the task's own ``apply_async``.
        """
        task: Any = self._tasks.get(name)
        if (
            has_signal_handlers()
            or not celery_compat.is_published_by_celery(self._app, None if sent else task)
            or not self._has_plain_routes()
        ):
            return None
        if task is None:
            return None if self._app.conf.task_always_eager else (self._amqp.router, None, None, None)
        if getattr(task, "sensitive", ()) != () or (not sent and celery_compat.has_shadow_name(task)):
            return None  # also what is refused: 0, for example
        own = getattr(task, "max_attempts", None), getattr(task, "unique_key", None)
        return (self._amqp.router, task, *own)

    def checked_arguments(self, name: str, args: Any, kwargs: Any) -> tuple[list[Any], dict[str, Any]]:
        """Check arguments none of which is sensitive, and return them as their task receives them.

        Raises:
            ValidationError: they do not fit the signature of the task.
        """
        validation.arguments(args, kwargs)
        task: Any = self._tasks.get(name)
        args, kwargs = list(args), dict(kwargs)
        return (args, kwargs) if task is None else checked_arguments(task, args, kwargs, [], 0)

    @property
    def in_task(self) -> bool:
        """True if a task runs in this thread: what it submits has a parent."""
        return bool(self._app.current_worker_task)

    def caller(self) -> dict[str, Any]:
        """Return the parent and root of what is submitted here: the task that runs in this thread, if any."""
        return _caller(self._app.current_worker_task)

    def _route_by_dry_run(
        self,
        job: CheckedJob,
        given: Mapping[str, Any],
        task: Any,
        task_id: str,
        sensitive: list[str | int],
        tree: Mapping[str, Any] | None,
        results: int,
    ) -> RoutedJob:
        """Route a job by a dry run of its own, which also runs patches and signal handlers."""
        run = getattr(task, "run", None)
        given_args = (*[None] * results, *job.args)  # a tuple, as ``delay`` passes
        times = {"countdown" if isinstance(job.scheduled_for, timedelta) else "eta": job.scheduled_for}
        asked = {
            **given,
            **_own_options(job),
            **{name: _for_celery(value) for name, value in {**times, "expires": job.expires}.items()},
            **(tree or {}),
        }
        if CALLED_BY not in given:
            asked |= {"max_attempts": job.max_attempts, "unique_key": job.unique_key}
        if sensitive:
            sensitive = resolved(sensitive, run, given_args)
            hidden = masked(given_args, job.kwargs, sensitive)
            asked = {"argsrepr": str(saferepr(hidden[0])), "kwargsrepr": str(saferepr(hidden[1]))} | asked
        asked = {name: value for name, value in asked.items() if value is not None}
        message = self._dry_run_checked(task, job.task, given_args, dict(job.kwargs), task_id, asked)
        args, kwargs, _ = message.body
        if any(value is not None for value in args[:results]) or len(args) < results:
            accepted = f"a task whose apply_async leaves the first {results} for results of other jobs"
            raise ValidationError("args", "the arguments", accepted)
        sent, changed, own = message.arguments, message.changed_headers, message.own
        if results and own.get("unique_key") not in (None, job.unique_key):
            raise ValidationError("unique_key", own["unique_key"], _KEY_OF_RESULTS)
        if CALLED_BY in given:
            own = {"max_attempts": job.max_attempts, "unique_key": job.unique_key}
        sensitive += validation.sensitive(own.get("sensitive") or ())
        route = self.route_of(message)
        placed = {name: sent[name] for name in publish_options.TREE if sent.get(name) is not None}
        further: dict[str, Any] = {
            **{name: sent[name] for name in ("shadow",) if sent.get(name)},
            **({} if tree is not None else placed),
            **{name: given[name] for name in ("argsrepr", "kwargsrepr") if name in given},
            **{name: changed[name] for name in CELERY_HEADERS if name in changed},
            "headers": custom_headers(message),
        }
        if sent.get("reply_to") != self._app.thread_oid:
            further["reply_to"] = sent.get("reply_to")
        if sensitive:
            sensitive = resolved(sensitive, run, args)
        return RoutedJob(
            list(args)[results:],
            dict(kwargs),
            sensitive,
            route.queue,
            route.priority,
            _time_of(job.scheduled_for, asked, sent, "countdown", "eta"),
            _time_of(job.expires, asked, sent, "expires"),
            *_of_job(own.get("max_attempts"), own.get("unique_key"), task),
            _options_json(route, {**further, **_stamps(sent)}, sensitive, None if tree is None else placed),
        )

    def _cached_route(
        self,
        job: CheckedJob,
        given: Mapping[str, Any],
        args: Any,
        kwargs: Any,
        task: Any,
        task_id: str,
        parent: Any,
    ) -> Route:
        router: Any = self._amqp.router
        if router is not self._router:
            self._router, self._routes = router, {}
        asked = {**given, **_own_options(job)}
        limits = job.time_limit, job.soft_time_limit
        values = (*limits, self._inherited_priority(parent), *map(asked.get, _ROUTE_OPTIONS))
        types = tuple(map(type, values))  # 1 equals 1.0
        key = (job.task, _sent_as(given), types, values)
        cacheable = _PLAIN.issuperset(types) and self._has_plain_routes()
        of_task, route = (cacheable and self._routes.get(key)) or (None, None)
        if route is None or of_task is not task:
            names = (*_ROUTE_OPTIONS, *_LIMITS, CALLED_BY, *_SENT_OPTIONS * (CALLED_BY in given))
            asked = {name: asked[name] for name in names if asked.get(name) is not None}
            route = self.route_of(self._dry_run_checked(task, job.task, args, kwargs, task_id, asked))
            if cacheable and len(self._routes) < ROUTE_LIMIT:
                self._routes[key] = task, route
        return route

    def _has_plain_routes(self) -> bool:
        """Return False if a route is not Celery's own, as a function, which may depend on the arguments."""
        router: Any = self._amqp.router
        plain = all(type(route) is MapRoute for route in router.routes)
        return plain and type(router) is Router

    def _inherited_priority(self, parent: Any) -> Any:
        """Return the priority inherited from the submitting task, with `task_inherit_parent_priority`."""
        if not parent or not self._app.conf.task_inherit_parent_priority:
            return None
        return (parent.request.delivery_info or {}).get("priority")

    def _dry_run_checked(
        self, task: Any, name: str, args: Any, kwargs: Any, task_id: str, asked: Mapping[str, Any]
    ) -> UnsentMessage:
        conf = self._app.conf
        signed = conf.task_serializer == "auth"
        serializer, content_type = ("auth", "application/data") if signed else ("json", "application/json")
        if content_type not in (prepare_accept_content(conf.accept_content) or ()):
            raise ConfigurationError(f"accept_content lacks {serializer}, the serializer of jobs: add it")
        if conf.task_protocol != 2:
            raise ConfigurationError(f"task_protocol is {conf.task_protocol}; messages of jobs need 2")
        if task is not None and (strategy := celery_compat.custom_strategy(task)):
            raise ValidationError("task", name, f"a task that Celery's default strategy runs; {strategy}")
        message = self.dry_run.publish(task, name, args, kwargs, task_id, asked)
        publish_options.check_built(message, conf.task_serializer, asked)
        return message

    def route_of(self, message: UnsentMessage) -> Route:
        """Return the route of a message.

        Raises:
            ValidationError: the row cannot keep it.
        """
        sent, published, queue = message.arguments, message.published, message.queue
        exchange = published["exchange"]
        options = {
            "exchange": (exchange.name if isinstance(exchange, Exchange) else exchange) or "",
            "routing_key": published["routing_key"] or "",
            "declare": described(queue)
            if queue is not None and queue in (published["declare"] or ())
            else None,
            "delivery_mode": publish_options.delivery_mode(published["delivery_mode"]),
            "compression": publish_options.compression(published["compression"]),
            "headers": message.options.get("headers"),
            "levels": self._app.conf.get("task_repr_maxlevels"),  # from 5.7 on
            **{name: sent.get(name) for name in ("ignore_result", *_LIMITS)},
        }
        options = {name: value for name, value in options.items() if value is not None}
        if options.get("levels") == publish_options.LEVELS_SHOWN:
            del options["levels"]
        return Route(
            None if queue is None else queue.name,
            published.get("priority"),
            sent.get("expires"),
            options,
            serialization.encode_given("options", options),
        )


def _caller(parent: Any) -> dict[str, Any]:
    if not parent or not parent.request.id:
        return {}
    return {"parent_id": parent.request.id, "root_id": parent.request.root_id or parent.request.id}


def _sent_as(given: Mapping[str, Any]) -> tuple[Any, ...]:
    """Return what distinguishes the routes of calls of `Celery.send_task`; empty for other submits."""
    if CALLED_BY not in given:
        return ()
    return (given[CALLED_BY] is BY_NAME, given.get("serializer"), given.get("ignore_result"))


def _own_options(job: CheckedJob) -> dict[str, Any]:
    return {name: getattr(job, name) for name in ("queue", "priority", *_LIMITS)}


def _of_job(max_attempts: object, unique_key: object, task: Any) -> tuple[int, str | None]:
    """Return these fields of a job, checked; what the call does not give is that of the task's attribute."""
    if max_attempts is None:
        max_attempts = getattr(task, "max_attempts", None)
    if unique_key is None:
        unique_key = getattr(task, "unique_key", None)
    return validation.max_attempts(max_attempts) or 1, validation.unique_key(unique_key)


def _for_celery(value: datetime | timedelta | None) -> datetime | float | None:
    return value.total_seconds() if isinstance(value, timedelta) else value


def _time_of(
    given: datetime | timedelta | None, asked: Mapping[str, Any], sent: Mapping[str, Any], *names: str
) -> datetime | timedelta | None:
    """Return a time of a job, as it was given unless its task has changed it."""
    if all(sent.get(name) == asked.get(name) for name in names):
        return given
    return next((parse_moment(name, sent[name]) for name in names if sent.get(name) is not None), None)


def _stamps(options: Mapping[str, Any]) -> dict[str, Any]:
    names = list(options.get("stamped_headers") or ())
    return {"stamped_headers": names, "stamps": {name: options.get(name) for name in names}} if names else {}


def _options_json(
    route: Route, further: dict[str, Any], sensitive: list[str | int], tree: Mapping[str, Any] | None
) -> str:
    options, headers = route.options_json, None
    if sensitive:
        further["sensitive"] = sensitive
    if further:
        if further.get("headers"):
            further["headers"] = checked_headers(further["headers"])
        kept = {**route.options, **further}
        headers = kept.pop("headers", None)
        options = serialization.encode_given("options", kept)
    return stored_options.join(options, tree=tree, headers=headers)
