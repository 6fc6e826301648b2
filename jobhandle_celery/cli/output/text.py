"""Blocks as text for a pipe, a file, or a terminal without Rich: columns that `awk` and `grep` can read."""

from collections.abc import Sequence

from ..formatting import harmless, one_line
from .layout import Bar, Block, Cell, Fields, Line, Table


def text_of(blocks: Sequence[Block]) -> str:
    """Return blocks as text, without a newline at its end."""
    return "\n\n".join(_text(block) for block in blocks)


def _text(block: Block) -> str:
    match block:
        case Line(text):
            return one_line(text)
        case Fields(pairs):
            width = max((len(name) for name, _ in pairs), default=0)
            return "\n".join(f"{name:<{width}}  {_indented(value, width + 2)}" for name, value in pairs)
        case Table(columns, rows, title):
            table = _columns([columns, *([_shown(cell) for cell in row] for row in rows)])
            return f"{one_line(title)}\n{table}" if title else table


def _shown(cell: Cell) -> str:
    return one_line(cell.text if isinstance(cell, Bar) else cell) or "-"


def _columns(rows: Sequence[Sequence[str]]) -> str:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    widths[-1] = 0
    return "\n".join(
        "  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)) for row in rows
    )


def _indented(value: str, by: int) -> str:
    return ("\n" + " " * by).join(harmless(value).splitlines() or ["-"])
