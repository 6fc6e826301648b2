"""Writes of a worker's main process: about children that are gone, and messages that were not run."""

import logging
import os
import signal
import subprocess
import time
from collections.abc import Sequence

from .. import internal_errors
from ..errors import DatabaseUnavailableError, SchemaError
from ..models import JobRecord
from ..runtime import DeferredWrite, Runtime
from ..status import JobStatus
from .events import EventSender

logger = logging.getLogger(__name__)

KILL_AFTER = 30.0
"""Seconds between a child's SIGTERM and its SIGKILL."""


class DeferredWrites:
    """Makes the deferred writes in the thread of the housekeeping: in the event loop they would block it."""

    def __init__(self, runtime: Runtime, events: EventSender) -> None:
        self._runtime = runtime
        self._events = events
        self._me = runtime.current_worker()
        self._pending: list[DeferredWrite] = []

    @property
    def pending(self) -> list[DeferredWrite]:
        """The writes that are not made yet."""
        while not self._runtime.deferred_writes.empty():
            self._pending.append(self._runtime.deferred_writes.get())
        return self._pending

    @property
    def has_outcomes(self) -> bool:
        """True while there are outcomes of bodies that no other process has."""
        return any(write.refused is not None for write in self.pending)

    def make(self) -> None:
        """Make the writes whose child is gone; what cannot be written now stays.

        A child that is gone may have sent its result before: what else is known of its task comes after that.
        """
        if self._runtime.finisher is not None and any(map(self._is_ready, self.pending)):
            self._runtime.finisher.flush()
        self._make_all([write for write in self.pending if write.refused is not None])
        unwritten = {write.task_id for write in self.pending if write.refused is not None}
        others = [write for write in self.pending if write.refused is None]
        self._make_all([write for write in others if write.task_id not in unwritten])

    def _make_all(self, writes: Sequence[DeferredWrite]) -> None:
        for write in filter(self._is_ready, writes):
            try:
                self._make(write)
            except (DatabaseUnavailableError, SchemaError):
                # Its row may be locked: the other writes come first in the next round.
                self._pending.remove(write)
                self._pending.append(write)
                raise
            except Exception as error:
                internal_errors.report(
                    "a deferred write",
                    error,
                    f"it is dropped; if job {write.job_id} has no body, it is recovered as a stray",
                )
                self._pending.remove(write)

    def _make(self, write: DeferredWrite) -> None:
        try:
            written = write.write()
        except DatabaseUnavailableError as error:
            # If the database answers this, only that write is blocked: by a lock, or a full disk.
            self._runtime.store.leases.renew(self._me)
            logger.warning(
                "job %s: a write of the worker's main process is repeated later: %s", write.job_id, error
            )
            if write.refused is not None:
                write.refused(error)
            return
        self._pending.remove(write)
        for changed in written if isinstance(written, list) else ():
            self._events.send_changed(changed)
        if not isinstance(written, JobRecord) or written.status is JobStatus.RUNNING:
            return
        if written.task_id == write.task_id:
            self._events.send_status(written)

    def _is_ready(self, write: DeferredWrite) -> bool:
        if write.pid is None or has_ended(write.pid):
            return True
        if time.monotonic() - write.since > KILL_AFTER:
            os.kill(write.pid, signal.SIGKILL)  # not reaped, so the process id is still its own
        return False

    def kill_survivors(self) -> bool:
        """Kill the children that outlived their pool; True while there are any."""
        if not self._runtime.prefork:
            return False
        snapshots = self._runtime.store.leases.runs(str(self._me.worker_uid))
        pids = [snapshot.pid for snapshot in snapshots if snapshot.pid is not None]
        alive = [pid for pid in pids if not has_ended(pid)]
        for pid in alive:
            os.kill(pid, signal.SIGKILL)
        return bool(alive)


def has_ended(pid: int) -> bool:
    """Return True if no child process of that number runs any more; a zombie has ended.

    The child is not reaped here: the pool does so, some seconds later.
    """
    if not hasattr(os, "waitid"):
        # macOS, before Python 3.13.
        command = ["ps", "-o", "ppid=,stat=", "-p", str(pid)]
        parent, _, state = (
            subprocess.run(command, check=False, capture_output=True, text=True).stdout.strip().partition(" ")
        )
        return parent != str(os.getpid()) or state.lstrip().startswith("Z")
    try:
        return os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None
    except ChildProcessError:
        return True
