"""Runs of `python -m tasks FOLDER`."""

import os
import re
import signal
from pathlib import Path

import psutil

from tests.fork_server import UNBUFFERED, fork_server
from tests.reaper import Reaper
from tests.support import eventually
from tests.workers import ROOT

GATE = """\
import os, sys, time

while "worker" in sys.orig_argv and not os.path.exists({gate!r}):
    time.sleep(0.02)
"""
"""A `sitecustomize` that makes a worker wait until the gate exists."""


class Demo:
    """One run in its own process group, as a shell job; its output is in a file."""

    def __init__(self, here: Path, reaper: Reaper, *arguments: object, held: bool = False) -> None:
        self._output = here / "output"
        self._gate = here / "gate"
        self._reaper = reaper
        self._worker: psutil.Process | None = None
        environment = {name: value for name, value in os.environ.items() if not name.startswith("JOBHANDLE_")}
        with self._output.open("wb") as output:
            self.process = fork_server().start(
                ["--concurrency=2", *map(str, arguments)],
                module="tasks",
                cwd=here,
                env={**environment, **UNBUFFERED, "PYTHONPATH": self._path(held)},
                stdout=output,
                stderr=output,
            )
        reaper.watch(self.process.pid)

    def _path(self, held: bool) -> str:
        if not held:
            return str(ROOT)
        hooks = self._gate.with_name("hooks")
        hooks.mkdir()
        (hooks / "sitecustomize.py").write_text(GATE.format(gate=str(self._gate)))
        return os.pathsep.join([str(hooks), str(ROOT)])

    def release_worker(self) -> None:
        """Let the worker start that `held` stops."""
        self._gate.touch()

    @property
    def output(self) -> str:
        return self._output.read_text()

    def wait_for(self, pattern: str) -> None:
        eventually(
            lambda: re.search(pattern, self.output) or self.process.poll() is not None, message=pattern
        )
        assert re.search(pattern, self.output), self.output

    def worker(self) -> psutil.Process:
        # The process exists a moment after the line that announces it.
        (self._worker,) = eventually(psutil.Process(self.process.pid).children)
        return self._worker

    def interrupt(self) -> None:
        os.killpg(self.process.pid, signal.SIGINT)

    def end(self) -> int:
        """Wait for its end; return its exit code."""
        eventually(lambda: self.process.poll() is not None, message="the end of the run")
        assert "Traceback" not in self.output, self.output
        return self.process.wait(0)

    def discard(self) -> None:
        """Kill the run and its worker, if they still exist."""
        if self.process.poll() is None:
            for process in psutil.Process(self.process.pid).children(recursive=True):
                process.kill()
            self.process.kill()
            self.process.wait(10)
        if self._worker is not None and self._worker.is_running():
            self._worker.kill()
        self._reaper.forget(self.process.pid)
