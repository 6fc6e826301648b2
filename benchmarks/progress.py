"""Progress on standard error: one line that is overwritten on a terminal, else a line per step."""

import sys
import time


class Progress:
    """Shows which benchmark runs, and which step of it."""

    def __init__(self, names: list[str]) -> None:
        self._names = names
        self._name = ""
        self._began = time.monotonic()
        self._shown = 0

    def begin(self, name: str) -> None:
        """Show that a benchmark starts."""
        self._name = name
        self.show("starts")

    def show(self, step: str) -> None:
        """Show the current step."""
        minutes, seconds = divmod(int(time.monotonic() - self._began), 60)
        position = f"{self._names.index(self._name) + 1}/{len(self._names)}" if self._name else "-"
        self._print(f"[{minutes:02d}:{seconds:02d}] {position} {self._name}: {step}")

    def _print(self, line: str) -> None:
        if sys.stderr.isatty():
            print("\r" + line[:110].ljust(self._shown), end="", file=sys.stderr, flush=True)
            self._shown = len(line[:110])
        else:
            print(line, file=sys.stderr, flush=True)

    def close(self) -> None:
        """End the line."""
        if sys.stderr.isatty():
            print(file=sys.stderr)
