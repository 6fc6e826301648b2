"""A worker's verbs: claim a row, write what its run brings, let go of it.

Every write of a run is guarded by the attempt and the claim id that won the row, in its own statement.
A verb that finds another claim there declines: the run is superseded, and nothing it says counts.
"""

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from sqlalchemy import ColumnElement, Connection, Row, and_, literal, select, update

from .. import text
from ..model import Failure
from ..schema import clock, job
from ..status import JobStatus
from .door import repeatable
from .moves import (
    DUE,
    EXPIRED,
    HELD,
    LEFT,
    NOT_EXPIRED,
    NOT_STAMPED,
    STAMPED,
    Moves,
    final,
    held_by,
    lease_alive,
    moves,
    unless_expired_before,
)
from .rows import Lost, Refusal, Refused, Run, Seat, Worker, encode_failure

STOPPED_FIRST = "stopped on request"

LONGEST_DELAY = 100 * 365 * 86400.0
"""Seconds of the longest delay of a retry: beyond the year 9999 no database, or driver, can follow."""


class Running(Moves):
    """The verbs of a worker, about one job at a time."""

    @repeatable
    def claim(self, run: Run, task: str) -> Run | Refused:
        """Win the row for the attempt that the message is for, or say why not.

        Who may have been there first: anyone at all. Another copy of the message (the attempt no longer
        fits), a cancel, an expiry, a resubmit (the task id no longer fits), a release; and we ourselves,
        if the answer to our commit was lost: then the row carries our claim id, and is ours.
        """
        guards = [
            moves("claim"),
            self.mine(run.job_id),
            job.c.task_id == run.task_id,
            job.c.task == task,
            job.c.attempt == run.attempt - 1,
            NOT_STAMPED,
            ~HELD,
            DUE,
            NOT_EXPIRED,
        ]
        if run.worker.boot_id is not None:
            # A claim under a lease that has ended would be reaped while its body runs.
            guards.append(lease_alive(run.worker.boot_id, locked=True))
        with self.door.transaction() as connection:
            won = self.move(
                connection,
                *guards,
                to={
                    "status_id": JobStatus.RUNNING,
                    "attempt": job.c.attempt + 1,
                    "claim_id": run.claim_id,
                    "worker": run.worker.name,
                    "boot_id": run.worker.boot_id,
                    "pid": run.worker.pid,
                    "started": clock(),
                    "due_at": None,
                    "not_before": None,
                },
                because="started",
                actor=f"worker {run.worker.name}",
            )
            return run if won else self._refused(connection, run, task)

    def _refused(self, connection: Connection, run: Run, task: str) -> Run | Refused:
        alive = literal(True) if run.worker.boot_id is None else lease_alive(run.worker.boot_id)
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
            return Refused(Refusal.UNKNOWN)
        if row.claim_id == run.claim_id and row.status_id is JobStatus.RUNNING:
            return run
        if row.task_id != run.task_id or row.task != task:
            return Refused(Refusal.SUPERSEDED)
        if row.status_id is JobStatus.CANCELLED:
            return Refused(Refusal.CANCELLED)
        if row.status_id.final or row.status_id is JobStatus.RUNNING or row.attempt != run.attempt - 1:
            return Refused(Refusal.SUPERSEDED)
        if row.expired:
            self._expire(connection, self.mine(run.job_id), f"worker {run.worker.name}")
            return Refused(Refusal.EXPIRED)
        return Refused(Refusal.EARLY if row.alive else Refusal.NO_LEASE)

    def _expire(self, connection: Connection, which: ColumnElement[bool], actor: str) -> int:
        return len(
            self.move(
                connection,
                moves("expire"),
                EXPIRED,
                which,
                to=final(JobStatus.CANCELLED, message="expired before it was started", **LEFT),
                because="expired before it was started",
                actor=actor,
            )
        )

    @repeatable
    def tell_revoked(self, job_id: int, task_id: str) -> bool:
        """Take it upon oneself to tell Celery of a cancelled job; False if somebody has.

        Who may have been there first: another copy of the message on another worker.
        """
        with self.door.transaction() as connection:
            told = self.execute(
                connection,
                update(job)
                .where(
                    self.mine(job_id),
                    job.c.task_id == task_id,
                    job.c.status_id == JobStatus.CANCELLED,
                    job.c.revoke_told.is_(False),
                )
                .values(revoke_told=True),
            )
            return bool(told.rowcount)

    @repeatable
    def finish(self, run: Run, result: str) -> bool:
        """End a run with its result (JSON text); False if it is superseded.

        Who may have been there first: the sweep, which took this worker for lost; an outsider, who ended
        the row; ourselves, if the answer to our commit was lost. A stop request does not matter: the body
        has finished, and the record never lies.
        """
        return self._end(run, final(JobStatus.FINISHED, result=result, error=None, **LEFT), "finished")

    @repeatable
    def fail(self, run: Run, failure: Failure) -> bool:
        """End a run in Error; False if it is superseded. Who may have been first: as for `finish`."""
        return self._end(run, *_failed(failure))

    @repeatable
    def stop(self, run: Run, message: str) -> bool:
        """End a run as Cancelled, its body having stopped; False if it is superseded.

        An empty message leaves the body's own last words. Who may have been first: as for `finish`.
        """
        to, because = _stopped(message)
        return self._end(run, to | _TOLD, because)

    def _end(self, run: Run, to: Mapping[str, Any], because: str) -> bool:
        with self.door.transaction() as connection:
            if self.move(
                connection, held_by(run), to=to, because=because, actor=f"worker {run.worker.name}"
            ) or self._already_by(connection, run, to["status_id"]):
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
            "status_id": JobStatus.REQUEUED,
            "retry": signature,
            "not_before": not_before,
            "due_at": clock(self.settings.grace) if not_before is None else not_before,
            **_ANEW,
        }
        if queue is not None:
            again["queue"] = queue
        with self.door.transaction() as connection:
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
    def leave(self, run: Run) -> None:
        """Report that the body of a superseded run has left, so that the job may be resubmitted.

        Who may have been there first: a later claim, whose boot id is left alone.
        """
        with self.door.transaction() as connection:
            self._leave(connection, run)

    def _leave(self, connection: Connection, run: Run) -> None:
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
            row = self.execute(connection, select(STAMPED.label("stamped")).where(held_by(run))).first()
            return row is not None, row is None or bool(row.stamped)

    @repeatable
    def note_progress(self, run: Run | int, current: float, total: float | None) -> bool:
        """Write how far a run is, or, given an id, whatever runs that job now; False if it does not.

        Who may have been there first: as for `finish`.
        """
        running = (
            self.mine(run) & (job.c.status_id == JobStatus.RUNNING) if isinstance(run, int) else held_by(run)
        )
        with self.door.transaction() as connection:
            noted = self.execute(
                connection,
                update(job).where(running).values(progress_current=current, progress_total=total),
            )
            return bool(noted.rowcount)

    @repeatable
    def send_back(self, job_id: int, task_id: str, attempt: int, worker: Worker) -> bool:
        """Return the job of a message that this worker cannot run to Submitted, to be sent again later.

        The user's message stays; the event says which worker does not know the task. Who may have been
        there first: another copy of the message, at a worker that knows the task; a cancel.
        """
        with self.door.transaction() as connection:
            return bool(
                self.move(
                    connection,
                    moves("send_back"),
                    ~HELD,
                    self.mine(job_id),
                    job.c.task_id == task_id,
                    job.c.attempt == attempt - 1,
                    to={
                        "status_id": JobStatus.SUBMITTED,
                        "due_at": unless_expired_before(clock(self.settings.patience)),
                    },
                    because=literal("the worker does not know the task ") + job.c.task,
                    actor=f"worker {worker.name}",
                )
            )

    # What a main process says of a run in one of its children. It does not know the claim; the row
    # says whether the child held it: by task id, boot id and process id.

    @repeatable
    def fail_seat(self, seat: Seat, failure: Failure, worker: Worker) -> bool:
        """End in Error the job that was running in a child that is gone. First: the child itself."""
        to, because = _failed(failure)
        return self._end_seat(seat, to, because, worker)

    @repeatable
    def stop_seat(self, seat: Seat, message: str, worker: Worker) -> bool:
        """End as Cancelled the job whose child was ended by a revoke. First: the child itself."""
        to, because = _stopped(message)
        return self._end_seat(seat, to | _TOLD, because, worker)

    def _end_seat(self, seat: Seat, to: Mapping[str, Any], because: str, worker: Worker) -> bool:
        with self.door.transaction() as connection:
            return bool(
                self.move(
                    connection,
                    held_by(seat),
                    to=dict(to) | _TAKEN_AWAY,
                    because=because,
                    actor=f"worker {worker.name}",
                )
            )

    @repeatable
    def lose(self, which: Seat | Run, because: str, worker: Worker) -> list[Lost]:
        """Settle a job whose body is gone. First: the body, which may have written in its last moment."""
        with self.door.transaction() as connection:
            return self.lose_where(connection, held_by(which), because, f"worker {worker.name}")

    @repeatable
    def give_back(self, which: Seat | Run | str, because: str, worker: Worker) -> list[Lost]:
        """Requeue what was cut off by a shutdown, without counting it as a loss; a stamped job is Cancelled.

        `which` is one run, or a boot id: all that still runs there. The caller has made sure that no body
        is left. Who may have been there first: a body that finished in its last moment.
        """
        guard = and_(job.c.boot_id == which, moves("give_back")) if isinstance(which, str) else held_by(which)
        actor = f"worker {worker.name}"
        with self.door.transaction() as connection:
            given = self.move(connection, guard, NOT_STAMPED, to=_requeued(), because=because, actor=actor)
            stopped, told = _stopped("")
            stopped |= _TAKEN_AWAY
            ended = self.move(connection, guard, STAMPED, to=stopped, because=told, actor=actor)
            return [*_lost(given), *_lost(ended)]

    def lose_where(
        self, connection: Connection, guard: ColumnElement[bool], because: str, actor: str
    ) -> list[Lost]:
        """Settle running jobs whose body is gone: Requeued if attempts are left, else Error, or Cancelled.

        The order matters: a stop request may arrive between two of the statements, never go away.
        """
        attempts_left = job.c.losses + 1 < job.c.max_attempts
        error, for_good = _failed(Failure("system", "WorkerLostError", f"{because}; no attempts are left"))
        stopped, _ = _stopped("")
        error, stopped = error | _TAKEN_AWAY, stopped | _TAKEN_AWAY
        settled = [
            *self.move(
                connection,
                guard,
                NOT_STAMPED,
                attempts_left,
                to=_requeued() | {"losses": job.c.losses + 1},
                because=because,
                actor=actor,
            ),
            *self.move(
                connection,
                guard,
                NOT_STAMPED,
                ~attempts_left,
                to=error | {"losses": job.c.losses + 1},
                because=for_good,
                actor=actor,
            ),
            *self.move(
                connection,
                guard,
                STAMPED,
                to=stopped,
                because=f"{because}; it had been asked to stop",
                actor=actor,
            ),
        ]
        return _lost(settled)


_TOLD: dict[str, Any] = {"revoke_told": True}
"""The process that stops a body does Celery's bookkeeping of a revoked task itself."""

_TAKEN_AWAY: dict[str, Any] = {"claim_id": None}
"""Whoever settles a run in its place takes its claim, or the run would take the outcome for its own."""

_ANEW: dict[str, Any] = {**LEFT, "publishes": 0, "damped": 0}


def _requeued() -> dict[str, Any]:
    return {"status_id": JobStatus.REQUEUED, "not_before": None, "due_at": clock(), **_ANEW, **_TAKEN_AWAY}


def _failed(failure: Failure) -> tuple[dict[str, Any], str]:
    said = text.message(f"{failure.type}: {failure.message}" if failure.kind == "task" else failure.message)
    return final(JobStatus.ERROR, error=encode_failure(failure), message=said, **LEFT), said


def _stopped(message: str) -> tuple[dict[str, Any], str]:
    said = text.message(message)
    to = final(JobStatus.CANCELLED, **LEFT)
    return (to | {"message": said} if said else to), said or STOPPED_FIRST


def _lost(rows: Sequence[Row[Any]]) -> list[Lost]:
    return [Lost(row.id, row.status_id) for row in rows]
