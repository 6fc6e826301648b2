"""The worker step: the worker's lease, what its main process has learned, stop requests, strays, the sweep.

May import task, sweep and below. Two threads of the main process: renewing is one of its own, with a
database connection of its own, so that a broker that drops packets cannot end the leases. Both end after
the pool: bodies that finish during a warm shutdown do so under their lease.
"""

import logging
import os
import threading
import time
import uuid
from collections.abc import Callable, Hashable, Iterable, Sequence
from typing import Any, TypeVar

from celery import Celery, bootsteps
from celery.concurrency.base import BasePool
from celery.worker import state

from .errors import ConfigurationError, DatabaseUnavailableError, SchemaError
from .request import JobRequest
from .service import End, Service, service_of
from .store import Run, Standing, Store, Worker
from .sweep import sweep

logger = logging.getLogger(__name__)

K = TypeVar("K", bound=Hashable)
Key = tuple[int, str, int]
"""Job id, task id, attempt."""

RENEWALS_PER_LEASE = 4
"""Three may fail before anybody takes the worker for lost."""

GONE_AFTER = 30.0
"""Seconds to wait for a child that was told to end, before its end is written all the same."""

SOONER = 1.0
"""Seconds after which something that failed is tried again, if that is sooner than its interval."""

FAREWELL = 10.0
"""Seconds that a worker takes at its end to write what it still knows."""


class JobsStep(bootsteps.StartStopStep):
    """Celery's worker starts and stops us through this."""

    requires = ("celery.worker.components:Pool",)

    def __init__(self, parent: Any, **options: Any) -> None:
        """Make the boot id, before the pool forks: its children carry it into their claims."""
        super().__init__(parent, **options)
        if getattr(parent, "pool_start_method", "fork") != "fork":
            # Its children would get a copy of the app without us, and run every body unclaimed.
            raise ConfigurationError("jobs need worker_pool_start_method = 'fork'")
        self._service = service_of(parent.app)
        # Made before the fork too: a child must not inherit the lock of a store that is being made.
        self._service.submissions  # noqa: B018 -- made by being looked at
        self._service.worker = Worker(parent.hostname, str(uuid.uuid4()), os.getpid())
        self._service.prefork = parent.pool_cls.__module__.endswith(".prefork")
        self._lease: _Beat | None = None
        self._chores_beat: _Beat | None = None
        self._chores: Chores | None = None

    def include(self, parent: Any) -> bool:
        """Have our say also when everything else has stopped, the pool's last body among it."""
        included = bool(super().include(parent))
        if included:
            parent.steps.insert(0, _AfterAll(self.farewell))
        return included

    def start(self, parent: Any) -> None:
        """Take the lease and start the threads; after the pool has forked, before it gets work."""
        lease_store = self._service.another_store()
        settings = self._service.settings
        renew = _Renewal(lease_store, self._me)
        try:
            renew()
        except (DatabaseUnavailableError, SchemaError) as error:
            # The worker lives on: it runs what is no job, and jobs as soon as it has its lease.
            logger.error("%s takes no jobs yet: %s", self._me.name, error)
        interval = settings.lease.total_seconds() / RENEWALS_PER_LEASE
        self._lease = _Beat("jobhandle-lease", interval, renew, first=SOONER)
        self._chores = Chores(self._service, parent)
        interval = settings.pass_interval.total_seconds()
        self._chores_beat = _Beat("jobhandle-chores", interval, self._chores)

    def stop(self, parent: Any) -> None:
        """Nothing yet: this is the beginning of the warm drain, and bodies are still running."""

    def farewell(self, parent: Any) -> None:
        """Write what is left to write, give back what was cut off, and let go of the lease."""
        if self._lease is None or self._chores is None or self._chores_beat is None:
            return
        until = time.monotonic() + FAREWELL
        self._chores_beat.end()
        if not self._chores.bodies_may_live_on:
            while time.monotonic() < until:
                try:
                    self._chores.settle_ends()
                    self._give_back()
                    break
                except DatabaseUnavailableError:
                    time.sleep(0.5)
            self._lease.end()
        # Otherwise the threads of a threads pool go on until the process ends, and so does the lease.

    def _give_back(self) -> None:
        store, me = self._service.store, self._me
        for given in store.give_back(str(me.boot_id), "its worker shut down", me):
            logger.info("job %s is given back: %s", given.job_id, given.status)
        store.retire(me)

    @property
    def _me(self) -> Worker:
        assert self._service.worker is not None
        return self._service.worker


class _AfterAll:
    """First among the worker's steps, so stopped last."""

    alias = name = "JobHandles, after all"

    def __init__(self, farewell: Callable[[Any], None]) -> None:
        self.stop = self.terminate = farewell

    def start(self, parent: Any) -> None:
        pass

    def info(self, parent: Any) -> None:
        return None


class _Beat:
    """A thread that does something at an interval, whatever happens; sooner again after a failure."""

    def __init__(
        self, name: str, interval: float, work: Callable[[], object], first: float | None = None
    ) -> None:
        self._interval = interval
        self._first = interval if first is None else min(first, interval)
        self._work = work
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._beat, name=name, daemon=True)
        self._thread.start()

    def _beat(self) -> None:
        pause = self._first
        while not self._ended.wait(pause):
            pause = min(self._interval, SOONER)
            try:
                self._work()
                pause = self._interval
            except (DatabaseUnavailableError, SchemaError) as error:
                logger.warning("%s: %s", self._thread.name, error)
            except Exception:
                logger.exception("%s goes on after an unexpected error", self._thread.name)

    def end(self) -> None:
        self._ended.set()
        self._thread.join(FAREWELL)


class _Renewal:
    def __init__(self, store: Store, me: Worker) -> None:
        self._store = store
        self._me = me
        self._known = False

    def __call__(self) -> None:
        renewed = self._store.renew(self._me)
        if self._known and not renewed:
            logger.warning("%s had been taken for lost; its lease is taken anew", self._me.name)
        self._known = True


class Chores:
    """What a worker's main process does beside renewing, once an interval."""

    def __init__(self, service: Service, worker: Any) -> None:
        self._service = service
        self._worker = worker
        self._me = service.me()
        self._put_off: list[End] = []
        self._suspects: dict[Run, float] = {}
        self._astray: dict[Key, float] = {}
        self._told: set[Key] = set()

    def __call__(self) -> None:
        self.settle_ends()
        requests = _requests()
        self._told &= {request.key for request in requests}
        standings = self._service.store.standings(str(self._me.boot_id))
        self._stop(standings, requests)
        self._stop_superseded(standings, requests)
        self._settle_strays(standings, requests)
        sweep(self._service.store, self._service.dispatcher)

    def settle_ends(self) -> None:
        """Write what the main process has learned of its children; what cannot be written now stays."""
        while not self._service.ends.empty():
            self._put_off.append(self._service.ends.get())
        ready = [end for end in self._put_off if _is_gone(end)]
        for end in ready:
            try:
                end.write()
            except DatabaseUnavailableError:
                raise
            except Exception:
                # Not written, ever: its row is a stray from now on, and is settled as one.
                logger.exception("the end of task %s was not written", end.task_id)
            self._put_off.remove(end)

    @property
    def bodies_may_live_on(self) -> bool:
        """True for a pool of threads, which nobody can end; they go on until they return."""
        return bool(_requests()) and self._worker.pool_cls.__module__.endswith(".thread")

    def _stop(self, standings: Sequence[Standing], requests: Sequence[JobRequest]) -> None:
        """End the processes of bodies that were asked to stop, if that was asked, or their task allows it."""
        running = {request.key: request for request in requests}
        for one in standings:
            request = running.get((one.job_id, one.task_id, one.attempt)) if one.stop else None
            if request and (one.terminate or getattr(request.task, "terminate_on_cancel", False)):
                self._end_process(request.key, one.pid, JobRequest.revoke_running)

    def _stop_superseded(self, standings: Sequence[Standing], requests: Sequence[JobRequest]) -> None:
        """End bodies that came back from a sleep longer than their lease: their job is another's by now."""
        standing = {(one.job_id, one.task_id, one.attempt) for one in standings}
        absent = {
            request.key: request
            for request in requests
            if request.time_start is not None and request.key not in standing
        }
        lasting = self._lasting(self._astray, absent)
        for key in self._service.store.superseded(lasting) if lasting else ():
            self._end_process(key, absent[key].worker_pid, JobRequest.cut_off)

    def _end_process(self, key: Key, pid: int | None, how: Callable[[JobRequest, Any], None]) -> None:
        if key in self._told:
            return
        # The prefork pool gets its own at its start, so the class does not tell.
        if getattr(self._worker.pool.terminate_job, "__func__", None) is BasePool.terminate_job:
            self._told.add(key)
            logger.warning("job %s should end; this worker's pool cannot end a body", key[0])
            return
        # In the event loop: there alone nothing comes between a look at what the child does and the deed.
        self._worker.consumer.call_soon(self._end_now, key, pid, how)

    def _end_now(self, key: Key, pid: int | None, how: Callable[[JobRequest, Any], None]) -> None:
        for request in _requests():
            here = not self._service.prefork or request.worker_pid == pid
            if request.key == key and here and request in state.active_requests and key not in self._told:
                self._told.add(key)
                how(request, self._worker.pool)

    def _settle_strays(self, standings: Sequence[Standing], requests: Sequence[JobRequest]) -> None:
        """Settle rows that name this worker and that it does not run."""
        known = {str(request.id) for request in requests} | {end.task_id for end in self._put_off}
        strays = {
            Run(one.job_id, one.task_id, one.attempt, one.claim_id, self._me): one
            for one in standings
            if one.task_id not in known
        }
        for run in self._lasting(self._suspects, strays):
            because = "its worker does not run it any more"
            for lost in self._service.store.lose(run, because, self._me):
                logger.warning("job %s is %s: %s", lost.job_id, lost.status, because)

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
        grace = self._service.settings.grace.total_seconds()
        return [key for key, since in seen.items() if now - since > grace]


def _requests() -> list[JobRequest]:
    """Return the job requests that this worker has in hand, reserved or running."""
    while True:
        try:
            requests = [*state.reserved_requests, *state.active_requests]
        except RuntimeError:  # "Set changed size during iteration": the event loop is another thread
            continue
        return [request for request in requests if isinstance(request, JobRequest) and request.is_job]


def _is_gone(end: End) -> bool:
    if end.pid is None or time.monotonic() - end.since > GONE_AFTER:
        return True
    try:
        # Asked without reaping it, which is the pool's to do, some seconds later.
        return os.waitid(os.P_PID, end.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None
    except ChildProcessError:
        return True


def install(app: Celery) -> None:
    """Add the step to every worker of the app."""
    app.steps["worker"].add(JobsStep)
