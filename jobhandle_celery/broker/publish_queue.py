"""Publishes in the background the jobs of callers that must not wait for the broker."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

from ..background import BackgroundQueue

PAUSE = 0.02
"""Seconds between two batches. A thread that ran more often would compete with the event loops for the
interpreter, which a loop releases at each statement of its own."""

BATCH = 500
"""Number of jobs that do not wait any longer."""


class Committed(NamedTuple):
    """A committed job."""

    job_id: int
    blocked: bool = False
    """It is to be armed first, see `Trees.arm`."""


class PublishQueue(BackgroundQueue[Committed]):
    """Publishes in a thread of its own for callers that run an event loop, which must not block."""

    name = "publishing for an event loop"
    on_failure = "the sweeper publishes the jobs"

    def __init__(self, send: Callable[[Sequence[Committed]], None]) -> None:
        super().__init__(batch=BATCH, pause=PAUSE)
        self._send = send

    def _do(self, work: Sequence[Committed]) -> None:
        self._send(work)
