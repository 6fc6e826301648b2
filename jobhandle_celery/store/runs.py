"""A worker's verbs: claim a row, write what its run brings, let go of it.

Every write of a run is guarded by the attempt and the claim id that won the row, in its own statement.
A verb that finds another claim there declines: the run is superseded, and nothing it says counts.
"""

from collections.abc import Mapping
from datetime import datetime
from functools import cache
from typing import Any

from sqlalchemy import ColumnElement, Connection, and_, case, literal, null, select, update

from ..models import Failure
from ..schema import clock, job, job_event
from ..status import JobStatus
from .outcomes import ANEW, TOLD, failed, stopped
from .records import ClaimRejected, ProcessRef, Refusal, Run, Worker
from .recovery import Losing
from .retrying import repeatable, repeating
from .statements import Transition, at, given, giving
from .transitions import (
    DUE,
    EXPIRED,
    HELD,
    LEFT,
    MINE,
    NOT_EXPIRED,
    NOT_STAMPED,
    STAMPED,
    cancelled,
    final,
    held_by,
    lease_alive,
    moves,
    unless_expired_before,
)

LONGEST_DELAY = 100 * 365 * 86400.0
"""Seconds of the longest delay of a retry: beyond the year 9999 no database, or driver, can follow."""


class Running(Losing):
    """The verbs of a worker, about one job at a time."""

    @repeatable
    def claim(self, run: Run, task: str) -> Run | ClaimRejected:
        """Win the row for the attempt that the message is for, or say why not.

        Who may have been there first: anyone at all. Another copy of the message (the attempt no longer
        fits), a cancel, an expiry, a resubmit (the task id no longer fits), a release; and we ourselves,
        if the answer to our commit was lost: then the row carries our claim id, and is ours.
        """
        # A claim under a lease that has ended would be reaped while its body runs.
        leased = run.worker.worker_uid is not None
        won = self._make_alone(
            _claim(leased=leased),
            id=run.job_id,
            task_id=run.task_id,
            task=task,
            former=run.attempt - 1,
            claim_id=run.claim_id,
            worker=run.worker.name,
            worker_uid=run.worker.worker_uid,
            pid=run.worker.pid,
            actor=f"worker {run.worker.name}",
        )
        if won:
            return run
        with self.door.moving() as connection:
            return self._refused(connection, run, task)

    def _refused(self, connection: Connection, run: Run, task: str) -> Run | ClaimRejected:
        alive = literal(True) if run.worker.worker_uid is None else lease_alive(run.worker.worker_uid)
        row = self.execute(
            connection,
            select(
                job.c.task_id,
                job.c.task,
                job.c.attempt,
                job.c.status_id,
                job.c.claim_id,
                EXPIRED.label("expired"),
                alive.label("alive"),
            ).where(self.mine(run.job_id)),
        ).first()
        if row is None:
            return ClaimRejected(Refusal.UNKNOWN, self._elsewhere(connection, run))
        if row.claim_id == run.claim_id and row.status_id is JobStatus.RUNNING:
            return run
        if row.task_id != run.task_id or row.task != task:
            # Only a resubmit gives a job another task id.
            again = select(job_event.c.id).where(
                job_event.c.job_id == run.job_id, job_event.c.status_id == JobStatus.RESUBMITTED
            )
            resubmitted = row.task == task and self.execute(connection, again.limit(1)).first()
            return ClaimRejected(Refusal.SUPERSEDED, "" if resubmitted else self._elsewhere(connection, run))
        if row.status_id is JobStatus.CANCELLED:
            return ClaimRejected(Refusal.CANCELLED)
        if row.status_id.final or row.status_id is JobStatus.RUNNING or row.attempt != run.attempt - 1:
            return ClaimRejected(Refusal.SUPERSEDED)
        if row.expired:
            self._expire(connection, self.mine(run.job_id), f"worker {run.worker.name}")
            return ClaimRejected(Refusal.EXPIRED)
        return ClaimRejected(Refusal.EARLY if row.alive else Refusal.NO_LEASE)

    def _elsewhere(self, connection: Connection, run: Run) -> str:
        """Return where the job of a message that is not ours is, as far as this database knows."""
        there = select(job.c.namespace).where(job.c.id == run.job_id, job.c.task_id == run.task_id)
        other = self.execute(connection, there).scalar()
        return f"of namespace {other}" if other else "of another database, or pruned"

    def _expire(
        self, connection: Connection, which: ColumnElement[bool], actor: str, *, skip_locked: bool = False
    ) -> int:
        return len(
            self.move(
                connection,
                moves("expire"),
                EXPIRED,
                which,
                to=cancelled(self.settings.republish_after, message="expired before it was started", **LEFT),
                because="expired before it was started",
                actor=actor,
                skip_locked=skip_locked,
            )
        )

    @repeatable
    def tell_revoked(self, job_id: int, task_id: str) -> bool:
        """Take it upon oneself to tell Celery of a cancelled job; False if somebody has.

        Who may have been there first: another copy of the message on another worker.
        """
        with self.door.moving() as connection:
            told = self.execute(
                connection,
                update(job)
                .where(
                    self.mine(job_id),
                    job.c.task_id == task_id,
                    job.c.status_id == JobStatus.CANCELLED,
                    job.c.revoke_reported.is_(False),
                )
                .values(revoke_reported=True, due_at=None),
            )
            # Asked again, it may have been our own: to tell twice is harmless, not to tell is not.
            return bool(told.rowcount) or repeating()

    @repeatable
    def finish(self, run: Run, result: str) -> bool:
        """End a run with its result (JSON text); False if it is superseded.

        Who may have been there first: the sweep, which took this worker for lost; an outsider, who ended
        the row; ourselves, if the answer to our commit was lost. A stop request does not matter: the body
        has finished, and the record never lies.
        """
        if self._make_alone(_finish(), result=result, actor=f"worker {run.worker.name}", **_held(run)):
            return True
        with self.door.moving() as connection:
            return self._has_ended(connection, run, JobStatus.FINISHED)

    @repeatable
    def fail(self, run: Run, failure: Failure) -> bool:
        """End a run in Error; False if it is superseded. Who may have been first: as for `finish`."""
        return self._end(run, JobStatus.ERROR, *failed(failure))

    @repeatable
    def stop(self, run: Run, message: str) -> bool:
        """End a run as Cancelled, its body having stopped; False if it is superseded.

        An empty message leaves the body's own last words. Who may have been first: as for `finish`.
        """
        to, because = stopped(message)
        return self._end(run, JobStatus.CANCELLED, to | TOLD, because)

    def _end(self, run: Run, status: JobStatus, to: Mapping[str, Any], because: str) -> bool:
        with self.door.moving() as connection:
            won = self.move(
                connection, held_by(run), to=to, because=because, actor=f"worker {run.worker.name}"
            )
            return bool(won) or self._has_ended(connection, run, status)

    def _has_ended(self, connection: Connection, run: Run, status: JobStatus) -> bool:
        if self._already_by(connection, run, status):
            return True
        self._leave(connection, run)
        return False

    @repeatable
    def retry(
        self, run: Run, signature: str, queue: str | None, delay: float | datetime | None, because: str
    ) -> JobStatus | None:
        """Send the job round again: Requeued, with the signature of its next message; None if superseded.

        `delay` is in seconds from now by the database's clock, or the moment itself; None: at once. A job
        that was asked to stop is not retried: it becomes Cancelled. Who may have been first: as for
        `finish`; the caller has made sure that the body has left.
        """
        not_before: Any = None
        if isinstance(delay, (int, float)) and delay > 0:
            not_before = clock(min(delay, LONGEST_DELAY))
        if isinstance(delay, datetime):
            not_before = literal(delay, job.c.not_before.type)
        again = {
            "status_id": at(JobStatus.REQUEUED),
            "retry": signature,
            "not_before": not_before,
            "due_at": clock(self.settings.publish_grace) if not_before is None else not_before,
            **ANEW,
        }
        if queue is not None:
            again["queue"] = queue
        with self.door.moving() as connection:
            actor = f"worker {run.worker.name}"
            if self.move(
                connection, held_by(run), NOT_STAMPED, to=again, because=because, actor=actor
            ) or self._already_by(connection, run, JobStatus.REQUEUED):
                return JobStatus.REQUEUED
        return JobStatus.CANCELLED if self.stop(run, "") else None

    def _already_by(self, connection: Connection, run: Run, status: JobStatus) -> bool:
        return (
            self.execute(
                connection,
                select(job.c.id).where(
                    job.c.id == run.job_id,
                    job.c.task_id == run.task_id,
                    job.c.attempt == run.attempt,
                    job.c.claim_id == run.claim_id,
                    job.c.status_id == status,
                ),
            ).first()
            is not None
        )

    @repeatable
    def leave(self, run: Run | ProcessRef) -> None:
        """Report that the body of a superseded run has left, so that the job may be resubmitted.

        Who may have been there first: a later claim, whose boot id is left alone.
        """
        with self.door.moving() as connection:
            self._leave(connection, run)

    def _leave(self, connection: Connection, run: Run | ProcessRef) -> None:
        self.execute(
            connection,
            update(job)
            .where(
                job.c.id == run.job_id,
                job.c.task_id == run.task_id,
                job.c.attempt == run.attempt,
                job.c.status_id != JobStatus.RUNNING,
            )
            .values(**LEFT),
        )

    @repeatable
    def standing(self, run: Run) -> tuple[bool, bool]:
        """Return whether the run still holds the row, and whether it is asked to stop."""
        with self.door.reading() as connection:
            row = self.execute(connection, _standing(), giving(**_held(run))).first()
            return row is not None, row is None or bool(row.stamped)

    @repeatable
    def note_progress(self, run: Run, current: float, total: float | None) -> bool:
        """Write how far a run is; False, and nothing, if it is superseded. First: as for `finish`."""
        with self.door.moving() as connection:
            said = giving(progress_current=current, progress_total=total, **_held(run))
            return bool(self.execute(connection, _note_progress(), said).rowcount)

    @repeatable
    def send_back(
        self, job_id: int, task_id: str, attempt: int, task: str, worker: Worker, reason: str | None = None
    ) -> bool:
        """Return the job of a message that this worker cannot run to Submitted, to be sent again later.

        The user's message stays; the event says why, by default that this worker does not know the task. Who
        may have been there first: another copy of the message, at a worker that can run it; a cancel.
        """
        unknown = literal("the worker does not know the task ") + job.c.task
        with self.door.moving() as connection:
            return bool(
                self.move(
                    connection,
                    moves("send_back"),
                    ~HELD,
                    self.mine(job_id),
                    job.c.task_id == task_id,
                    job.c.task == task,
                    job.c.attempt == attempt - 1,
                    # Not again what has just been sent back, by us or by another copy of the message.
                    (job.c.status_id != JobStatus.SUBMITTED)
                    | (job.c.due_at <= clock(self.settings.publish_grace)),
                    to={
                        "status_id": JobStatus.SUBMITTED,
                        "due_at": unless_expired_before(clock(self.settings.republish_after)),
                        # Counted here if whoever sent it has not come to that: the mark would undo this.
                        "publish_count": case(
                            (job.c.status_id == JobStatus.QUEUED, job.c.publish_count),
                            else_=job.c.publish_count + 1,
                        ),
                    },
                    because=unknown if reason is None else reason,
                    actor=f"worker {worker.name}",
                )
            )


HELD_BY_RUN = and_(
    job.c.id == given(job.c.id),
    job.c.task_id == given(job.c.task_id),
    job.c.attempt == given(job.c.attempt),
    job.c.status_id == at(JobStatus.RUNNING),
    job.c.claim_id == given(job.c.claim_id),
)
"""As `held_by`, in a statement that is built once."""


def _held(run: Run) -> dict[str, Any]:
    return {"id": run.job_id, "task_id": run.task_id, "attempt": run.attempt, "claim_id": run.claim_id}


@cache
def _claim(*, leased: bool) -> Transition:
    return Transition(
        moves("claim"),
        MINE,
        job.c.task_id == given(job.c.task_id),
        job.c.task == given(job.c.task),
        job.c.attempt == given(job.c.attempt, "former"),
        NOT_STAMPED,
        ~HELD,
        DUE,
        NOT_EXPIRED,
        *([lease_alive(given(job.c.worker_uid), locked=True)] if leased else []),
        to={
            "status_id": at(JobStatus.RUNNING),
            "attempt": job.c.attempt + 1,
            "claim_id": given(job.c.claim_id),
            "worker": given(job.c.worker),
            "worker_uid": given(job.c.worker_uid),
            "pid": given(job.c.pid),
            "started": clock(),
            "due_at": null(),
            "not_before": null(),
        },
        because="started",
        actor=given(job_event.c.actor),
    )


@cache
def _finish() -> Transition:
    to = final(JobStatus.FINISHED, result=given(job.c.result), error=null(), **LEFT)
    return Transition(HELD_BY_RUN, to=to, because="finished", actor=given(job_event.c.actor))


@cache
def _standing() -> Any:
    return select(STAMPED.label("stamped")).where(HELD_BY_RUN)


@cache
def _note_progress() -> Any:
    so_far = {
        "progress_current": given(job.c.progress_current),
        "progress_total": given(job.c.progress_total),
    }
    return update(job).where(HELD_BY_RUN).values(**so_far)
