"""The leases of workers, and what a worker's main process asks about its runs."""

from collections.abc import Sequence

from sqlalchemy import ColumnElement, Double, case, delete, exists, literal, select, update

from ..schema import clock, job, worker
from ..schema import sweep as sweep_table
from ..status import JobStatus
from .database import Database
from .decoding import to_progress
from .executors import Executor
from .records import ChangedJob, MessageKey, RunSnapshot, Worker
from .recovery import recover_lost
from .retrying import retry_on_disconnect
from .statements import NAMESPACE, Guard, ago, setting
from .transitions import STOP_REQUESTED, status_allows


class Leases:
    """One row per worker, with the end of its lease; the sweeper reaps workers whose lease has ended."""

    def __init__(self, database: Database) -> None:
        self._database = database

    @retry_on_disconnect
    def renew(self, me: Worker) -> bool:
        """Renew this worker's lease; False if there was none: the worker is new, or was declared lost."""
        lease = self._database.settings.lease
        mine = worker.c.worker_uid == me.worker_uid
        with self._database.single_statement() as db:
            renewed = bool(db.execute(update(worker).where(mine).values(lease_until=clock(lease))).rowcount)
            if not renewed:
                first = {
                    "worker_uid": me.worker_uid,
                    "namespace": self._database.settings.namespace,
                    "name": me.name,
                    "pid": me.pid,
                    "started": clock(),
                    "lease_until": clock(lease),
                    "lease": lease.total_seconds(),
                }
                db.insert_if_absent(worker, first)
            return renewed

    @retry_on_disconnect
    def retire(self, me: Worker) -> None:
        """Delete this worker's row, unless a job names it: then its lease ends by itself."""
        with self._database.transaction() as db:
            # A claim of this worker may be under way: the lock waits for its end, so that what follows sees
            # it.
            mine = select(worker.c.worker_uid).where(worker.c.worker_uid == me.worker_uid)
            db.execute(mine.with_for_update())
            # Messages that it has received and not started go back to the broker, and are no loss.
            noted = (job.c.worker_uid == me.worker_uid, status_allows("give_up"))
            db.update_in_order(*noted, values={"worker_uid": None})
            _forget(db, me.worker_uid)

    @retry_on_disconnect
    def lapsed_workers(self) -> list[str]:
        """Return the uids of the workers whose lease has ended, if leases can be trusted now."""
        lapsed = select(worker.c.worker_uid).where(
            worker.c.namespace == NAMESPACE, worker.c.lease_until <= clock(), _unbroken(_LONGEST)
        )
        with self._database.autocommit() as db:
            return list(db.execute(lapsed).scalars())

    @retry_on_disconnect
    def reap(self, worker_uid: str) -> list[ChangedJob]:
        """Recover the jobs of a worker whose lease has ended, and delete its row once there are none.

        Who may have been there first: the worker itself, with a renewal. Its row is locked and its lease read
        again before any of its jobs is changed: after an earlier renewal no job is lost, and a later renewal
        finds no row. Or, since the pass began, an outage, in which no worker could renew: then each statement
        sees by the clock that the pass began too long ago, and changes nothing.
        """
        with self._database.transaction() as db:
            lapsed = db.execute(
                select(worker.c.name, _LONGEST.label("lease"))
                .where(
                    worker.c.worker_uid == worker_uid, worker.c.lease_until <= clock(), _unbroken(_LONGEST)
                )
                .with_for_update(skip_locked=True),
            ).first()
            if lapsed is None:
                return []
            running = (job.c.worker_uid == worker_uid) & status_allows("lose")
            lost = recover_lost(
                db,
                running & _unbroken(literal(lapsed.lease, Double())),
                f"the worker {lapsed.name} was lost",
                "sweep",
                skip_locked=True,
            )
            _forget(db, worker_uid)
            return lost

    @retry_on_disconnect
    def runs(self, worker_uid: str) -> list[RunSnapshot]:
        """Return the running jobs whose rows name this worker."""
        runs = select(*_SNAPSHOT).where(job.c.worker_uid == worker_uid, job.c.status_id == JobStatus.RUNNING)
        with self._database.autocommit() as db:
            return [RunSnapshot(*(*row[:-2], to_progress(row))) for row in db.execute(runs)]

    @retry_on_disconnect
    def superseded(self, messages: Sequence[MessageKey]) -> set[MessageKey]:
        """Return those of the messages (job id, task id, attempt) in progress whose attempt is over.

        Another attempt was made, its claim was taken away, or the job was resubmitted or pruned: a worker
        that was stopped for longer than its lease goes on with such bodies. A message that is not claimed yet
        is not among them, nor one whose run has just ended by itself.
        """
        statement = select(job.c.id, job.c.task_id, job.c.attempt, job.c.claim_id).where(
            job.c.id.in_([job_id for job_id, _, _ in messages])
        )
        with self._database.autocommit() as db:
            rows = {row.id: row for row in db.execute(statement)}
        return {
            (job_id, task_id, attempt)
            for job_id, task_id, attempt in messages
            if (row := rows.get(job_id)) is None
            or row.task_id != task_id
            or row.attempt > attempt
            or (row.attempt == attempt and row.claim_id is None)
        }


_LONGEST: ColumnElement[float] = case(
    (worker.c.lease > setting("lease"), worker.c.lease), else_=setting("lease")
)
"""Seconds of a worker's own lease, or of ours if that is longer."""


def _unbroken(lease: ColumnElement[float]) -> Guard:
    """Return the guard: passes have followed each other closely for a lease, up to this moment."""
    return exists(
        select(sweep_table.c.namespace).where(
            sweep_table.c.namespace == NAMESPACE,
            sweep_table.c.unbroken_since <= clock(-lease),
            sweep_table.c.last_pass_at >= clock(ago("unbroken")),
        )
    )


def _forget(db: Executor, worker_uid: str | None) -> None:
    # Not while a job names it: the sweeper would never find that job again. The worker's row is locked, so no
    # claim names it meanwhile. Not one statement: on MariaDB a DELETE waits for the rows that it reads.
    named = select(job.c.id).where(job.c.worker_uid == worker_uid, status_allows("lose")).limit(1)
    if db.execute(named).first() is None:
        db.execute(delete(worker).where(worker.c.worker_uid == worker_uid))


_SNAPSHOT = (
    job.c.id,
    job.c.task_id,
    job.c.attempt,
    job.c.claim_id,
    job.c.pid,
    STOP_REQUESTED,
    job.c.terminate,
    job.c.message,
    job.c.progress_current,
    job.c.progress_total,
)
