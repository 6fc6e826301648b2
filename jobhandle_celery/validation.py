"""Checks what callers give; an error names the field, the value and what is accepted.

Each function raises `ValidationError` for a value that it does not accept, or `ApiUsageError` for an unknown
word or an id that is no number. `finite` and `duration` raise nothing.
"""

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

from .errors import ApiUsageError, ValidationError, shown
from .models import CheckedJob, Job, JobRecord, request_from
from .redaction import HIDDEN
from .serialization import clip_message, storable
from .status import SUBMITTABLE, JobStatus

NAME_LENGTH = 255
"""Characters of the name of a task, user, group, queue or worker, and of a unique key."""

TASK_ID_LENGTH = 36
"""Characters of Celery's id of a task, which is a UUID unless the caller gives another one."""

MAX_ID = 2**63 - 1
MAX_IDS = 100_000
"""Ids in one call."""

WHEN = ("finished", "ended", "failed")
"""How a job must have ended for another one to start."""

MAX_DURATION = timedelta(days=365 * 1000)
"""A calendar ends at the year 9999."""

MAX_SECONDS = timedelta(days=365 * 10)
"""The longest time to a moment that is given as a number: larger ones are Unix timestamps by mistake."""

_MOMENT = "an aware datetime, or a duration as a timedelta (up to a thousand years) or in seconds (up to ten)"


def finite(value: object) -> float | None:
    """Return a finite number as a float; None for anything else, also a bool."""
    if not isinstance(value, (int, float)) or isinstance(value, bool):
        return None
    try:
        number = float(value)
    except OverflowError:
        return None
    return number if math.isfinite(number) else None


def duration(value: object) -> timedelta | None:
    """Return seconds or a timedelta as a timedelta; None for anything else, or if it is too long for one."""
    if isinstance(value, timedelta):
        return value
    seconds = finite(value)
    try:
        return None if seconds is None else timedelta(seconds=seconds)
    except OverflowError:
        return None


def status_word(value: object) -> JobStatus:
    """Return the status that a word names.

    Raises:
        ApiUsageError: none has that name.
    """
    # Not by JobStatus(value), whose own error calls repr() of whatever was given.
    for status in JobStatus:
        if isinstance(value, str) and value == status.value:
            return status
    raise ApiUsageError(f"status: {shown(value)} is none of {', '.join(JobStatus)}")


def statuses(value: object) -> tuple[JobStatus, ...] | None:
    """Return the statuses that one word or several name; None for None."""
    if value is None:
        return None
    if isinstance(value, str) or not isinstance(value, Iterable):
        return (status_word(value),)
    return tuple(status_word(word) for word in value)


def name(field: str, value: object) -> str | None:
    """Check a name; None for None."""
    return None if value is None else _name(field, value)


def _name(field: str, value: object) -> str:
    if not isinstance(value, str) or not 0 < len(value) <= NAME_LENGTH or value != storable(value):
        raise ValidationError(field, value, f"text of 1 to {NAME_LENGTH} characters, none of them NUL")
    return value


def task_id(value: object) -> str | None:
    """Check Celery's id of a task; None for None."""
    if value is None:
        return None
    if not isinstance(value, str) or not 0 < len(value) <= TASK_ID_LENGTH or value != storable(value):
        raise ValidationError("task_id", value, f"text of 1 to {TASK_ID_LENGTH} characters, none of them NUL")
    return value


def job_id(value: object, field: str = "job_id") -> int:
    """Check a job's id. A number outside the range of ids becomes 0, the id of no job."""
    if not isinstance(value, int) or isinstance(value, bool):
        raise ApiUsageError(f"{field}: {shown(value)} is not a whole number")
    return value if 0 < value <= MAX_ID else 0


def job_ids(value: Any) -> tuple[int, ...] | None:
    """Check ids; None for None."""
    if value is None:
        return None
    if isinstance(value, (str, bytes)) or not isinstance(value, Iterable):
        raise ValidationError("ids", value, "whole numbers, in a list or the like")
    ids = tuple(dict.fromkeys(job_id(given) for given in value))
    if len(ids) > MAX_IDS:
        raise ValidationError("ids", f"{len(ids)} ids", f"at most {MAX_IDS:,} at once")
    return ids


def first_beyond(value: object) -> int:
    """Check the id of a job before which jobs are looked for; any larger number stands for the largest id."""
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise ValidationError("before", value, "the id of a job")
    return min(value, MAX_ID)


def whole(field: str, value: object, least: int, most: int) -> int:
    """Check a whole number."""
    if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
        raise ValidationError(field, value, f"a whole number from {least} to {most}")
    return value


def flag(field: str, value: object) -> bool:
    """Check that something is True or False."""
    if not isinstance(value, bool):
        raise ValidationError(field, value, "True or False")
    return value


def number(field: str, value: object) -> float:
    """Check a finite number; its type stays."""
    if finite(value) is None:
        raise ValidationError(field, value, "a finite number")
    return value  # type: ignore[return-value]  # it is one


def timeout(field: str, value: object) -> float:
    """Return the seconds to wait; a negative timeout, as of a passed deadline, is 0."""
    given = duration(value)
    if given is None:
        raise ValidationError(field, value, "seconds, a timedelta, or None")
    return max(given.total_seconds(), 0.0)


def age(field: str, value: object) -> timedelta:
    """Check a duration that is not negative."""
    given = duration(value)
    if given is None or not timedelta(0) <= given <= MAX_DURATION:
        raise ValidationError(field, value, "seconds or a timedelta, from 0 to a thousand years")
    return given


def message(value: object) -> str | None:
    """Return a message as it will be stored; None for None."""
    if value is None:
        return None
    if not isinstance(value, str):
        raise ValidationError("message", value, "text, or None")
    return clip_message(value)


def moment(field: str, value: Any) -> datetime | timedelta | None:
    """Check a moment: an aware datetime, or a duration from now; None for None."""
    if value is None:
        return None
    if isinstance(value, datetime) and value.utcoffset() is not None:
        try:
            value.astimezone(UTC)
        except OverflowError:
            raise ValidationError(field, value, _MOMENT) from None
        return value
    given = duration(value)
    if given is None or abs(given) > (MAX_DURATION if isinstance(value, timedelta) else MAX_SECONDS):
        raise ValidationError(field, value, _MOMENT)
    return given


def since(field: str, value: Any) -> datetime | timedelta | None:
    """Check a moment in a filter: an aware datetime, or how long ago; None for None."""
    given = moment(field, value)
    if isinstance(given, timedelta) and given < timedelta(0):
        raise ValidationError(field, value, "a duration that is not negative, or an aware datetime")
    return given


def job(given: Job) -> CheckedJob:
    """Check every field that a caller gives, and return the job with its durations in one form.

    Raises:
        ApiUsageError: names the first field that is wrong.
    """
    if isinstance(given, JobRecord):
        given = request_from(given)
    _name("task", given.task)
    arguments(given.args, given.kwargs, hide=bool(sensitive(given.sensitive)))
    if not isinstance(given.headers, (dict, Mapping)) or not _has_text_keys(given.headers):
        raise ValidationError("headers", given.headers, "a mapping with text as its keys")
    if not isinstance(given.message, str):
        raise ValidationError("message", given.message, "text")
    status = submittable(given.status)
    if given.when not in WHEN:
        raise ValidationError("when", given.when, f"one of {', '.join(WHEN)}")
    if given.when != Job.when and not given.after:
        # A list of jobs that is computed, and empty: none of them has ended that way.
        raise ValidationError("when", given.when, f"{Job.when!r} for a job whose list after is empty")
    if given.after and status is JobStatus.WAITING and given.scheduled_for is None:
        raise ValidationError(
            "status", "Waiting", "no status together with after: such a job waits by itself"
        )
    name("queue", given.queue)
    unique_key(given.unique_key)
    hard, soft = _limit("time_limit", given.time_limit), _limit("soft_time_limit", given.soft_time_limit)
    if hard and soft and soft > hard:
        raise ValidationError("soft_time_limit", soft, f"at most the time_limit of {hard:g} s")
    if given.priority is not None:
        whole("priority", given.priority, 0, 255)
    max_attempts(given.max_attempts)
    # Without the constructor: it takes as long as all these checks, and knows no field of a subclass.
    checked = object.__new__(CheckedJob)
    vars(checked).update(
        vars(given),
        scheduled_for=moment("scheduled_for", given.scheduled_for),
        expires=moment("expires", given.expires),
        time_limit=hard,
        soft_time_limit=soft,
    )
    return checked


def arguments(args: object, kwargs: object, *, hide: bool = False) -> None:
    """Check the types of a job's arguments; with `hide`, an error does not show them."""
    # The built-in types first, for an abstract class takes longer to answer.
    if isinstance(args, (str, bytes)) or not isinstance(args, (list, tuple, Sequence)):
        raise ValidationError("args", HIDDEN if hide else args, "a list or tuple")
    if not isinstance(kwargs, (dict, Mapping)) or not _has_text_keys(kwargs):
        raise ValidationError("kwargs", HIDDEN if hide else kwargs, "a mapping with text as its keys")


def max_attempts(value: object) -> int | None:
    """Check how often a body may be started because of lost workers; None for None."""
    return None if value is None else whole("max_attempts", value, 1, 1_000_000)


def unique_key(value: object) -> str | None:
    """Check a unique key; None for None."""
    return name("unique_key", value)


def _has_text_keys(mapping: Mapping[Any, Any]) -> bool:
    return not mapping or all(isinstance(key, str) for key in mapping)


def after(value: object) -> Sequence[Any]:
    """Check that the jobs that another one waits for are a list."""
    if not isinstance(value, (list, tuple)):
        raise ValidationError("after", value, "a list of ids of jobs, or of jobs that are submitted with it")
    if len(value) > MAX_IDS:
        raise ValidationError("after", f"{len(value)} jobs", f"at most {MAX_IDS:,}")
    return value


def sensitive(value: object) -> tuple[str | int, ...]:
    """Check the names and positions of sensitive arguments."""
    if isinstance(value, tuple) and not value:
        return ()
    if isinstance(value, Collection) and not isinstance(value, (str, bytes, Mapping)):
        given = tuple(value)
        if all(isinstance(item, str) or (type(item) is int and item >= 0) for item in given):
            return given
    raise ValidationError("sensitive", value, "a list of names of parameters, or of positions from 0")


def submittable(value: object) -> JobStatus | None:
    """Check the status of a submitted job; None for None."""
    if value is None:
        return None
    status = status_word(value)
    if status not in SUBMITTABLE:
        raise ValidationError("status", str(status), "Submitted, Waiting or None")
    return status


def _limit(field: str, value: object) -> float | None:
    if value is None:
        return None
    given = duration(value)
    if given is None or given <= timedelta(0):
        raise ValidationError(field, value, "seconds or a timedelta, more than 0")
    return given.total_seconds() if isinstance(value, timedelta) else value  # type: ignore[return-value]  # a number
