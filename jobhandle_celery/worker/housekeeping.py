"""What a worker's main process does once an interval, besides renewing its lease.

It makes deferred writes, accepts redelivered messages, ends the processes of bodies that are to end, recovers
rows that name this worker and that it does not run, sends events of progress, and calls the sweeper.
"""

import logging
import signal
import time
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

from celery.bootsteps import RUN  # type: ignore[attr-defined]  # missing in its stubs
from celery.concurrency.thread import TaskPool as ThreadPool
from celery.worker import state

from .. import celery_compat
from ..errors import DatabaseRefusedError, DatabaseUnavailableError
from ..runtime import RedeliveredMessage, Runtime
from ..store import MessageKey, Run, RunSnapshot
from ..sweeper import sweep
from .deferred_writes import DeferredWrites
from .events import EventSender
from .request import JobRequest

logger = logging.getLogger(__name__)

K = TypeVar("K", bound=Hashable)

DROP_AFTER = 30.0
"""Seconds for which a redelivered message waits for the database; then it is dropped."""


class Housekeeping:
    """One worker's housekeeping; a call makes one round."""

    def __init__(self, runtime: Runtime, worker: Any) -> None:
        self._runtime = runtime
        self._worker = worker
        self._me = runtime.current_worker()
        self._events = EventSender(worker, progress=runtime.settings.progress_events)
        self.writes = DeferredWrites(runtime, self._events)
        self._redelivered: list[RedeliveredMessage] = []
        self._strays: dict[Run, float] = {}
        self._superseded: dict[MessageKey, float] = {}
        self._ended: set[MessageKey] = set()
        """Runs whose process has been signalled."""

    def __call__(self) -> None:
        with _unless_locked():
            self.writes.make()
        with _unless_locked():
            self._accept_redelivered()
        requests = _requests()
        self._ended &= {request.key for request in requests}
        snapshots = self._runtime.store.leases.runs(str(self._me.worker_uid))
        self._end_cancelled(snapshots, requests)
        self._end_superseded(snapshots, requests)
        with _unless_locked():
            self._recover_strays(snapshots, requests)
        self._events.send_progress(snapshots, requests)
        sweep(self._runtime.store, self._runtime.publisher, self._events.send_changed)

    def _accept_redelivered(self) -> None:
        """Accept messages that were sent before, once their rows have the note."""
        while not self._runtime.redelivered.empty():
            self._redelivered.append(self._runtime.redelivered.get())
        late = time.monotonic() - DROP_AFTER
        for message in [message for message in self._redelivered if message.since < late]:
            message.drop()  # the database was unavailable; the sweeper publishes another
            self._redelivered.remove(message)
        if not self._redelivered:
            return
        given_up = self._runtime.store.recovery.note_received(
            [message.key for message in self._redelivered], self._me
        )
        for lost in given_up:
            logger.error(
                "job %s is %s: workers were lost after they received its message; look for what its "
                "arguments do to a worker before the body starts, then resubmit it",
                lost.job_id,
                lost.status,
            )
            self._events.send_changed(lost)
        ended = {lost.job_id for lost in given_up}
        for message in self._redelivered:
            message.drop() if message.key[0] in ended else message.accept()
        self._redelivered.clear()

    def send_cut_off(self) -> None:
        """Send events with the stored status of the jobs whose bodies were cut off."""
        jobs = []
        while self._runtime.cut_off:
            job_id, task_id, attempt = self._runtime.cut_off.popleft()
            job = self._runtime.store.queries.job(job_id, None)
            if job is not None and (job.task_id, job.attempt) == (task_id, attempt):
                jobs.append(job)
        if jobs:
            self._events.send_at_shutdown(jobs)

    @property
    def bodies_may_live_on(self) -> bool:
        """True if bodies run in a threads pool, which cannot end them before they return."""
        return bool(_requests()) and issubclass(self._worker.pool_cls, ThreadPool)

    def _end_cancelled(self, snapshots: Sequence[RunSnapshot], requests: Sequence[JobRequest]) -> None:
        """End bodies that were asked to stop, if the cancel or their task demands termination."""
        running = {request.key: request for request in requests}
        for run in snapshots:
            request = running.get((run.job_id, run.task_id, run.attempt)) if run.stop else None
            if request and (run.terminate or getattr(request.task, "terminate_on_cancel", False)):
                self._end_process(request.key, run.pid, lambda request, pool: request.terminate(pool, "TERM"))

    def _end_superseded(self, snapshots: Sequence[RunSnapshot], requests: Sequence[JobRequest]) -> None:
        """End bodies whose attempt is superseded, as after a suspend of the machine beyond the lease."""
        held = {(run.job_id, run.task_id, run.attempt) for run in snapshots}
        absent = {
            request.key: request
            for request in requests
            if request.time_start is not None and request.key not in held
        }
        lasting = self._lasting(self._superseded, absent)
        for key in self._runtime.store.leases.superseded(lasting) if lasting else ():
            # No revoke: the new attempt may have the same task id.
            self._end_process(
                key,
                absent[key].worker_pid,
                lambda request, pool: request.cancel(pool, "TERM", emit_retry=False),
            )

    def _end_process(self, key: MessageKey, pid: int | None, end: Callable[[JobRequest, Any], None]) -> None:
        if key in self._ended:
            return
        if not celery_compat.can_terminate(self._worker.pool):
            self._ended.add(key)
            logger.warning(
                "job %s: its body is to be terminated, and the pool of worker %s cannot do that; the job "
                "ends when the body does",
                key[0],
                self._me.name,
            )
            return
        if self._worker.blueprint.state != RUN:
            # The event loop does not run while a warm shutdown drains the pool; a signal needs no loop.
            self._ended.add(key)
            self._worker.pool.terminate_job(pid, signal.SIGTERM)
            return
        # In the event loop, so that the child cannot start another body between the check and the signal.
        self._worker.consumer.call_soon(self._end_now, key, pid, end)

    def _end_now(self, key: MessageKey, pid: int | None, end: Callable[[JobRequest, Any], None]) -> None:
        for request in _requests():
            here = not self._runtime.prefork or request.worker_pid == pid
            if request.key == key and here and request in state.active_requests and key not in self._ended:
                self._ended.add(key)
                end(request, self._worker.pool)

    def _recover_strays(self, snapshots: Sequence[RunSnapshot], requests: Sequence[JobRequest]) -> None:
        """Recover rows that name this worker and that it does not run."""
        if getattr(self._worker.consumer, "connection", None) is None:
            # While it reconnects to its broker, Celery has dropped its requests, and reads no results.
            self._strays.clear()
            return
        known = {str(request.id) for request in requests} | {write.task_id for write in self.writes.pending}
        strays = [
            Run(run.job_id, run.task_id, run.attempt, run.claim_id, self._me)
            for run in snapshots
            if run.task_id not in known
        ]
        lasting = self._lasting(self._strays, strays)
        if lasting and self._runtime.finisher is not None:
            self._runtime.finisher.flush()  # else a result that waits for its commit is lost
            pending = {write.task_id for write in self.writes.pending}
            lasting = [run for run in lasting if run.task_id not in pending]
        for run in lasting:
            reason = "its worker does not run it any more"
            try:
                recovered = self._runtime.store.recovery.lose(run, reason, self._me)
            except DatabaseRefusedError as error:
                # Do not delay the other rows, or the sweeper that follows.
                logger.error(
                    "job %s: nothing runs it, but it stays Running: the database refused its outcome: %s",
                    run.job_id,
                    error,
                )
                continue
            for lost in recovered:
                logger.warning("job %s is %s: %s", lost.job_id, lost.status, reason)
                self._events.send_changed(lost)

    def _lasting(self, seen: dict[K, float], now_seen: Iterable[K]) -> list[K]:
        """Return what has been seen for longer than the publish grace.

        A claim may be on its way from the child to this process, and an end to the database: what is seen
        once may be gone in a moment.
        """
        now = time.monotonic()
        for key in (current := set(now_seen)):
            seen.setdefault(key, now)
        for key in set(seen) - current:
            del seen[key]
        publish_grace = self._runtime.settings.publish_grace.total_seconds()
        return [key for key, since in seen.items() if now - since > publish_grace]


@contextmanager
def _unless_locked() -> Iterator[None]:
    """Defer a write that waits for a locked row to the next round, and continue with the others."""
    try:
        yield
    except DatabaseUnavailableError as error:
        if error.retry != "after_pause":
            raise
        logger.warning("a row is locked by another transaction; its write is retried: %s", error)


def _requests() -> list[JobRequest]:
    """Return the job requests that this worker has, reserved or running."""
    while True:
        try:
            requests = [*state.reserved_requests, *state.active_requests]
        except RuntimeError:  # "Set changed size during iteration": the event loop is another thread
            continue
        return [request for request in requests if isinstance(request, JobRequest) and request.is_job]
