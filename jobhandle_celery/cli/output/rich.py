"""Blocks on a terminal, with Rich (`pip install 'jobhandle-celery[cli]'`). Imported only if it is there."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from rich import box
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table as RichTable
from rich.text import Text

from ..formatting import harmless, one_line
from .layout import Bar, Block, Cell, Fields, Line, Screen, Table

STYLES = {
    "Submitted": "cyan",
    "Resubmitted": "cyan",
    "Queued": "cyan",
    "Requeued": "yellow",
    "Running": "bold blue",
    "Error": "bold red",
    "Waiting": "dim",
    "Finished": "green",
    "Cancelled": "magenta",
    "OK": "green",
    "WARN": "yellow",
    "BAD": "bold red",
    "UNKNOWN": "dim",
}
"""By the word: a status, or what the doctor says."""

BAR_WIDTH = 20


class Fancy:
    """Writes to one terminal."""

    def __init__(self, *, colour: bool) -> None:
        self._console = Console(highlight=False, no_color=not colour)

    def show(self, blocks: Sequence[Block]) -> None:
        """Print blocks, one below the other."""
        self._console.print(_drawn(blocks), soft_wrap=False)

    @contextmanager
    def live(self) -> Iterator[Screen]:
        """Take part of the terminal, or all of it should there be much to show."""
        with Live(console=self._console, auto_refresh=False, vertical_overflow="ellipsis") as live:
            yield _LiveScreen(live)


class _LiveScreen:
    def __init__(self, live: Live) -> None:
        self._live = live

    def show(self, blocks: Sequence[Block]) -> None:
        self._live.update(_drawn(blocks), refresh=True)


def _drawn(blocks: Sequence[Block]) -> Group:
    spaced: list[RenderableType] = []
    for block in blocks:
        if spaced:
            spaced.append(Text())
        spaced.append(_draw(block))
    return Group(*spaced)


def _draw(block: Block) -> RenderableType:
    match block:
        case Line(text):
            return Text(one_line(text))
        case Fields(pairs):
            grid = RichTable.grid(padding=(0, 2))
            for name, value in pairs:
                grid.add_row(Text(name, style="bold"), _words(value))
            return grid
        case Table(columns, rows, title):
            table = RichTable(box=box.SIMPLE_HEAD, title=Text(one_line(title)) if title else None)
            table.title_justify = "left"
            for name in columns:
                # The last column is what people wrote; it gives way first.
                table.add_column(name, overflow="fold" if name == columns[-1] else "ellipsis")
            for row in rows:
                table.add_row(*map(_cell, row))
            return table


def _cell(cell: Cell) -> RenderableType:
    if not isinstance(cell, Bar):
        return _words(one_line(cell) or "-")
    if cell.fraction is None:
        return Text(one_line(cell.text) or "-")
    row = RichTable.grid(padding=(0, 1))
    row.add_row(ProgressBar(total=1.0, completed=cell.fraction, width=BAR_WIDTH), Text(one_line(cell.text)))
    return row


def _words(text: str) -> Text:
    return Text(harmless(text), style=STYLES.get(text.split(":", maxsplit=1)[0], ""))
