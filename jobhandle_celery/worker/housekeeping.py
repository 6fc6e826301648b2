"""What a worker's main process does beside its bodies, once an interval. May import watchers and below.

It writes what the process has learned of its children, ends the processes of bodies that are to end, settles
rows that name this worker and that it does not run, and sweeps.
"""

import logging
import os
import signal
import subprocess
import time
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

from celery.bootsteps import RUN  # type: ignore[attr-defined]  # its stubs forget it
from celery.concurrency.base import BasePool
from celery.concurrency.thread import TaskPool as ThreadPool
from celery.worker import state

from .. import internal_errors
from ..errors import DatabaseRefusedError, DatabaseUnavailableError, SchemaError
from ..models import JobRecord
from ..runtime import DeferredWrite, RedeliveredMessage, Runtime
from ..status import JobStatus
from ..store import Run, RunSnapshot
from ..sweeper import sweep
from .events import EventSender
from .request import JobRequest

logger = logging.getLogger(__name__)

K = TypeVar("K", bound=Hashable)
Key = tuple[int, str, int]
"""Job id, task id, attempt."""

SUSPECT_PATIENCE = 30.0
"""Seconds for which a message that was sent before waits for the database; then it is dropped."""

GONE_AFTER = 30.0
"""Seconds that a child has to end which was told to; then it is killed."""


class Housekeeping:
    """What a worker's main process does beside renewing, once an interval."""

    def __init__(self, runtime: Runtime, worker: Any) -> None:
        self._runtime = runtime
        self._worker = worker
        self._me = runtime.me()
        self._put_off: list[DeferredWrite] = []
        self._waiting: list[RedeliveredMessage] = []
        self._suspects: dict[Run, float] = {}
        self._astray: dict[Key, float] = {}
        self._told: set[Key] = set()
        self._watchers = EventSender(worker, progress=runtime.settings.progress_events)

    def __call__(self) -> None:
        with _unless_locked():
            self.settle_ends()
        with _unless_locked():
            self._take_suspects()
        requests = _requests()
        self._told &= {request.key for request in requests}
        standings = self._runtime.store.standings(str(self._me.worker_uid))
        self._stop(standings, requests)
        self._stop_superseded(standings, requests)
        with _unless_locked():
            self._settle_strays(standings, requests)
        self._watchers.hear_progress(standings, requests)
        sweep(self._runtime.store, self._runtime.publisher, self._watchers.hear_of)

    def _take_suspects(self) -> None:
        """Let messages be taken that were sent before, once it is noted in their rows."""
        while not self._runtime.redelivered.empty():
            self._waiting.append(self._runtime.redelivered.get())
        late = time.monotonic() - SUSPECT_PATIENCE
        for suspect in [each for each in self._waiting if each.since < late]:
            suspect.drop()  # the database was away; the sweep sends it again
            self._waiting.remove(suspect)
        if not self._waiting:
            return
        given_up = self._runtime.store.take_up([each.key for each in self._waiting], self._me)
        for lost in given_up:
            logger.error(
                "job %s is %s: workers were lost while they took its message; look for what its arguments do "
                "to a worker before the body starts, then resubmit it",
                lost.job_id,
                lost.status,
            )
            self._watchers.hear_of(lost)
        ended = {lost.job_id for lost in given_up}
        for suspect in self._waiting:
            suspect.drop() if suspect.key[0] in ended else suspect.take()
        self._waiting.clear()

    @property
    def has_ends(self) -> bool:
        """True while something that the main process has learned of its children is not written."""
        self._gather()
        return bool(self._put_off)

    def settle_ends(self) -> None:
        """Write what the main process has learned of its children; what cannot be written now stays."""
        self._gather()
        ready = [end for end in self._put_off if self._is_gone(end)]
        for end in ready:
            try:
                self._settle(end)
            except (DatabaseUnavailableError, SchemaError):
                # Its row may be locked: the others come first the next time.
                self._put_off.remove(end)
                self._put_off.append(end)
                raise
            except Exception as error:
                internal_errors.report("writing the end of a task", error, "its row is settled as a stray's")
                self._put_off.remove(end)

    def _settle(self, end: DeferredWrite) -> None:
        try:
            outcome = end.write()
        except DatabaseUnavailableError as error:
            # Unless the database answers: then it is this one that waits, for a lock or for room on its disk.
            self._runtime.store.renew(self._me)
            logger.warning("the end of task %s is to be written later: %s", end.task_id, error)
            if end.refused is not None:
                end.refused(error)
            return
        self._put_off.remove(end)
        for lost in outcome if isinstance(outcome, list) else ():
            self._watchers.hear_of(lost)
        if (
            isinstance(outcome, JobRecord)
            and outcome.task_id == end.task_id
            and outcome.status is not JobStatus.RUNNING
        ):
            self._watchers.hear_how(outcome)

    @property
    def has_outcomes(self) -> bool:
        """True while outcomes of bodies are to be written that no other process knows."""
        self._gather()
        return any(end.refused is not None for end in self._put_off)

    def _gather(self) -> None:
        while not self._runtime.deferred_writes.empty():
            self._put_off.append(self._runtime.deferred_writes.get())

    def _is_gone(self, end: DeferredWrite) -> bool:
        if end.pid is None or has_ended(end.pid):
            return True
        if time.monotonic() - end.since > GONE_AFTER:
            # Deaf to what it was told. Not reaped, so the number is still its own.
            os.kill(end.pid, signal.SIGKILL)
        return False

    def kill_survivors(self) -> bool:
        """Kill the children that outlived their pool, deaf to it; True while there are any."""
        if not self._runtime.prefork:
            return False
        standings = self._runtime.store.standings(str(self._me.worker_uid))
        told_long_ago = [
            DeferredWrite(one.task_id, _nothing, one.pid, since=-GONE_AFTER) for one in standings
        ]
        return bool([end for end in told_long_ago if not self._is_gone(end)])

    def last_words(self) -> None:
        """Tell those who watch how the bodies ended that were cut off, as their rows say."""
        ended = []
        while self._runtime.cut_off:
            job_id, task_id, attempt = self._runtime.cut_off.popleft()
            job = self._runtime.store.job(job_id, None)
            if job is not None and (job.task_id, job.attempt) == (task_id, attempt):
                ended.append(job)
        if ended:
            self._watchers.hear_at_last(ended)

    @property
    def bodies_may_live_on(self) -> bool:
        """True for a pool of threads, which nobody can end; they go on until they return."""
        return bool(_requests()) and issubclass(self._worker.pool_cls, ThreadPool)

    def _stop(self, standings: Sequence[RunSnapshot], requests: Sequence[JobRequest]) -> None:
        """End the processes of bodies that were asked to stop, if that was asked, or their task allows it."""
        running = {request.key: request for request in requests}
        for one in standings:
            request = running.get((one.job_id, one.task_id, one.attempt)) if one.stop else None
            if request and (one.terminate or getattr(request.task, "terminate_on_cancel", False)):
                self._end_process(request.key, one.pid, JobRequest.revoke_running)

    def _stop_superseded(self, standings: Sequence[RunSnapshot], requests: Sequence[JobRequest]) -> None:
        """End bodies that came back from a sleep longer than their lease: their job is another's by now."""
        standing = {(one.job_id, one.task_id, one.attempt) for one in standings}
        absent = {
            request.key: request
            for request in requests
            if request.time_start is not None and request.key not in standing
        }
        lasting = self._lasting(self._astray, absent)
        for key in self._runtime.store.superseded(lasting) if lasting else ():
            self._end_process(key, absent[key].worker_pid, JobRequest.cut_off)

    def _end_process(self, key: Key, pid: int | None, how: Callable[[JobRequest, Any], None]) -> None:
        if key in self._told:
            return
        # The prefork pool gets its own at its start, so the class does not tell.
        if getattr(self._worker.pool.terminate_job, "__func__", None) is BasePool.terminate_job:
            self._told.add(key)
            logger.warning("job %s should end; this worker's pool cannot end a body", key[0])
            return
        if self._worker.blueprint.state != RUN:
            # The event loop does not run while a warm shutdown drains the pool; a signal needs no loop.
            self._told.add(key)
            self._worker.pool.terminate_job(pid, signal.SIGTERM)
            return
        # In the event loop: there alone nothing comes between a look at what the child does and the deed.
        self._worker.consumer.call_soon(self._end_now, key, pid, how)

    def _end_now(self, key: Key, pid: int | None, how: Callable[[JobRequest, Any], None]) -> None:
        for request in _requests():
            here = not self._runtime.prefork or request.worker_pid == pid
            if request.key == key and here and request in state.active_requests and key not in self._told:
                self._told.add(key)
                how(request, self._worker.pool)

    def _settle_strays(self, standings: Sequence[RunSnapshot], requests: Sequence[JobRequest]) -> None:
        """Settle rows that name this worker and that it does not run."""
        if getattr(self._worker.consumer, "connection", None) is None:
            # While it reconnects to its broker, Celery forgets what it had reserved, and hears no child.
            self._suspects.clear()
            return
        known = {str(request.id) for request in requests} | {end.task_id for end in self._put_off}
        strays = {
            Run(one.job_id, one.task_id, one.attempt, one.claim_id, self._me): one
            for one in standings
            if one.task_id not in known
        }
        for run in self._lasting(self._suspects, strays):
            because = "its worker does not run it any more"
            try:
                settled = self._runtime.store.lose(run, because, self._me)
            except DatabaseRefusedError as error:
                # It stays as it is; the others, and the sweep after them, do not wait for it.
                logger.error("job %s stays Running, and nothing runs it: %s", run.job_id, error)
                continue
            for lost in settled:
                logger.warning("job %s is %s: %s", lost.job_id, lost.status, because)
                self._watchers.hear_of(lost)

    def _lasting(self, seen: dict[K, float], now_seen: Iterable[K]) -> list[K]:
        """Return what has been seen for longer than the grace.

        A claim may be on its way from the child to us, and an end to the database, so what is seen once
        is only a suspect.
        """
        now = time.monotonic()
        for key in (current := set(now_seen)):
            seen.setdefault(key, now)
        for key in set(seen) - current:
            del seen[key]
        publish_grace = self._runtime.settings.publish_grace.total_seconds()
        return [key for key, since in seen.items() if now - since > publish_grace]


def has_ended(pid: int) -> bool:
    """Return True if no child process of that number runs any more; a zombie has ended.

    The child is not reaped: that is the pool's to do, some seconds later.
    """
    if not hasattr(os, "waitid"):
        # macOS, before Python 3.13.
        command = ["ps", "-o", "ppid=,stat=", "-p", str(pid)]
        parent, _, state = (
            subprocess.run(command, check=False, capture_output=True, text=True).stdout.strip().partition(" ")
        )
        return parent != str(os.getpid()) or state.lstrip().startswith("Z")
    try:
        return os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None
    except ChildProcessError:
        return True


@contextmanager
def _unless_locked() -> Iterator[None]:
    """Leave what waits for a row that a caller has locked to the next time, and go on with the rest."""
    try:
        yield
    except DatabaseUnavailableError as error:
        if error.again != "soon":
            raise
        logger.warning("a row is locked by another transaction, it is tried again: %s", error)


def _nothing() -> None:
    pass


def _requests() -> list[JobRequest]:
    """Return the job requests that this worker has in hand, reserved or running."""
    while True:
        try:
            requests = [*state.reserved_requests, *state.active_requests]
        except RuntimeError:  # "Set changed size during iteration": the event loop is another thread
            continue
        return [request for request in requests if isinstance(request, JobRequest) and request.is_job]
