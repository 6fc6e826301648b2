"""The output of a command: JSON, a terminal with Rich, or plain columns."""

import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import click

from ..formatting import one_line, to_json
from .layout import Block, Line, LiveDisplay
from .text import render_text


class Output:
    """Standard output and standard error of one command."""

    def __init__(self, *, json: bool = False, colour: bool = True) -> None:
        self.json = json
        self._rich = _rich_renderer(colour) if sys.stdout.isatty() and not json else None
        for stream in (sys.stdout, sys.stderr):
            # The terminal's encoding need not have every character of a row.
            if hasattr(stream, "reconfigure"):
                stream.reconfigure(errors="backslashreplace")

    @property
    def redraws(self) -> bool:
        """True if a live display replaces what it has shown before."""
        return self._rich is not None

    def result(self, document: Mapping[str, Any], text: str) -> None:
        """Print a result: the document with ``--json``, else the text."""
        if self.json:
            self.document(document)
        else:
            self.show(Line(text))

    def document(self, document: Mapping[str, Any]) -> None:
        """Print a JSON document in one line, and flush: a pipe may read along."""
        click.echo(to_json(document))
        sys.stdout.flush()

    def show(self, *blocks: Block) -> None:
        """Print blocks."""
        if self._rich is not None:
            self._rich.show(blocks)
        else:
            click.echo(render_text(blocks))
            sys.stdout.flush()

    def note(self, text: object) -> None:
        """Print a line to standard error, where it is not part of the result."""
        click.echo(one_line(str(text)), err=True)

    def error(self, error: object) -> None:
        """Print an error that does not end the command."""
        self.note(f"Error: {error}")

    @contextmanager
    def live(self) -> Iterator[LiveDisplay]:
        """Open a live display."""
        if self._rich is not None:
            with self._rich.live() as display:
                yield display
        else:
            yield _PlainDisplay()


class _PlainDisplay:
    def __init__(self) -> None:
        self._shown = ""

    def show(self, blocks: Sequence[Block]) -> None:
        text = render_text(blocks)
        if text != self._shown:
            click.echo(text + "\n")
            sys.stdout.flush()
        self._shown = text


def _rich_renderer(colour: bool) -> Any:
    try:
        from .rich import RichRenderer  # Rich is an extra
    except ImportError:
        return None
    return RichRenderer(colour=colour)
