"""The Celery worker of a run: started, watched and stopped."""

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from tasks.application import app

START_TIMEOUT = 60.0
"""Seconds until the worker is ready."""

IDLE_STOP_TIMEOUT = 30.0
"""Seconds for a warm shutdown of an idle worker. Celery's prefork pool sometimes hangs in it."""

COLD_STOP_TIMEOUT = 15.0
"""Seconds for a cold shutdown: a killed child may hold a lock for which billiard 4.2 waits at its exit."""

_PR_SET_PDEATHSIG = 1


class WorkerError(RuntimeError):
    """The worker did not start, or has exited; the text has the end of its log."""


class Worker:
    """A `celery worker` process, with its output in a log file."""

    def __init__(self, log: Path, concurrency: int) -> None:
        self.log = log
        command = [
            *(sys.executable, "-m", "celery", "-A", "tasks", "worker", "--loglevel=INFO"),
            *(f"--concurrency={concurrency}", f"--hostname=manifest-{os.getpid()}@%h"),
            # Jobs need nothing from other workers.
            *("--without-mingle", "--without-gossip", "--without-heartbeat"),
            # For Flower, which cannot listen to a folder of messages.
            *([] if app.conf.broker_url.startswith("filesystem:") else ["--task-events"]),
        ]
        with log.open("wb") as output:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                # Ctrl-C at the terminal must not reach the worker; see `stop`.
                start_new_session=True,
                preexec_fn=_stop_with_parent,  # noqa: PLW1509  # no thread has been started yet
            )

    def wait_until_ready(self) -> None:
        """Wait until the worker accepts jobs.

        Raises:
            WorkerError: it has exited, or is not ready in time.
        """
        deadline = time.monotonic() + START_TIMEOUT
        while b" ready." not in self.log.read_bytes():
            self.check()
            if time.monotonic() > deadline:
                raise WorkerError(f"the worker is not ready after {START_TIMEOUT:g} s{self._end_of_log()}")
            time.sleep(0.1)

    def check(self) -> None:
        """Check that the worker runs.

        Raises:
            WorkerError: it has exited.
        """
        code = self._process.poll()
        if code is not None:
            raise WorkerError(f"the worker has exited ({_describe_exit(code)}){self._end_of_log()}")

    def stop(self, timeout: float | None = None) -> None:
        """Shut the worker down after its running tasks.

        A KeyboardInterrupt, or the timeout in seconds, escalates to a cold shutdown; a second one, or
        `COLD_STOP_TIMEOUT`, to SIGKILL.
        """
        self._signal(signal.SIGTERM)
        for seconds, next_signal in ((timeout, signal.SIGQUIT), (COLD_STOP_TIMEOUT, signal.SIGKILL)):
            try:
                self._process.wait(seconds)
                return
            except (KeyboardInterrupt, subprocess.TimeoutExpired):
                self._signal(next_signal)
        self._process.wait()

    def _signal(self, number: signal.Signals) -> None:
        with contextlib.suppress(ProcessLookupError):
            if number is signal.SIGKILL:
                os.killpg(self._process.pid, number)
            else:
                # Only the main process: it stops its children itself.
                self._process.send_signal(number)

    def _end_of_log(self, lines: int = 15) -> str:
        end = self.log.read_text(errors="backslashreplace").splitlines()[-lines:]
        return f"; the end of {self.log}:\n" + "\n".join(f"    {line}" for line in end)


def _stop_with_parent() -> None:
    # A killed run must not leave its worker behind. Only Linux has this.
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


def _describe_exit(code: int) -> str:
    return f"exit code {code}" if code >= 0 else f"signal {-code}, {signal.strsignal(-code)}"
