"""What a body says about itself while it runs, and when it looks whether it should stop."""

import logging
import time

from jobhandle_celery import DatabaseUnavailableError, current_job

logger = logging.getLogger(__name__)

INTERVAL = 0.5
"""Seconds between two reports: each costs a few statements, and a cancel waits no longer than this."""


class Report:
    """Reports for the current job, however often it is called; in a task without a job it does nothing."""

    def __init__(self) -> None:
        self._job = current_job()
        self._next = time.monotonic() + INTERVAL
        self._said = ""

    def __call__(self, message: str, current: float | None = None, total: float | None = None) -> None:
        """Say how far the body is, unless that was said a moment ago.

        Raises:
            StopRequested: the job was asked to stop.
        """
        now = time.monotonic()
        if self._job is None or now < self._next:
            return
        self._next = now + INTERVAL
        try:
            self._job.raise_if_cancelled()
            if current is not None:
                self._job.set_progress(current, total)
            self.message(message)
        except DatabaseUnavailableError as error:
            # The work goes on without being spoken of; its end waits for the database.
            logger.warning("%s", error)

    def message(self, message: str) -> None:
        """Set the message now, if it is another one."""
        if self._job is not None and message and message != self._said:
            self._job.set_message(message)
            self._said = message


def megabytes(size: float) -> str:
    """Return a number of bytes as people read it."""
    return f"{size / 1e6:,.1f} MB"
