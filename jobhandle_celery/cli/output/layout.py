"""What a command shows, before it is known where: tables, fields, lines. Imports nothing of ours."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True)
class Bar:
    """A cell that says how far something is; a bar where one can be drawn."""

    text: str
    fraction: float | None = None


Cell = str | Bar


@dataclass(frozen=True)
class Table:
    """Rows under names of columns; the last column is as wide as it likes."""

    columns: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    title: str = ""


@dataclass(frozen=True)
class Fields:
    """Names and their values, one a line; a value may have lines of its own."""

    pairs: Sequence[tuple[str, str]]


@dataclass(frozen=True)
class Line:
    """One sentence."""

    text: str


Block = Table | Fields | Line


class Screen(Protocol):
    """Shows blocks again and again."""

    def show(self, blocks: Sequence[Block]) -> None:
        """Show blocks in place of those before; where nothing can be drawn over, only if they differ."""
