"""What the model knows of one job."""

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
    """How many messages are known to have been sent for its next attempt."""
    claim: str | None = None
    """Of the run that holds the row, or of its last run as long as nobody else has moved it."""
    boot: str | None = None
    """Of the worker whose body may be alive."""
    message: str = ""
    progress: float | None = None
    ended: float | None = None
    events: list[JobStatus] = field(default_factory=list)

    @property
    def held(self) -> bool:
        return self.status is WAITING and self.not_before is None

    def is_held_by(self, holder: Run | ProcessRef) -> bool:
        """Say whether a run still holds the row; of a seat, whether the row names its worker."""
        if isinstance(holder, Run):
            return self.status is RUNNING and self.was_last(holder)
        process = (holder.task_id, holder.attempt, holder.worker_uid)
        return self.status is RUNNING and (self.task_id, self.attempt, self.boot) == process

    def was_last(self, run: Run) -> bool:
        return (self.task_id, self.attempt, self.claim) == (run.task_id, run.attempt, run.claim_id)

    def waits_for(self, message: PendingMessage) -> bool:
        """Say whether nothing has come of a message yet, and none was sent after it."""
        return self.fits(message.task_id, message.attempt) and self.sent == message.publish_count

    def fits(self, task_id: str, attempt: int) -> bool:
        """Say whether a message is for the attempt that comes next."""
        return self.status in STARTABLE and self.task_id == task_id and self.attempt == attempt - 1
