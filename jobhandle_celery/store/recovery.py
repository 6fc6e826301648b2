"""Runs whose process is gone or was cut off, and messages that a worker took and did not start.

A worker's main process knows its child and the message, but not whether the child's claim has won. The row
shows it by task id, worker uid and process id (`ProcessRef`).
"""

from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import Row, and_, select, update

from ..models import Failure
from ..schema import job
from ..status import JobStatus
from .database import Database
from .executors import Executor
from .records import ChangedJob, MessageKey, ProcessRef, Run, Worker
from .retrying import remember, remembered, retry_on_disconnect
from .statements import Guard, Transition
from .transitions import (
    CLAIM_REVOKED,
    NO_STOP_REQUESTED,
    REVOKE_REPORTED,
    STOP_REQUESTED,
    WAITING_WITHOUT_TIME,
    claimed_by,
    failed,
    for_messages,
    requeued,
    status_allows,
    stopped,
    worker_actor,
)

MAX_LOST_UNSTARTED = 3
"""Workers or children that may be lost with a job's message before its body starts; then the job ends in
Error.

Not `max_attempts`: no body has begun, so a job survives a worker that happens to die with its message.
"""


class Recovery:
    """What a worker does with jobs whose body is gone; the body's last write may have been first."""

    def __init__(self, database: Database) -> None:
        self._database = database

    @retry_on_disconnect
    def fail_process(self, process: ProcessRef, failure: Failure, worker: Worker) -> bool:
        """End in Error the job that ran in a child that is gone.

        Who may have been there first: the child itself, with the outcome of the run.
        """
        to, reason = failed(failure)
        return self._end_process(process, to, reason, worker)

    @retry_on_disconnect
    def stop_process(self, process: ProcessRef, message: str, worker: Worker) -> bool:
        """End as Cancelled the job whose child was ended by a revoke.

        Who may have been there first: the child itself, with the outcome of the run.
        """
        to, reason = stopped(message)
        return self._end_process(process, to | REVOKE_REPORTED, reason, worker)

    def _end_process(self, process: ProcessRef, to: Mapping[str, Any], reason: str, worker: Worker) -> bool:
        end = Transition(
            claimed_by(process), to={**to, **CLAIM_REVOKED}, reason=reason, actor=worker_actor(worker)
        )
        with self._database.single_statement() as db:
            return bool(db.count_applied(end))

    @retry_on_disconnect
    def lose(self, holder: ProcessRef | Run, reason: str, worker: Worker) -> list[ChangedJob]:
        """Recover a job whose body is gone.

        Who may have been there first: the body, with a last write.
        """
        with self._database.transaction() as db:
            return recover_lost(db, claimed_by(holder), reason, worker_actor(worker))

    @retry_on_disconnect
    def note_received(self, messages: Sequence[MessageKey], worker: Worker) -> list[ChangedJob]:
        """Note in its row that this worker is about to run a message; return the jobs that are given up.

        If the worker dies before `clear_received`, the note stays, and the next worker that receives a
        message for the same attempt counts it as a loss. A long backlog or a lack of workers is not counted.
        Who may have been there first: a claim by another copy of the message, or a cancel; then nothing is
        noted, and the claim of this message returns why. A row that is locked is not noted.
        """
        with self._database.transaction() as db:
            unstarted = select(job.c.id).where(_unstarted(messages)).with_for_update(skip_locked=True)
            if not (found := db.execute(unstarted).scalars().all()):
                return []
            these = job.c.id.in_(found)
            by_another = job.c.worker_uid.is_not(None) & (job.c.worker_uid != worker.worker_uid)
            given_up = _count_unstarted(db, these & by_another, worker)
            noted = update(job).where(these, status_allows("give_up")).values(worker_uid=worker.worker_uid)
            db.execute(noted)
            return given_up

    @retry_on_disconnect
    def clear_received(self, messages: Sequence[MessageKey], worker: Worker) -> None:
        """Clear the notes of messages that did not end this worker.

        Who may have been there first: a claim; then the row is Running and keeps its worker.
        """
        with self._database.transaction() as db:
            noted = for_messages(messages) & (job.c.worker_uid == worker.worker_uid)
            db.update_in_order(noted, job.c.status_id != JobStatus.RUNNING, values={"worker_uid": None})

    @retry_on_disconnect
    def lose_unstarted(self, message: MessageKey, worker: Worker) -> list[ChangedJob]:
        """Count a child that was lost with a message before its claim; return the job if it is given up.

        Who may have been there first: this very call, if the answer to its commit was lost; then the count is
        no longer the one that its first try has seen.
        """
        with self._database.transaction() as db:
            asked = select(job.c.lost_count).where(_unstarted([message])).with_for_update(key_share=True)
            counted = remembered()
            lost_count = db.execute(asked).scalar() if counted is None else counted
            remember(lost_count)
            return _count_unstarted(db, _unstarted([message]), worker, lost_count)

    @retry_on_disconnect
    def give_back(self, holder: ProcessRef | Run, reason: str, worker: Worker) -> list[ChangedJob]:
        """Requeue a job that was cut off, without counting a loss; if it was asked to stop, it is Cancelled.

        The caller has made sure that the body has ended. Who may have been there first: a body that finished
        in its last moment.
        """
        return self._give_back(claimed_by(holder), reason, worker)

    @retry_on_disconnect
    def give_back_all(self, worker: Worker, reason: str) -> list[ChangedJob]:
        """Give back all jobs that still run at a worker, as `give_back` does: no body of it is left."""
        mine = and_(job.c.worker_uid == worker.worker_uid, status_allows("give_back"))
        return self._give_back(mine, reason, worker, many=True)

    def _give_back(
        self, guard: Guard, reason: str, worker: Worker, *, many: bool = False
    ) -> list[ChangedJob]:
        actor = worker_actor(worker)
        to, stop_reason = stopped("")
        again = Transition(guard, NO_STOP_REQUESTED, to=requeued(), reason=reason, actor=actor, many=many)
        end = Transition(
            guard, STOP_REQUESTED, to=to | CLAIM_REVOKED, reason=stop_reason, actor=actor, many=many
        )
        with self._database.transaction() as db:
            if many:
                db.lock_in_order(guard)
            given, ended = db.apply(again), db.apply(end)
            return [*_lost(given), *_lost(ended)]


def recover_lost(
    db: Executor, guard: Guard, reason: str, actor: str, *, skip_locked: bool = False
) -> list[ChangedJob]:
    """Recover running jobs whose body is gone: Cancelled if asked to stop, Requeued, or Error.

    The order matters: a stop request may arrive between two of the statements, but never goes away.
    """
    attempts_left = job.c.lost_count + 1 < job.c.max_attempts
    error, error_reason = failed(Failure("system", "WorkerLostError", f"{reason}; no attempts are left"))
    counted = {"lost_count": job.c.lost_count + 1}
    transitions = (
        ((guard, NO_STOP_REQUESTED, attempts_left), requeued() | counted, reason),
        ((guard, NO_STOP_REQUESTED, ~attempts_left), error | CLAIM_REVOKED | counted, error_reason),
        ((guard, STOP_REQUESTED), stopped("")[0] | CLAIM_REVOKED, f"{reason}; it had been asked to stop"),
    )
    lost: list[ChangedJob] = []
    for guards, to, why in transitions:
        lost += _lost(db.apply(Transition(*guards, to=to, reason=why, actor=actor, skip_locked=skip_locked)))
    return lost


def _count_unstarted(
    db: Executor, guard: Guard, worker: Worker, lost_count: int | None = None
) -> list[ChangedJob]:
    uncounted = guard if lost_count is None else guard & (job.c.lost_count == lost_count)
    db.execute(update(job).where(uncounted).values(lost_count=job.c.lost_count + 1))
    reason = "workers were lost after they received its message, before its body started"
    error, error_reason = failed(Failure("system", "WorkerLostError", reason))
    too_many = (job.c.lost_count >= MAX_LOST_UNSTARTED) & (job.c.lost_count >= job.c.max_attempts)
    give_up = Transition(
        guard, too_many, to=error | CLAIM_REVOKED, reason=error_reason, actor=worker_actor(worker)
    )
    return _lost(db.apply(give_up))


def _unstarted(messages: Sequence[MessageKey]) -> Guard:
    return and_(for_messages(messages), status_allows("give_up"), ~WAITING_WITHOUT_TIME)


def _lost(rows: Sequence[Row[Any]]) -> list[ChangedJob]:
    return [ChangedJob(row.id, row.task_id, row.task, row.status_id, row.reason) for row in rows]
