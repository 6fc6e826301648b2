"""Blocks on a terminal, by Rich, which the extra ``jobhandle-celery[cli]`` installs."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from rich import box
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table as RichTable
from rich.text import Text

from ..formatting import escape_control, one_line
from .layout import Block, Cell, Fields, Line, LiveDisplay, ProgressCell, Table

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
"""The style of a cell by its text: a status, or a level of the doctor."""

BAR_WIDTH = 20


class RichRenderer:
    """Writes to the terminal."""

    def __init__(self, *, colour: bool) -> None:
        self._console = Console(highlight=False, no_color=not colour)

    def show(self, blocks: Sequence[Block]) -> None:
        """Print blocks, one below the other."""
        self._console.print(_render_all(blocks), soft_wrap=False)

    @contextmanager
    def live(self) -> Iterator[LiveDisplay]:
        """Redraw blocks in place."""
        with Live(console=self._console, auto_refresh=False, vertical_overflow="ellipsis") as live:
            yield _RichDisplay(live)


class _RichDisplay:
    def __init__(self, live: Live) -> None:
        self._live = live

    def show(self, blocks: Sequence[Block]) -> None:
        self._live.update(_render_all(blocks), refresh=True)


def _render_all(blocks: Sequence[Block]) -> Group:
    spaced: list[RenderableType] = []
    for block in blocks:
        if spaced:
            spaced.append(Text())
        spaced.append(_render(block))
    return Group(*spaced)


def _render(block: Block) -> RenderableType:
    match block:
        case Line(text):
            return Text(one_line(text))
        case Fields(pairs):
            grid = RichTable.grid(padding=(0, 2))
            for name, value in pairs:
                grid.add_row(Text(name, style="bold"), _styled(value))
            return grid
        case Table(columns, rows):
            table = RichTable(box=box.SIMPLE_HEAD)
            for name in columns:
                # The last column has free text: on a narrow terminal it is folded, the others are cut.
                table.add_column(name, overflow="fold" if name == columns[-1] else "ellipsis")
            for row in rows:
                table.add_row(*map(_render_cell, row))
            return table


def _render_cell(cell: Cell) -> RenderableType:
    if not isinstance(cell, ProgressCell):
        return _styled(one_line(cell) or "-")
    text = Text(one_line(cell.text) or "-")
    if cell.fraction is None:
        return text
    row = RichTable.grid(padding=(0, 1))
    row.add_row(ProgressBar(total=1.0, completed=cell.fraction, width=BAR_WIDTH), text)
    return row


def _styled(text: str) -> Text:
    return Text(escape_control(text), style=STYLES.get(text.split(":", maxsplit=1)[0], ""))
