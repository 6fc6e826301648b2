"""What callers hold, all frozen: `Job` is what is asked for, `JobRecord` what is stored."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from datetime import datetime, timedelta
from typing import Any

from .errors import ValidationError
from .redaction import ALL_POSITIONS, masked
from .status import JobStatus


@dataclass(frozen=True)
class Failure:
    """Why a job ended in Error: text and JSON, never a pickled exception."""

    kind: str
    """``"task"`` if the body raised; ``"system"`` if its worker was lost or a time limit ended it."""
    type: str
    """The name of the exception's class, e.g. ``"ValueError"`` or ``"WorkerLostError"``."""
    message: str
    traceback: str = ""
    """As Python prints it; empty when there is none, as for a lost worker."""
    path: str = ""
    """Where the exception's class is defined, e.g. ``"shop.models:Order.DoesNotExist"``; empty if unknown."""
    args: Sequence[Any] | None = field(default=None, hash=False, repr=False)
    """The exception's arguments; None if they are not JSON, or have more than 10,000 characters of it."""


@dataclass(frozen=True)
class Progress:
    """How far a body is, in units of its own (bytes, rows, files)."""

    current: float
    total: float | None = None
    """None if unknown."""

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
    """The status after the move."""
    attempt: int
    """The attempt; 0 before the first."""
    message: str
    """Why, for people."""
    actor: str
    """``"service"``, ``"user ann"``, ``"worker w1@host"``, ``"sweep"``, or ``"settle"``: it follows from the
    end of another job."""
    computed: bool = False
    """True: it is not a stored move; the members of a node were counted when it was read."""


@dataclass(frozen=True)
class Unreadable:
    """Stands for a stored value that cannot be decoded: one of another program or an old version."""

    reason: str
    """The type of the error; nothing of the value."""

    def __repr__(self) -> str:
        return f"<unreadable: {self.reason}>"


@dataclass(frozen=True, kw_only=True, repr=False)
class Job:
    """A request for a job: a Celery task, its arguments, and when and how to run it.

    Durations are seconds or `timedelta`. As `scheduled_for` or `expires` they count from the submit by the
    database's clock, so that a wrong clock of the submitter does no harm.
    """

    task: str
    """The registered name of a Celery task."""
    args: Sequence[Any] = ()
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    message: str = ""
    """For people; cut at 10,000 characters."""
    scheduled_for: datetime | timedelta | float | None = None
    """Not before this moment. In the past: now."""
    status: JobStatus | None = None
    """None or Submitted; or Waiting, which without `scheduled_for` holds the job until ``release_job``."""
    queue: str | None = None
    """None: where Celery's own routing sends this task."""
    priority: int | None = None
    """As the broker understands it; None: the task's default."""
    expires: datetime | timedelta | float | None = None
    """The job is cancelled if it has not started by then."""
    time_limit: timedelta | float | None = None
    """After this time a worker kills the body; None: the task's own limit."""
    soft_time_limit: timedelta | float | None = None
    """After this time the body is interrupted by SoftTimeLimitExceeded; None: the task's own limit."""
    max_attempts: int | None = None
    """How often the body may be started because a worker was lost; 1: never again.

    None: the number that the task has as an attribute, else 1.

    A worker or process that is lost with the job's message before the body starts counts as well, but ends
    the job only once three are lost, or `max_attempts` if that is more. Retries, and
    bodies that a shutdown gave back, do not count; so `JobRecord.attempt` may become larger."""
    unique_key: str | None = None
    """At most one unfinished job per key, user and namespace; None: the task's own key, if it has one."""
    meta: Any = None
    """Any JSON value, for the caller; the library does not read it."""
    headers: Mapping[str, Any] = field(default_factory=dict)
    """Of the message, beside Celery's own; any JSON value."""
    sensitive: Sequence[str | int] = ()
    """Names of arguments, or positions from 0, that are shown as ``***`` in Flower, logs, events and errors.

    The row and the message hold their values, for the body needs them."""
    after: "Sequence[int | Job]" = ()
    """Jobs that must have ended before this one starts: ids, or the very jobs submitted in the same call."""
    when: str = "finished"
    """How they must have ended: ``"finished"``, ``"ended"`` (in whatever way) or ``"failed"`` (in Error).

    If one can no longer end that way, this job is cancelled."""

    @property
    def shown_arguments(self) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The arguments as they may be shown: those that are sensitive are ``***``."""
        # The positions of sensitive names are resolved at submit: until then all positions are hidden.
        return masked(self.args, self.kwargs, (*self.sensitive, ALL_POSITIONS) if self.sensitive else ())

    def __repr__(self) -> str:
        given = {field.name: getattr(self, field.name) for field in fields(self)}
        if self.sensitive:
            given["args"], given["kwargs"] = self.shown_arguments
        return f"{type(self).__name__}({', '.join(f'{name}={value!r}' for name, value in given.items())})"


@dataclass(frozen=True, kw_only=True, repr=False)
class JobRecord(Job):
    """A stored job at one moment.

    A record can be submitted again as it is: a new job with the same task, arguments and options. A held
    record makes a held job. The new job does not take over any other status, `expires` (the task's default
    applies), the message of a job in Error or Cancelled, or the fields that only a record has. A member's
    record makes a job outside of the tree, with the member's own arguments and without its needs.
    """

    status: JobStatus = field()
    after: Sequence[int] = ()
    """The ids of what it needs, first those whose results are its arguments; see `JobHandle.needs`."""
    scheduled_for: datetime | None = None
    """In UTC, as are all times of a record."""
    expires: datetime | None = None
    time_limit: float | None = None
    """In seconds."""
    soft_time_limit: float | None = None
    """In seconds."""
    max_attempts: int = 1
    id: int
    """Unique in the database; rises, with gaps."""
    task_id: str
    """Celery's id of the task; a new one after each resubmit."""
    kind: str | None = None
    """``"chain"``, ``"group"`` or ``"chord"``: a node of a tree, which runs no task. None: a task."""
    root_id: int | None = None
    """The root of the tree of which it is a member; None of a root, and of a job without a tree."""
    parent_id: int | None = None
    """The node of which it is a child; None as for `root_id`."""
    blocked: bool = False
    """It is Waiting for jobs that it needs."""
    username: str | None = None
    groupname: str | None = None
    submitted: datetime
    started: datetime | None = None
    """When the latest attempt started; None if none did since the last (re)submit."""
    finished: datetime | None = None
    """When it became Finished, Error or Cancelled."""
    attempt: int = 0
    """How often the row was claimed; it never goes down."""
    worker: str | None = None
    """The worker that runs it, or ran it last."""
    result: Any = None
    """What the body returned, as JSON gives it back; None until it is Finished.

    Of a node, what Celery's canvas returns: a chain's last result, the result of a chord's body, a list of
    those of a group. `JobHandle.get_job` and `needs` read it from the members; lists have None."""
    error: Failure | None = None
    """Why it ended in Error; None otherwise."""
    progress: Progress | None = None
    """The body's last ``set_progress``; None if there was none.

    Of a node, how many of its tasks have Finished, of how many; lists have it until the node ends."""
    cancel_requested: datetime | None = None
    """When a stop was requested; apart from the status, for a body may take its time."""

    @property
    def held(self) -> bool:
        """True for a Waiting job that has no time: only ``release_job`` or ``set_status`` starts it."""
        return self.status == JobStatus.WAITING and self.scheduled_for is None and not self.blocked

    @property
    def shown_arguments(self) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The arguments as they may be shown: those that are sensitive are ``***``."""
        return masked(self.args, self.kwargs, self.sensitive)


@dataclass(frozen=True, kw_only=True, repr=False)
class CheckedJob(Job):
    """A valid request, its durations in one form each."""

    scheduled_for: datetime | timedelta | None = None
    expires: datetime | timedelta | None = None
    time_limit: float | None = None
    soft_time_limit: float | None = None


def request_from(record: JobRecord) -> Job:
    """Return the request for a new job like a stored one.

    Raises:
        ValidationError: a value of the stored job cannot be read, or it is a node, which has no task.
    """
    if record.kind is not None:
        raise ValidationError("kind", record.kind, "None, a task; resubmit_job() runs a tree again")
    for name in ("args", "kwargs", "meta"):
        match value := getattr(record, name):
            case Unreadable() | [Unreadable()] | {"unreadable": Unreadable()}:
                raise ValidationError(
                    name, value, f"a readable value; that of job {record.id} cannot be read"
                )
    given = {field.name: getattr(record, field.name) for field in fields(Job)}
    given["status"] = JobStatus.WAITING if record.held else None
    # Of the record's own life: the moment may have passed, and the message of its end is the library's.
    given["expires"] = None
    if record.status in (JobStatus.ERROR, JobStatus.CANCELLED):
        given["message"] = ""
    if record.parent_id is not None or not record.after:  # what it needed may be pruned
        given |= {"after": (), "when": Job.when}
    return Job(**given)
