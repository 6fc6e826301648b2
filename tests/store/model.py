"""What the design says of a job, in plain Python: no SQL, no locks, time in minutes from nothing.

The state machine of test_machine.py asks this and the store the same things, and expects the same
answers and the same rows.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field

from jobhandle_celery.status import FINAL, STARTABLE, JobStatus
from jobhandle_celery.store import Outgoing, Refusal, Refused, Run

GRACE, PATIENCE, LEASE = 1.5, 15.5, 20.5
"""Half minutes, and time passes by whole ones: nothing is ever due at the very moment it is looked at."""

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
    losses: int = 0
    started: bool = False
    stamped: bool = False
    terminate: bool = False
    told: bool = False
    claim: str | None = None
    """Of the run that holds the row, or of its last run as long as nobody else has moved it."""
    boot: str | None = None
    """Of the worker whose body may be alive."""
    events: list[JobStatus] = field(default_factory=list)

    @property
    def held(self) -> bool:
        return self.status is WAITING and self.not_before is None

    def become(self, status: JobStatus, *, silent: bool = False) -> None:
        self.status = status
        if status in FINAL:
            self.due = self.not_before = None
        if not silent:
            self.events.append(status)

    def end(self, status: JobStatus, claim: str | None) -> None:
        self.become(status)
        self.boot, self.claim = None, claim

    def is_held_by(self, run: Run) -> bool:
        return self.status is RUNNING and self.was_last(run)

    def was_last(self, run: Run) -> bool:
        return (self.task_id, self.attempt, self.claim) == (run.task_id, run.attempt, run.claim_id)

    def fits(self, task_id: str, attempt: int) -> bool:
        """Say whether a message is for the attempt that comes next."""
        return self.status in STARTABLE and self.task_id == task_id and self.attempt == attempt - 1


class Model:
    """All jobs and workers of one namespace."""

    def __init__(self) -> None:
        self.now = 0.0
        self.jobs: dict[int, ModelJob] = {}
        self.leases: dict[str, float] = {}

    # Conditions.

    def alive(self, boot: str | None) -> bool:
        return boot is not None and self.leases.get(boot, 0.0) > self.now

    def is_due(self, job: ModelJob) -> bool:
        return job.not_before is None or job.not_before <= self.now

    def has_expired(self, job: ModelJob) -> bool:
        return not job.started and job.expires is not None and job.expires <= self.now

    def holder(self, key: str | None) -> ModelJob | None:
        if key is None:
            return None
        return next((job for job in self.jobs.values() if job.key == key and job.status not in FINAL), None)

    # Submit and publish.

    def submit(
        self, job_id: int, task_id: str, key: str | None, attempts: int, held: bool, delay: float, life: float
    ) -> ModelJob:
        """Add a job; a `delay` or `life` of 0: none."""
        not_before = self.now + delay if delay else None
        expires = self.now + life if life else None
        status = WAITING if held or delay else SUBMITTED
        due: float | None = self.now + GRACE
        if status is WAITING:
            due = min((moment for moment in (not_before, expires) if moment is not None), default=None)
        job = ModelJob(job_id, task_id, status, key, attempts, expires, not_before, due, events=[status])
        self.jobs[job_id] = job
        return job

    def outgoing(self, job: ModelJob) -> bool:
        return job.status in (SUBMITTED, RESUBMITTED, REQUEUED) and job.not_before is None

    def reserve(self) -> set[tuple[int, int]]:
        """Reserve all that is due; return the jobs and the attempts that their messages are for."""
        due = [
            job
            for job in self.jobs.values()
            if job.status in STARTABLE and not job.held and self.is_due(job)
            if job.due is not None and job.due <= self.now
        ]
        for job in due:
            job.due = self.now + GRACE
        return {(job.job_id, job.attempt + 1) for job in due}

    def mark_queued(self, message: Outgoing) -> None:
        job = self.jobs[message.job_id]
        if job.fits(message.task_id, message.attempt) and not job.held:
            job.become(QUEUED, silent=True)
            job.due = self._patient(job)

    def look_later(self, message: Outgoing) -> None:
        job = self.jobs[message.job_id]
        if job.fits(message.task_id, message.attempt) and job.status is QUEUED and self._soon(job):
            job.due = self._patient(job)

    def send_back(self, message: Outgoing) -> bool:
        job = self.jobs[message.job_id]
        if not job.fits(message.task_id, message.attempt) or job.held:
            return False
        if job.status is SUBMITTED and not self._soon(job):
            return False  # it has just been sent back
        job.become(SUBMITTED)
        job.due = self._patient(job)
        return True

    def _soon(self, job: ModelJob) -> bool:
        return job.due is not None and job.due <= self.now + GRACE

    def _patient(self, job: ModelJob) -> float:
        later = self.now + PATIENCE
        return later if job.started or job.expires is None else min(later, job.expires)

    def release(self, job: ModelJob) -> bool:
        if job.status is not WAITING:
            return False
        job.become(SUBMITTED)
        job.not_before, job.due = None, self.now + GRACE
        return True

    def resubmit(self, job: ModelJob, task_id: str) -> bool | str:
        """Return whether it was done; "key": another job has the unique key."""
        if job.status not in FINAL or self.alive(job.boot):
            return False
        if self.holder(job.key):
            return "key"
        job.become(RESUBMITTED)
        job.task_id, job.due = task_id, self.now + GRACE
        job.claim = job.boot = job.expires = job.not_before = None
        job.started = job.stamped = job.terminate = job.told = False
        job.losses = 0
        return True

    def expire(self) -> int:
        over = [
            job
            for job in self.jobs.values()
            if job.status in STARTABLE and self.has_expired(job) and (job.due or 0.0) <= self.now
        ]
        for job in over:
            job.become(CANCELLED)
        return len(over)

    # Run.

    def claim(self, run: Run) -> Run | Refused:
        job = self.jobs[run.job_id]
        if job.is_held_by(run):
            return run
        if job.task_id != run.task_id:
            return Refused(Refusal.SUPERSEDED)
        if job.status is CANCELLED:
            return Refused(Refusal.CANCELLED)
        if not job.fits(run.task_id, run.attempt):
            return Refused(Refusal.SUPERSEDED)
        if self.has_expired(job):
            job.become(CANCELLED)
            return Refused(Refusal.EXPIRED)
        if not self.alive(run.worker.boot_id):
            return Refused(Refusal.NO_LEASE)
        if job.held or not self.is_due(job):
            return Refused(Refusal.EARLY)
        self._start(job, run.claim_id, run.worker.boot_id)
        return run

    def _start(self, job: ModelJob, claim: str, boot: str | None) -> None:
        job.attempt += 1
        job.become(RUNNING)
        job.started, job.claim, job.boot = True, claim, boot
        job.due = job.not_before = None

    def end(self, run: Run, status: JobStatus) -> bool:
        job = self.jobs[run.job_id]
        if job.is_held_by(run):
            job.end(status, run.claim_id)
            job.told = job.told or status is CANCELLED
            return True
        if job.was_last(run) and job.status is status:
            return True
        self.leave(run)
        return False

    def retry(self, run: Run, delay: float) -> JobStatus | None:
        job = self.jobs[run.job_id]
        if job.is_held_by(run) and not job.stamped:
            job.become(REQUEUED)
            job.boot = None
            job.not_before = self.now + delay if delay else None
            job.due = self.now + (delay or GRACE)
            return REQUEUED
        if job.was_last(run) and job.status is REQUEUED:
            return REQUEUED
        return CANCELLED if self.end(run, CANCELLED) else None

    def leave(self, run: Run) -> None:
        job = self.jobs[run.job_id]
        if job.status is not RUNNING and (job.task_id, job.attempt) == (run.task_id, run.attempt):
            job.boot = None

    def give_back(self, run: Run) -> list[JobStatus]:
        job = self.jobs[run.job_id]
        return [self._cut_off(job)] if job.is_held_by(run) else []

    def lose(self, run: Run) -> list[JobStatus]:
        job = self.jobs[run.job_id]
        return [self._lost(job)] if job.is_held_by(run) else []

    def _lost(self, job: ModelJob) -> JobStatus:
        job.losses += not job.stamped
        if not job.stamped and job.losses >= job.max_attempts:
            job.end(ERROR, None)
            return ERROR
        return self._cut_off(job)

    def _cut_off(self, job: ModelJob) -> JobStatus:
        job.end(CANCELLED if job.stamped else REQUEUED, None)
        job.due = None if job.stamped else self.now
        return job.status

    # Act.

    def cancel(self, job: ModelJob, terminate: bool) -> JobStatus:
        if job.status in FINAL:
            return job.status
        if job.status is RUNNING:
            if not job.stamped or (terminate and not job.terminate):
                job.events.append(RUNNING)
            job.stamped, job.terminate = True, job.terminate or terminate
            return RUNNING
        job.become(CANCELLED)
        job.stamped, job.terminate, job.claim = True, terminate, None
        return CANCELLED

    def set_status(self, job: ModelJob, status: JobStatus, token: str) -> tuple[JobStatus, bool]:
        previous = job.status
        if status is CANCELLED:
            self.cancel(job, False)
            return previous, True
        if status is RUNNING:
            if previous is RUNNING:
                return previous, True
            free = previous in STARTABLE and not self.has_expired(job) and (job.held or self.is_due(job))
            if free:
                self._start(job, token, None)
            return previous, free
        if previous is RUNNING:
            job.become(status)
            job.claim = token  # but its worker stays named until the body has left
        return previous, previous is RUNNING

    def tell_revoked(self, job: ModelJob, task_id: str) -> bool:
        first = job.status is CANCELLED and job.task_id == task_id and not job.told
        job.told = job.told or first
        return first

    # Leases.

    def renew(self, boot: str) -> bool:
        known = boot in self.leases
        self.leases[boot] = self.now + LEASE
        return known

    def retire(self, boot: str) -> None:
        if boot not in {job.boot for job in self.jobs.values() if job.status is RUNNING}:
            self.leases.pop(boot, None)

    def lapsed(self) -> set[str]:
        return {boot for boot, until in self.leases.items() if until <= self.now}

    def reap(self, boot: str) -> dict[int, JobStatus]:
        if boot not in self.lapsed():
            return {}
        del self.leases[boot]
        return {job.job_id: self._lost(job) for job in self._running(self.jobs.values(), boot)}

    def _running(self, jobs: Iterable[ModelJob], boot: str) -> list[ModelJob]:
        return [job for job in jobs if job.status is RUNNING and job.boot == boot]
