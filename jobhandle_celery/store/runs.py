"""A worker's operations on one job: claim the row, write the outcome of the run, release the row.

Every write of a run is guarded, in its own statement, by the attempt and the claim id that won the row. If
another claim is found there, the run is superseded and its writes change nothing.
"""

from collections.abc import Mapping
from datetime import datetime
from functools import cache
from typing import Any

from sqlalchemy import case, literal, null, select, true, update

from ..models import Failure
from ..schema import clock, job, job_event
from ..serialization import clip_message
from ..status import JobStatus
from .bulk_statements import finish_many, to_finishes
from .claims import claim_many, claim_one, to_claims
from .database import Database
from .executors import Executor
from .records import ClaimRejected, ProcessRef, RejectionReason, Run, RunResult, Worker, encode_failure
from .retrying import is_retry, retry_on_disconnect
from .statements import Guard, Transition, param, params, setting, status_literal
from .transitions import (
    AWAITING_MESSAGE,
    CLAIMED_BY_RUN,
    EARLY,
    EXPIRED,
    NO_PROCESS,
    NO_STOP_REQUESTED,
    REVOKE_REPORTED,
    STOP_REQUESTED,
    STOPPED,
    WAITING_WITHOUT_TIME,
    cancelled,
    claimed_by,
    failure_reason,
    final,
    finished,
    lease_alive,
    mine,
    run_params,
    same_claim,
    status_allows,
    unless_expired_before,
    worker_actor,
)

MAX_DELAY = 100 * 365 * 86400.0
"""Seconds of the longest delay of a retry: no database or driver supports a time after the year 9999."""


class Runs:
    """What a worker does with the job that it runs."""

    def __init__(self, database: Database) -> None:
        self._database = database

    @retry_on_disconnect
    def claim(self, run: Run, task: str) -> Run | ClaimRejected:
        """Win the row for the attempt that the message is for, or return why not.

        Who may have been there first: another copy of the message (the attempt no longer fits), a cancel, an
        expiry, a resubmit (the task id no longer fits), a release; and this very claim, if the answer to its
        commit was lost: then the row already has this claim id.
        """
        won = self._database.apply(
            claim_one(leased=run.worker.worker_uid is not None),
            id=run.job_id,
            task_id=run.task_id,
            task=task,
            attempt=run.attempt - 1,
            claim_id=run.claim_id,
            worker=run.worker.name,
            worker_uid=run.worker.worker_uid,
            pid=run.worker.pid,
            actor=worker_actor(run.worker),
        )
        if won:
            return run
        with self._database.single_statement() as db:
            return _rejected(db, run, task)

    @property
    def claims_together(self) -> bool:
        """True if `claim_many` can win."""
        return self._database.has_documents

    @retry_on_disconnect
    def claim_many(self, claims: Mapping[Run, str], worker: Worker) -> set[str]:
        """Win the rows of one worker's runs, by one commit; return the claim ids that won.

        It waits for no row, and wins nothing but on PostgreSQL. `claim` tells why another one did not win, or
        that it did, if the answer to the commit was lost. Who may have been there first: as for `claim`.

        Args:
            claims: The runs, with the names of their tasks.
            worker: The worker of all of them.
        """
        if not self.claims_together:
            return set()
        of_worker = params(
            worker=worker.name, worker_uid=worker.worker_uid, pid=worker.pid, actor=worker_actor(worker)
        )
        rows = self._database.execute_alone(claim_many(), to_claims(claims) | of_worker)
        return {claim_id for (claim_id,) in rows}

    @retry_on_disconnect
    def mark_revoke_reported(self, job_id: int, task_id: str) -> bool:
        """Note that the caller reports a cancelled job to Celery as revoked; False if that is noted already.

        Who may have been there first: another copy of the message on another worker.
        """
        with self._database.single_statement() as db:
            noted = db.execute(
                update(job)
                .where(
                    mine(job_id),
                    job.c.task_id == task_id,
                    job.c.status_id == JobStatus.CANCELLED,
                    job.c.revoke_reported.is_(False),
                )
                .values(revoke_reported=True, due_at=case((job.c.unsettled, job.c.due_at), else_=null())),
            )
            # In a retry the note may be this call's own. A second report is harmless, a missing one is not.
            return bool(noted.rowcount) or is_retry()

    @retry_on_disconnect
    def finish(self, run: Run, result: str, *, ignored: bool = False) -> bool:
        """End a run with its result (JSON text), see `transitions.finished`; False if it is superseded.

        Who may have been there first: a pass that declared this worker lost; another process, which ended the
        job by `set_status`; this very call, if the answer to its commit was lost. A stop request does not
        matter: the body has finished, and the record shows what happened.
        """
        return self._end(run, JobStatus.FINISHED, _finish(ignored=ignored), result=result)

    @property
    def finishes_together(self) -> bool:
        """True if `finish_many` is one statement, and does not wait for locked rows."""
        return self._database.has_documents

    @retry_on_disconnect
    def finish_many(self, results: Mapping[Run, RunResult], worker: Worker) -> set[int]:
        """End runs of one worker with their results, and return the ids of the jobs that ended.

        On PostgreSQL by one commit, which waits for no row: one that is locked is left alone. Who may have
        been there first: as for `finish`, by which a job that is not among them can be looked at.
        """
        if not self.finishes_together:
            return {
                run.job_id
                for run, result in results.items()
                if self.finish(run, result.text, ignored=result.ignored)
            }
        actor = params(actor=worker_actor(worker))
        ended = self._database.end_each(finish_many(), to_finishes(results) | actor)
        if is_retry():
            with self._database.single_statement() as db:
                ended |= {run.job_id for run in results if _already_by(db, run, JobStatus.FINISHED)}
        return ended

    @retry_on_disconnect
    def fail(self, run: Run, failure: Failure) -> bool:
        """End a run in Error; False if it is superseded. Who may have been first: as for `finish`."""
        error, reason = encode_failure(failure), failure_reason(failure)
        return self._end(run, JobStatus.ERROR, _fail(), error=error, message=reason, reason=reason)

    @retry_on_disconnect
    def stop(self, run: Run, message: str) -> bool:
        """End a run as Cancelled after its body has stopped; False if it is superseded.

        An empty message leaves the body's own last message. Who may have been first: as for `finish`.
        """
        message = clip_message(message)
        stop = _stop(with_message=bool(message))
        return self._end(run, JobStatus.CANCELLED, stop, message=message, reason=message or STOPPED)

    def _end(self, run: Run, status: JobStatus, ending: Transition, **values: Any) -> bool:
        if self._database.apply(ending, actor=worker_actor(run.worker), **run_params(run), **values):
            return True
        with self._database.single_statement() as db:
            if _already_by(db, run, status):
                return True
            _note_body_exited(db, run)
            return False

    @retry_on_disconnect
    def retry(
        self, run: Run, signature: str, queue: str | None, delay: float | datetime | None, reason: str
    ) -> JobStatus | None:
        """Requeue the job with the signature of its next message; None if the run is superseded.

        `delay` is in seconds from now by the database's clock, or the moment itself; None: at once. A job
        that was asked to stop is not retried: it becomes Cancelled. Who may have been first: as for `finish`;
        the caller has made sure that the body has left.
        """
        not_before: Any = None
        if isinstance(delay, (int, float)) and delay > 0:
            not_before = clock(min(delay, MAX_DELAY))
        if isinstance(delay, datetime):
            not_before = literal(delay, job.c.not_before.type)
        again = {
            "status_id": status_literal(JobStatus.REQUEUED),
            "retry": signature,
            "not_before": not_before,
            "due_at": clock(setting("publish_grace")) if not_before is None else not_before,
            **AWAITING_MESSAGE,
        }
        if queue is not None:
            again["queue"] = queue
        requeue = _ending(claimed_by(run), NO_STOP_REQUESTED, to=again, reason=reason)
        with self._database.single_statement() as db:
            if db.count_applied(requeue, actor=worker_actor(run.worker)) or _already_by(
                db, run, JobStatus.REQUEUED
            ):
                return JobStatus.REQUEUED
        return JobStatus.CANCELLED if self.stop(run, "") else None

    @retry_on_disconnect
    def note_body_exited(self, run: Run | ProcessRef) -> None:
        """Note that the body of a superseded run has left, so that the job may be resubmitted.

        Who may have been there first: a later claim, whose worker's uid stays.
        """
        with self._database.single_statement() as db:
            _note_body_exited(db, run)

    @retry_on_disconnect
    def check(self, run: Run) -> tuple[bool, bool]:
        """Return whether the run still holds the row, and whether it is asked to stop."""
        with self._database.autocommit() as db:
            row = db.execute(_check(), params(**run_params(run))).first()
            return row is not None, row is None or bool(row.stop_requested)

    @retry_on_disconnect
    def note_progress(self, run: Run, current: float, total: float | None) -> bool:
        """Write the progress of a run; return False, and write nothing, if it is superseded.

        Who may have been there first: as for `finish`.
        """
        with self._database.single_statement() as db:
            progress = params(progress_current=current, progress_total=total, **run_params(run))
            return bool(db.execute(_note_progress(), progress).rowcount)

    @retry_on_disconnect
    def send_back(
        self, job_id: int, task_id: str, attempt: int, task: str, worker: Worker, reason: str | None = None
    ) -> bool:
        """Return the job of a message that this worker cannot run to Submitted, to be published later.

        The user's message stays; the event has the reason, by default that this worker does not know the
        task. Who may have been there first: another copy of the message, at a worker that can run it; a
        cancel.
        """
        unknown = literal("the worker does not know the task ") + job.c.task
        send_back = _ending(
            status_allows("send_back"),
            ~WAITING_WITHOUT_TIME,
            mine(job_id),
            job.c.task_id == task_id,
            job.c.task == task,
            job.c.attempt == attempt - 1,
            # Not a job that was just sent back, by us or for another copy of the message.
            (job.c.status_id != JobStatus.SUBMITTED) | (job.c.due_at <= clock(setting("publish_grace"))),
            to={
                "status_id": JobStatus.SUBMITTED,
                "due_at": unless_expired_before(clock(setting("republish_after"))),
                # Counted here if its publisher has not marked it yet: the mark would undo this.
                "publish_count": case(
                    (job.c.status_id == JobStatus.QUEUED, job.c.publish_count),
                    else_=job.c.publish_count + 1,
                ),
            },
            reason=unknown if reason is None else reason,
        )
        with self._database.single_statement() as db:
            return bool(db.count_applied(send_back, actor=worker_actor(worker)))


def expire(which: Guard, actor: str, *, skip_locked: bool = False) -> Transition:
    """Return the transition of jobs whose `expires` has passed before they were started."""
    return Transition(
        status_allows("expire"),
        EXPIRED,
        which,
        to=cancelled(setting("republish_after"), message="expired before it was started", **NO_PROCESS),
        reason="expired before it was started",
        actor=actor,
        skip_locked=skip_locked,
    )


def _rejected(db: Executor, run: Run, task: str) -> Run | ClaimRejected:
    alive = literal(True) if run.worker.worker_uid is None else lease_alive(run.worker.worker_uid)
    row = db.execute(
        select(
            job.c.task_id,
            job.c.task,
            job.c.attempt,
            job.c.status_id,
            job.c.claim_id,
            EXPIRED.label("expired"),
            EARLY.label("early"),
            alive.label("alive"),
        ).where(mine(run.job_id)),
    ).first()
    if row is None:
        return ClaimRejected(RejectionReason.UNKNOWN, _elsewhere(db, run))
    if row.claim_id == run.claim_id and row.status_id is JobStatus.RUNNING:
        return run
    if row.task_id != run.task_id or row.task != task:
        # Only a resubmit gives a job another task id.
        again = select(job_event.c.id).where(
            job_event.c.job_id == run.job_id, job_event.c.status_id == JobStatus.RESUBMITTED
        )
        resubmitted = row.task == task and db.execute(again.limit(1)).first()
        return ClaimRejected(RejectionReason.SUPERSEDED, "" if resubmitted else _elsewhere(db, run))
    if row.status_id is JobStatus.CANCELLED:
        return ClaimRejected(RejectionReason.CANCELLED)
    if row.status_id.final or row.status_id is JobStatus.RUNNING or row.attempt != run.attempt - 1:
        return ClaimRejected(RejectionReason.SUPERSEDED)
    if row.expired:
        db.apply(expire(mine(run.job_id), worker_actor(run.worker)))
        return ClaimRejected(RejectionReason.EXPIRED)
    if row.alive and row.early:
        return ClaimRejected(RejectionReason.EARLY)
    # If nothing refuses the claim now, its worker has renewed the lease since, or its time has come since.
    return ClaimRejected(RejectionReason.NO_LEASE)


def _elsewhere(db: Executor, run: Run) -> str:
    """Return where the job of a foreign message is, as far as this database shows."""
    there = select(job.c.namespace).where(job.c.id == run.job_id, job.c.task_id == run.task_id)
    other = db.execute(there).scalar()
    return f"of namespace {other}" if other else "of another database, or pruned"


def _already_by(db: Executor, run: Run, status: JobStatus) -> bool:
    written = select(job.c.id).where(job.c.id == run.job_id, same_claim(run), job.c.status_id == status)
    return db.execute(written).first() is not None


def _note_body_exited(db: Executor, run: Run | ProcessRef) -> None:
    db.execute(
        update(job)
        .where(
            job.c.id == run.job_id,
            job.c.task_id == run.task_id,
            job.c.attempt == run.attempt,
            job.c.status_id != JobStatus.RUNNING,
        )
        .values(**NO_PROCESS),
    )


_REASON = param(job_event.c.message, "reason")


def _ending(*guards: Guard, to: dict[str, Any], reason: Any) -> Transition:
    return Transition(*guards, to=to, reason=reason, actor=param(job_event.c.actor))


@cache
def _finish(*, ignored: bool) -> Transition:
    to = finished(param(job.c.result), ignored=true() if ignored else None)
    return _ending(CLAIMED_BY_RUN, to=to, reason="finished")


@cache
def _fail() -> Transition:
    to = final(JobStatus.ERROR, error=param(job.c.error), message=param(job.c.message), **NO_PROCESS)
    return _ending(CLAIMED_BY_RUN, to=to, reason=_REASON)


@cache
def _stop(*, with_message: bool) -> Transition:
    to = final(JobStatus.CANCELLED, **NO_PROCESS, **REVOKE_REPORTED)
    if with_message:
        to["message"] = param(job.c.message)
    return _ending(CLAIMED_BY_RUN, to=to, reason=_REASON)


@cache
def _check() -> Any:
    return select(STOP_REQUESTED.label("stop_requested")).where(CLAIMED_BY_RUN)


@cache
def _note_progress() -> Any:
    progress = {
        "progress_current": param(job.c.progress_current),
        "progress_total": param(job.c.progress_total),
    }
    return update(job).where(CLAIMED_BY_RUN).values(**progress)
