"""Processes, each in a group of its own, which end with the run."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import psutil

from tests.reaper import Reaper

ROOT = Path(__file__).resolve().parent.parent


def processor_time(processes: Iterable[psutil.Process]) -> float:
    """Return the seconds of processor time of those processes that still run."""
    spent = 0.0
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            times = process.cpu_times()
            spent += times.user + times.system
    return spent


class Process:
    """A command, with its output in a file."""

    def __init__(
        self, words: Sequence[str], log: Path, reaper: Reaper, environment: Mapping[str, str] | None = None
    ) -> None:
        """Start the process.

        Args:
            words: The arguments of ``python -m``.
            log: The file of its output.
            reaper: Ends the process if this one is killed.
            environment: Variables in addition to those of this process.
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
        """The output so far."""
        return self._log.read_text(errors="replace")

    def wait_for(self, text: str, timeout: float = 60) -> None:
        """Wait until the output contains a text.

        Raises:
            RuntimeError: The process has ended, or the time is over; the message has the end of its output.
        """
        deadline = time.monotonic() + timeout
        while text not in self.output:
            if self.process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"{self._log.name} does not contain {text!r}:\n{self.output[-2000:]}")
            time.sleep(0.02)

    def wait(self, timeout: float) -> None:
        """Wait until the process ends.

        Raises:
            RuntimeError: Its exit code is not 0; the message has the end of its output.
        """
        if self.process.wait(timeout):
            raise RuntimeError(f"{self._log.name} ended with an error:\n{self.output[-2000:]}")

    def family(self) -> list[psutil.Process]:
        """Return the process and its descendants."""
        leader = psutil.Process(self.process.pid)
        return [leader, *leader.children(recursive=True)]

    def pause(self) -> None:
        """Suspend all processes of the group, until `resume()`."""
        os.killpg(self.process.pid, signal.SIGSTOP)

    def resume(self) -> None:
        """Resume all processes of the group."""
        os.killpg(self.process.pid, signal.SIGCONT)

    def end(self) -> None:
        """Kill the process and its descendants."""
        family: list[psutil.Process] = []
        with contextlib.suppress(psutil.NoSuchProcess):
            if self.process.poll() is None:
                family = self.family()
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        for process in family:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        self.process.wait(timeout=10)
        self._reaper.forget(self.process.pid)
