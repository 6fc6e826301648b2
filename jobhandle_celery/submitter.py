"""Stores what callers submit, once it is prepared, then publishes it."""

import logging
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from billiard.exceptions import SoftTimeLimitExceeded

from .broker.plan_canvas import plan_canvas
from .broker.publish_queue import Committed, PublishQueue
from .broker.publisher import Publisher
from .broker.queued_marker import QueuedMarker
from .broker.routing import Routing
from .broker.sent_tasks import SentCall
from .broker.signatures import GROUP
from .errors import DatabaseUnavailableError
from .preparer import Prepared, Preparer
from .status import JobStatus
from .store import Detachable, NewMember, PendingMessage, Store, SubmitResult, runs_event_loop

if TYPE_CHECKING:
    from sqlalchemy.orm import Session, scoped_session

logger = logging.getLogger(__name__)

BATCH = 500
"""Jobs reserved and published at a time: few enough to be published before the sweeper does."""


@dataclass(frozen=True)
class SubmittedMember:
    """A row of a canvas that was submitted."""

    task_id: str
    job_id: int
    kind: str | None
    """As `JobRecord.kind`."""


class Submitter:
    """Stores jobs and publishes their messages."""

    def __init__(self, store: Store, publisher: Publisher, routing: Routing) -> None:
        self._store = store
        self.preparer = Preparer(routing)
        self._publisher = publisher
        self.queued_marker = QueuedMarker(store, store.database.settings.publish_grace)
        self._publish_queue = PublishQueue(self._send_committed)

    def submit(
        self,
        given: Sequence[object],
        username: str | None,
        groupname: str | None,
        session: "Session | scoped_session[Any] | None",
        handle: Detachable | None = None,
    ) -> list[SubmitResult]:
        """Insert jobs, all or none, and publish those that may start now; return the id and status of each.

        Of a canvas, that is the id and status of its root.

        With `session`, they join its transaction, and are published after its commit.

        Raises:
            ApiUsageError: nothing was written.
        """
        return self.insert(self.preparer.prepare(given, username, groupname), session, handle)

    def insert(
        self,
        prepared: Prepared,
        session: "Session | scoped_session[Any] | None",
        handle: Detachable | None = None,
    ) -> list[SubmitResult]:
        """Insert prepared jobs, and publish those that may start now; see `submit`."""
        if prepared.members:
            submitted = self._insert_trees(prepared.members, session, handle)
            return [submitted[root] for root in prepared.roots]
        new = prepared.jobs
        if session is not None:
            return self._store.inserter.submit_in_session(session, list(new), self.send_after_commit, handle)
        submitted = self._store.inserter.submit(new)
        self._publish_fresh(
            row.pending_message(stored.job_id)
            for row, stored in zip(new, submitted, strict=True)
            if stored.fresh and stored.status is JobStatus.SUBMITTED
        )
        return submitted

    def submit_sent(
        self,
        call: SentCall,
        username: str | None,
        groupname: str | None,
        session: "Session | scoped_session[Any] | None",
    ) -> tuple[str, int]:
        """Insert the job of one call of `Celery.send_task`, as `submit`; return its task id and its id.

        Those of an unfinished job with its unique key, if there is one.

        Raises:
            ApiUsageError: nothing was written.
        """
        task_id, prepared = self.preparer.prepare_sent(call, username, groupname)
        (submitted,) = self.insert(prepared, session)
        if not submitted.fresh and (found := self._store.queries.stored_job(submitted.job_id)) is not None:
            task_id = found.task_id
        return task_id, submitted.job_id

    def submit_canvas(
        self,
        signature: Mapping[str, Any],
        username: str | None,
        groupname: str | None,
        session: "Session | scoped_session[Any] | None",
        task_id: str | None = None,
    ) -> list[SubmittedMember]:
        """Insert a canvas, as `submit`; return its root, and for a group the members of that.

        With `task_id`, its root has that task id.

        Raises:
            ApiUsageError: nothing was written.
        """
        planned = plan_canvas(signature, task_id)
        members = self.preparer.members(planned.members, username, groupname)
        submitted = self._insert_trees(members, session)
        (root,) = planned.roots
        of_group = members[root].kind == GROUP
        return [
            SubmittedMember(member.job.task_id, row.job_id, member.kind)
            for index, (member, row) in enumerate(zip(members, submitted, strict=True))
            if index == root or (of_group and member.parent == root and member.position is not None)
        ]

    def _insert_trees(
        self,
        members: Sequence[NewMember],
        session: "Session | scoped_session[Any] | None",
        handle: Detachable | None = None,
    ) -> list[SubmitResult]:
        if session is not None:
            return self._store.trees.submit_in_session(
                session, members, self.send_after_commit, self.arm_after_commit, handle
            )
        submitted = self._store.trees.submit(members)
        self._publish_fresh(
            member.pending_message(
                stored.job_id, None if member.parent is None else submitted[member.parent].job_id
            )
            for member, stored in zip(members, submitted, strict=True)
            if stored.fresh and stored.status is JobStatus.SUBMITTED and member.kind is None
        )
        return submitted

    def _publish_fresh(self, messages: Iterable[PendingMessage]) -> None:
        """Publish jobs that were just inserted, and that may start now, in batches."""
        fresh = list(messages)
        committed = time.monotonic()
        publish_grace = self._store.database.settings.publish_grace.total_seconds()
        size = max(len(fresh), 1) if self._publisher.eager else BATCH
        for start in range(0, len(fresh), size):
            if self._in_event_loop or time.monotonic() - committed > publish_grace / 2:
                # The sweeper is about to publish the rest: reserve those rows before publishing them.
                self.send([message.job_id for message in fresh[start:]])
                break
            self._send(fresh[start : start + size])

    def flushed_store(self) -> Store:
        """Flush pending updates, so that this process reads its own writes, and return the store."""
        self.queued_marker.flush_once()
        return self._store

    def publish_pending(self) -> None:
        """Publish what was committed in an event loop and is left to a thread, in bounded time."""
        self._publish_queue.flush()

    def drain(self) -> None:
        """Publish what is pending, in bounded time, and mark it as Queued."""
        self.publish_pending()
        self.queued_marker.flush()

    def send(self, job_ids: Sequence[int]) -> None:
        """Publish those of these jobs that are committed and may start now.

        In a thread that runs an event loop this returns at once; messages follow in the order of the calls.
        """
        self._now_or_later([Committed(job_id) for job_id in job_ids])

    def send_reserved(self, messages: Sequence[PendingMessage]) -> None:
        """Publish the messages of rows that a settle has reserved.

        Of many, the publish grace may have passed by their turn: their rows are reserved anew, in batches.
        """
        job_ids = [message.job_id for message in messages]
        if self._in_event_loop or (len(messages) > BATCH and not self._publisher.eager):
            self.send(job_ids)
        else:
            self._without_raising(lambda: self._send(messages), job_ids)

    def send_after_commit(self, job_ids: Sequence[int]) -> None:
        """Publish as `send`; raise no error of a body that runs eagerly."""
        self._without_raising(lambda: self.send(job_ids), job_ids)

    def arm_after_commit(self, job_ids: Sequence[int]) -> None:
        """Arm jobs that need others, and publish as `send_after_commit` those that need none any more."""
        blocked = [Committed(job_id, blocked=True) for job_id in job_ids]
        self._without_raising(lambda: self._now_or_later(blocked), job_ids)

    def _now_or_later(self, jobs: Sequence[Committed]) -> None:
        if self._in_event_loop:
            self._publish_queue.later(jobs)
        else:
            self._send_committed(jobs)

    def _without_raising(self, send: Callable[[], None], job_ids: Sequence[int]) -> None:
        try:
            send()
        except SoftTimeLimitExceeded:
            raise
        except Exception:
            if not self._publisher.eager:
                raise
            # The caller's commit has succeeded: it must not raise.
            logger.exception("jobs %s ran eagerly after the commit, and a body failed; see the rows", job_ids)

    @property
    def _in_event_loop(self) -> bool:
        """True if this thread must not block. Eager jobs run in it nevertheless, as tests expect."""
        return runs_event_loop() and not self._publisher.eager

    def _send_committed(self, jobs: Sequence[Committed]) -> None:
        blocked = [job.job_id for job in jobs if job.blocked]
        job_ids = [job.job_id for job in jobs if not job.blocked]
        job_ids += self._store.trees.arm(blocked) if blocked else []
        for start in range(0, len(job_ids), BATCH):
            try:
                outgoing = self._store.outbox.reserve(job_ids[start : start + BATCH])
            except DatabaseUnavailableError as error:
                logger.warning(
                    "%d jobs were not published (%s); the sweeper publishes them", len(job_ids) - start, error
                )
                return
            self._send(outgoing)

    def _send(self, outgoing: Sequence[PendingMessage]) -> None:
        # The jobs are committed, so that no error here concerns the caller: the sweeper publishes them.
        published = self._publisher.publish(outgoing)
        self.queued_marker.later(published.sent)
        try:
            for reason, unsendable in published.unsendable.items():
                self._store.outbox.defer_unsendable(unsendable, reason)
        except DatabaseUnavailableError as error:
            logger.warning("rejected jobs were not deferred (%s); the sweeper publishes them again", error)
