"""Validates, routes and stores what callers submit, then publishes it.

A job is validated, routed and encoded before anything is committed: invalid input leaves no trace.
"""

import asyncio
import logging
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from billiard.exceptions import SoftTimeLimitExceeded

from . import serialization, validation
from .background import BackgroundQueue
from .broker.publisher import Publisher
from .broker.queued_marker import QueuedMarker
from .broker.routing import Routing
from .broker.task_signatures import as_job
from .errors import DatabaseUnavailableError
from .status import JobStatus
from .store import Attached, NewJob, PendingMessage, Store, Submitted

if TYPE_CHECKING:
    from sqlalchemy.orm import Session, scoped_session

logger = logging.getLogger(__name__)

BATCH = 500
"""Jobs reserved and published at a time: few enough to be published before the sweeper does."""


class _Prepared:
    """Prepares jobs lazily and caches them, so that they can be iterated again.

    While the database inserts the first batch of many, the next one is prepared.
    """

    def __init__(self, given: Sequence[object], prepare: Callable[[object], NewJob]) -> None:
        self._given = given
        self._prepare = prepare
        self._prepared: list[NewJob] = []

    def __len__(self) -> int:
        return len(self._given)

    def __iter__(self) -> Iterator[NewJob]:
        for number, job in enumerate(self._given):
            if number == len(self._prepared):
                self._prepared.append(self._prepare(job))
            yield self._prepared[number]


class PublishQueue(BackgroundQueue[int]):
    """Publishes in a thread of its own for callers that run an event loop, which must not block."""

    name = "publishing for an event loop"
    on_failure = "the sweeper publishes the jobs"

    def __init__(self, send: Callable[[Sequence[int]], None]) -> None:
        super().__init__()
        self._send = send

    def _do(self, work: Sequence[int]) -> None:
        self._send(work)


class Submitter:
    """Stores jobs and publishes their messages."""

    def __init__(self, store: Store, publisher: Publisher, routing: Routing) -> None:
        self._store = store
        self._routing = routing
        self._publisher = publisher
        self.queued_marker = QueuedMarker(store, store.database.settings.publish_grace)
        self._publish_queue = PublishQueue(self._send_committed)

    def submit(
        self,
        given: Sequence[object],
        username: str | None,
        groupname: str | None,
        session: "Session | scoped_session[Any] | None",
        handle: Attached | None = None,
    ) -> list[Submitted]:
        """Insert jobs, all or none, and publish those that may start now; return the id and status of each.

        With `session`, they join its transaction, and are published after its commit.

        Raises:
            ApiUsageError: nothing was written.
        """
        new = _Prepared(given, partial(self._new, username=username, groupname=groupname))
        if session is not None:
            return self._store.inserter.submit_in_session(session, list(new), self.send_after_commit, handle)
        submitted = self._store.inserter.submit(new)
        fresh = [
            (row, stored.job_id)
            for row, stored in zip(new, submitted, strict=True)
            if stored.fresh and stored.status is JobStatus.SUBMITTED
        ]
        committed = time.monotonic()
        publish_grace = self._store.database.settings.publish_grace.total_seconds()
        size = max(len(fresh), 1) if self._publisher.eager else BATCH
        for start in range(0, len(fresh), size):
            if self._in_event_loop or time.monotonic() - committed > publish_grace / 2:
                # The sweeper is about to publish the rest: reserve those rows before publishing them.
                self.send([job_id for _, job_id in fresh[start:]])
                break
            self._send([row.pending_message(job_id) for row, job_id in fresh[start : start + size]])
        return submitted

    def flushed_store(self) -> Store:
        """Flush pending updates, so that this process reads its own writes, and return the store."""
        self.queued_marker.flush_once()
        return self._store

    def drain(self) -> None:
        """Publish what is pending, in bounded time, and mark it as Queued."""
        self._publish_queue.flush()
        self.queued_marker.flush()

    def send(self, job_ids: Sequence[int]) -> None:
        """Publish those of these jobs that are committed and may start now.

        In a thread that runs an event loop this returns at once; messages follow in the order of the calls.
        """
        if self._in_event_loop:
            self._publish_queue.later(job_ids)
        else:
            self._send_committed(job_ids)

    def send_after_commit(self, job_ids: Sequence[int]) -> None:
        """Publish as `send`; raise no error of a body that runs eagerly."""
        try:
            self.send(job_ids)
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
        try:
            asyncio.get_running_loop()
        except RuntimeError:
            return False
        return not self._publisher.eager

    def _send_committed(self, job_ids: Sequence[int]) -> None:
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

    def _new(self, given: object, username: str | None, groupname: str | None) -> NewJob:
        job, options = as_job(given)
        job = validation.job(job)
        if job.headers:
            options = {**options, "headers": dict(job.headers)}
        task_id = str(uuid.uuid4())
        routed = self._routing.route(job, options, task_id)
        hide = bool(routed.sensitive)
        return NewJob(
            task=job.task,
            task_id=task_id,
            args=serialization.encode_given("args", routed.args, hide=hide),
            kwargs=serialization.encode_given("kwargs", routed.kwargs, hide=hide),
            message=serialization.clip_message(job.message),
            meta=None if job.meta is None else serialization.encode_given("meta", job.meta),
            username=username,
            groupname=groupname,
            unique_key=job.unique_key,
            queue=routed.queue,
            routing=routed.options,
            priority=routed.priority,
            time_limit=job.time_limit,
            soft_time_limit=job.soft_time_limit,
            max_attempts=job.max_attempts,
            held=validation.submittable(job.status) is JobStatus.WAITING,
            scheduled_for=routed.scheduled_for,
            expires=routed.expires,
        )
