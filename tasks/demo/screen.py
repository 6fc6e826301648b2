"""What a person sees: a bar and the newest messages on a terminal, plain lines elsewhere. May import run."""

import contextlib
import sys
import time
from collections import deque
from collections.abc import Iterator, Sequence
from typing import Protocol

from jobhandle_celery import JobRecord, JobStatus

from .files import shown
from .run import Run

INTERVAL = 2.0
"""Seconds between two plain lines."""

NEWEST = 6
"""Messages shown at once."""


class Screen(Protocol):
    """Shows a run while it goes on."""

    def show(self, run: Run, ended: Sequence[JobRecord]) -> None:
        """Show how far it is; `ended` are the jobs that have since the last time."""


@contextlib.contextmanager
def screen() -> Iterator[Screen]:
    """Open the screen that fits where standard output goes."""
    if sys.stdout.isatty():
        try:
            from .terminal import TerminalScreen
        except ImportError:  # without Rich there are plain lines on a terminal too
            pass
        else:
            with TerminalScreen() as terminal:
                yield terminal
                return
    yield PlainScreen()


class PlainScreen:
    """A line now and then, and one for each error."""

    def __init__(self) -> None:
        self._next = time.monotonic()
        self._newest = Newest()

    def show(self, run: Run, ended: Sequence[JobRecord]) -> None:
        """Print what is worth a line."""
        for job in ended:
            if job.status is not JobStatus.FINISHED:
                print(sentence(job), flush=True)
        self._newest.note(run, ended)
        now = time.monotonic()
        if now >= self._next or run.is_over:
            self._next = now + INTERVAL
            newest = self._newest.sentences[:1]
            print(": ".join([f"{int(run.done):,} of {run.total:,} jobs", *newest]), flush=True)


class Newest:
    """The newest messages: of the jobs that run, then of those that ended last."""

    def __init__(self) -> None:
        self._ended: deque[JobRecord] = deque(maxlen=NEWEST)
        self.sentences: list[str] = []

    def note(self, run: Run, ended: Sequence[JobRecord]) -> None:
        """Take in a look of the run."""
        self._ended.extendleft(reversed(ended[:NEWEST]))
        self.sentences = [sentence(job) for job in [*run.running, *self._ended][:NEWEST]]


def sentence(job: JobRecord) -> str:
    """Return what there is to say of a job, in a line."""
    return f"job {job.id} {job.task.removeprefix('tasks.')} {job.status}: {shown(job.message)}"
