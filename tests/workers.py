"""Real Celery workers, as processes that a test can stop, pause and kill."""

import contextlib
import itertools
import json
import os
import re
import signal
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.fork_server import UNBUFFERED, fork_server, start_anew
from tests.reaper import Reaper
from tests.support import eventually

ROOT = Path(__file__).resolve().parent.parent
PATCHING = {"eventlet", "gevent"}
"""The pools whose patches must come before all imports."""


class WorkerProcess:
    """One `celery worker` in its own process group, with its output in a file."""

    _numbers = itertools.count(1)

    def __init__(
        self,
        app: str = "tests.apps:app",
        *,
        folder: Path,
        reaper: Reaper,
        database_url: str | None = None,
        broker_url: str | None = None,
        settings: Mapping[str, Any] | None = None,
        pool: str = "prefork",
        concurrency: int = 2,
        name: str | None = None,
        queues: Sequence[str] = (),
        mingle: bool = False,
        arguments: Sequence[str] = (),
        environment: Mapping[str, str] | None = None,
        anew: bool = False,
    ) -> None:
        """Start it, by fork unless `anew`."""
        self.name = name or f"worker-{os.getpid()}-{next(self._numbers)}"
        self.nodename = f"{self.name}@localhost"
        self.log_file = folder / f"{self.name}.log"
        self._reaper = reaper
        variables = {
            "JOBHANDLE_TEST_DATABASE_URL": database_url,
            "JOBHANDLE_TEST_BROKER_URL": broker_url,
            "JOBHANDLE_TEST_SETTINGS": None if settings is None else json.dumps(settings),
            **(environment or {}),
        }
        given = {variable: value for variable, value in variables.items() if value is not None}
        words = [
            *("-A", app, "worker"),
            *(f"--pool={pool}", f"--concurrency={concurrency}", f"--hostname={self.nodename}"),
            "--loglevel=INFO",
            *([f"--queues={','.join(queues)}"] if queues else []),
            *([] if mingle else ["--without-mingle"]),  # saves a second's wait for the neighbours' revokes
            *arguments,
        ]
        start = start_anew if pool in PATCHING or anew else fork_server().start
        with self.log_file.open("ab") as log:
            self.process = start(words, env={**os.environ, **UNBUFFERED, **given}, stdout=log, stderr=log)
        reaper.watch(self.pid)

    @property
    def pid(self) -> int:
        """The main process."""
        return self.process.pid

    @property
    def log(self) -> str:
        return self.log_file.read_text(errors="replace")

    def wait_until_ready(self, timeout: float = 120) -> None:
        ready = re.compile(rf"{re.escape(self.nodename)} ready\.")
        eventually(
            lambda: self.process.poll() is not None or ready.search(self.log),
            timeout,
            f"{self.name} is not ready",
        )
        assert self.process.poll() is None, (
            f"{self.name} ended with {self.process.returncode}:\n{self.log[-3000:]}"
        )

    def is_running(self) -> bool:
        return self.process.poll() is None

    def wait(self, timeout: float = 120) -> int:
        """Wait for the end of the main process; return its exit code (negative: the signal)."""
        eventually(lambda: self.process.poll() is not None, timeout, f"{self.name} has not ended")
        assert self.process.returncode is not None
        return self.process.returncode

    def terminate(self) -> None:
        """SIGTERM: the warm shutdown."""
        self.process.send_signal(signal.SIGTERM)

    def quit(self) -> None:
        """SIGQUIT: the cold shutdown."""
        self.process.send_signal(signal.SIGQUIT)

    def kill(self) -> None:
        """SIGKILL the main process. On Linux its prefork children die with it."""
        self.process.kill()

    def children(self) -> list[int]:
        """The pool's processes (none in the solo, threads and gevent pools)."""
        with contextlib.suppress(psutil.NoSuchProcess):
            return [child.pid for child in psutil.Process(self.pid).children()]
        return []

    def kill_children(self) -> None:
        for pid in self.children():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def stop_process(self) -> None:
        """SIGSTOP the whole group, as on a suspended machine, until `continue_process()`."""
        os.killpg(self.pid, signal.SIGSTOP)

    def continue_process(self) -> None:
        os.killpg(self.pid, signal.SIGCONT)

    def end(self) -> None:
        """Kill the remaining processes: the group, and the main process's descendants outside it."""
        descendants: list[psutil.Process] = []
        with contextlib.suppress(psutil.NoSuchProcess):
            if self.process.poll() is None:
                descendants = psutil.Process(self.pid).children(recursive=True)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)
        for descendant in descendants:
            with contextlib.suppress(psutil.NoSuchProcess):
                descendant.kill()
        self.process.wait(timeout=10)
        self._reaper.forget(self.pid)


WORKERS = pytest.StashKey[list[WorkerProcess]]()
