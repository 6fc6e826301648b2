"""A run that cannot speak for itself any more: its process is gone, or was cut off.

A worker's main process knows its child and the message, not whether the child's claim won. The row says
whether the child held it: by task id, boot id and process id (`ProcessRef`).
"""

from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import Connection, Row, and_, select, tuple_, update

from ..models import Failure
from ..schema import job
from ..status import JobStatus
from .outcomes import TAKEN_AWAY, TOLD, failed, requeued, stopped
from .records import Lost, ProcessRef, Run, Worker
from .retrying import repeatable
from .transitions import HELD, NOT_STAMPED, STAMPED, Guard, Moves, held_by, moves

MOST_LOST_UNSTARTED = 3
"""Workers or children that a job's message may cost before its body starts; then the job ends in Error.

Not `max_attempts`: no body has begun, so a job outlives a worker that happens to die with its message.
"""

Message = tuple[int, str, int]
"""Job id, task id and attempt that a message is for."""


class Losing(Moves):
    """The verbs about runs whose body is gone; each may have been preceded by the body's own last write."""

    @repeatable
    def fail_seat(self, seat: ProcessRef, failure: Failure, worker: Worker) -> bool:
        """End in Error the job that was running in a child that is gone. First: the child itself."""
        to, because = failed(failure)
        return self._end_seat(seat, to, because, worker)

    @repeatable
    def stop_seat(self, seat: ProcessRef, message: str, worker: Worker) -> bool:
        """End as Cancelled the job whose child was ended by a revoke. First: the child itself."""
        to, because = stopped(message)
        return self._end_seat(seat, to | TOLD, because, worker)

    def _end_seat(self, seat: ProcessRef, to: Mapping[str, Any], because: str, worker: Worker) -> bool:
        with self.door.transaction() as connection:
            return bool(
                self.move(
                    connection,
                    held_by(seat),
                    to=dict(to) | TAKEN_AWAY,
                    because=because,
                    actor=f"worker {worker.name}",
                )
            )

    @repeatable
    def lose(self, which: ProcessRef | Run, because: str, worker: Worker) -> list[Lost]:
        """Settle a job whose body is gone. First: the body, which may have written in its last moment."""
        with self.door.transaction() as connection:
            return self._lose_where(connection, held_by(which), because, f"worker {worker.name}")

    @repeatable
    def take_up(self, messages: Sequence[Message], worker: Worker) -> list[Lost]:
        """Note in its row that this worker is about to take a message; return the jobs that are given up.

        What ends a worker between here and `put_down` leaves the note, and the next worker that is to take
        a message for the same attempt counts it as a loss. Neither a long backlog nor the want of workers
        counts. Who may have been there first: a claim by another copy of the message, or a cancel; then
        nothing is noted, and the claim of this message says why. A row that is locked is not noted.
        """
        with self.door.transaction() as connection:
            these = self._unstarted(messages)
            ids = self.execute(connection, select(job.c.id).where(these).with_for_update(skip_locked=True))
            if not (found := ids.scalars().all()):
                return []
            them = job.c.id.in_(found)
            by_another = job.c.worker_uid.is_not(None) & (job.c.worker_uid != worker.worker_uid)
            given_up = self._count_unstarted(connection, them & by_another, worker)
            noted = update(job).where(them, moves("give_up")).values(worker_uid=worker.worker_uid)
            self.execute(connection, noted)
            return given_up

    @repeatable
    def put_down(self, messages: Sequence[Message], worker: Worker) -> None:
        """Clear the notes of messages that this worker has survived. First: a claim, whose boot id stays."""
        with self.door.transaction() as connection:
            mine = self._for_messages(messages) & (job.c.worker_uid == worker.worker_uid)
            over = update(job).where(mine, job.c.status_id != JobStatus.RUNNING).values(worker_uid=None)
            self.execute(connection, over)

    def lose_unstarted(self, message: Message, worker: Worker) -> list[Lost]:
        """Count a child that was lost with a message before its claim; return the job if it is given up.

        The count is read first, so that a repeat after an answer that was lost does not count twice.
        """
        return self._lose_unstarted(message, self._losses_of(message), worker)

    @repeatable
    def _losses_of(self, message: Message) -> int | None:
        with self.door.reading() as connection:
            asked = select(job.c.lost_count).where(self._unstarted([message]))
            lost_count: int | None = self.execute(connection, asked).scalar_one_or_none()
            return lost_count

    @repeatable
    def _lose_unstarted(self, message: Message, lost_count: int | None, worker: Worker) -> list[Lost]:
        with self.door.transaction() as connection:
            return self._count_unstarted(connection, self._unstarted([message]), worker, lost_count)

    def _count_unstarted(
        self, connection: Connection, guard: Guard, worker: Worker, lost_count: int | None = None
    ) -> list[Lost]:
        uncounted = guard if lost_count is None else guard & (job.c.lost_count == lost_count)
        self.execute(connection, update(job).where(uncounted).values(lost_count=job.c.lost_count + 1))
        reason = "workers were lost while they took its message, before its body started"
        error, said = failed(Failure("system", "WorkerLostError", reason))
        too_many = (job.c.lost_count >= MOST_LOST_UNSTARTED) & (job.c.lost_count >= job.c.max_attempts)
        actor = f"worker {worker.name}"
        return _lost(self.move(connection, guard, too_many, to=error | TAKEN_AWAY, because=said, actor=actor))

    def _unstarted(self, messages: Sequence[Message]) -> Guard:
        return and_(self._for_messages(messages), moves("give_up"), ~HELD)

    def _for_messages(self, messages: Sequence[Message]) -> Guard:
        keys = [(job_id, task_id, attempt - 1) for job_id, task_id, attempt in messages]
        return and_(
            tuple_(job.c.id, job.c.task_id, job.c.attempt).in_(keys), job.c.namespace == self.namespace
        )

    @repeatable
    def give_back(self, which: ProcessRef | Run, because: str, worker: Worker) -> list[Lost]:
        """Requeue what was cut off, without counting it as a loss; a stamped job is Cancelled.

        The caller has made sure that the body has left. First: a body that finished in its last moment.
        """
        return self._give_back(held_by(which), because, worker)

    @repeatable
    def give_back_all(self, worker: Worker, because: str) -> list[Lost]:
        """Give back all that still runs at a worker, as `give_back` does: no body of it is left."""
        return self._give_back(
            and_(job.c.worker_uid == worker.worker_uid, moves("give_back")), because, worker
        )

    def _give_back(self, guard: Guard, because: str, worker: Worker) -> list[Lost]:
        actor = f"worker {worker.name}"
        with self.door.transaction() as connection:
            given = self.move(connection, guard, NOT_STAMPED, to=requeued(), because=because, actor=actor)
            to, told = stopped("")
            ended = self.move(connection, guard, STAMPED, to=to | TAKEN_AWAY, because=told, actor=actor)
            return [*_lost(given), *_lost(ended)]

    def _lose_where(
        self, connection: Connection, guard: Guard, because: str, actor: str, *, skip_locked: bool = False
    ) -> list[Lost]:
        """Settle running jobs whose body is gone: Requeued if attempts are left, else Error, or Cancelled.

        The order matters: a stop request may arrive between two of the statements, never go away.
        """
        attempts_left = job.c.lost_count + 1 < job.c.max_attempts
        error, for_good = failed(Failure("system", "WorkerLostError", f"{because}; no attempts are left"))
        settled = [
            *self.move(
                connection,
                guard,
                NOT_STAMPED,
                attempts_left,
                to=requeued() | {"lost_count": job.c.lost_count + 1},
                because=because,
                actor=actor,
                skip_locked=skip_locked,
            ),
            *self.move(
                connection,
                guard,
                NOT_STAMPED,
                ~attempts_left,
                to=error | TAKEN_AWAY | {"lost_count": job.c.lost_count + 1},
                because=for_good,
                actor=actor,
                skip_locked=skip_locked,
            ),
            *self.move(
                connection,
                guard,
                STAMPED,
                to=stopped("")[0] | TAKEN_AWAY,
                because=f"{because}; it had been asked to stop",
                actor=actor,
                skip_locked=skip_locked,
            ),
        ]
        return _lost(settled)


def _lost(rows: Sequence[Row[Any]]) -> list[Lost]:
    return [Lost(row.id, row.task_id, row.task, row.status_id, row.told) for row in rows]
