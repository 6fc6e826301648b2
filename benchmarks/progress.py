"""What a run says on standard error: on a terminal one line that changes, else line by line."""

import sys
import time


class Progress:
    """The display of a run."""

    def __init__(self, names: list[str]) -> None:
        self._names = names
        self._name = ""
        self._began = time.monotonic()
        self._shown = 0

    def begin(self, name: str) -> None:
        """Say that a benchmark begins."""
        self._name = name
        self.say("begins")

    def say(self, words: str) -> None:
        """Say what is being done."""
        minutes, seconds = divmod(int(time.monotonic() - self._began), 60)
        place = f"{self._names.index(self._name) + 1}/{len(self._names)}" if self._name else "-"
        self._show(f"[{minutes:02d}:{seconds:02d}] {place} {self._name}: {words}")

    def _show(self, line: str) -> None:
        if sys.stderr.isatty():
            print("\r" + line[:110].ljust(self._shown), end="", file=sys.stderr, flush=True)
            self._shown = len(line[:110])
        else:
            print(line, file=sys.stderr, flush=True)

    def close(self) -> None:
        """End the line."""
        if sys.stderr.isatty():
            print(file=sys.stderr)
