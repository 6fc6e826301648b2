"""The rules of a job in plain Python, without SQL and locks; time is in minutes from 0.

The state machine makes the same calls on the model and the store, and expects the same answers and
the same rows.
"""

from dataclasses import dataclass, field

from jobhandle_celery.status import FINAL, STARTABLE, JobStatus
from jobhandle_celery.store import ClaimRejected, PendingMessage, ProcessRef, RejectionReason, Run
from jobhandle_celery.store.recovery import MAX_LOST_UNSTARTED
from tests.store.model_job import (
    CANCELLED,
    ERROR,
    QUEUED,
    REQUEUED,
    RESUBMITTED,
    RUNNING,
    SUBMITTED,
    WAITING,
    ModelJob,
)
from tests.store.model_leases import ModelLeases

GRACE, REPUBLISH_AFTER = 1.5, 15.5
"""Half minutes, for the same reason as `LEASE`."""
FOR_GOOD = "; no attempts are left"
EXPIRED = "expired before it was started"
LOST_UNSTARTED = "workers were lost after they received its message, before its body started"


@dataclass
class Model(ModelLeases):
    """All jobs and workers of one namespace."""

    jobs: dict[int, ModelJob] = field(default_factory=dict)

    def holder(self, key: str | None) -> ModelJob | None:
        if key is None:
            return None
        return next((job for job in self.jobs.values() if job.key == key and job.status not in FINAL), None)

    # How a row changes.

    def become(self, job: ModelJob, status: JobStatus, message: str = "", *, silent: bool = False) -> None:
        job.status = status
        if status in FINAL:
            job.due = job.not_before = None
            job.ended = self.now
        if message:
            job.message = message
        if not silent:
            job.events.append(status)

    def settle(self, job: ModelJob, status: JobStatus, claim: str | None, message: str = "") -> None:
        """End a run: no body holds the row any more."""
        self.become(job, status, message)
        job.worker_uid, job.claim = None, claim
        job.sent = 0

    # Submit and publish.

    def submit(
        self,
        job_id: int,
        task_id: str,
        key: str | None = None,
        attempts: int = 1,
        held: bool = False,
        delay: float = 0,
        life: float = 0,
    ) -> ModelJob:
        """Add a job; a `delay` or `life` of 0 means none."""
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
        """Reserve the job, as a sweep does, if it waits to be published."""
        waits = job.status in (SUBMITTED, RESUBMITTED, REQUEUED) and job.not_before is None
        if waits:
            job.due = self.now + GRACE
        return waits

    def reserve(self) -> set[tuple[int, int]]:
        """Reserve the due jobs; return the jobs and the attempts of their messages."""
        due = [
            job
            for job in self.jobs.values()
            if job.status in STARTABLE and not job.held and job.is_due(self.now)
            if job.due is not None and job.due <= self.now
        ]
        for job in due:
            job.due = self.now + GRACE
        return {(job.job_id, job.attempt + 1) for job in due}

    def mark_queued(self, message: PendingMessage) -> None:
        job = self.jobs[message.job_id]
        if job.waits_for(message) and not job.held:
            self.become(job, QUEUED, silent=True)
            job.due, job.sent = self._patient(job), job.sent + 1

    def defer_republish(self, message: PendingMessage) -> None:
        job = self.jobs[message.job_id]
        if job.waits_for(message) and job.status is QUEUED and self._soon(job):
            job.due = self._patient(job)

    def defer_unsendable(self, message: PendingMessage) -> None:
        job = self.jobs[message.job_id]
        if job.waits_for(message) and self._soon(job):
            job.events.append(job.status)
            job.due, job.sent = self._patient(job), job.sent + 1

    def send_back(self, message: PendingMessage) -> bool:
        job = self.jobs[message.job_id]
        if not job.fits(message.task_id, message.attempt) or job.held:
            return False
        if job.status is SUBMITTED and not self._soon(job):
            return False  # it was sent back just now
        if job.status is not QUEUED:
            job.sent += 1  # the publisher has not marked it yet
        self.become(job, SUBMITTED)
        job.due = self._patient(job)
        return True

    def _soon(self, job: ModelJob) -> bool:
        return job.due is not None and job.due <= self.now + GRACE

    def _patient(self, job: ModelJob) -> float:
        later = self.now + REPUBLISH_AFTER
        return later if job.started or job.expires is None else min(later, job.expires)

    def release(self, job: ModelJob, token: str) -> bool:
        if job.status is not WAITING:
            return job.claim == token
        self.become(job, SUBMITTED)
        job.not_before, job.due, job.claim = None, self.now + GRACE, token
        return True

    def resubmit(self, job: ModelJob, task_id: str) -> bool | str:
        """Return whether the job was resubmitted; "key": another job has the unique key."""
        if job.task_id == task_id:
            return True
        if job.status not in FINAL or self.alive(job.worker_uid):
            return False
        if self.holder(job.key):
            return "key"
        if job.status is not JobStatus.FINISHED:
            job.message = ""
        self.become(job, RESUBMITTED)
        job.task_id, job.due = task_id, self.now + GRACE
        job.claim = job.worker_uid = job.expires = job.not_before = None
        job.started = job.stamped = job.terminate = job.reported = False
        job.lost_count, job.sent, job.progress, job.ended = 0, 0, None, None
        return True

    def expire(self) -> int:
        over = [
            job
            for job in self.jobs.values()
            if job.status in STARTABLE and job.has_expired(self.now) and (job.due or 0.0) <= self.now
        ]
        for job in over:
            self._expire(job)
        return len(over)

    def _expire(self, job: ModelJob) -> None:
        self.become(job, CANCELLED, EXPIRED)
        job.worker_uid = None
        self._let_it_be_heard(job)

    def _let_it_be_heard(self, job: ModelJob) -> None:
        job.due = self.now + REPUBLISH_AFTER if job.sent or job.attempt else None

    def unreported_cancels(self) -> list[int]:
        """Return the cancelled jobs with a published message that no worker has received since."""
        over = [
            job
            for job in self.jobs.values()
            if job.status is CANCELLED and job.due is not None and job.due <= self.now
        ]
        for job in over:
            job.due = None
        return sorted(job.job_id for job in over)

    def prune(self, older_than: float) -> int:
        over = [
            job.job_id
            for job in self.jobs.values()
            if job.ended is not None and job.ended < self.now - older_than
        ]
        for job_id in over:
            del self.jobs[job_id]
        return len(over)

    # Run.

    def claim(self, run: Run) -> Run | ClaimRejected:
        job = self.jobs[run.job_id]
        if job.is_held_by(run):
            return run
        if job.task_id != run.task_id:
            return ClaimRejected(RejectionReason.SUPERSEDED)
        if job.status is CANCELLED:
            return ClaimRejected(RejectionReason.CANCELLED)
        if not job.fits(run.task_id, run.attempt):
            return ClaimRejected(RejectionReason.SUPERSEDED)
        if job.has_expired(self.now):
            self._expire(job)
            return ClaimRejected(RejectionReason.EXPIRED)
        if not self.alive(run.worker.worker_uid):
            return ClaimRejected(RejectionReason.NO_LEASE)
        if job.held or not job.is_due(self.now):
            return ClaimRejected(RejectionReason.EARLY)
        self._start(job, run.claim_id, run.worker.worker_uid)
        return run

    def _start(self, job: ModelJob, claim: str, worker_uid: str | None) -> None:
        job.attempt += 1
        self.become(job, RUNNING)
        job.started, job.claim, job.worker_uid = True, claim, worker_uid
        job.due = job.not_before = None

    def end(self, run: Run, status: JobStatus, message: str = "") -> bool:
        job = self.jobs[run.job_id]
        if job.is_held_by(run):
            self.settle(job, status, run.claim_id, message)
            job.reported = job.reported or status is CANCELLED
            return True
        if job.was_last(run) and job.status is status:
            return True
        self.leave(run)
        return False

    def retry(self, run: Run, delay: float) -> JobStatus | None:
        job = self.jobs[run.job_id]
        if job.is_held_by(run) and not job.stamped:
            self.settle(job, REQUEUED, run.claim_id)
            job.not_before = self.now + delay if delay else None
            job.due = self.now + (delay or GRACE)
            return REQUEUED
        if job.was_last(run) and job.status is REQUEUED:
            return REQUEUED
        return CANCELLED if self.end(run, CANCELLED) else None

    def leave(self, run: Run) -> None:
        job = self.jobs[run.job_id]
        if job.status is not RUNNING and (job.task_id, job.attempt) == (run.task_id, run.attempt):
            job.worker_uid = None

    def end_process(self, process: ProcessRef, status: JobStatus, message: str) -> bool:
        """End the run of a pool process that is gone."""
        job = self.jobs[process.job_id]
        if not job.is_held_by(process):
            return False
        self.settle(job, status, None, message)
        job.reported = job.reported or status is CANCELLED
        return True

    def give_back(self, holder: Run | ProcessRef) -> list[JobStatus]:
        job = self.jobs[holder.job_id]
        return [self._cut_off(job)] if job.is_held_by(holder) else []

    def give_back_all(self, worker_uid: str) -> list[JobStatus]:
        return [self._cut_off(job) for job in self._running(worker_uid)]

    def lose(self, holder: Run | ProcessRef, reason: str) -> list[JobStatus]:
        job = self.jobs[holder.job_id]
        return [self._lost(job, reason)] if job.is_held_by(holder) else []

    def _lost(self, job: ModelJob, reason: str) -> JobStatus:
        job.lost_count += not job.stamped
        if not job.stamped and job.lost_count >= job.max_attempts:
            self.settle(job, ERROR, None, reason + FOR_GOOD)
            return ERROR
        return self._cut_off(job)

    def _cut_off(self, job: ModelJob) -> JobStatus:
        self.settle(job, CANCELLED if job.stamped else REQUEUED, None)
        job.due = None if job.stamped else self.now
        return job.status

    # Messages that a worker took and did not start.

    def note_received(self, message: PendingMessage, worker_uid: str) -> list[JobStatus]:
        job = self.jobs[message.job_id]
        if not job.is_unstarted(message):
            return []
        lost = job.worker_uid not in (None, worker_uid)
        given_up = self.lose_unstarted(message) if lost else []
        if not given_up:
            job.worker_uid = worker_uid
        return given_up

    def clear_received(self, message: PendingMessage, worker_uid: str) -> None:
        job = self.jobs[message.job_id]
        meant = (job.task_id, job.attempt + 1) == (message.task_id, message.attempt)
        if meant and job.status is not RUNNING and job.worker_uid == worker_uid:
            job.worker_uid = None

    def lose_unstarted(self, message: PendingMessage) -> list[JobStatus]:
        job = self.jobs[message.job_id]
        if not job.is_unstarted(message):
            return []
        job.lost_count += 1
        if job.lost_count < max(MAX_LOST_UNSTARTED, job.max_attempts):
            return []
        self.settle(job, ERROR, None, LOST_UNSTARTED)
        return [ERROR]

    def note_progress(self, job: ModelJob, current: float, run: Run | None = None) -> bool:
        """Write progress; without a run, of whatever runs the job."""
        noted = job.status is RUNNING and (run is None or job.is_held_by(run))
        if noted:
            job.progress = current
        return noted

    # Act.

    def cancel(self, job: ModelJob, terminate: bool) -> JobStatus:
        if job.status in FINAL:
            return job.status
        if job.status is RUNNING:
            if not job.stamped or (terminate and not job.terminate):
                job.events.append(RUNNING)
            job.stamped, job.terminate = True, job.terminate or terminate
            return RUNNING
        self.become(job, CANCELLED)
        job.stamped, job.terminate, job.claim = True, terminate, None
        self._let_it_be_heard(job)
        return CANCELLED

    def set_message(self, job: ModelJob, message: str, run: Run | None = None) -> str:
        previous = job.message
        if run is None or job.is_held_by(run):
            job.message = message
        return previous

    def set_status(
        self, job: ModelJob, status: JobStatus, token: str, message: str | None = None
    ) -> tuple[JobStatus, bool]:
        previous = job.status
        if job.claim == token:  # retried
            return RUNNING if status in FINAL else previous, True
        moved = self._set(job, status, token)
        if moved and message is not None and (status is not CANCELLED or previous not in FINAL):
            job.message = message
        return previous, moved

    def _set(self, job: ModelJob, status: JobStatus, token: str) -> bool:
        previous = job.status
        if status is CANCELLED:
            self.cancel(job, False)
            return True
        if status is RUNNING:
            free = (
                previous in STARTABLE and not job.has_expired(self.now) and (job.held or job.is_due(self.now))
            )
            if free:
                self._start(job, token, None)
            return free or previous is RUNNING
        if previous is RUNNING:
            self.become(job, status)
            job.claim = token  # but its worker stays named until the body has left
        return previous is RUNNING

    def mark_revoke_reported(self, job: ModelJob, task_id: str) -> bool:
        first = job.status is CANCELLED and job.task_id == task_id and not job.reported
        job.reported = job.reported or first
        if first:
            job.due = None
        return first

    # Leases.

    def retire(self, worker_uid: str) -> None:
        for job in self.jobs.values():
            if job.status in STARTABLE and job.worker_uid == worker_uid:
                job.worker_uid = None
        if worker_uid not in {job.worker_uid for job in self.jobs.values() if job.status is RUNNING}:
            self.leases.pop(worker_uid, None)

    def reap(self, worker_uid: str, name: str) -> dict[int, JobStatus]:
        if worker_uid not in self.lapsed():
            return {}
        del self.leases[worker_uid]
        reason = f"the worker {name} was lost"
        return {job.job_id: self._lost(job, reason) for job in self._running(worker_uid)}

    def _running(self, worker_uid: str) -> list[ModelJob]:
        return [job for job in self.jobs.values() if job.status is RUNNING and job.worker_uid == worker_uid]
