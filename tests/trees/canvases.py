"""Random canvases, as data: one description makes the same canvas for any app.

A description is JSON. `signature` makes a canvas of it with Celery's own constructors, operators and methods,
for tasks of the app that are named as in `BODIES`.
"""

import json
from functools import reduce
from operator import or_
from typing import Any

from celery import Celery, chain, chord, group
from hypothesis import strategies as st
from kombu.utils.json import dumps, loads

Description = dict[str, Any]


def note(*args: Any, **kwargs: Any) -> list[Any]:
    """Return what it was called with."""
    return ["note", list(args), kwargs]


def join(values: Any, *more: Any) -> list[Any]:
    """Return its arguments; a chord's body needs at least one."""
    return ["join", values, list(more)]


BODIES = {"trees.note": note, "trees.join": join}

_words = st.sampled_from(["a", "b", "c", "d", 1, None])
_tasks = st.fixed_dictionaries(
    {
        "kind": st.just("task"),
        "task": st.sampled_from(["trees.note"] * 3 + ["trees.join"]),
        "args": st.lists(_words, min_size=1, max_size=2),
        "kwargs": st.just({}),
        "immutable": st.booleans(),
    }
) | st.fixed_dictionaries(
    {
        "kind": st.just("task"),
        "task": st.just("trees.note"),
        "args": st.lists(_words, max_size=1),
        "kwargs": st.dictionaries(st.sampled_from("xy"), _words, max_size=2),
        "immutable": st.booleans(),
    }
)


def _canvases(inner: st.SearchStrategy[Description]) -> st.SearchStrategy[Description]:
    return st.one_of(
        st.fixed_dictionaries(
            {
                "kind": st.just("chain"),
                "tasks": st.lists(inner, min_size=1, max_size=4),
                "operator": st.booleans(),
            }
        ),
        st.fixed_dictionaries({"kind": st.just("group"), "tasks": st.lists(inner, max_size=3)}),
        st.fixed_dictionaries(
            {"kind": st.just("chord"), "tasks": st.lists(inner, max_size=3), "body": inner | _tasks}
        ),
        st.fixed_dictionaries({"kind": st.just("map"), "values": st.lists(_words, max_size=2)}),
    )


def _with_callback(description: Description, callback: Description | None) -> Description:
    return description if callback is None else {**description, "link": callback}


def descriptions(depth: int = 3) -> st.SearchStrategy[Description]:
    """Canvases of at most so many levels."""
    level: st.SearchStrategy[Description] = st.builds(_with_callback, _tasks, st.none() | st.none() | _tasks)
    for _ in range(depth):
        level = level | _canvases(level)
    return _canvases(level)


def signature(app: Celery, description: Description) -> Any:
    """Return the canvas that is described."""
    kind = description["kind"]
    if kind == "map":
        return app.tasks["trees.note"].map(description["values"])
    if kind == "task":
        made = app.signature(
            description["task"],
            args=description["args"],
            kwargs=description["kwargs"],
            immutable=description["immutable"],
        )
    else:
        tasks = [signature(app, task) for task in description["tasks"]]
        if kind == "chain":
            made = reduce(or_, tasks) if description["operator"] else chain(*tasks)
        elif kind == "group":
            made = group(tasks)
        else:
            made = chord(tasks, signature(app, description["body"]))
    if description.get("ignored"):
        made.options["ignore_result"] = True
    if "link" in description:
        made.link(signature(app, description["link"]))
    return made


def serialized(app: Celery, made: Any) -> Any:
    """Return a canvas that was sent as JSON."""
    return app.signature(loads(dumps(made)))


def plain(value: Any) -> Any:
    """Return a value as JSON gives it back."""
    return json.loads(json.dumps(value))
