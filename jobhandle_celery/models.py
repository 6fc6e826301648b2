"""What callers hold: a job's description and its snapshots, all frozen. May import sensitive and status.

`Job` serves both ways: the fields that a caller gives to ``submit``, and the record read back, in
which the system's fields are filled in.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from datetime import datetime, timedelta
from typing import Any

from .redaction import ALL_POSITIONS, masked
from .status import JobStatus


@dataclass(frozen=True)
class Failure:
    """Why a job ended in Error: text only, never a pickled exception."""

    kind: str
    """``"task"`` if the body raised; ``"system"`` if its worker was lost or a time limit ended it."""
    type: str
    """The name of the exception's class, e.g. ``"ValueError"`` or ``"WorkerLostError"``."""
    message: str
    traceback: str = ""
    """As Python prints it; empty when there is none, as for a lost worker."""


@dataclass(frozen=True)
class Progress:
    """How far a body says it is, in units of its own (bytes, rows, files)."""

    current: float
    total: float | None = None
    """None when the body does not know where it ends."""

    @property
    def fraction(self) -> float | None:
        """Between 0 and 1; None when the total is not known."""
        return min(max(self.current / self.total, 0.0), 1.0) if self.total else None


@dataclass(frozen=True)
class Event:
    """One move of a job, as ``jobhandle_job_event`` keeps it."""

    at: datetime
    """By the database's clock, in UTC."""
    status: JobStatus
    """What the job became by it."""
    attempt: int
    """Of which attempt it was; 0 before the first."""
    message: str
    """Why, for people."""
    actor: str
    """Who: ``"service"``, ``"user ann"``, ``"worker w1@host"`` or ``"sweep"``."""


@dataclass(frozen=True)
class Unreadable:
    """Stands for a value of a row that cannot be read: of another service, or of an old version."""

    reason: str
    """The type of the error, without anything of the value."""

    def __repr__(self) -> str:
        return f"<unreadable: {self.reason}>"


@dataclass(frozen=True, kw_only=True, repr=False)
class Job:
    """A job: what is asked for, and, when read back, what became of it.

    A `timedelta` for `scheduled_for` or `expires` counts from the moment of the submit by the
    database's clock, so that a submitter whose clock is wrong schedules right. Read back, both are
    aware UTC datetimes.
    """

    task: str
    """The registered name of a Celery task."""
    args: Sequence[Any] = ()
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    message: str = ""
    """For people; cut at 10,000 characters."""
    scheduled_for: datetime | timedelta | None = None
    """Not before this moment. In the past: now."""
    status: JobStatus | None = None
    """To submit: None or Submitted; or Waiting, which without a time holds the job until ``release_job``."""
    queue: str | None = None
    """None: where Celery's own routing sends this task."""
    priority: int | None = None
    """As the broker understands it; None: the task's default."""
    expires: datetime | timedelta | None = None
    """If it has not started by then it is cancelled."""
    time_limit: float | None = None
    """Seconds after which a worker kills the body; None: the task's own."""
    soft_time_limit: float | None = None
    """Seconds after which the body is interrupted by SoftTimeLimitExceeded; None: the task's own."""
    max_attempts: int = 1
    """How often its body is started at most, as far as lost workers make that necessary: 1 is never again.

    Retries, and bodies that a shutdown gave back, do not count; so `attempt` may become larger."""
    unique_key: str | None = None
    """At most one unfinished job per key, user and namespace."""
    meta: Any = None
    """Anything that JSON holds; for the caller, the library does not look at it."""
    sensitive: Sequence[str | int] = ()
    """Names of arguments, or positions from 0, that are shown as ``***`` in Flower, logs, events and errors.

    The row and the message hold their values, for the body needs them."""

    id: int | None = None
    """Unique in the database; rises, with gaps."""
    task_id: str | None = None
    """Celery's id of the task; a new one after each resubmit."""
    username: str | None = None
    groupname: str | None = None
    submitted: datetime | None = None
    started: datetime | None = None
    """When the latest attempt started; None if none did since the last (re)submit."""
    finished: datetime | None = None
    """When it became Finished, Error or Cancelled."""
    attempt: int = 0
    """How often the row was claimed; it never goes down."""
    worker: str | None = None
    """Who runs it, or ran it last."""
    result: Any = None
    """What the body returned, as JSON gives it back; None until it is Finished."""
    error: Failure | None = None
    """Why it ended in Error; None otherwise."""
    progress: Progress | None = None
    """What the body said last by ``set_progress``; None if it never did."""
    cancel_requested: datetime | None = None
    """When somebody asked it to stop; apart from the status, for a body may take its time."""

    @property
    def held(self) -> bool:
        """True for a Waiting job that has no time: only ``release_job`` or a person starts it."""
        return self.status is JobStatus.WAITING and self.scheduled_for is None

    @property
    def shown_arguments(self) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The arguments as they may be shown: those that are sensitive are ``***``."""
        # Until it is submitted nobody knows the place of a name among the positions.
        unknown = (ALL_POSITIONS,) if self.sensitive and self.id is None else ()
        return masked(self.args, self.kwargs, (*self.sensitive, *unknown))

    def __repr__(self) -> str:
        given = {field.name: getattr(self, field.name) for field in fields(self)}
        if self.sensitive:
            given["args"], given["kwargs"] = self.shown_arguments
        return f"Job({', '.join(f'{name}={value!r}' for name, value in given.items())})"
