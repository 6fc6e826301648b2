"""What a caller gives, in Celery's terms, as a `Job`. May import checks and options."""

from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Any

from celery.utils.abstract import CallableSignature

from .. import validation
from ..durations import duration
from ..errors import ApiUsageError, ValidationError, shown
from ..models import Job, JobRecord, request_from
from . import publish_options

_CANVAS_TASKS = {
    "celery.chain": "chain",
    "celery.group": "group",
    "celery.chord": "chord",
    "celery.chunks": "chunks",
}


def as_job(given: object) -> tuple[Job, dict[str, Any]]:
    """Return a Job, and the further message options, of what a caller submitted.

    Raises:
        ApiUsageError: it is neither a Job nor a Celery signature.
        ValidationError: a chain, group, chord or callback, or an option that a job does not have.
    """
    if isinstance(given, Job):
        return (request_from(given) if isinstance(given, JobRecord) else given), {}
    if not isinstance(given, (dict, Mapping)) or not isinstance(given, CallableSignature):
        raise ApiUsageError(f"{shown(given)} is neither a Job nor a Celery signature (a task's .s(...))")
    canvas = given.get("subtask_type") or _CANVAS_TASKS.get(str(given.get("task")))
    if canvas:
        raise ValidationError("job", given.get("task"), f"one task; a {canvas} cannot be a job yet")
    further = {name: value for name, value in dict(given.get("options") or {}).items() if value is not None}
    publish_options.check_given(further)
    for name in publish_options.CANVAS & further.keys():
        del further[name]
    job = Job(
        task=given["task"],
        args=tuple(given.get("args") or ()),
        kwargs=dict(given.get("kwargs") or {}),
        scheduled_for=moment_of("countdown", further.pop("countdown", None))
        or moment_of("eta", further.pop("eta", None)),
        expires=moment_of("expires", further.pop("expires", None)),
        **{
            name: further.pop(name)
            for name in ("queue", "priority", "time_limit", "soft_time_limit", "sensitive")
            if name in further
        },
    )
    further.pop("eta", None)
    return job, further


def moment_of(field: str, value: Any) -> datetime | timedelta | None:
    """Return a moment as Celery's options give it: seconds, a datetime, or its text."""
    accepted = "seconds, or an aware datetime"
    if isinstance(value, str):
        try:
            value = datetime.fromisoformat(value)
        except ValueError:
            raise ValidationError(field, value, accepted) from None
    if value is None or isinstance(value, datetime):
        return validation.moment(field, value)
    given = duration(value)
    if given is None:
        raise ValidationError(field, value, accepted)
    return validation.moment(field, given)
