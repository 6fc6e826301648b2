"""From what a caller gives to a committed row, and its message on the way. May import dispatch and below.

Everything is checked, routed and encoded before anything is committed: bad input leaves no trace.
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
from .broker.signatures import as_job
from .errors import DatabaseUnavailableError
from .status import JobStatus
from .store import Attached, NewJob, PendingMessage, Store, Submitted

if TYPE_CHECKING:
    from sqlalchemy.orm import Session, scoped_session

logger = logging.getLogger(__name__)

BATCH = 500
"""Jobs reserved and sent at a time: few enough to be sent before the sweep takes them for forgotten."""


class _Prepared:
    """Jobs that are checked, routed and encoded when they are come to, and kept for who comes again.

    For while a database takes in the first of very many, the next can be prepared.
    """

    def __init__(self, given: Sequence[object], prepare: Callable[[object], NewJob]) -> None:
        self._given = given
        self._prepare = prepare
        self._prepared: list[NewJob] = []

    def __len__(self) -> int:
        return len(self._given)

    def __iter__(self) -> Iterator[NewJob]:
        for number, one in enumerate(self._given):
            if number == len(self._prepared):
                self._prepared.append(self._prepare(one))
            yield self._prepared[number]


class Outbox(BackgroundQueue[int]):
    """Sends jobs for threads that run an event loop: it would stand still while they wait for a server."""

    name = "publishing beside an event loop"
    on_failure = "the sweep publishes the jobs"

    def __init__(self, send: Callable[[Sequence[int]], None]) -> None:
        super().__init__()
        self._send = send

    def _do(self, work: Sequence[int]) -> None:
        self._send(work)


class Submitter:
    """Takes jobs in and sees that their messages go out."""

    def __init__(self, store: Store, publisher: Publisher, routing: Routing) -> None:
        self._store = store
        self._routing = routing
        self._publisher = publisher
        self.queued_marker = QueuedMarker(store, store.database.settings.publish_grace)
        self._outbox = Outbox(self._send_committed)

    def submit(
        self,
        given: Sequence[object],
        username: str | None,
        groupname: str | None,
        session: "Session | scoped_session[Any] | None",
        handle: Attached | None = None,
    ) -> list[Submitted]:
        """Insert jobs, all or none, and send what may start now; return what became of each.

        Raises:
            ApiUsageError: nothing was written.
        """
        new = _Prepared(given, partial(self._new, username=username, groupname=groupname))
        if session is not None:
            return self._store.inserter.submit_in_session(session, list(new), self._send_after_commit, handle)
        submitted = self._store.inserter.submit(new)
        fresh = [
            (row, one.job_id)
            for row, one in zip(new, submitted, strict=True)
            if one.fresh and one.status is JobStatus.SUBMITTED
        ]
        committed, publish_grace = (
            time.monotonic(),
            self._store.database.settings.publish_grace.total_seconds(),
        )
        size = max(len(fresh), 1) if self._publisher.eager else BATCH
        for start in range(0, len(fresh), size):
            if self._beside_a_loop or time.monotonic() - committed > publish_grace / 2:
                # The sweep may take what is left for forgotten any moment: look at the rows again.
                self.send([job_id for _, job_id in fresh[start:]])
                break
            self._send([row.pending_message(job_id) for row, job_id in fresh[start : start + size]])
        return submitted

    def drain(self) -> None:
        """Send what is still to be sent, in bounded time, and write all marks."""
        self._outbox.flush()
        self.queued_marker.flush()

    def send(self, job_ids: Sequence[int]) -> None:
        """Send the messages of these jobs, those of them that are committed and may start now.

        Soon, and in the order of the calls, if this thread runs an event loop; else before it returns.
        """
        if self._beside_a_loop:
            self._outbox.later(job_ids)
        else:
            self._send_committed(job_ids)

    def _send_after_commit(self, job_ids: Sequence[int]) -> None:
        try:
            self.send(job_ids)
        except SoftTimeLimitExceeded:
            raise
        except Exception:
            if not self._publisher.eager:
                raise
            # The caller's commit has succeeded and must not fail now.
            logger.exception("jobs %s ran eagerly after the commit, and a body failed; see the rows", job_ids)

    @property
    def _beside_a_loop(self) -> bool:
        """True if this thread must not wait; of eager jobs users' tests expect that it does."""
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
                logger.warning("%d jobs are left to the sweep: %s", len(job_ids) - start, error)
                return
            self._send(outgoing)

    def _send(self, outgoing: Sequence[PendingMessage]) -> None:
        # They are committed, so nothing that happens here is the caller's to hear: the sweep does the rest.
        published = self._publisher.publish(outgoing)
        self.queued_marker.later(published.sent)
        try:
            for reason, unsendable in published.unsendable.items():
                self._store.outbox.defer_unsendable(unsendable, reason)
        except DatabaseUnavailableError as error:
            logger.warning("jobs that cannot be sent could not be put off: %s", error)

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
