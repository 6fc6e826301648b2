"""The model of one job."""

from dataclasses import dataclass, field

from jobhandle_celery.status import STARTABLE, JobStatus
from jobhandle_celery.store import PendingMessage, ProcessRef, Run

SUBMITTED, QUEUED, WAITING = JobStatus.SUBMITTED, JobStatus.QUEUED, JobStatus.WAITING
RUNNING, REQUEUED, RESUBMITTED = JobStatus.RUNNING, JobStatus.REQUEUED, JobStatus.RESUBMITTED
FINISHED, ERROR, CANCELLED = JobStatus.FINISHED, JobStatus.ERROR, JobStatus.CANCELLED


@dataclass
class ModelJob:
    job_id: int
    task_id: str
    status: JobStatus
    key: str | None
    max_attempts: int
    expires: float | None
    not_before: float | None
    due: float | None
    attempt: int = 0
    lost_count: int = 0
    started: bool = False
    stamped: bool = False
    terminate: bool = False
    reported: bool = False
    sent: int = 0
    """The number of messages known to be published for its next attempt."""
    claim: str | None = None
    """Claim of the run that holds the row, or of its last run until another call moves the row."""
    worker_uid: str | None = None
    """worker_uid of the worker whose body may be running."""
    message: str = ""
    progress: float | None = None
    ended: float | None = None
    events: list[JobStatus] = field(default_factory=list)

    @property
    def held(self) -> bool:
        return self.status is WAITING and self.not_before is None

    def is_due(self, now: float) -> bool:
        return self.not_before is None or self.not_before <= now

    def has_expired(self, now: float) -> bool:
        return not self.started and self.expires is not None and self.expires <= now

    def is_held_by(self, holder: Run | ProcessRef) -> bool:
        """Return whether a run still holds the row; for a process, whether the row names its worker."""
        if isinstance(holder, Run):
            return self.status is RUNNING and self.was_last(holder)
        process = (holder.task_id, holder.attempt, holder.worker_uid)
        return self.status is RUNNING and (self.task_id, self.attempt, self.worker_uid) == process

    def was_last(self, run: Run) -> bool:
        return (self.task_id, self.attempt, self.claim) == (run.task_id, run.attempt, run.claim_id)

    def waits_for(self, message: PendingMessage) -> bool:
        """Return whether a message is the latest and had no effect yet."""
        return self.fits(message.task_id, message.attempt) and self.sent == message.publish_count

    def is_unstarted(self, message: PendingMessage) -> bool:
        """Return whether a worker that takes a message may start the job."""
        return self.fits(message.task_id, message.attempt) and not self.held

    def fits(self, task_id: str, attempt: int) -> bool:
        """Return whether a message is for the next attempt."""
        return self.status in STARTABLE and self.task_id == task_id and self.attempt == attempt - 1
