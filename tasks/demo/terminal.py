"""The screen on a terminal, by Rich. May import screen."""

from collections.abc import Sequence
from types import TracebackType
from typing import Self

from rich.console import Group
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.text import Text

from jobhandle_celery import JobRecord

from .run import Run
from .screen import NEWEST, Newest

_COLOURS = {"Running": "cyan", "Finished": "green", "Error": "red", "Cancelled": "yellow"}


class TerminalScreen:
    """A bar, and the newest messages below it; both vanish in the end."""

    def __init__(self) -> None:
        self._newest = Newest()
        columns = (TextColumn("jobs"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        self._progress = Progress(*columns)
        self._task = self._progress.add_task("jobs", total=None)
        self._live = Live(self._progress, transient=True, refresh_per_second=8)

    def __enter__(self) -> Self:
        self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._live.stop()

    def show(self, run: Run, ended: Sequence[JobRecord]) -> None:
        """Draw it anew."""
        self._newest.note(run, ended)
        self._progress.update(self._task, completed=int(run.done), total=run.total)
        lines = [_line(sentence) for sentence in self._newest.sentences]
        self._live.update(Group(self._progress, *lines, *[Text("")] * (NEWEST - len(lines))))


def _line(sentence: str) -> Text:
    head, _, message = sentence.partition(": ")
    line = Text("  ", no_wrap=True, overflow="ellipsis")
    line.append(head, style=_COLOURS.get(head.rpartition(" ")[2], ""))
    return line.append(f"  {message}", style="dim")
