"""Claims in groups: one commit for the bodies that are about to begin in one process.

In a pool of threads or greenlets a claim waits for a thread of its own kind, which claims all that wait by
one statement. That thread belongs to no job: no time limit ends it, nor the end of a greenlet. What it does
not win, because another process was first, the row is locked, or the database has failed, is claimed by the
body's own thread, as in other pools: that claim is refused, waits or fails by itself.
"""

import math
import queue
import threading
import time
from collections.abc import Callable, Sequence

from .. import internal_errors
from ..errors import JobHandleError
from ..store import ClaimRejected, Run, Store, Worker
from ..tracing import untraced

INTERVAL = 0.02
"""Seconds between two commits: claims that come meanwhile are made together. After a longer pause, a claim is
made at once."""

PROMPT_SHARE = 4
"""A commit is made sooner if so large a part of the pool waits for it (one part of this many)."""

MAX_BATCH = 200
"""Claims that are made together at most."""


class _Claim:
    """The claim of a body that is about to begin."""

    def __init__(self, run: Run, task: str) -> None:
        self.run = run
        self.task = task
        self.won = False
        self.withdrawn = False
        """The body is not to begin any more."""
        self._answered = threading.Lock()
        self._answered.acquire()

    def wait(self) -> bool:
        """Wait for the answer: True if the row is won, False if it is to be claimed by itself."""
        try:
            self._answered.acquire()
        except BaseException:  # a greenlet is ended by such an error
            self.withdrawn = True
            raise
        return self.won

    def answer(self, *, won: bool) -> None:
        self.won = won
        self._answered.release()


class Claimer:
    """The claims of a worker whose bodies run in its own process."""

    def __init__(self, store: Store, me: Worker, concurrency: int, give_back: Callable[[Run], None]) -> None:
        """Prepare it.

        Args:
            store: Where the jobs are.
            me: The worker.
            concurrency: Bodies that the pool runs at a time.
            give_back: Takes a run that was won for a body that does not begin any more.
        """
        self._store = store
        self._me = me
        self._prompt = concurrency / PROMPT_SHARE
        self._give_back = give_back
        self._waiting: queue.SimpleQueue[_Claim | None] = queue.SimpleQueue()
        """None ends the thread."""
        self._ended = False
        self._ending = threading.Lock()
        """Held for each put, so that no claim follows the None."""
        self._thread = threading.Thread(target=self._run, name="jobhandle-claimer", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def end(self) -> None:
        """Make the claims that wait, and end. A body that begins later claims by itself."""
        with self._ending:
            self._ended = True
            self._waiting.put(None)
        if self._thread.ident is not None:
            self._thread.join()

    def claim(self, run: Run, task: str) -> Run | ClaimRejected:
        """Win the row, or return why not; see `Runs.claim`."""
        if self._store.runs.claims_together and self._claim_with_others(_Claim(run, task)):
            return run
        return self._store.runs.claim(run, task)

    def _claim_with_others(self, claim: _Claim) -> bool:
        with self._ending:
            if self._ended:
                return False
            self._waiting.put(claim)
        try:
            return claim.wait()
        except BaseException:  # the body's greenlet is ended
            if claim.won:
                self._give_back(claim.run)
            raise

    def _run(self) -> None:
        made_at = -math.inf
        while claims := self._gathered(made_at + INTERVAL):
            with untraced():
                self._make(claims)
            made_at = time.monotonic()

    def _gathered(self, until: float) -> Sequence[_Claim]:
        """Wait for claims; return those that have come by that time, or sooner if they are many.

        Empty once the thread is to end.
        """
        claims: list[_Claim] = []
        while len(claims) < MAX_BATCH:
            try:
                claim = self._next(until, len(claims))
            except queue.Empty:
                break
            if claim is None:
                if claims:
                    self._waiting.put(None)  # for the next call
                break
            claims.append(claim)
        return claims

    def _next(self, until: float, gathered: int) -> _Claim | None:
        if not gathered:
            return self._waiting.get()
        left = until - time.monotonic() if gathered < self._prompt else 0.0
        return self._waiting.get(timeout=left) if left > 0 else self._waiting.get_nowait()

    def _make(self, claims: Sequence[_Claim]) -> None:
        won: set[str] = set()
        try:
            made = {claim.run: claim.task for claim in claims if not claim.withdrawn}
            won = self._store.runs.claim_many(made, self._me)
        except JobHandleError:
            pass  # each is claimed by itself, and logs its error
        except Exception as error:
            internal_errors.report("claiming jobs together", error, "each is claimed by itself")
        for claim in claims:
            claim.answer(won=claim.run.claim_id in won)
            if claim.won and claim.withdrawn:
                self._give_back(claim.run)
