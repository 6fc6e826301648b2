"""Blocks as plain text, for a pipe, a file or a terminal without Rich: columns for `awk` and `grep`."""

from collections.abc import Sequence

from ..formatting import escape_control, one_line
from .layout import Block, Cell, Fields, Line, ProgressCell, Table


def render_text(blocks: Sequence[Block]) -> str:
    """Return blocks as text, without a final newline."""
    return "\n\n".join(_render(block) for block in blocks)


def _render(block: Block) -> str:
    match block:
        case Line(text):
            return one_line(text)
        case Fields(pairs):
            width = max((len(name) for name, _ in pairs), default=0)
            return "\n".join(f"{name:<{width}}  {_indent(value, width + 2)}" for name, value in pairs)
        case Table(columns, rows):
            return _align([columns, *([_cell_text(cell) for cell in row] for row in rows)])


def _cell_text(cell: Cell) -> str:
    return one_line(cell.text if isinstance(cell, ProgressCell) else cell) or "-"


def _align(rows: Sequence[Sequence[str]]) -> str:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    widths[-1] = 0
    return "\n".join(
        "  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)) for row in rows
    )


def _indent(value: str, width: int) -> str:
    return ("\n" + " " * width).join(escape_control(value).splitlines() or ["-"])
