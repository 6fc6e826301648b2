"""Submits a tree of jobs where Celery would publish a canvas that has a durable task.

Celery publishes messages for the first tasks of a canvas, which carry the rest of it: `send_task` sees no
whole canvas. Therefore the `apply_async` of chains, groups and chords is wrapped, once for the process. A
canvas without durable tasks is published unchanged.
"""

from collections.abc import Callable, Iterator, Mapping
from functools import wraps
from typing import Any

from ..broker import signatures
from ..broker.sent_tasks import UNUSED
from ..broker.signatures import CHAIN, CHORD, GROUP, Sig
from ..broker.task_signatures import MAPS
from ..errors import ApiUsageError

IN_FLIGHT = ("chain", "chord", "group_id", "retries", "replaced_task_nesting")
"""Options with which Celery publishes the rest of a plain canvas, and the retry of a plain task.

Such a call publishes a plain message, too."""

_UNUSED = UNUSED | {"root_id", "parent_id"}


def is_in_flight(options: Mapping[str, Any]) -> bool:
    """Return True if a call continues a canvas, or retries a task, that was published without a job."""
    return any(map(options.get, IN_FLIGHT))


def wrap_apply_async(plain: Callable[..., Any], submit: Callable[..., Any]) -> Callable[..., Any]:
    """Return the wrapper of the `apply_async` of a class of canvas.

    Args:
        plain: Celery's method.
        submit: Called with the canvas, its arguments and options; returns None if Celery is to publish it.
    """

    @wraps(plain)
    def apply_async(self: Any, args: Any = None, kwargs: Any = None, **options: Any) -> Any:
        result = submit(self, args, kwargs, options)
        return plain(self, args, kwargs, **options) if result is None else result

    return apply_async


def task_of_call(name: Any, kwargs: Any) -> Any:
    """Return the name of the task that a call runs; for Celery's map and starmap, that which they apply."""
    mapped = kwargs.get("task") if name in MAPS and isinstance(kwargs, Mapping) else None
    return mapped.get("task") if isinstance(mapped, Mapping) else name


def task_names(signature: Sig, kwargs: Any) -> Iterator[str]:
    """Yield the names of the tasks of a canvas, without those of callbacks.

    Args:
        signature: The canvas.
        kwargs: The keyword arguments of its `apply_async`; the body of a chord may be among them.
    """
    waiting: list[Any] = [signature]
    if signature.get("subtask_type") == CHORD:
        waiting.append((kwargs or {}).get("body"))
    while waiting:
        given = waiting.pop()
        if not isinstance(given, Mapping):
            continue
        match given.get("subtask_type"):
            case "chain" | "group":
                waiting.extend(signatures.tasks_of(given))
            case "chord":
                waiting.extend(signatures.header_of(given))
                waiting.append((given.get("kwargs") or {}).get("body"))
            case "chunks":
                waiting.append((given.get("kwargs") or {}).get("task"))
            case _:
                yield task_of_call(str(given.get("task")), given.get("kwargs"))


def applied(signature: Sig, args: Any, kwargs: Any, options: Mapping[str, Any]) -> Sig:
    """Return a canvas with the arguments and options of a call of `apply_async`, as Celery merges them.

    Raises:
        ApiUsageError: a group has a callback.
    """
    given = {name: value for name, value in options.items() if value is not None and name not in _UNUSED}
    kwargs = dict(kwargs or {})
    body = kwargs.pop("body", None) if signatures.kind_of(signature) == CHORD else None
    if body is not None:
        signature = {**signature, "kwargs": {**signature["kwargs"], "body": body}}
    if signatures.kind_of(signature) == GROUP:
        if given.keys() & {"link", "link_error"}:
            raise ApiUsageError("link: a group has no callback; use a chord")
        if "route_name" in given:
            signature = _routed_by(signature, given.pop("route_name"))
    signature = _with_arguments(signature, tuple(args or ()), kwargs)
    if not given:
        return signature
    return signatures.with_options(signature, signatures.merged_options(signature, given))


def _routed_by(group: Sig, name: Any) -> Sig:
    """Return a group whose tasks are routed by the name of another task, as ``chunks`` does."""
    tasks = [
        task if signatures.kind_of(task) else {**task, signatures.ROUTE_NAME: name}
        for task in map(signatures.checked, signatures.tasks_of(group))
    ]
    return {**group, "kwargs": {**group["kwargs"], "tasks": tasks}}


def _with_arguments(signature: Sig, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Sig:
    kind, own = signatures.kind_of(signature), signature.get("kwargs") or {}
    immutable = bool(signature.get("immutable"))
    if kind == CHAIN:
        own_args = tuple(signature.get("args") or ())
        args = (*args, *own_args) if args and not immutable else own_args
        first, *others = signatures.tasks_of(signature) or [None]
        if first is None or not (args or kwargs):
            return signature
        changed = [_with_arguments(signatures.checked(first), args, kwargs), *others]
        return {**signature, "args": (), "kwargs": {**own, "tasks": changed}}
    if not (args or kwargs):
        return signature
    if kind == GROUP:
        tasks = [
            _with_arguments(signatures.checked(task), args, kwargs) for task in signatures.tasks_of(signature)
        ]
        return {**signature, "kwargs": {**own, "tasks": tasks}}
    if kind == CHORD:
        given = {**own, "kwargs": {**(own.get("kwargs") or {}), **kwargs}}
        own_args = tuple(signature.get("args") or ())
        return {**signature, "args": own_args if immutable else (*args, *own_args), "kwargs": given}
    if kind is not None or immutable:
        return signature
    return {**signature, "args": (*args, *(signature.get("args") or ())), "kwargs": {**own, **kwargs}}
