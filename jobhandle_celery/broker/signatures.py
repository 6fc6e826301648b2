"""Reads signatures by the rules by which Celery applies them, without cloning or freezing them.

A nested signature may be an object, or the dict that it was serialized to. No function changes its arguments.
Cloning and freezing takes Celery longer than it takes to store a job. The rules are those of
``celery.canvas`` in 5.7; where 5.6 differs, it has a defect that 5.7 has corrected.

Each function that reads nested signatures raises `ValidationError` if one of them is none, or has a form that
Celery does not give it.
"""

from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from celery.utils.functional import chunks

from ..errors import ValidationError, shown

Sig = Mapping[str, Any]

CHAIN, GROUP, CHORD = "chain", "group", "chord"
_KINDS = {"celery.chain": CHAIN, "celery.group": GROUP, "celery.chord": CHORD, "celery.chunks": "chunks"}
_NO_TASKS: Sig = {"task": "celery.group", "kwargs": {"tasks": []}, "options": {}, "subtask_type": GROUP}

ROUTE_NAME = "jobhandle_route_name"
"""Key of a signature: the name of the task that routes it, for ``celery.starmap`` of chunks."""

MAX_MEMBERS = 100_000
"""Rows of a tree at most, as many as other calls take ids: one transaction inserts or cancels all of them."""


def kind_of(signature: Sig) -> str | None:
    """Return ``"chain"``, ``"group"``, ``"chord"`` or ``"chunks"``; None for a task.

    Raises:
        ValidationError: it is a type of signature that is not Celery's own.
    """
    kind = signature.get("subtask_type") or _KINDS.get(signature.get("task") or "")
    if kind is None or kind in _KINDS.values():
        return kind
    raise ValidationError("subtask_type", kind, "a task, chain, group, chord, chunks or map of Celery")


def checked(signature: object) -> Sig:
    """Return a nested signature, which may have been serialized.

    Raises:
        ValidationError: it is not a signature.
    """
    if isinstance(signature, Mapping) and isinstance(signature.get("task"), str):
        return signature
    raise ValidationError("task", signature, "a Celery signature (a task's .s(...)) in a canvas")


def options_of(signature: Sig) -> Mapping[str, Any]:
    """Return the options of a signature."""
    options: Mapping[str, Any] = signature.get("options") or {}
    return options


def merged_options(signature: Sig, given: Mapping[str, Any]) -> dict[str, Any]:
    """Return a signature's own options, merged with those with which it is applied.

    The latter take precedence, except over stamps.
    """
    own = dict(options_of(signature))
    if not given:
        return own
    kept = {"stamped_headers", *(own.get("stamped_headers") or ())}
    return own | {
        name: value
        for name, value in given.items()
        if value is not None and not (name in kept and name in own)
    }


def with_options(signature: Sig, options: Mapping[str, Any]) -> Sig:
    """Return a copy of a signature with other options."""
    return {**signature, "options": options}


def tasks_of(signature: Sig) -> Sequence[Any]:
    """Return the signatures in a chain or group."""
    tasks = (signature.get("kwargs") or {}).get("tasks")
    if isinstance(tasks, (list, tuple)):
        return tasks
    if isinstance(tasks, Iterable) and not isinstance(tasks, (str, bytes, Mapping)):
        return list(tasks)
    raise ValidationError("tasks", tasks, f"a list of signatures in {signature.get('task')}")


def header_of(signature: Sig) -> Sequence[Any]:
    """Return the signatures in the header of a chord, as Celery's ``_maybe_group`` does."""
    header = (signature.get("kwargs") or {}).get("header")
    if isinstance(header, Mapping):
        return tasks_of(header) if kind_of(header) in (GROUP, CHAIN) else [header]
    return tasks_of({"task": "a chord's header", "kwargs": {"tasks": header}})


def body_of(signature: Sig) -> Sig:
    """Return the body of a chord.

    Raises:
        ValidationError: it has none.
    """
    body = (signature.get("kwargs") or {}).get("body")
    if body is None:
        raise ValidationError("body", body, "a chord with a body; without one, submit its header as a group")
    return checked(body)


def links_of(options: Mapping[str, Any]) -> list[Sig]:
    """Return the callbacks among the options of a signature."""
    links = options.get("link")
    if not links:
        return []
    return [checked(link) for link in ([links] if isinstance(links, Mapping) else links)]


def linked(signature: Sig, callback: Sig) -> Sig:
    """Return a copy of a signature with one more callback, as its ``link()`` adds it."""
    kind, kwargs = kind_of(signature), signature.get("kwargs") or {}
    if kind == GROUP:
        first, *others = tasks_of(signature) or [None]
        if first is None:
            return signature  # as in Celery: there is no task that could be linked
        changed = [linked(checked(first), _immutable(callback)), *others]
        return {**signature, "kwargs": {**kwargs, "tasks": changed}}
    if kind == CHORD:
        return {**signature, "kwargs": {**kwargs, "body": linked(body_of(signature), callback)}}
    links = links_of(options_of(signature))
    if callback in links:
        return signature
    return extended(signature, [callback])


def extended(signature: Sig, callbacks: Sequence[Sig]) -> Sig:
    """Return a copy of a signature of any kind with more callbacks in its options."""
    if not callbacks:
        return signature
    options = options_of(signature)
    return with_options(signature, {**options, "link": [*links_of(options), *callbacks]})


def _immutable(signature: Sig) -> Sig:
    kind, kwargs = kind_of(signature), signature.get("kwargs") or {}
    if kind == GROUP:
        tasks = [_immutable(checked(task)) for task in tasks_of(signature)]
        return {**signature, "kwargs": {**kwargs, "tasks": tasks}}
    if kind == CHORD:
        header = [_immutable(checked(task)) for task in header_of(signature)]
        return {**signature, "kwargs": {**kwargs, "header": header}}
    return {**signature, "immutable": True}


def steps_of(chain: Sig) -> list[Sig]:
    """Return the steps of a chain as Celery applies them.

    A nested chain is replaced by its steps, a group of one task by that task. Empty groups are left out; but
    if there is nothing else, the only step is an empty group. Of a chord whose body is a chain, the body
    becomes the first task of that chain, and the other tasks become steps.
    """
    waiting = deque(tasks_of(chain))
    steps: list[Sig] = []
    empty, seen = False, 0
    while waiting:
        seen += 1
        if seen > 2 * MAX_MEMBERS:
            raise too_large()
        step = grouped(checked(waiting.popleft()))
        kind = kind_of(step)
        if kind == GROUP:
            step = _unrolled(step, twice=not steps)
            kind = kind_of(step)
        if kind == CHAIN:
            waiting.extendleft(reversed(tasks_of(step)))
        elif kind == GROUP and not tasks_of(step):
            empty = True
        elif kind == CHORD and (cut := _cut_body(step)):
            waiting.extendleft(reversed(cut))
        else:
            steps.append(step)
    return steps or [_NO_TASKS] * empty


def _unrolled(group: Sig, *, twice: bool) -> Sig:
    tasks = tasks_of(group)
    if len(tasks) != 1:
        return group
    only = grouped(checked(tasks[0]))
    return _unrolled(only, twice=False) if twice and kind_of(only) == GROUP else only


def _cut_body(chord: Sig) -> list[Sig]:
    """Return a chord with the first task of its body, and the others; nothing if the body is no chain."""
    body = body_of(chord)
    if kind_of(body) != CHAIN:
        return []
    tasks = [checked(task) for task in tasks_of(body)]
    if not tasks or kind_of(tasks[0]) in (GROUP, "chunks"):
        return []
    options = dict(options_of(body))
    for callback in links_of(options):
        tasks[-1] = linked(tasks[-1], callback)
    options.pop("link", None)
    first = with_options(tasks[0], merged_options(tasks[0], options))
    return [{**chord, "kwargs": {**chord["kwargs"], "body": first}}, *tasks[1:]]


def flattened(tasks: Sequence[Any], *, frozen: bool) -> Iterator[tuple[int, Sig]]:
    """Yield the members of a group, each with its group index.

    A nested group is replaced by its members, and an empty chain is left out.

    Args:
        frozen: Celery freezes a group that it does not apply at once (a step of a chain, the header or body
            of a chord). That reverses the order of the members of a nested group, and of their results.
    """
    waiting = deque(enumerate(tasks))
    seen = found = 0
    while waiting:
        seen += 1
        if seen > 2 * MAX_MEMBERS:
            raise too_large()
        place, task = waiting.popleft()
        task = grouped(checked(task))
        kind = kind_of(task)
        if kind == GROUP:
            inner = enumerate(tasks_of(task))
            waiting.extendleft(inner if frozen else reversed(list(inner)))
        elif kind != CHAIN or tasks_of(task):
            # Without a freeze, Celery counts within the group in which the task is written.
            yield found if frozen else place, task
            found += 1


def grouped(signature: Sig) -> Sig:
    """Return the group that Celery makes of chunks; any other signature unchanged."""
    if kind_of(signature) != "chunks":
        return signature
    kwargs = signature.get("kwargs") or {}
    task, size = checked(kwargs.get("task")), kwargs.get("n")
    if not isinstance(size, int) or isinstance(size, bool) or size < 1:
        raise ValidationError("n", size, "chunks of at least one element")
    parts = [
        {
            "task": "celery.starmap",
            "args": (),
            "kwargs": {"task": task, "it": part},
            "options": {},
            "subtask_type": None,
            "immutable": True,
            ROUTE_NAME: task["task"],
        }
        for part in chunks(iter(kwargs.get("it") or ()), size)
    ]
    return {**_NO_TASKS, "kwargs": {"tasks": parts}}


def ends_in_group(signature: Sig) -> bool:
    """Return True if the result of a canvas is that of a group: a list."""
    while True:
        kind = kind_of(signature)
        if kind == CHORD:
            signature = body_of(signature)
        elif kind == CHAIN:
            steps = steps_of(signature)
            if not steps:
                return False
            signature = steps[-1]
        else:
            return kind in (GROUP, "chunks")


def too_large() -> ValidationError:
    """Return the error for a tree of too many members."""
    return ValidationError("job", shown("a canvas"), f"a canvas of at most {MAX_MEMBERS:,} members")
