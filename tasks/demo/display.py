"""The display of a run: a progress bar and recent jobs on a terminal, plain lines elsewhere."""

import contextlib
import sys
import time
from collections import deque
from collections.abc import Iterator, Sequence
from typing import Protocol

from jobhandle_celery import JobRecord, JobStatus

from .files import printable
from .run import Run

INTERVAL = 2.0
"""Seconds between two plain lines."""

SHOWN = 6
"""Jobs shown at a time."""


class Display(Protocol):
    """Shows a run."""

    def update(self, run: Run, ended: Sequence[JobRecord]) -> None:
        """Show the progress; `ended` are the jobs that have ended since the last update."""


@contextlib.contextmanager
def open_display() -> Iterator[Display]:
    """Open the display for standard output."""
    if sys.stdout.isatty():
        try:
            from .rich_display import RichDisplay
        except ImportError:  # Rich is optional
            pass
        else:
            with RichDisplay() as display:
                yield display
                return
    yield PlainDisplay()


class PlainDisplay:
    """Prints a line at intervals, and a line for each job that did not finish."""

    def __init__(self) -> None:
        self._next = time.monotonic()
        self._recent = RecentJobs()

    def update(self, run: Run, ended: Sequence[JobRecord]) -> None:
        for job in ended:
            if job.status is not JobStatus.FINISHED:
                print(describe(job), flush=True)
        lines = self._recent.update(run, ended)
        now = time.monotonic()
        if now >= self._next or run.is_over:
            self._next = now + INTERVAL
            done = f"{int(run.done):,}".rjust(len(f"{run.total:,}"))
            print(f"{done} of {run.total:,} jobs", *lines[:1], sep="  ", flush=True)


class RecentJobs:
    """The jobs to show: those that run, then those that ended last."""

    def __init__(self) -> None:
        self._ended: deque[JobRecord] = deque(maxlen=SHOWN)

    def update(self, run: Run, ended: Sequence[JobRecord]) -> list[str]:
        """Return a line for each."""
        self._ended.extendleft(reversed(ended[:SHOWN]))
        return [describe(job) for job in [*run.running, *self._ended][:SHOWN]]


def describe(job: JobRecord) -> str:
    """Return a job's id, task, status and message."""
    return f"job {job.id} {job.task.removeprefix('tasks.')} {job.status}: {printable(job.message)}"
