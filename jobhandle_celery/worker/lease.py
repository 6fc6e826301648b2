"""The lease of a worker, and the threads that renew it. May import store and below.

While a worker lives and reaches the database, its lease must not end: its jobs would run twice. So a renewal
shares no lock, pool, thread or connection with other work, and waits for nothing without a bound. Each one
has a thread of its own. If it does not end within its deadline, whatever holds it up (a silent connection, a
name server, a lock), it is given up with its store, and the next one opens a connection of its own.
"""

import logging
import threading
from collections.abc import Callable
from functools import partial

from .. import internal_errors
from ..errors import DatabaseUnavailableError, SchemaError
from ..settings import Settings
from ..store import Store, Worker

logger = logging.getLogger(__name__)

RENEWALS_PER_LEASE = 4
"""Three may fail before the worker is taken for lost."""

SOONER = 1.0
"""Seconds after which a renewal that failed is tried again, if that is sooner than the interval."""

LATER = 5.0
"""Seconds between tries after several failures, if that is sooner than the interval."""

MOST_GIVEN_UP = 10
"""Renewals that may be held up at a time: beyond that none is begun until one of them ends."""


class Lease:
    """Renews the lease of one worker at an interval, sooner again after a failure."""

    def __init__(self, make_store: Callable[[], Store], me: Worker, settings: Settings) -> None:
        """Prepare it; `make_store` makes a store whose connections nothing else uses."""
        self._make_store = make_store
        self._me = me
        self._interval = settings.lease.total_seconds() / RENEWALS_PER_LEASE
        self._deadline = settings.renewal_deadline.total_seconds()
        self._store = make_store()
        self._known = False
        self._given_up: list[threading.Thread] = []
        self._speaker: threading.Thread | None = None
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._go_on, name="jobhandle-lease", daemon=True)

    def start(self) -> None:
        """Go on renewing until `end`."""
        self._thread.start()

    def end(self, timeout: float) -> None:
        """End the renewals; wait up to so many seconds for the one under way."""
        self._ended.set()
        self._thread.join(timeout)

    def renew(self) -> bool:
        """Renew the lease; False if that failed, or has not ended within its deadline."""
        self._given_up = [thread for thread in self._given_up if thread.is_alive()]
        if len(self._given_up) >= MOST_GIVEN_UP:
            return False
        renewal = _Renewal(self._store, self._me)
        try:
            renewal.start()
        except RuntimeError:  # no thread can be had: a renewal without a deadline is better than none
            renewal.run()
        else:
            renewal.join(self._deadline)
            renewal.given_up = renewal.is_alive()
            if renewal.given_up:
                self._given_up.append(renewal)
                self._store = self._make_store()
                self._say(
                    "the lease of %s: no answer within %g s; renewing it on a new connection",
                    self._deadline,
                )
                return False
        if renewal.error is not None:
            self._say("the lease of %s was not renewed: %s", renewal.error)
            return False
        if self._known and not renewal.found:
            self._say("%s had been taken for lost; its lease is taken anew")
        self._known = True
        return True

    def _go_on(self) -> None:
        pause = sooner = min(self._interval, SOONER)
        while not self._ended.wait(pause):
            if self.renew():
                pause, sooner = self._interval, min(self._interval, SOONER)
            else:
                pause, sooner = sooner, min(sooner * 2, self._interval, LATER)

    def _say(self, words: str, *more: object) -> None:
        # From a thread of its own: a log that does not take its words, a full pipe say, holds up no renewal.
        if self._speaker is not None and self._speaker.is_alive():
            return
        error = more[0] if more and isinstance(more[0], BaseException) else None
        if error is None or isinstance(error, (DatabaseUnavailableError, SchemaError)):
            say = partial(logger.warning, words, self._me.name, *more)
        else:
            say = partial(internal_errors.report, "renewing a worker's lease", error, "it is tried again")
        self._speaker = threading.Thread(target=say, name="jobhandle-lease-log", daemon=True)
        try:
            self._speaker.start()
        except RuntimeError:
            self._speaker = None


class _Renewal(threading.Thread):
    """One renewal."""

    def __init__(self, store: Store, me: Worker) -> None:
        super().__init__(name="jobhandle-renewal", daemon=True)
        self._store = store
        self._me = me
        self.found = False
        """The worker had a lease."""
        self.error: Exception | None = None
        self.given_up = False

    def run(self) -> None:
        try:
            self.found = self._store.renew(self._me)
        except Exception as error:  # told by the thread that waits for this one
            self.error = error
        if self.given_up:
            self._store.door.close()
