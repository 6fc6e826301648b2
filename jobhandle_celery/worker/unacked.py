"""Notes of a worker's unacknowledged job messages in Redis, written in batches.

kombu writes a note of each message that it receives, and removes it when the message is acknowledged: two
transactions, for each of which the worker's event loop waits. Here the notes of job messages are written
together some milliseconds later, and that of a message which is acknowledged meanwhile is never written.

A note is for a worker that dies: kombu delivers the message again after the visibility timeout. A job needs
none: the sweeper publishes it again after the loss of any message, and the claim refuses a second delivery.
A plain task has neither, so its notes stay as they are.
"""

import threading
import time
from collections.abc import Callable
from typing import Any

from .. import celery_compat, internal_errors
from ..broker.headers import HEADER

INTERVAL = 0.02
"""Seconds after which the notes of a message that was received or acknowledged are written."""


class UnackedMessages:
    """The job messages that a channel has received or acknowledged since the last batch."""

    def __init__(self, channel: Any, call_after: Callable[[float, Callable[[], None]], object]) -> None:
        """Take over the notes of a kombu channel; those of any other channel than Redis' stay with kombu.

        Args:
            channel: The channel from which a worker consumes.
            call_after: Calls a function, in any thread, after so many seconds.
        """
        self._call_after = call_after
        self._received: dict[str, tuple[float, Any]] = {}
        self._acknowledged: list[str] = []
        self._planned = self._ended = False
        # Reentrant: at a cold shutdown Celery acknowledges and rejects in the handler of a signal.
        self._changing = threading.RLock()
        self._writing = threading.RLock()
        """Held while a batch is written: the note of a message is written before it is removed."""
        self._write = celery_compat.intercept_redis_qos(channel, self._receive, self._acknowledge, self.flush)

    def _receive(self, tag: str, message: Any) -> bool:
        with self._changing:
            if self._ended or not _is_job(message):
                return False
            self._received[tag] = time.time(), message
            self._plan()
        return True

    def _acknowledge(self, tag: str, message: Any) -> bool:
        with self._changing:
            if self._received.pop(tag, None) is not None:
                return True
            if self._ended or not _is_job(message):
                return False
            self._acknowledged.append(tag)
            self._plan()
        return True

    def _plan(self) -> None:
        if not self._planned:
            self._planned = True
            self._call_after(INTERVAL, self.flush)

    def flush(self) -> None:
        """Write the notes of what was received, and remove those of what was acknowledged."""
        with self._writing:
            with self._changing:
                self._planned = False
                received, self._received = self._received, {}
                acknowledged, self._acknowledged = self._acknowledged, []
            if self._write is None or not (received or acknowledged):
                return
            try:
                self._write(received, acknowledged)
            except Exception as error:
                with self._changing:  # for the next batch; after the loss of a connection there is none
                    self._received = received | self._received
                    self._acknowledged = acknowledged + self._acknowledged
                state = "a job whose message is lost is published again, and a second delivery is refused"
                internal_errors.log("noting received and acknowledged job messages in Redis", error, state)

    def end(self) -> None:
        """Write what is left; from now on kombu writes each note at once, as a drain has no event loop."""
        with self._changing:
            self._ended = True
        self.flush()


def _is_job(message: Any) -> bool:
    headers = getattr(message, "headers", None)
    return isinstance(headers, dict) and HEADER in headers
