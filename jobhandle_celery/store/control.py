"""What anyone may do to a job from outside: cancel it, take it, end it, speak for it."""

from datetime import datetime, timedelta
from functools import cache
from typing import Any

from sqlalchemy import Connection, and_, case, literal, null, select, true, update

from ..schema import clock, job, job_event
from ..status import UNFINISHED, JobStatus
from .records import Run, Selection
from .retrying import repeatable, repeating
from .statements import Transition, at, given, giving, setting
from .transitions import (
    DUE,
    HELD,
    LEFT,
    MINE,
    MOST_PARAMETERS,
    NAMING,
    NEVER_STARTED,
    NOT_EXPIRED,
    NOT_STAMPED,
    Guard,
    Moves,
    actor_of,
    cancelled,
    check_named,
    final,
    held_by,
    moves,
    named_by,
)

_BEFORE_IT_STARTED = "cancelled before it was started"
_BETWEEN_ATTEMPTS = "cancelled between two attempts"
_ASKED_TO_STOP = "asked to stop"


class Acting(Moves):
    """The verbs of people and of services, about jobs that others may be running."""

    @repeatable
    def cancel(
        self,
        job_id: int,
        username: str | None,
        *,
        terminate: bool,
        task_id: str | None = None,
        run: Run | None = None,
    ) -> JobStatus | None:
        """Cancel a job, and say what that came to; None if there is no such job.

        With `task_id`, only the round of that id, which a resubmit may have ended; with `run`, only while
        the row names that run.

        Cancelled: no worker will start it. Running: its body is asked to stop (with `terminate`, its worker
        ends the process). Finished, Error: too late. Who may have been there first: a claim. Whichever of
        the two statements comes second finds the other's status in the row.

        Raises:
            InvalidTransitionError: the run is superseded, and the job not final.
        """
        named, of_round = username is not None, task_id is not None
        which = {"id": job_id, "username": username, "task_id": task_id}
        if run is None:
            cancel = _cancel_one(named=named, of_round=of_round, terminate=terminate)
        else:
            cancel = _cancel(self.mine(job_id) & named_by(run), terminate=terminate)
        with self.door.moving() as connection:
            while True:
                moved = self.make(connection, cancel, actor=actor_of(username), **which)
                if moved:
                    cancelled_or_running: JobStatus = moved[0].status_id
                    return cancelled_or_running
                look = _look(named=named, of_round=of_round)
                found = self.execute(connection, look, giving(**which)).first()
                if found is None or found.status_id.final:
                    return None if found is None else found.status_id
                check_named(run, found)
                if found.status_id is JobStatus.RUNNING:
                    return JobStatus.RUNNING
                # It was final, and has been resubmitted between the two statements.

    @repeatable
    def cancel_selected(self, selection: Selection, *, terminate: bool = False) -> int:
        """Cancel, or ask to stop, every unfinished job of a selection; return how many that were.

        In one transaction, whatever their number; one statement takes a few thousand ids.
        """
        with self.door.transaction() as connection:
            return sum(
                self.make_many(connection, _cancel(self.selected(part), terminate=terminate), actor="service")
                for part in selection.parts(MOST_PARAMETERS)
            )

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

        Returns the previous status (None: no such job) and whether the move was allowed. The row is locked
        from the look to the move, so the status returned is the one that was left. Who may have been there
        first: anyone, up to the lock; and ourselves, if the answer to our commit was lost: then the row
        carries our token, and what we saw in it before is the answer.

        Raises:
            InvalidTransitionError: the run is superseded, and the job not final.
        """
        return self._set_status(job_id, status, token, username, message, run, [])

    @repeatable
    def _set_status(
        self,
        job_id: int,
        status: JobStatus,
        token: str,
        username: str | None,
        message: str | None,
        run: Run | None,
        seen: list[JobStatus],
    ) -> tuple[JobStatus | None, bool]:
        with self.door.transaction() as connection:
            row = self.execute(
                connection,
                select(job.c.status_id, *NAMING)
                .where(self.mine(job_id, username))
                .with_for_update(key_share=True),
            ).first()
            if row is None:
                return None, False
            previous: JobStatus = row.status_id
            before = seen[0] if seen and repeating() else None
            if row.claim_id == token or (before and previous is status is JobStatus.CANCELLED):
                return before or (JobStatus.RUNNING if status.final else previous), True
            if not previous.final:
                check_named(run, row)
            seen[:] = [previous]
            moved = self._set(connection, job_id, previous, status, token, username)
            if moved and message is not None and (status is not JobStatus.CANCELLED or not previous.final):
                self.execute(connection, update(job).where(self.mine(job_id)).values(message=message))
            return previous, moved

    def _set(
        self,
        connection: Connection,
        job_id: int,
        previous: JobStatus,
        status: JobStatus,
        token: str,
        username: str | None,
    ) -> bool:
        mine, actor = self.mine(job_id, username), actor_of(username)
        match status:
            case JobStatus.CANCELLED:
                self.make(connection, _cancel(mine, terminate=False), actor=actor)
                return True
            case JobStatus.RUNNING if previous is JobStatus.RUNNING:
                return True
            case JobStatus.RUNNING:
                return self._take(connection, mine, token, actor)
            case _:
                return self._end_by_hand(connection, mine, status, token, actor)

    def _take(self, connection: Connection, mine: Guard, token: str, actor: str) -> bool:
        # The guard is a worker's, but a held job may be taken. No boot id means no lease: whoever took
        # it finishes it, and nobody takes it for lost.
        return bool(
            self.move(
                connection,
                moves("take"),
                mine,
                NOT_STAMPED,
                HELD | DUE,
                NOT_EXPIRED,
                to={
                    "status_id": JobStatus.RUNNING,
                    "attempt": job.c.attempt + 1,
                    "claim_id": token,
                    "worker": actor,
                    "started": clock(),
                    "due_at": None,
                    "not_before": None,
                    **LEFT,
                },
                because="taken by hand",
                actor=actor,
            )
        )

    def _end_by_hand(
        self, connection: Connection, mine: Guard, status: JobStatus, token: str, actor: str
    ) -> bool:
        # The claim is taken away, by which a body hears that it should stop. The row keeps its worker's
        # boot id until that body has left, so that nobody sends the job round again beside it.
        return bool(
            self.move(
                connection,
                moves("end"),
                mine,
                to=final(status, claim_id=token),
                because=f"set to {status} by hand",
                actor=actor,
            )
        )

    def set_message(
        self, job_id: int, message: str | None, username: str | None, run: Run | None
    ) -> str | None:
        """Replace the message and return the previous one; None if there is no such job.

        A message of None leaves it alone, and so does a run that is superseded. Who may have been there
        first does not matter: the last one speaks. If that was ourselves, what we saw before is the answer.
        """
        return self._set_message(job_id, message, username, run, [])

    @repeatable
    def _set_message(
        self, job_id: int, message: str | None, username: str | None, run: Run | None, seen: list[str]
    ) -> str | None:
        with self.door.transaction() as connection:
            previous: str | None = self.execute(
                connection,
                select(job.c.message).where(self.mine(job_id, username)).with_for_update(key_share=True),
            ).scalar()
            if previous is not None and message is not None:
                mine = self.mine(job_id) if run is None else and_(self.mine(job_id), held_by(run))
                self.execute(connection, update(job).where(mine).values(message=message))
            if previous is not None:
                seen.append(previous)
            return seen[0] if repeating() and previous == message else previous

    @repeatable
    def note_progress_of(
        self, job_id: int, current: float, total: float | None, username: str | None
    ) -> bool:
        """Write how far whatever runs the job is; False if nothing runs it. The last one speaks."""
        running = self.mine(job_id, username) & moves("finish")
        with self.door.transaction() as connection:
            return self.note_progress_where(connection, running, current, total)

    def selected(self, selection: Selection) -> Guard:
        """Return the condition of a selection, within this namespace."""
        conditions = [job.c.namespace == self.namespace]
        if selection.statuses is not None:
            conditions.append(job.c.status_id.in_(selection.statuses))
        if selection.task is not None:
            conditions.append(job.c.task == selection.task)
        if selection.username is not None:
            conditions.append(job.c.username == selection.username)
        if selection.groupname is not None:
            conditions.append(job.c.groupname == selection.groupname)
        if selection.ids is not None:
            conditions.append(job.c.id.in_(selection.ids))
        if selection.since is not None:
            conditions.append(job.c.submitted >= _moment(selection.since))
        if selection.until is not None:
            conditions.append(job.c.submitted < _moment(selection.until))
        return and_(*conditions)


def _moment(given: datetime | timedelta) -> Any:
    return clock(-given) if isinstance(given, timedelta) else given


def _cancel(which: Guard, *, terminate: bool) -> Transition:
    # One statement for both cases: between two, a job could leave the one status for the other.
    running = job.c.status_id == at(JobStatus.RUNNING)
    stopped = cancelled(setting("republish_after"), claim_id=null())
    columns = {name: case((running, job.c[name]), else_=value) for name, value in stopped.items()}
    return Transition(
        job.c.status_id.in_([at(status) for status in sorted(UNFINISHED)]),
        # A second request changes nothing, unless it asks for more.
        NOT_STAMPED | job.c.terminate.is_(False) if terminate else NOT_STAMPED,
        which,
        to=columns
        | {
            "cancel_requested": case((NOT_STAMPED, clock()), else_=job.c.cancel_requested),
            "terminate": true() if terminate else job.c.terminate,
        },
        because=case(
            (running, literal(_ASKED_TO_STOP)),
            (NEVER_STARTED, literal(_BEFORE_IT_STARTED)),
            else_=literal(_BETWEEN_ATTEMPTS),
        ),
        actor=given(job_event.c.actor),
    )


def _one(*, named: bool, of_round: bool) -> Guard:
    conditions = [MINE]
    if named:
        conditions.append(job.c.username == given(job.c.username))
    if of_round:
        conditions.append(job.c.task_id == given(job.c.task_id))
    return and_(*conditions)


@cache
def _cancel_one(*, named: bool, of_round: bool, terminate: bool) -> Transition:
    return _cancel(_one(named=named, of_round=of_round), terminate=terminate)


@cache
def _look(*, named: bool, of_round: bool) -> Any:
    return select(job.c.status_id, *NAMING).where(_one(named=named, of_round=of_round))
