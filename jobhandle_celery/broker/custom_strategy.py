"""What a task may not have if it is to run as a job. Imports nothing of ours."""

from typing import Any

from celery import Task

_KNOWN = (Task.__module__, "jobhandle_celery.worker.instrumentation")


def own_strategy(task: Any) -> str | None:
    """Return how a task takes its messages if not as Celery does by default; None if it does.

    A strategy decides what happens to a message: that of celery-batches collects messages and calls the body
    with all of them. Nothing then claims a job, so such a task cannot run as one.
    """
    if task.Strategy != Task.Strategy:
        return f"the task {task.name} has a Strategy of its own ({_name(task.Strategy)})"
    for place in (task, *type(task).__mro__):
        own = vars(place).get("start_strategy")
        if own is not None and getattr(own, "__module__", "") not in _KNOWN:
            return f"the task {task.name} has a start_strategy of its own"
    return None


def _name(strategy: Any) -> str:
    if isinstance(strategy, str):
        return strategy
    return str(getattr(strategy, "__qualname__", type(strategy).__name__))
