"""The worker step: the worker's lease, what its main process has learned, stop requests, strays, the sweep.

May import task, sweep and below. Renewing the lease has threads and database connections of its own, see
`lease`, so that a broker that drops packets cannot end it. It ends after the pool: bodies that finish during
a warm shutdown do so under their lease.
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
from celery.worker import state
from celery.worker.control import inspect_command

from .. import internal_errors
from ..errors import ConfigurationError, DatabaseUnavailableError, SchemaError
from ..runtime import runtime_of
from ..store import Worker
from .housekeeping import Housekeeping
from .lease import SOONER, Lease

logger = logging.getLogger(__name__)


LATER = 5.0
"""Seconds between its tries after several failures, unless its interval is longer."""

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
        self._runtime = runtime_of(parent.app)
        # Made before the fork too: a child must not inherit the lock of a store that is being made.
        self._runtime.submitter  # noqa: B018 -- made by being looked at
        self._runtime.worker = Worker(parent.hostname, str(uuid.uuid4()), os.getpid())
        self._runtime.prefork = issubclass(parent.pool_cls, PreforkPool)
        self._lease: Lease | None = None
        self._chores_beat: _Beat | None = None
        self._chores: Housekeeping | None = None

    def include(self, parent: Any) -> bool:
        """Have our say also when everything else has stopped, the pool's last body among it."""
        included = bool(super().include(parent))
        if included:
            parent.steps.insert(0, _AfterAll(parent, self.farewell))
        return included

    def start(self, parent: Any) -> None:
        """Take the lease and start the threads; after the pool has forked, before it gets work."""
        settings = self._runtime.settings
        self._lease = Lease(self._runtime.stores_of_lease(), self._me, settings)
        if not self._lease.renew():
            # The worker lives on: it runs what is no job, and jobs as soon as it has its lease.
            logger.error("%s takes no jobs yet: it has no lease", self._me.name)
        self._lease.start()
        self._chores = Housekeeping(self._runtime, parent)
        interval = settings.pass_interval.total_seconds()
        self._chores_beat = _Beat("jobhandle-chores", interval, self._chores)

    def stop(self, parent: Any) -> None:
        """Nothing yet: this is the beginning of the warm drain, and bodies are still running."""

    def farewell(self, parent: Any) -> None:
        """Write what is left to write, give back what was cut off, and let go of the lease."""
        if self._lease is None or self._chores is None or self._chores_beat is None:
            return
        self._chores_beat.end()
        if not self._chores.bodies_may_live_on:
            try:
                self._write_what_is_left(self._chores)
            finally:
                self._lease.end(FAREWELL)
        # Otherwise the threads of a threads pool go on until the process ends, and so does the lease.

    def _write_what_is_left(self, housekeeping: Housekeeping) -> None:
        until, pause = time.monotonic() + FAREWELL, 0.2
        # An outcome that only this process knows is waited for, unless the shutdown is a cold one.
        while time.monotonic() < until or (housekeeping.has_outcomes and not state.should_terminate):
            try:
                if not housekeeping.kill_survivors():
                    housekeeping.settle_ends()
                    self._give_back()
                    housekeeping.last_words()
                    return
            except (DatabaseUnavailableError, SchemaError) as error:
                if not housekeeping.has_ends:
                    # Nothing is lost: the lease expires by itself.
                    logger.warning("shutdown of %s leaves its lease to expire: %s", self._me.name, error)
                    return
                logger.warning("shutdown of %s is waiting for the database: %s", self._me.name, error)
                pause = min(pause * 2, SOONER)
            time.sleep(pause)

    def _give_back(self) -> None:
        store, me = self._runtime.store, self._me
        for given in store.give_back_all(me, "its worker shut down"):
            logger.info("job %s is given back: %s", given.job_id, given.status)
        store.retire(me)

    @property
    def _me(self) -> Worker:
        assert self._runtime.worker is not None
        return self._runtime.worker


class _AfterAll(bootsteps.StartStopStep):
    """First among the worker's steps, so stopped last. Not in the blueprint: it would start in its order."""

    def __init__(self, parent: Any, farewell: Callable[[Any], None]) -> None:
        super().__init__(parent)
        self._farewell = farewell

    def start(self, parent: Any) -> None:
        """Do nothing: there is nothing to start."""

    def stop(self, parent: Any) -> None:
        """End the threads, now that all other steps have stopped."""
        self._farewell(parent)

    terminate = stop


class _Beat:
    """A thread that does something at an interval, whatever happens; sooner again after a failure."""

    def __init__(self, name: str, interval: float, work: Callable[[], object]) -> None:
        self._interval = interval
        self._work = work
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._beat, name=name, daemon=True)
        self._thread.start()

    def _beat(self) -> None:
        pause = self._interval
        sooner = min(self._interval, SOONER)
        while not self._ended.wait(pause):
            pause, sooner = sooner, min(sooner * 2, max(self._interval, LATER))
            try:
                self._work()
                pause, sooner = self._interval, min(self._interval, SOONER)
            except (DatabaseUnavailableError, SchemaError) as error:
                logger.warning("%s: %s; next try in %g s", self._thread.name, error, pause)
            except Exception as error:
                internal_errors.report(self._thread.name, error, "it goes on")

    def end(self) -> None:
        self._ended.set()
        self._thread.join(FAREWELL)


@inspect_command(name=internal_errors.COMMAND)
def _faults(state: Any) -> dict[str, Any]:
    """Tell how many internal errors this worker and its children have had, and the last of them."""
    return internal_errors.counted()


def install(app: Celery) -> None:
    """Add the step to every worker of the app."""
    app.steps["worker"].add(JobsStep)
