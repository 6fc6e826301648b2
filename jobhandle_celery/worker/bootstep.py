"""The worker's boot steps. The first one starts the lease and housekeeping, and ends them after the pool.

The lease has threads and database connections of its own (see `lease`), so that a broker that drops packets
cannot end it. It ends last: bodies that finish during a warm shutdown do so under their lease.
"""

import logging
import os
import threading
import time
import uuid
from collections.abc import Callable
from typing import Any

from celery import Celery, bootsteps
from celery.concurrency.prefork import TaskPool as PreforkPool
from celery.concurrency.solo import TaskPool as SoloPool
from celery.worker import state
from celery.worker.control import Panel

from .. import celery_compat, internal_errors
from ..errors import ConfigurationError, DatabaseUnavailableError, SchemaError
from ..runtime import runtime_of
from ..settings import ignored as ignored_settings
from ..store import Run, RunResult, Worker
from ..tracing import untraced
from .claimer import Claimer
from .finisher import Finisher
from .housekeeping import Housekeeping
from .lease import RETRY_INTERVAL, Lease
from .outcomes import Finished, GivenBack, log_superseded, take_over
from .unacked import UnackedMessages

logger = logging.getLogger(__name__)

MAX_RETRY_INTERVAL = 5.0
"""Seconds between retries after several failures, unless the interval is longer."""

SHUTDOWN_TIMEOUT = 10.0
"""Seconds that a worker's shutdown spends on its deferred writes."""


class JobsStep(bootsteps.StartStopStep):
    """Started by Celery's worker; its `stop` does nothing: bodies still run when the warm drain begins."""

    requires = ("celery.worker.components:Pool",)

    def __init__(self, parent: Any, **options: Any) -> None:
        """Make the worker's uid before the pool forks: its children carry it into their claims."""
        super().__init__(parent, **options)
        if getattr(parent, "pool_start_method", "fork") != "fork":
            # Spawned children get a copy of the app without `Jobs`, and would run bodies without a claim.
            raise ConfigurationError("jobs need worker_pool_start_method = 'fork'")
        self._runtime = runtime_of(parent.app)
        # Created before the fork: a child must not inherit the lock of a part under construction.
        self._runtime.submitter  # noqa: B018 -- the access creates it
        self._me = Worker(parent.hostname, str(uuid.uuid4()), os.getpid())
        self._runtime.worker = self._me
        self._runtime.prefork = issubclass(parent.pool_cls, PreforkPool)
        if not issubclass(parent.pool_cls, SoloPool):
            settling = self._runtime.settler.in_another_thread
            self._runtime.finisher = Finisher(self._runtime.store, self._me, self._take_over, settling)
            if not self._runtime.prefork:
                self._runtime.claimer = Claimer(
                    self._runtime.store, self._me, parent.concurrency, self._give_back_unbegun
                )
        self._parts: tuple[Lease, Housekeeping, PeriodicThread] | None = None

    def include(self, parent: Any) -> bool:
        """Add a step that shuts down when all others have stopped, and the pool's last body has ended."""
        included = bool(super().include(parent))
        if included:
            parent.steps.insert(0, _LastStop(parent, self.shutdown))
        return included

    def start(self, parent: Any) -> None:
        """Take the lease and start the threads; after the pool has forked, before it gets work."""
        settings = self._runtime.settings
        for key in ignored_settings(parent.app.conf):
            logger.warning("the configuration has %s, which is no setting of jobhandle-celery", key)
        lease = Lease(self._runtime.stores_of_lease(), self._me, settings)
        if not lease.renew():
            # The worker continues: it runs plain tasks at once, and jobs once it has its lease.
            logger.error(
                "worker %s has no lease and takes no jobs yet; it retries until the database answers",
                self._me.name,
            )
        lease.start()
        housekeeping = Housekeeping(self._runtime, parent)
        if self._runtime.finisher is not None:
            self._runtime.finisher.start()
        if self._runtime.claimer is not None:
            self._runtime.claimer.start()
        interval = settings.pass_interval.total_seconds()
        self._parts = (
            lease,
            housekeeping,
            PeriodicThread(f"housekeeping of worker {self._me.name}", interval, housekeeping),
        )

    def _take_over(self, run: Run, result: RunResult) -> None:
        take_over(self._runtime, Finished(run, *result), log_superseded)

    def _give_back_unbegun(self, run: Run) -> None:
        given_back = GivenBack(run, "its body was ended before it began")
        take_over(self._runtime, given_back, lambda _, written: written)

    def shutdown(self, parent: Any) -> None:
        """Flush the deferred writes, give back the jobs that were cut off, and end the lease."""
        if self._parts is None:
            return
        lease, housekeeping, thread = self._parts
        thread.end()
        if self._runtime.claimer is not None:
            self._runtime.claimer.end()
        if self._runtime.finisher is not None:
            self._runtime.finisher.end()  # what it cannot write becomes a deferred write
        if not housekeeping.bodies_may_live_on:
            try:
                self._write_the_rest(housekeeping)
            finally:
                lease.end(SHUTDOWN_TIMEOUT)
        # Otherwise the bodies of a threads pool run until the process ends; the lease is renewed until then.

    def _write_the_rest(self, housekeeping: Housekeeping) -> None:
        writes, until, pause = housekeeping.writes, time.monotonic() + SHUTDOWN_TIMEOUT, 0.2
        # Wait for an outcome that only this process has, except in a cold shutdown.
        while time.monotonic() < until or (writes.has_outcomes and not state.should_terminate):
            try:
                if not writes.kill_survivors():
                    writes.make()
                    self._give_back()
                    housekeeping.send_cut_off()
                    return
            except (DatabaseUnavailableError, SchemaError) as error:
                if not writes.pending:
                    # Nothing is lost: the lease expires.
                    logger.warning("shutdown of %s leaves its lease to expire: %s", self._me.name, error)
                    return
                logger.warning("shutdown of %s is waiting for the database: %s", self._me.name, error)
                pause = min(pause * 2, RETRY_INTERVAL)
            time.sleep(pause)

    def _give_back(self) -> None:
        store, me = self._runtime.store, self._me
        for given in store.recovery.give_back_all(me, "its worker shut down"):
            logger.info("job %s is %s: its worker %s shut down", given.job_id, given.status, me.name)
        store.leases.retire(me)


class _LastStop(bootsteps.StartStopStep):
    """First among the worker's steps, so stopped last. Not in the blueprint: it would start in its order."""

    def __init__(self, parent: Any, shutdown: Callable[[Any], None]) -> None:
        super().__init__(parent)
        self._shutdown = shutdown

    def stop(self, parent: Any) -> None:
        self._shutdown(parent)

    terminate = stop


class ConsumerStep(bootsteps.StartStopStep):
    """Has the consumer's channel spend less on Redis; started after each connection to the broker."""

    requires = ("celery.worker.consumer.tasks:Tasks",)

    def __init__(self, parent: Any, **options: Any) -> None:
        super().__init__(parent, **options)
        self._unacked: UnackedMessages | None = None

    def start(self, parent: Any) -> None:
        """Have the channel keep its client, and leave the notes of unacknowledged jobs to us."""
        if runtime_of(parent.app).settings.fast_publish:
            channel = parent.task_consumer.channel
            celery_compat.keep_redis_client(channel)
            self._unacked = UnackedMessages(channel, parent.timer.call_after)

    def stop(self, parent: Any) -> None:
        """Leave the channel's later acknowledgements to kombu: the event loop has ended."""
        if self._unacked is not None:
            self._unacked.end()


class PeriodicThread:
    """A thread that calls a function at an interval, whatever it raises; sooner again after a failure."""

    def __init__(self, name: str, interval: float, work: Callable[[], object]) -> None:
        self._interval = interval
        self._work = work
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        pause = self._interval
        sooner = min(self._interval, RETRY_INTERVAL)
        while not self._ended.wait(pause):
            pause, sooner = sooner, min(sooner * 2, max(self._interval, MAX_RETRY_INTERVAL))
            try:
                with untraced():
                    self._work()
                pause, sooner = self._interval, min(self._interval, RETRY_INTERVAL)
            except (DatabaseUnavailableError, SchemaError) as error:
                logger.warning("%s is interrupted: %s; next try in %g s", self._thread.name, error, pause)
            except Exception as error:
                internal_errors.report(self._thread.name, error, "it goes on")

    def end(self) -> None:
        """End the thread; wait some seconds for the call under way."""
        self._ended.set()
        self._thread.join(SHUTDOWN_TIMEOUT)


# Celery's stubs name no options. Its own type: `Inspect` and `Control` have a method for each command.
@Panel.register(name=internal_errors.COMMAND, type="jobhandle", visible=False)  # type: ignore[call-arg]
def _internal_errors(state: Any) -> dict[str, Any]:
    """Return how many internal errors this worker and its children have had, and the last of them."""
    return internal_errors.counted()


def install(app: Celery) -> None:
    """Add the boot steps to the app's workers."""
    app.steps["worker"].add(JobsStep)
    app.steps["consumer"].add(ConsumerStep)
