"""Where a command's words go: JSON, a terminal with Rich, or plain columns. May import shapes and below."""

import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import click

from ..formatting import as_json, one_line
from .layout import Block, Line, Screen
from .text import text_of


class Output:
    """Standard output, as one command uses it."""

    def __init__(self, *, json: bool = False, colour: bool = True) -> None:
        self.json = json
        self._fancy = _fancy(colour) if sys.stdout.isatty() and not json else None
        for stream in (sys.stdout, sys.stderr):
            # What a row holds need not be in this terminal's alphabet.
            if hasattr(stream, "reconfigure"):
                stream.reconfigure(errors="backslashreplace")

    @property
    def draws(self) -> bool:
        """True if what a screen has shown can be drawn over."""
        return self._fancy is not None

    def say(self, document: Mapping[str, Any], sentence: str) -> None:
        """Print what was done: to a script as JSON, to a person as a sentence."""
        if self.json:
            self.document(document)
        else:
            self.show(Line(sentence))

    def document(self, document: Mapping[str, Any]) -> None:
        """Print a JSON document in one line, at once: somebody may be reading along."""
        click.echo(as_json(document))
        sys.stdout.flush()

    def show(self, *blocks: Block) -> None:
        """Print blocks."""
        if self._fancy is not None:
            self._fancy.show(blocks)
        else:
            click.echo(text_of(blocks))
            sys.stdout.flush()

    def note(self, text: str) -> None:
        """Print a line on standard error, which no script reads as the answer."""
        click.echo(one_line(text), err=True)

    @contextmanager
    def live(self) -> Iterator[Screen]:
        """Open a screen whose content is replaced; a pipe gets it again whenever it has changed."""
        if self._fancy is not None:
            with self._fancy.live() as screen:
                yield screen
        else:
            yield _Scroll()


class _Scroll:
    def __init__(self) -> None:
        self._last = ""

    def show(self, blocks: Sequence[Block]) -> None:
        text = text_of(blocks)
        if text != self._last:
            click.echo(text + "\n")
            sys.stdout.flush()
        self._last = text


def _fancy(colour: bool) -> Any:
    try:
        from .rich import Fancy  # Rich is an extra
    except ImportError:
        return None
    return Fancy(colour=colour)
