"""The arguments and results of the store: frozen values, never rows."""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass, field, fields, replace
from datetime import datetime, timedelta
from enum import Enum
from operator import attrgetter
from typing import Any, NamedTuple, Protocol

from sqlalchemy import Row

from .. import serialization
from ..batching import slices
from ..models import Failure, Progress
from ..schema import job
from ..status import JobStatus


@dataclass(frozen=True, slots=True)
class PendingMessage:
    """The content of a message that is to be published for `attempt`."""

    job_id: int
    task_id: str
    task: str
    attempt: int
    args: str
    kwargs: str
    queue: str | None
    routing: str
    priority: int | None
    time_limit: float | None
    soft_time_limit: float | None
    retry: str | None = None
    publish_count: int = 0
    republish_deferrals: int = 0
    status: JobStatus = JobStatus.SUBMITTED
    needs_when: str | None = None
    parent_id: int | None = None

    @property
    def lacks_results(self) -> bool:
        """True if results of what the job needs are to be put before its arguments; a retry has them."""
        return self.needs_when is not None and self.retry is None

    @property
    def is_first(self) -> bool:
        """True for the first message of a job that was never resubmitted, as far as the row shows."""
        return self.attempt == 1 and self.publish_count == 0 and self.status is not JobStatus.RESUBMITTED


MESSAGE_CONTENT = [
    job.c[field.name] for field in fields(PendingMessage) if field.name in job.c and field.name != "attempt"
]
_OTHERWISE_NAMED = {"job_id": job.c.id, "attempt": job.c.attempt + 1, "status": job.c.status_id}
MESSAGE_COLUMNS = [
    _OTHERWISE_NAMED[field.name] if field.name in _OTHERWISE_NAMED else job.c[field.name]
    for field in fields(PendingMessage)
]
"""The columns of a row for `PendingMessage(*row)`: its message for the attempt after the row's."""


def message_of(row: Row[Any]) -> PendingMessage:
    """Return the message of a row that has at least the columns of `MESSAGE_CONTENT`."""
    content = {column.name: getattr(row, column.name) for column in MESSAGE_CONTENT}
    return PendingMessage(job_id=row.id, attempt=row.attempt + 1, status=row.status_id, **content)


@dataclass(frozen=True, slots=True)
class NewJob:
    """A job to be inserted: validated, encoded and routed."""

    task: str
    task_id: str
    args: str
    kwargs: str
    message: str = ""
    meta: str | None = None
    username: str | None = None
    groupname: str | None = None
    unique_key: str | None = None
    queue: str | None = None
    routing: str = "{}"
    priority: int | None = None
    time_limit: float | None = None
    soft_time_limit: float | None = None
    max_attempts: int = 1
    held: bool = False
    scheduled_for: datetime | timedelta | None = None
    expires: datetime | timedelta | None = None
    task_id_given: bool = False
    """The caller has chosen the task id, which another job may have."""

    def pending_message(
        self, job_id: int, needs_when: str | None = None, parent_id: int | None = None
    ) -> PendingMessage:
        """Return its first message, without reading the row."""
        return PendingMessage(
            job_id=job_id,
            task_id=self.task_id,
            task=self.task,
            attempt=1,
            args=self.args,
            kwargs=self.kwargs,
            queue=self.queue,
            routing=self.routing,
            priority=self.priority,
            time_limit=self.time_limit,
            soft_time_limit=self.soft_time_limit,
            needs_when=needs_when,
            parent_id=parent_id,
        )

    def columns(self, namespace: str) -> dict[str, Any]:
        """Return the columns that have a value and do not depend on the clock."""
        values = zip(_PLAIN, _plain_values(self), strict=True)
        plain = {name: value for name, value in values if value is not None}
        plain["namespace"] = namespace
        if self.unique_key is not None:
            plain["unique_hash"] = unique_hash(namespace, self.username, self.unique_key)
        return plain


_PLAIN = tuple(
    field.name
    for field in fields(NewJob)
    if field.name not in ("held", "scheduled_for", "expires", "task_id_given")
)
_plain_values = attrgetter(*_PLAIN)


@dataclass(frozen=True, slots=True)
class NewMember:
    """A row of a tree to be inserted, in a list in which parents, and what a row needs, come first.

    Also a job without a tree that depends on others.
    """

    job: NewJob
    kind: str | None = None
    """``"chain"``, ``"group"`` or ``"chord"``; None: a task."""
    parent: int | None = None
    """The index of its parent in the list; None: a root, or a job without a tree."""
    position: int | None = None
    """Its place among the results of its parent; None: a callback, whose result and failure do not count."""
    needs: tuple[tuple[int, int | None], ...] = ()
    """Jobs of the list that must have ended before it starts, and the places of their results among its
    arguments; None: the result is not an argument."""
    after: tuple[int, ...] = ()
    """Ids of existing jobs that must have ended before it starts."""
    when: str | None = None
    """How they must have ended: ``"finished"``, ``"ended"`` or ``"failed"``; None: it has no needs."""
    countdown: float | None = None
    """Seconds that it waits once it could start; None: none."""
    expires_in: float | None = None
    """Seconds after which it is cancelled, from the moment when it could start; None: never."""

    def pending_message(self, job_id: int, parent_id: int | None) -> PendingMessage:
        """Return its first message, without reading the row."""
        needs_when = (self.when or "finished") if self.needs or self.after else None
        return self.job.pending_message(job_id, needs_when, parent_id)


class NewJobs(Protocol):
    """Jobs to be inserted: a list, or an iterable that prepares them lazily and may be iterated again."""

    def __len__(self) -> int: ...
    def __iter__(self) -> Iterator[NewJob]: ...


@dataclass(frozen=True)
class SubmitResult:
    """The result of a submit."""

    job_id: int
    status: JobStatus
    fresh: bool = True
    """False: an unfinished job has the same unique key; this is its id."""


@dataclass(frozen=True)
class Worker:
    """The process tree of a worker; `pid` is that of the calling process."""

    name: str
    worker_uid: str | None
    """None outside a worker (eager runs): there is no lease, and the sweeper never declares it lost."""
    pid: int


@dataclass(frozen=True)
class Run:
    """A claim that has won: the key to every write of its attempt."""

    job_id: int
    task_id: str
    attempt: int
    claim_id: str
    worker: Worker


class RunResult(NamedTuple):
    """The result of a run."""

    text: str
    """JSON text."""
    ignored: bool = False
    """It is stored only if another job may get it as an argument."""


@dataclass(frozen=True)
class ProcessRef:
    """The child process of a run: a main process does not know whether the child's claim has won."""

    job_id: int
    task_id: str
    attempt: int
    worker_uid: str
    pid: int


class RejectionReason(Enum):
    """Why a claim was refused."""

    CANCELLED = "the job is cancelled"
    EXPIRED = "the job has expired"
    SUPERSEDED = "the message is a duplicate, or for an earlier attempt"
    EARLY = "it is not time yet"
    UNKNOWN = "there is no such job"
    NO_LEASE = "this worker's lease has ended"
    """The worker may renew it: the claim is worth another try."""


@dataclass(frozen=True)
class ClaimRejected:
    """A lost claim."""

    reason: RejectionReason
    foreign: str = field(default="", compare=False)
    """Where the job of the message seems to be, if not in this namespace; else empty."""


@dataclass(frozen=True)
class RunSnapshot:
    """A running job, as its worker's main process needs it."""

    job_id: int
    task_id: str
    attempt: int
    claim_id: str
    pid: int | None
    stop: bool
    """A stop is requested."""
    terminate: bool
    """Its process is to be ended."""
    message: str = ""
    progress: Progress | None = None


MessageKey = tuple[int, str, int]
"""Job id, task id and attempt that a message is for."""


@dataclass(frozen=True)
class ChangedJob:
    """A job that another process than its body's has changed, and its status after that.

    It was recovered, given up, given back or cancelled; Celery has sent no event of it.
    """

    job_id: int
    task_id: str
    task: str
    status: JobStatus
    reason: str


@dataclass(frozen=True)
class Selection:
    """The filters of a list, a count or a mass cancel; None: any.

    `since` and `until` are about the time of the submit, the first included, the second not: a moment, or how
    long ago by the database's clock.
    """

    statuses: tuple[JobStatus, ...] | None = None
    task: str | None = None
    username: str | None = None
    ids: tuple[int, ...] | None = None
    groupname: str | None = None
    since: datetime | timedelta | None = None
    until: datetime | timedelta | None = None
    root: int | None = None
    """The members of this tree."""
    members: bool = True
    """False: no members of trees, which their roots stand for."""
    blocked: bool = True
    """False: no jobs that wait for others."""

    def parts(self, size: int) -> "Iterator[Selection]":
        """Split it into selections of at most so many ids: databases limit the parameters of a statement.

        The ids are sorted: a transaction that has all parts locks the rows in this order.
        """
        if self.ids is None:
            yield self
            return
        ids = tuple(sorted(self.ids))
        for part in slices(ids, size):
            yield replace(self, ids=tuple(part))


EVERYTHING = Selection()


def unique_hash(namespace: str, username: str | None, unique_key: str | None) -> str | None:
    """Return the digest that stands for a key while its job is unfinished; None without a key."""
    if unique_key is None:
        return None
    # JSON keeps ("a", "b:c") and ("a:b", "c") apart.
    return hashlib.sha256(json.dumps([namespace, username, unique_key]).encode()).hexdigest()


def encode_failure(failure: Failure) -> str:
    """Return a failure as the text that its column holds."""
    args = None if failure.args is None else serialization.encode(failure.args)
    return json.dumps(vars(failure) | {"args": args})
