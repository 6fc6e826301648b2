"""Changes of a job from outside its body: cancel, release, resubmit, take over, end."""

from functools import cache
from typing import Any

from sqlalchemy import Row, and_, case, select, update
from sqlalchemy.exc import IntegrityError

from ..errors import InvalidTransitionError
from ..schema import clock, job
from ..status import UNFINISHED, JobStatus
from .database import Database
from .dependencies import HAS_UNMET_NEED, IS_NODE, select_failed_need, why_cancelled
from .executors import MAX_PARAMETERS, Executor
from .records import Run, Selection, unique_hash
from .retrying import remember, remembered, retry_on_disconnect
from .statements import Guard, Transition, params, setting, status_literal
from .transitions import (
    CLAIM_COLUMNS,
    DUE,
    NEW_ROUND,
    NO_PROCESS,
    NO_STOP_REQUESTED,
    NOT_EXPIRED,
    WAITING_WITHOUT_TIME,
    actor_of,
    cancelling,
    check_same_claim,
    claimed_by,
    final,
    lease_alive,
    mine,
    not_requested,
    same_claim,
    select_one,
    selected,
    status_allows,
    this_job,
)
from .tree_control import NODE, cancel_tree, ready_again, resubmit_tree


class Control:
    """Changes that users and services make to jobs, which a worker may be running."""

    def __init__(self, database: Database) -> None:
        self._database = database

    @retry_on_disconnect
    def cancel(
        self,
        job_id: int,
        username: str | None,
        *,
        terminate: bool,
        task_id: str | None = None,
        run: Run | None = None,
    ) -> JobStatus | None:
        """Cancel a job, and return its status after that; None if there is no such job.

        With `task_id`, only the round of that id, which a resubmit may have ended; with `run`, only while the
        row names that run.

        Cancelled: no worker will start it. Running: its body is asked to stop (with `terminate`, its worker
        ends the process). Finished, Error: too late. Who may have been there first: a claim. Whichever of the
        two statements comes second finds the other's status in the row.

        Raises:
            InvalidTransitionError: the run is superseded, and the job not final.
        """
        by_user, by_task_id = username is not None, task_id is not None
        which = {"id": job_id, "username": username, "task_id": task_id}
        if run is None:
            cancel = _cancel_one(by_user=by_user, by_task_id=by_task_id, terminate=terminate)
        else:
            cancel = cancelling(mine(job_id) & same_claim(run), terminate=terminate)
        with self._database.single_statement() as db:
            while True:
                changed = db.apply(cancel, actor=actor_of(username), **which)
                if changed:
                    cancelled_or_running: JobStatus = changed[0].status_id
                    return cancelled_or_running
                look = select_one(*NODE, *CLAIM_COLUMNS, by_user=by_user, by_task_id=by_task_id)
                found = db.execute(look, params(**which)).first()
                if found is None:
                    return None
                if found.kind is not None:
                    break  # a member of a final one may have been resubmitted by itself
                if found.status_id.final:
                    final_status: JobStatus = found.status_id
                    return final_status
                check_same_claim(run, found)
                if found.status_id is JobStatus.RUNNING:
                    return JobStatus.RUNNING
                # It was final, and was resubmitted between the two statements.
        return self._cancel_tree(job_id, actor_of(username), terminate=terminate)

    def _cancel_tree(self, node_id: int, actor: str, *, terminate: bool) -> JobStatus:
        with self._database.transaction() as db:
            node = _lock(db, node_id, None, *NODE)
            return JobStatus.CANCELLED if node is None else cancel_tree(db, node, actor, terminate=terminate)

    @retry_on_disconnect
    def cancel_selected(self, selection: Selection, *, terminate: bool = False) -> int:
        """Cancel, or ask to stop, every unfinished job of a selection; return how many.

        In one transaction, whatever their number; one statement takes some hundred ids. A node of a tree is
        cancelled with all that is below it, and counts as one job.
        """
        with self._database.transaction() as db:
            count = 0
            for part in selection.parts(MAX_PARAMETERS):
                which = and_(selected(part), not_requested(terminate=terminate))
                unfinished = job.c.status_id.in_(UNFINISHED)
                # Without a lock: MariaDB would wait for all rows that it reads, also for those of tasks.
                nodes = select(job.c.id).where(which, IS_NODE, unfinished).order_by(job.c.id)
                for some in (nodes.where(job.c.root_id.is_(None)), nodes):
                    for node_id in db.execute(some).scalars().all():
                        node = _lock(db, node_id, None, *NODE)
                        if node is not None and not node.status_id.final:
                            cancel_tree(db, node, "service", terminate=terminate)
                            count += 1
                cancel = cancelling(selected(part) & ~IS_NODE, terminate=terminate, many=True)
                count += db.count_applied(cancel, actor="service")
            return count

    @retry_on_disconnect
    def release(self, job_id: int, token: str, username: str | None, run: Run | None = None) -> bool:
        """Make a Waiting job due now; False if it is not Waiting.

        Who may have been there first: another release, the sweeper if its time came, a cancel; and this very
        call, if the answer to its commit was lost: then the row has our token.

        Raises:
            InvalidTransitionError: the run is superseded.
        """
        release = Transition(
            status_allows("release"),
            mine(job_id, username),
            job.c.blocked.is_(False),
            *([] if run is None else [same_claim(run)]),
            to={
                "status_id": JobStatus.SUBMITTED,
                "not_before": None,
                "scheduled_for": None,
                "due_at": clock(setting("publish_grace")),
                "claim_id": token,
            },
            reason="released",
            actor=actor_of(username),
        )
        with self._database.transaction() as db:
            if db.count_applied(release):
                return True
            found = db.execute(select(*CLAIM_COLUMNS).where(mine(job_id, username))).first()
            if found is None or found.claim_id == token:
                return found is not None
            check_same_claim(run, found)
            return False

    @retry_on_disconnect
    def resubmit(
        self, job_id: int, task_id: str, username: str | None, run: Run | None = None
    ) -> list[int] | None:
        """Resubmit a final job under a new task id, or what did not finish in a tree, by its root.

        Returns the jobs to publish; None if the job is not final, or may still run. Who may have been there
        first: another resubmit; or a `set_status` that ended the job while its body runs. Then the row
        names a worker with a lease, and two bodies would be alive at once: the resubmit is refused until that
        worker notes that the body has left, or its lease ends. A retry finds our task id in the row.

        A job that needs others waits for those that are unfinished.

        Raises:
            InvalidTransitionError: another unfinished job has its unique key now, it is a member of a tree
                that is not final, it needs a job that did not end as it must have, the tree cannot be
                resubmitted, or the run is superseded.
        """
        with self._database.transaction() as db:
            former = _lock(db, job_id, username, *NODE, job.c.username, job.c.unique_key, *CLAIM_COLUMNS)
            if former is None:
                return None
            if former.task_id == task_id:
                return [job_id] if former.kind is None else ready_again(db, job_id)
            check_same_claim(run, former)
            try:
                with db.connection.begin_nested():
                    if former.kind is not None:
                        return resubmit_tree(db, former, task_id, actor_of(username))
                    return self._resubmit_task(db, former, task_id, actor_of(username))
            except IntegrityError:
                named = "of a member" if former.unique_key is None else repr(former.unique_key)
                raise InvalidTransitionError(
                    f"job {job_id} was not resubmitted: another unfinished job has its unique_key {named}"
                ) from None

    def _resubmit_task(self, db: Executor, former: Row[Any], task_id: str, actor: str) -> list[int] | None:
        if former.root_id is not None:
            root = db.execute(select(job.c.status_id).where(job.c.id == former.root_id)).scalar()
            if root is not None and not root.final:
                raise InvalidTransitionError(
                    f"job {former.id} belongs to job {former.root_id}, which is {root}: "
                    "a member runs again with its tree, once that is final"
                )
        if failed := db.execute(select_failed_need(), params(id=former.id)).first():
            raise InvalidTransitionError(
                f"job {former.id} {why_cancelled(failed.id, failed.status_id)}: resubmit that one first"
            )
        resubmit = Transition(
            status_allows("resubmit"),
            mine(former.id),
            job.c.worker_uid.is_(None) | ~lease_alive(job.c.worker_uid),
            to=NEW_ROUND
            | {
                # Due in either case: the need may have ended since, without a settle to come.
                "blocked": HAS_UNMET_NEED,
                "status_id": case(
                    (HAS_UNMET_NEED, status_literal(JobStatus.WAITING)),
                    else_=status_literal(JobStatus.RESUBMITTED),
                ),
                "task_id": task_id,
                "unique_hash": unique_hash(
                    self._database.settings.namespace, former.username, former.unique_key
                ),
            },
            reason="resubmitted",
            actor=actor,
        )
        return [former.id] if db.count_applied(resubmit) else None

    @retry_on_disconnect
    def set_status(
        self,
        job_id: int,
        status: JobStatus,
        token: str,
        username: str | None,
        message: str | None,
        run: Run | None = None,
    ) -> tuple[JobStatus | None, bool]:
        """Set one of the four statuses that may be set, and the message with it, or neither.

        Returns the previous status (None: no such job) and whether the transition was allowed. The row stays
        locked between the two, so the status returned is the one that was left. Who may have been there
        first: anyone, up to the lock; and this very call, if the answer to its commit was lost: then the row
        has our token, and the status that the first try has seen is the answer.

        Raises:
            InvalidTransitionError: the run is superseded, and the job not final.
        """
        with self._database.transaction() as db:
            row = _lock(db, job_id, username, *NODE, *CLAIM_COLUMNS)
            if row is None:
                return None, False
            previous: JobStatus = row.status_id
            before: JobStatus | None = remembered()
            if row.claim_id == token or (before and previous is status is JobStatus.CANCELLED):
                return before or (JobStatus.RUNNING if status.final else previous), True
            if not previous.final:
                check_same_claim(run, row)
            remember(previous)
            changed = _set(db, row, mine(job_id, username), status, token, actor_of(username))
            if changed and message is not None and (status is not JobStatus.CANCELLED or not previous.final):
                db.execute(update(job).where(mine(job_id)).values(message=message))
            return previous, changed

    @retry_on_disconnect
    def set_message(
        self, job_id: int, message: str | None, username: str | None, run: Run | None
    ) -> str | None:
        """Replace the message and return the previous one; None if there is no such job.

        A message of None leaves it alone, and so does a run that is superseded. Who may have been there first
        does not matter: the last message stays. If that was this very call, the message that its first try
        has seen is the answer.
        """
        with self._database.transaction() as db:
            row = _lock(db, job_id, username, job.c.message)
            if row is None:
                return None
            before: str | None = remembered()
            if before is not None and row.message == message:
                return before
            if message is not None:
                which = mine(job_id) if run is None else and_(mine(job_id), claimed_by(run))
                db.execute(update(job).where(which).values(message=message))
            remember(row.message)
            return str(row.message)

    @retry_on_disconnect
    def note_progress_of(
        self, job_id: int, current: float, total: float | None, username: str | None
    ) -> bool:
        """Write the progress of a job; False if it is not Running. The last call counts."""
        running = mine(job_id, username) & status_allows("finish")
        noted = update(job).where(running).values(progress_current=current, progress_total=total)
        with self._database.transaction() as db:
            return bool(db.execute(noted).rowcount)


def _lock(db: Executor, job_id: int, username: str | None, *columns: Any) -> Row[Any] | None:
    locked = select(*columns).where(mine(job_id, username)).with_for_update(key_share=True)
    row: Row[Any] | None = db.execute(locked).first()
    return row


def _set(db: Executor, row: Row[Any], which: Guard, status: JobStatus, token: str, actor: str) -> bool:
    previous: JobStatus = row.status_id
    match status:
        case JobStatus.CANCELLED if row.kind is not None:
            cancel_tree(db, row, actor, terminate=False)
            return True
        case JobStatus.CANCELLED:
            db.count_applied(cancelling(which, terminate=False), actor=actor)
            return True
        case JobStatus.RUNNING if previous is JobStatus.RUNNING:
            return row.kind is None
        case JobStatus.RUNNING:
            return bool(db.count_applied(_set_running(which, token, actor)))
        case _:
            return bool(db.count_applied(_end(which, status, token, actor)))


def _set_running(which: Guard, token: str, actor: str) -> Transition:
    # The guard of a claim, except that a held job may be taken. The row has no worker and no lease: the
    # caller ends the job, and the sweeper never declares it lost.
    return Transition(
        status_allows("set_running"),
        which,
        NO_STOP_REQUESTED,
        ~IS_NODE,
        job.c.blocked.is_(False),
        WAITING_WITHOUT_TIME | DUE,
        NOT_EXPIRED,
        to={
            "status_id": JobStatus.RUNNING,
            "attempt": job.c.attempt + 1,
            "claim_id": token,
            "worker": actor,
            "started": clock(),
            "due_at": None,
            "not_before": None,
            **NO_PROCESS,
        },
        reason="set to Running by hand",
        actor=actor,
    )


def _end(which: Guard, status: JobStatus, token: str, actor: str) -> Transition:
    # The claim is taken away, which asks a body to stop. The row keeps its worker's uid until that body has
    # left, so that the job is not resubmitted beside it.
    to = final(status, claim_id=token)
    return Transition(
        status_allows("end"), ~IS_NODE, which, to=to, reason=f"set to {status} by hand", actor=actor
    )


@cache
def _cancel_one(*, by_user: bool, by_task_id: bool, terminate: bool) -> Transition:
    which = this_job(by_user=by_user, by_task_id=by_task_id)
    return cancelling(which & ~IS_NODE, terminate=terminate)
