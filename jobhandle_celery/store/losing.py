"""A run that cannot speak for itself any more: its process is gone, or was cut off.

A worker's main process knows its child and the message, not whether the child's claim won. The row says
whether the child held it: by task id, boot id and process id (`Seat`).
"""

from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import Connection, Row, and_

from ..model import Failure
from ..schema import job
from .moves import NOT_STAMPED, STAMPED, Guard, Moves, held_by, moves
from .outcomes import TAKEN_AWAY, TOLD, failed, requeued, stopped
from .repeats import repeatable
from .rows import Lost, Run, Seat, Worker


class Losing(Moves):
    """The verbs about runs whose body is gone; each may have been preceded by the body's own last write."""

    @repeatable
    def fail_seat(self, seat: Seat, failure: Failure, worker: Worker) -> bool:
        """End in Error the job that was running in a child that is gone. First: the child itself."""
        to, because = failed(failure)
        return self._end_seat(seat, to, because, worker)

    @repeatable
    def stop_seat(self, seat: Seat, message: str, worker: Worker) -> bool:
        """End as Cancelled the job whose child was ended by a revoke. First: the child itself."""
        to, because = stopped(message)
        return self._end_seat(seat, to | TOLD, because, worker)

    def _end_seat(self, seat: Seat, to: Mapping[str, Any], because: str, worker: Worker) -> bool:
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
    def lose(self, which: Seat | Run, because: str, worker: Worker) -> list[Lost]:
        """Settle a job whose body is gone. First: the body, which may have written in its last moment."""
        with self.door.transaction() as connection:
            return self._lose_where(connection, held_by(which), because, f"worker {worker.name}")

    @repeatable
    def give_back(self, which: Seat | Run, because: str, worker: Worker) -> list[Lost]:
        """Requeue what was cut off, without counting it as a loss; a stamped job is Cancelled.

        The caller has made sure that the body has left. First: a body that finished in its last moment.
        """
        return self._give_back(held_by(which), because, worker)

    @repeatable
    def give_back_all(self, worker: Worker, because: str) -> list[Lost]:
        """Give back all that still runs at a worker, as `give_back` does: no body of it is left."""
        return self._give_back(and_(job.c.boot_id == worker.boot_id, moves("give_back")), because, worker)

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
        attempts_left = job.c.losses + 1 < job.c.max_attempts
        error, for_good = failed(Failure("system", "WorkerLostError", f"{because}; no attempts are left"))
        settled = [
            *self.move(
                connection,
                guard,
                NOT_STAMPED,
                attempts_left,
                to=requeued() | {"losses": job.c.losses + 1},
                because=because,
                actor=actor,
                skip_locked=skip_locked,
            ),
            *self.move(
                connection,
                guard,
                NOT_STAMPED,
                ~attempts_left,
                to=error | TAKEN_AWAY | {"losses": job.c.losses + 1},
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
