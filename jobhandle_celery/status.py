"""The nine statuses of a job and the moves between them, as data.

The words are OMERO's (``omero::model::JobStatus``). The guards in the store's SQL, the rows of
``jobhandle_job_status``, the diagram in the documentation and the tests are derived from `MOVES`. The moves
of jobs outside of trees::

                        submit                                submit, with a time ahead or held
                          │                                     │
    resubmit              ▼      release                        ▼
    ┌───────────────▶ Submitted ◀─────────────────────────── Waiting
    │ (Resubmitted)       │ publish                             │ publish, when due
    │                     ▼                                     │
    │                  Queued ◀─────────────────────────────────┘
    │                     │ claim (also straight from Submitted, Waiting, Requeued, Resubmitted)
    │                     ▼
    │                  Running ──── retry, lose, give_back ──▶ Requeued ──▶ publish, claim
    │                     │ finish, fail, stop, lose
    │                     ▼
    └──────── Finished · Error · Cancelled ◀── cancel (from anything not Running), expire (never started)
"""

from dataclasses import dataclass
from enum import StrEnum


class JobStatus(StrEnum):
    """The state of a job; its value is the word that OMERO uses, and `JobStatus.X == "X"` holds."""

    SUBMITTED = "Submitted"
    """The row is committed; the message is not yet with the broker."""
    RESUBMITTED = "Resubmitted"
    """A final job that is to run again."""
    QUEUED = "Queued"
    """The broker has a message."""
    REQUEUED = "Requeued"
    """To run again: the task retried, its worker was lost, or its worker shut down."""
    RUNNING = "Running"
    """A worker, or a caller of ``set_status``, claimed the row."""
    ERROR = "Error"
    """Final: the task failed, or the system failed it; the failure says which."""
    WAITING = "Waiting"
    """Not to be published yet: its time lies ahead, it is held until ``release_job``, or it is blocked by
    jobs that it needs."""
    FINISHED = "Finished"
    """Final: the body returned and its result is stored."""
    CANCELLED = "Cancelled"
    """Final: it was stopped, or will never start."""

    @property
    def final(self) -> bool:
        """True if nothing but ``resubmit_job`` leaves this status."""
        return self in FINAL

    @property
    def id(self) -> int:
        """The primary key of this status in ``jobhandle_job_status``; never renumbered."""
        return _IDS[self]

    @classmethod
    def from_id(cls, status_id: int) -> "JobStatus":
        """Return the status with that primary key."""
        return _BY_ID[status_id]


_IDS = {status: number for number, status in enumerate(JobStatus, start=1)}
_BY_ID = {number: status for status, number in _IDS.items()}

FINAL = frozenset({JobStatus.FINISHED, JobStatus.ERROR, JobStatus.CANCELLED})
UNFINISHED = frozenset(JobStatus) - FINAL
STARTABLE = UNFINISHED - {JobStatus.RUNNING}
"""The statuses that a claim accepts, if the job is due, not held and not cancelled."""
SUBMITTABLE = frozenset({JobStatus.SUBMITTED, JobStatus.WAITING})
"""The statuses that ``submit`` accepts."""
SETTABLE = frozenset({JobStatus.RUNNING, JobStatus.FINISHED, JobStatus.ERROR, JobStatus.CANCELLED})
"""The statuses that ``set_status`` accepts."""


@dataclass(frozen=True)
class Move:
    """A move: its verb, the statuses before and after it, and who makes it."""

    verb: str
    sources: frozenset[JobStatus]
    targets: frozenset[JobStatus]
    by: str


def _move(verb: str, sources: frozenset[JobStatus], by: str, *targets: JobStatus) -> Move:
    return Move(verb, sources, frozenset(targets), by)


_RUNNING = frozenset({JobStatus.RUNNING})
_WAITING = frozenset({JobStatus.WAITING})
_NEVER_STARTED = frozenset({JobStatus.SUBMITTED, JobStatus.WAITING, JobStatus.QUEUED})

MOVES = {
    move.verb: move
    for move in (
        _move("submit", frozenset(), "the caller", JobStatus.SUBMITTED, JobStatus.WAITING),
        _move("release", _WAITING, "anyone", JobStatus.SUBMITTED),
        _move("publish", STARTABLE, "the submitter, the sweeper, a retry", JobStatus.QUEUED),
        _move("claim", STARTABLE, "a worker", JobStatus.RUNNING),
        _move("set_running", STARTABLE, "another process, by set_status", JobStatus.RUNNING),
        _move("finish", _RUNNING, "the worker", JobStatus.FINISHED),
        _move("fail", _RUNNING, "the worker", JobStatus.ERROR),
        _move("stop", _RUNNING, "the worker", JobStatus.CANCELLED),
        _move("retry", _RUNNING, "the worker", JobStatus.REQUEUED, JobStatus.CANCELLED),
        _move("give_back", _RUNNING, "the worker, at shutdown", JobStatus.REQUEUED, JobStatus.CANCELLED),
        _move(
            "lose",
            _RUNNING,
            "the sweeper, or the main process of a child",
            JobStatus.REQUEUED,
            JobStatus.ERROR,
            JobStatus.CANCELLED,
        ),
        _move("end", _RUNNING, "another process, by set_status", JobStatus.FINISHED, JobStatus.ERROR),
        _move("cancel", STARTABLE, "anyone", JobStatus.CANCELLED),
        _move("expire", _NEVER_STARTED, "the sweeper, or the claim that meets it", JobStatus.CANCELLED),
        _move("send_back", STARTABLE, "a worker that does not know the task", JobStatus.SUBMITTED),
        _move("give_up", STARTABLE, "a worker, if others were lost taking its message", JobStatus.ERROR),
        _move("resubmit", FINAL, "anyone", JobStatus.RESUBMITTED),
    )
}
"""All moves of jobs outside of trees. A verb changes no row that is in another status.

The rows of a tree have further ones: a blocked row becomes ready, or ends with its needs (`dependencies`); a
node starts and ends with its children (`nodes`, `tree_control`); and a resubmitted row waits for its needs
again (`control`, `tree_control`)."""
