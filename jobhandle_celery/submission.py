"""From what a caller gives to a committed row, and its message on the way. May import dispatch and below.

Everything is checked, routed and encoded before anything is written: bad input leaves no trace.
"""

import math
import uuid
from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

from . import codec, text
from .dispatch import Dispatcher, as_job
from .errors import ApiUsageError, ValidationError
from .model import Job
from .status import SUBMITTABLE, JobStatus
from .store import NewJob, Store, Submitted

if TYPE_CHECKING:
    from sqlalchemy.orm import Session

NAME_LENGTH = 255
"""Characters of a task's, user's, group's or queue's name, and of a unique key."""


class Submissions:
    """Takes jobs in and sees that their messages go out."""

    def __init__(self, store: Store, dispatcher: Dispatcher) -> None:
        self._store = store
        self._dispatcher = dispatcher

    def submit(
        self,
        given: Sequence[object],
        username: str | None,
        groupname: str | None,
        session: "Session | None",
    ) -> list[Submitted]:
        """Insert jobs, all or none, and send what may start now; return what became of each.

        Raises:
            ApiUsageError, ValidationError: nothing was written.
        """
        new = [self._new(one, username, groupname) for one in given]
        if session is None:
            submitted = self._store.submit(new)
            self.send([one.job_id for one in submitted if one.fresh])
            return submitted
        return self._store.submit_in_session(session, new, self.send)

    def send(self, job_ids: Sequence[int]) -> None:
        """Send the messages of these jobs, those of them that are committed and may start now."""
        if not job_ids:
            return
        outgoing = self._store.outgoing(job_ids)
        if self._dispatcher.eager:
            for one in outgoing:
                self._dispatcher.run_eagerly(one)
            return
        self._store.mark_queued(self._dispatcher.publish(outgoing))

    def _new(self, given: object, username: str | None, groupname: str | None) -> NewJob:
        job, options = as_job(given)
        _check(job)
        job, routing = self._dispatcher.route(job, options)
        return NewJob(
            task=job.task,
            task_id=str(uuid.uuid4()),
            args=codec.encode_given("args", job.args),
            kwargs=codec.encode_given("kwargs", job.kwargs),
            message=text.message(job.message),
            meta=None if job.meta is None else codec.encode_given("meta", job.meta),
            username=username,
            groupname=groupname,
            unique_key=job.unique_key,
            queue=job.queue,
            routing=codec.encode_given("options", routing),
            priority=job.priority,
            time_limit=job.time_limit,
            soft_time_limit=job.soft_time_limit,
            max_attempts=job.max_attempts,
            held=_status(job.status) is JobStatus.WAITING,
            scheduled_for=job.scheduled_for,
            expires=job.expires,
        )


def status_word(value: object) -> JobStatus:
    """Return the status that a word names.

    Raises:
        ApiUsageError: none has that name.
    """
    try:
        return JobStatus(value)  # type: ignore[arg-type]  # anything may be given
    except ValueError:
        raise ApiUsageError(f"status: {value!r} is none of {', '.join(JobStatus)}") from None


def name(field: str, value: object) -> str | None:
    """Check the name of a user or group; None is none.

    Raises:
        ValidationError: it is not text of 1 to 255 characters.
    """
    return None if value is None else _name(field, value)


def _name(field: str, value: object) -> str:
    if not isinstance(value, str) or not 0 < len(value) <= NAME_LENGTH or value != text.storable(value):
        raise ValidationError(field, value, f"text of 1 to {NAME_LENGTH} characters, none of them NUL")
    return value


def _status(value: object) -> JobStatus | None:
    if value is None:
        return None
    status = status_word(value)
    if status not in SUBMITTABLE:
        raise ValidationError("status", value, "Submitted, Waiting or None")
    return status


def _check(job: Job) -> None:
    _name("task", job.task)
    if isinstance(job.args, (str, bytes)) or not isinstance(job.args, Sequence):
        raise ValidationError("args", job.args, "a list or tuple")
    if not isinstance(job.kwargs, Mapping) or not all(isinstance(key, str) for key in job.kwargs):
        raise ValidationError("kwargs", job.kwargs, "a mapping with text as its keys")
    if not isinstance(job.message, str):
        raise ValidationError("message", job.message, "text")
    _status(job.status)
    for field in ("queue", "unique_key"):
        name(field, getattr(job, field))
    for field in ("scheduled_for", "expires"):
        _check_moment(field, getattr(job, field))
    for field in ("time_limit", "soft_time_limit"):
        _check_limit(field, getattr(job, field))
    if job.time_limit and job.soft_time_limit and job.soft_time_limit > job.time_limit:
        raise ValidationError(
            "soft_time_limit", job.soft_time_limit, f"at most time_limit ({job.time_limit:g} s)"
        )
    _check_whole("priority", job.priority, 0, 255, optional=True)
    _check_whole("max_attempts", job.max_attempts, 1, 1_000_000)


def _check_whole(field: str, value: object, least: int, most: int, *, optional: bool = False) -> None:
    if optional and value is None:
        return
    if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
        raise ValidationError(field, value, f"a whole number from {least} to {most}")


def _check_limit(field: str, value: object) -> None:
    if value is None:
        return
    if not isinstance(value, (int, float)) or isinstance(value, bool) or not 0 < value < math.inf:
        raise ValidationError(field, value, "seconds, more than 0")


def _check_moment(field: str, value: Any) -> None:
    if value is None:
        return
    accepted = "an aware datetime, or a timedelta from now"
    if isinstance(value, timedelta):
        # A calendar ends at the year 9999.
        if abs(value) > timedelta(days=365 * 1000):
            raise ValidationError(field, value, accepted + " of less than a thousand years")
    elif not isinstance(value, datetime) or value.utcoffset() is None:
        raise ValidationError(field, value, accepted)
