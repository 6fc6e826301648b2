"""Workers of any kind, as processes in a group of their own that does not outlive the run."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import psutil

from tests.reaper import Reaper

ROOT = Path(__file__).resolve().parent.parent


class Process:
    """One command, its output in a file."""

    def __init__(
        self, words: Sequence[str], log: Path, reaper: Reaper, environment: Mapping[str, str] | None = None
    ) -> None:
        """Start it.

        Args:
            words: What comes after ``python -m``.
            log: Where its output goes.
            reaper: What ends it should this process be killed.
            environment: Variables beside those of this process.
        """
        self._log = log
        self._reaper = reaper
        with log.open("ab") as output:
            self.process = subprocess.Popen(
                [sys.executable, "-m", *words],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                cwd=ROOT,
                env={**os.environ, "PYTHONUNBUFFERED": "1", **(environment or {})},
                start_new_session=True,
            )
        reaper.watch(self.process.pid)

    @property
    def output(self) -> str:
        """All that it has said so far."""
        return self._log.read_text(errors="replace")

    def wait_for(self, words: str, timeout: float = 60) -> None:
        """Wait until it has said this.

        Raises:
            RuntimeError: it ended, or did not say it in time; with the last lines of its output.
        """
        deadline = time.monotonic() + timeout
        while words not in self.output:
            if self.process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"{self._log.name} has not said {words!r}:\n{self.output[-2000:]}")
            time.sleep(0.02)

    def wait(self, timeout: float) -> None:
        """Wait for its end.

        Raises:
            RuntimeError: it ended badly; with the last lines of its output.
        """
        if self.process.wait(timeout):
            raise RuntimeError(f"{self._log.name} ended with an error:\n{self.output[-2000:]}")

    def family(self) -> list[psutil.Process]:
        """Return it and all that it has started."""
        leader = psutil.Process(self.process.pid)
        return [leader, *leader.children(recursive=True)]

    def pause(self) -> None:
        """Stop it, and all that is in its group, until `resume()`."""
        os.killpg(self.process.pid, signal.SIGSTOP)

    def resume(self) -> None:
        """Let it go on."""
        os.killpg(self.process.pid, signal.SIGCONT)

    def end(self) -> None:
        """Kill it, and all that it has started."""
        family: list[psutil.Process] = []
        with contextlib.suppress(psutil.NoSuchProcess):
            if self.process.poll() is None:
                family = self.family()
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        for one in family:
            with contextlib.suppress(psutil.NoSuchProcess):
                one.kill()
        self.process.wait(timeout=10)
        self._reaper.forget(self.process.pid)
