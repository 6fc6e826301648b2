"""The lease of a worker, and the threads that renew it.

While a worker lives and reaches the database, its lease must not end: its jobs would run twice. So a renewal
shares no lock, pool, thread or connection with other work, and waits for nothing without a bound. Each one
has a thread of its own. If it exceeds its deadline, because of a silent connection, a name server or a lock,
it is abandoned with its store, and the next one opens a connection of its own.
"""

import logging
import threading
from collections.abc import Callable
from functools import partial

from .. import internal_errors
from ..errors import DatabaseUnavailableError, SchemaError
from ..settings import Settings
from ..store import Store, Worker
from ..tracing import untraced

logger = logging.getLogger(__name__)

RENEWALS_PER_LEASE = 4
"""Three may fail before the worker is declared lost."""

RETRY_INTERVAL = 1.0
"""Seconds after which a renewal that failed is tried again, if that is sooner than the interval."""

MAX_RETRY_INTERVAL = 5.0
"""Seconds between tries after several failures, if that is sooner than the interval."""

MAX_ABANDONED = 10
"""Abandoned renewals that may hang at a time; no other is started until one of them ends."""


class Lease:
    """Renews the lease of one worker at an interval, sooner again after a failure."""

    def __init__(self, make_store: Callable[[], Store], me: Worker, settings: Settings) -> None:
        """Prepare it; `make_store` makes a store whose connections nothing else uses."""
        self._make_store = make_store
        self._me = me
        self._interval = settings.lease.total_seconds() / RENEWALS_PER_LEASE
        self._deadline = settings.renewal_deadline.total_seconds()
        self._store = make_store()
        self._registered = False
        self._abandoned: list[threading.Thread] = []
        self._logging: threading.Thread | None = None
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="jobhandle-lease", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def end(self, timeout: float) -> None:
        """End the renewals; wait up to so many seconds for the one under way."""
        self._ended.set()
        self._thread.join(timeout)

    def renew(self) -> bool:
        """Renew the lease; False if that failed, or has not ended within its deadline."""
        self._abandoned = [thread for thread in self._abandoned if thread.is_alive()]
        if len(self._abandoned) >= MAX_ABANDONED:
            return False
        renewal = _Renewal(self._store, self._me)
        try:
            renewal.start()
        except RuntimeError:  # no thread can be started: a renewal without a deadline is better than none
            renewal.run()
        else:
            renewal.join(self._deadline)
            renewal.abandoned = renewal.is_alive()
            if renewal.abandoned:
                self._abandoned.append(renewal)
                self._store = self._make_store()
                self._log(
                    "worker %s: lease not renewed (no answer within %g s); retrying on a new connection",
                    self._deadline,
                )
                return False
        if renewal.error is not None:
            self._log("worker %s: lease not renewed (%s); retrying", renewal.error)
            return False
        if self._registered and not renewal.found:
            self._log("worker %s was declared lost (lease expired); registered a new lease")
        self._registered = True
        return True

    def _run(self) -> None:
        pause = sooner = min(self._interval, RETRY_INTERVAL)
        while not self._ended.wait(pause):
            if self.renew():
                pause, sooner = self._interval, min(self._interval, RETRY_INTERVAL)
            else:
                pause, sooner = sooner, min(sooner * 2, self._interval, MAX_RETRY_INTERVAL)

    def _log(self, message: str, *args: object) -> None:
        # Logged by a thread of its own: a log that blocks, such as a full pipe, delays no renewal.
        if self._logging is not None and self._logging.is_alive():
            return
        error = args[0] if args and isinstance(args[0], BaseException) else None
        if error is None or isinstance(error, (DatabaseUnavailableError, SchemaError)):
            log = partial(logger.warning, message, self._me.name, *args)
        else:
            log = partial(internal_errors.report, "renewing a worker's lease", error, "it is retried")
        self._logging = threading.Thread(target=log, name="jobhandle-lease-log", daemon=True)
        try:
            self._logging.start()
        except RuntimeError:
            self._logging = None


class _Renewal(threading.Thread):
    def __init__(self, store: Store, me: Worker) -> None:
        super().__init__(name="jobhandle-renewal", daemon=True)
        self._store = store
        self._me = me
        self.found = False
        """The worker had a lease already."""
        self.error: Exception | None = None
        self.abandoned = False

    def run(self) -> None:
        try:
            with untraced():
                self.found = self._store.leases.renew(self._me)
        except Exception as error:  # logged by the thread that waits for this one
            self.error = error
        if self.abandoned:
            self._store.database.close()
