"""The Celery worker that a run starts, and ends."""

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from tasks.application import app

START = 60.0
"""Seconds for a worker to say that it is ready."""

IDLE_STOP = 30.0
"""Seconds for a worker without jobs to end. Celery's prefork pool sometimes hangs in a warm shutdown."""

COLD_STOP = 15.0
"""Seconds for a cold shutdown: a killed child may hold a lock for which billiard 4.2 waits at its exit."""

_PR_SET_PDEATHSIG = 1


class WorkerError(RuntimeError):
    """The worker did not start, or has ended; the text has the end of its log."""


class Worker:
    """A `celery worker` as a process of its own, its output in a file."""

    def __init__(self, log: Path, concurrency: int) -> None:
        self.log = log
        command = [
            *(sys.executable, "-m", "celery", "-A", "tasks", "worker", "--loglevel=INFO"),
            *(f"--concurrency={concurrency}", f"--hostname=manifest-{os.getpid()}@%h"),
            # It has nothing to ask of other workers: the rows say all.
            *("--without-mingle", "--without-gossip", "--without-heartbeat"),
            # For Flower. In a folder of messages nobody listens.
            *([] if app.conf.broker_url.startswith("filesystem:") else ["--task-events"]),
        ]
        with log.open("wb") as output:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                # Ctrl-C at the terminal is ours to answer, see `stop`.
                start_new_session=True,
                preexec_fn=_stop_with_parent,  # noqa: PLW1509  # nothing here has started a thread yet
            )

    def wait_until_ready(self) -> None:
        """Wait until it takes jobs.

        Raises:
            WorkerError: it ended, or did not come so far.
        """
        until = time.monotonic() + START
        while b" ready." not in self.log.read_bytes():
            self.check()
            if time.monotonic() > until:
                raise WorkerError(f"the worker is not ready after {START:g} s{self._last_words()}")
            time.sleep(0.1)

    def check(self) -> None:
        """Look whether it lives.

        Raises:
            WorkerError: it does not.
        """
        code = self._process.poll()
        if code is not None:
            raise WorkerError(f"the worker has ended ({_ending(code)}){self._last_words()}")

    def stop(self, timeout: float | None = None) -> None:
        """Shut the worker down once its running bodies end.

        A KeyboardInterrupt, or `timeout` seconds without an end, escalate to a cold shutdown; another one, or
        `COLD_STOP`, to a kill.
        """
        self._signal(signal.SIGTERM)
        for bound, harder in ((timeout, signal.SIGQUIT), (COLD_STOP, signal.SIGKILL)):
            try:
                self._process.wait(bound)
                return
            except (KeyboardInterrupt, subprocess.TimeoutExpired):
                self._signal(harder)
        self._process.wait()

    def _signal(self, which: signal.Signals) -> None:
        with contextlib.suppress(ProcessLookupError):
            if which is signal.SIGKILL:
                os.killpg(self._process.pid, which)
            else:
                # Its children's ends are the worker's to order.
                self._process.send_signal(which)

    def _last_words(self, lines: int = 15) -> str:
        said = self.log.read_text(errors="backslashreplace").splitlines()[-lines:]
        return f"; the end of {self.log}:\n" + "\n".join(f"    {line}" for line in said)


def _stop_with_parent() -> None:
    # A worker must not be left behind by a run that is killed. Linux alone has it.
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


def _ending(code: int) -> str:
    return f"exit code {code}" if code >= 0 else f"signal {-code}, {signal.strsignal(-code)}"
