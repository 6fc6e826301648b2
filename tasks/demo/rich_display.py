"""The display on a terminal, by Rich."""

from collections.abc import Sequence
from types import TracebackType
from typing import Self

from rich.console import Group
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.text import Text

from jobhandle_celery import JobRecord

from .display import SHOWN, RecentJobs
from .run import Run

_COLOURS = {"Running": "cyan", "Finished": "green", "Error": "red", "Cancelled": "yellow"}


class RichDisplay:
    """A progress bar with recent jobs below it; both disappear at the end."""

    def __init__(self) -> None:
        self._recent = RecentJobs()
        self._progress = Progress(TextColumn("jobs"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        self._task = self._progress.add_task("jobs", total=None)
        self._live = Live(self._progress, transient=True, refresh_per_second=8)

    def __enter__(self) -> Self:
        self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._live.stop()

    def update(self, run: Run, ended: Sequence[JobRecord]) -> None:
        lines = [_styled(line) for line in self._recent.update(run, ended)]
        self._progress.update(self._task, completed=int(run.done), total=run.total)
        # As many lines each time, so that the display does not jump.
        self._live.update(Group(self._progress, *lines, *[Text("")] * (SHOWN - len(lines))))


def _styled(line: str) -> Text:
    head, _, message = line.partition(": ")
    text = Text("  ", no_wrap=True, overflow="ellipsis")
    text.append(head, style=_COLOURS.get(head.rpartition(" ")[2], ""))
    return text.append(f"  {message}", style="dim")
