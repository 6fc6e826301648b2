"""Progress of a running task, and its check for a cancel."""

import logging
import time

from jobhandle_celery import DatabaseUnavailableError, current_job

logger = logging.getLogger(__name__)

INTERVAL = 0.5
"""Seconds between two reports; each costs several statements. A cancel takes effect within this time."""


class ProgressReporter:
    """Reports the progress of the current job at most once per `INTERVAL`; without a job it does nothing."""

    def __init__(self) -> None:
        self._job = current_job()
        self._next = time.monotonic() + INTERVAL
        self._message = ""

    def __call__(self, message: str, current: float | None = None, total: float | None = None) -> None:
        """Report progress, if a report is due.

        Raises:
            StopRequested: the job was cancelled.
        """
        now = time.monotonic()
        if self._job is None or now < self._next:
            return
        self._next = now + INTERVAL
        try:
            self._job.raise_if_cancelled()
            if current is not None:
                self._job.set_progress(current, total)
            self.set_message(message)
        except DatabaseUnavailableError as error:
            # The work continues; the worker waits for the database when it stores the result.
            logger.warning("%s", error)

    def set_message(self, message: str) -> None:
        """Set the job's message now, if it has changed."""
        if self._job is not None and message and message != self._message:
            self._job.set_message(message)
            self._message = message


def megabytes(size: float) -> str:
    """Return a number of bytes in MB."""
    return f"{size / 1e6:,.1f} MB"
