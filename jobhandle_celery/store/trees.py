"""Submitting trees, and jobs that need others: rows, needs and events are inserted in one transaction."""

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

from sqlalchemy import Row, select, update

from ..batching import batches, slices
from ..errors import DatabaseUnavailableError, UnknownJobError, ValidationError
from ..schema import clock, job
from ..settings import Settings
from ..status import JobStatus
from .after_commit import Callback, Detachable, after_commit
from .database import Database
from .executors import MAX_PARAMETERS, Executor
from .insert import (
    MAX_BYTES,
    MAX_ROWS,
    check_task_id,
    find_job,
    joined,
    need_clock,
    payload_length,
    read_clock,
    schedule,
)
from .records import NewJob, NewMember, SubmitResult
from .retrying import retry_on_disconnect
from .settling import Settling
from .statements import setting
from .transitions import OF_NAMESPACE

if TYPE_CHECKING:
    from sqlalchemy.orm import Session, scoped_session

logger = logging.getLogger(__name__)


class Trees:
    """Inserts trees, and jobs that need others."""

    def __init__(self, database: Database, settling: Settling) -> None:
        self._database = database
        self._settling = settling

    def submit(self, members: Sequence[NewMember]) -> list[SubmitResult]:
        """Insert rows with their needs in one transaction of our own; return the id and status of each.

        A task may start now if it is Submitted and `fresh`.

        Raises:
            UnknownJobError: a job that is needed does not exist, or is another user's; nothing was written.
            ValidationError: a member cannot be stored as it is; nothing was written.
        """
        inserted = self._submit(members)
        ready = set(self.arm(inserted.to_arm))
        return [
            replace(row, status=JobStatus.SUBMITTED) if row.job_id in ready else row
            for row in inserted.submitted
        ]

    @retry_on_disconnect
    def _submit(self, members: Sequence[NewMember]) -> "_Inserted":
        with self._database.transaction() as db:
            now = read_clock(db) if need_clock([_with_times(new) for new in members]) else None
            return _Insertion(db, members, self._database.settings, now).insert()

    def submit_in_session(
        self,
        session: "Session | scoped_session[Any]",
        members: Sequence[NewMember],
        send: Callback,
        arm: Callback,
        handle: Detachable | None = None,
    ) -> list[SubmitResult]:
        """Insert rows in the caller's transaction.

        After its commit, `send` is called with the ids of tasks that may start, and `arm` with those of rows
        for `Trees.arm`.

        Raises:
            ApiUsageError: as `submit`, or not a session that can be joined.
            DBAPIError: SQLAlchemy's, for a serialization failure or a deadlock, which the caller retries.
        """
        jobs = [_with_times(new) for new in members]
        with joined(self._database, session, jobs) as (joining, db, now):
            inserted = _Insertion(db, members, self._database.settings, now).insert()
        fresh = [row.job_id for row in inserted.submitted if row.fresh]
        calls = {send: inserted.startable, arm: inserted.to_arm}
        after_commit(joining, db.connection, fresh, calls, handle)
        return inserted.submitted

    def arm(self, job_ids: Sequence[int]) -> list[int]:
        """Arm rows that are committed; raise no error: the submit has succeeded."""
        try:
            return self._settling.arm(job_ids)
        except DatabaseUnavailableError as error:
            logger.warning("jobs %s wait for the sweeper to check their needs (%s)", list(job_ids), error)
            return []


@dataclass(frozen=True)
class _Inserted:
    """The result of an insert."""

    submitted: list[SubmitResult]
    startable: list[int]
    """Ids of tasks that may start."""
    to_arm: list[int]
    """Ids of blocked rows, for `Settling.arm` after the commit."""


class _Insertion:
    """The insert of one list of rows, in a transaction."""

    def __init__(
        self, db: Executor, members: Sequence[NewMember], settings: Settings, now: datetime | None
    ) -> None:
        self._db = db
        self._members = members
        self._settings = settings
        self._now = now
        self._submitted: dict[int, SubmitResult] = {}
        self._written: set[int] = set()
        """Indexes of the rows that this transaction has inserted."""
        self._to_arm = {number for number, new in enumerate(members) if new.after}
        self._adopted: list[tuple[int, int, int | None]] = []
        """The existing jobs that become members by their unique keys: index of the parent, id, position."""
        self._parents = {new.parent for new in members}
        self._needed = {number for new in members for number, _ in new.needs}
        self._roots: list[int] = []
        self._levels: list[list[int]] = []
        depths: list[int] = []
        for number, new in enumerate(members):
            depths.append(0 if new.parent is None else depths[new.parent] + 1)
            self._roots.append(number if new.parent is None else self._roots[new.parent])
            if depths[number] == len(self._levels):
                self._levels.append([])
            self._levels[depths[number]].append(number)

    def insert(self) -> _Inserted:
        """Insert the rows level by level, then their needs.

        Who may have been there first: the same submit, if the answer to its commit was lost (its rows are
        found by their task ids); or an unfinished job with the unique key of a row, which takes its place.
        """
        self._check()
        for level in self._levels:
            for part in batches(level, MAX_ROWS, self._length, MAX_BYTES):
                self._insert_part(part)
        needs = list(self._needs())
        for rows in slices(needs, MAX_ROWS):
            self._db.insert_needs(rows)
        self._block_late()
        return _Inserted(
            [self._submitted[number] for number in range(len(self._members))],
            [
                row.job_id
                for number, row in self._submitted.items()
                if row.fresh and row.status is JobStatus.SUBMITTED and self._members[number].kind is None
            ],
            [self._submitted[number].job_id for number in sorted(self._to_arm)],
        )

    def _length(self, number: int) -> int:
        return payload_length(self._members[number].job)

    def _check(self) -> None:
        for number, new in enumerate(self._members):
            if new.job.held and self._is_blocked(number):
                raise ValidationError(
                    "status", str(JobStatus.WAITING), "Submitted, for a job that waits for others"
                )
        asked = {(need, new.job.username) for new in self._members for need in new.after}
        ids = sorted({need for need, _ in asked})
        known: dict[int, str | None] = {}
        for part in slices(ids, MAX_PARAMETERS):
            these = job.c.id.in_(part)
            here = select(job.c.id, job.c.username).where(these, OF_NAMESPACE)
            known |= {row.id: row.username for row in self._db.read_current(here)}
        for need, username in sorted(asked, key=lambda pair: pair[0]):
            if need not in known or username not in (None, known[need]):
                raise UnknownJobError(f"no job {need}")

    def _insert_part(self, numbers: Sequence[int]) -> None:
        rows = [self._row(number) for number in numbers]
        inserted = {row.task_id: row for row in self._db.insert_jobs(rows, of_tree=True)}
        for number, row in zip(numbers, rows, strict=True):
            found = inserted.get(row["task_id"])
            if found is None:
                self._submitted[number] = self._find_or_insert(number, row)
            else:
                self._written.add(number)
                self._submitted[number] = SubmitResult(found.id, found.status_id)

    def _find_or_insert(self, number: int, row: dict[str, Any]) -> SubmitResult:
        while True:
            if found := find_job(self._db, job.c.task_id == row["task_id"]):
                check_task_id(self._members[number].job)
                return SubmitResult(found.id, found.status_id)
            if "unique_hash" in row and (
                found := find_job(self._db, job.c.unique_hash == row["unique_hash"])
            ):
                if self._members[number].parent is not None:
                    self._adopt(number, found)
                return SubmitResult(found.id, found.status_id, fresh=False)
            # The job that had the key has just ended: the key is free.
            for inserted in self._db.insert_jobs([row], of_tree=True):
                self._written.add(number)
                return SubmitResult(inserted.id, inserted.status_id)

    def _adopt(self, number: int, found: Row[Any]) -> None:
        """Let an unfinished job with the member's unique key be that member.

        Its row is not changed before the commit: a caller's transaction would keep it locked. Until
        `Settling.arm` has changed it, the parent is blocked.
        """
        new = self._members[number]
        if new.parent is None:
            raise AssertionError("only a member is adopted")
        root = self._submitted[self._roots[number]].job_id
        ours = {row.job_id for row in self._submitted.values()}
        if found.id in ours:
            raise ValidationError("unique_key", new.job.unique_key, "a key of one member of a tree alone")
        if found.kind is not None or found.root_id not in (None, root):
            raise ValidationError(
                "unique_key",
                new.job.unique_key,
                f"a key that no unfinished job of another tree has; job {found.id} has it",
            )
        self._adopted.append((new.parent, found.id, new.position))
        self._to_arm.add(new.parent)

    def _needs(self) -> Iterator[dict[str, Any]]:
        for number, new in enumerate(self._members):
            if not self._submitted[number].fresh:
                continue
            places: dict[int, int | None] = dict.fromkeys(new.after)
            for need, position in new.needs:
                needed = self._submitted[need]
                places[needed.job_id] = position
                if not needed.fresh:
                    self._to_arm.add(number)
            if new.kind is not None and not places and self._is_blocked(number):
                self._to_arm.add(number)
            for needs_id, position in places.items():
                yield self._need(number, needs_id, position)
        for parent, job_id, position in self._adopted:
            yield self._need(parent, job_id, position)

    def _need(self, number: int, needs_id: int, position: int | None) -> dict[str, Any]:
        return {"job_id": self._submitted[number].job_id, "needs_id": needs_id, "position": position}

    def _block_late(self) -> None:
        """Block rows that are to be armed, which only the insert of later rows has shown."""
        late = [self._submitted[number].job_id for number in sorted(self._to_arm & self._written)]
        for part in slices(late, MAX_PARAMETERS):
            blocked = {
                "status_id": JobStatus.WAITING,
                "blocked": True,
                "due_at": clock(setting("publish_grace")),
            }
            these = job.c.id.in_(part)
            self._db.execute(update(job).where(these).values(**blocked))
        for number in self._to_arm & self._written:
            self._submitted[number] = replace(self._submitted[number], status=JobStatus.WAITING)

    def _is_blocked(self, number: int) -> bool:
        new = self._members[number]
        return bool(new.needs or new.after) or (new.kind is not None and number not in self._parents)

    def _row(self, number: int) -> dict[str, Any]:
        new, blocked = self._members[number], self._is_blocked(number)
        row = new.job.columns(self._settings.namespace)
        if blocked:
            row |= _blocked_schedule(new, self._now)
        else:
            row |= schedule(_with_times(new), self._now)
        place: dict[str, Any] = {}
        if new.parent is not None:
            place["root_id"] = self._submitted[self._roots[number]].job_id
            place["parent_id"] = self._submitted[new.parent].job_id
            place["position"] = new.position
        return (
            row
            | place
            | {
                "kind": new.kind,
                "needs_when": new.when or "finished" if new.needs or new.after else None,
                "blocked": blocked,
                "countdown": new.countdown if blocked else None,
                "expires_in": new.expires_in if blocked else None,
                "needed": new.parent is not None or number in self._needed,
            }
        )


def _with_times(new: NewMember) -> NewJob:
    """Return the job with the times of a member that may start now."""
    times: dict[str, Any] = {}
    if new.countdown is not None:
        times["scheduled_for"] = timedelta(seconds=new.countdown)
    if new.expires_in is not None:
        times["expires"] = timedelta(seconds=new.expires_in)
    return replace(new.job, **times) if times else new.job


def _blocked_schedule(new: NewMember, now: datetime | None) -> dict[str, Any]:
    """Return the status and the times of a blocked row; the sweeper looks at it when it expires."""
    times = {} if now is None else schedule(new.job, now)
    expires = times.get("expires")
    return {
        "status_id": JobStatus.WAITING,
        "scheduled_for": times.get("scheduled_for"),
        "expires": expires,
        "due_at": expires,
    }
