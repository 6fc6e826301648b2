"""Translates a call of `Celery.send_task`, which every ``apply_async`` of Celery makes, into a job."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, NamedTuple

from ..errors import ValidationError
from ..models import Job
from . import signatures
from .dry_run import BY_NAME, CALLED_BY
from .signatures import Sig
from .task_signatures import task_job

UNUSED = frozenset(
    {"producer", "publisher", "retry", "retry_policy", "result_cls", "add_to_parent", "task_type"}
)
"""Options of the publish and of the returned result, not of the message.

The library publishes on connections of its own, and again until the broker has the message.
"""

PLACED = frozenset({"task_id", "link", "root_id", "parent_id", "route_name", "serializer"})
"""Options that `task_job` does not take: `sent_task` handles them itself."""


class SentCall(NamedTuple):
    """One call of `Celery.send_task`."""

    name: str
    """Of the task."""
    args: Any
    """Positional arguments, or None."""
    kwargs: Any
    """Keyword arguments, or None."""
    options: Mapping[str, Any]
    """All other arguments of the call."""
    task: Any
    """The task whose ``apply_async`` made the call; None: it was called by name."""


@dataclass(frozen=True)
class SentTask:
    """The job of one call of `send_task`, and its callbacks."""

    job: Job
    options: Mapping[str, Any]
    """Further options of its message."""
    callbacks: list[Sig] = field(default_factory=list)


def sent_task(call: SentCall) -> SentTask:
    """Return the job of a call of `Celery.send_task`; its task id is not looked at.

    Raises:
        ValidationError: an option cannot be kept; names it.
    """
    given = {key: value for key, value in call.options.items() if value is not None and key not in UNUSED}
    placed = {key: given.pop(key) for key in PLACED & given.keys()}
    for key in ("retries", "replaced_task_nesting"):
        if not given.get(key):  # Celery passes 0
            given.pop(key, None)
    for key in ("eta", "expires"):
        if isinstance(given.get(key), (datetime, str)):
            given[key] = _aware(given[key])
    job, further = task_job({"task": call.name, "args": call.args, "kwargs": call.kwargs, "options": given})
    further |= {key: placed[key] for key in ("root_id", "parent_id", "route_name") if key in placed}
    if "serializer" in placed:
        further["serializer"] = _text("serializer", placed["serializer"])
    further[CALLED_BY] = BY_NAME if call.task is None else call.task
    return SentTask(job, further, signatures.links_of(placed))


def _aware(moment: datetime | str) -> datetime | str:
    """Return a moment with a time zone. Without one Celery takes it for UTC, whatever `timezone` is."""
    try:
        parsed = datetime.fromisoformat(moment) if isinstance(moment, str) else moment
    except ValueError:
        return moment  # `task_job` refuses it by name
    return parsed if parsed.utcoffset() is not None else parsed.replace(tzinfo=UTC)


def _text(key: str, value: object) -> str:
    if not isinstance(value, str):
        raise ValidationError(key, value, "text")
    return value
