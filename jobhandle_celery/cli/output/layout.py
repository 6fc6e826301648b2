"""What a command shows, independent of where it is shown: tables, fields, lines."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True)
class ProgressCell:
    """A cell with progress, drawn as a bar on a terminal with Rich."""

    text: str
    fraction: float | None = None


Cell = str | ProgressCell


@dataclass(frozen=True)
class Table:
    """Rows below column headings. The last column has no fixed width."""

    columns: Sequence[str]
    rows: Sequence[Sequence[Cell]]


@dataclass(frozen=True)
class Fields:
    """Names and values, one pair a line; a value may have several lines."""

    pairs: Sequence[tuple[str, str]]


@dataclass(frozen=True)
class Line:
    """One line of text."""

    text: str


Block = Table | Fields | Line


class LiveDisplay(Protocol):
    """Shows blocks repeatedly."""

    def show(self, blocks: Sequence[Block]) -> None:
        """Replace the blocks shown before; a display that cannot redraw prints them again if they differ."""
