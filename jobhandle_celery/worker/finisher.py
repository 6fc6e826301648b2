"""Finishes jobs in batches: one commit for the bodies of a worker that have returned in the same moment.

A pool process sends the result of a body to the main process through a socket of their own, and starts the
next job at once. Celery's pipe would not do: its event loop does not read it while it waits for a broker, and
drops the results of tasks whose acceptance it has not read. A thread or greenlet of a pool sends its result
through the same socket, within the main process. The row is Running until the commit. If the main process
dies before it, the worker is lost, and the run with it, as if the pool process had died in the body.
"""

import json
import math
import select
import socket
import sys
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass

from .. import internal_errors
from ..errors import JobHandleError
from ..store import Forkable, Run, RunResult, Store, Worker, forks
from ..tracing import untraced

MIN_INTERVAL, MAX_INTERVAL = 0.01, 0.02
"""Seconds between two commits: results that come meanwhile are written together. After a longer pause, a
result is written at once."""

INTERVAL_PER_RESULT = 0.003
"""The interval between these two, for each result of the last commit: a busy worker makes fewer commits."""

MAX_BATCH = 200
"""Results that are written together at most."""

MAX_PACKET = 16384
"""Bytes of a result, with the key of its run, that is sent. The socket holds a few hundred small ones; a
process that cannot send writes the result itself."""

MAX_TRIES = 5
"""Commits that a row may miss because it is locked; then its result is written by itself."""

MAX_FLUSH = 20
"""Commits that a flush makes at most: results may come without end."""


@dataclass
class Finish:
    """The end of one run."""

    run: Run
    result: RunResult
    tries: int = 0


class Finisher(Forkable):
    """The results of a worker's bodies, on their way to the database."""

    def __init__(
        self,
        store: Store,
        me: Worker,
        write_alone: Callable[[Run, RunResult], None],
        settling: Callable[[], AbstractContextManager[None]],
    ) -> None:
        """Open the socket, in the main process, before it forks.

        Args:
            store: Where the jobs are.
            me: The worker.
            write_alone: Takes, in the main process, a result that was not written with others.
            settling: Makes the context of the commits of the finisher's thread. Another thread settles the
                jobs that end in it: a settle publishes, and a broker may not answer.
        """
        self._store = store
        self._me = me
        self._write_alone = write_alone
        self._settling = settling
        # Packets of several processes do not mix. macOS has no SOCK_SEQPACKET for this.
        kind = socket.SOCK_DGRAM if sys.platform == "darwin" else socket.SOCK_SEQPACKET
        self._reader, self._writer = socket.socketpair(socket.AF_UNIX, kind)
        self._reader.setblocking(False)
        self._writer.setblocking(False)
        self._missed: list[Finish] = []
        """Those whose rows were locked."""
        self._writing = threading.Lock()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="jobhandle-finisher", daemon=True)
        forks.register(self)

    # In a child.

    def after_fork(self) -> None:
        """Close the main process's end, so that nothing is sent to a main process that has died."""
        self._reader.close()

    def send(self, run: Run, result: RunResult) -> bool:
        """Send a result to the main process; False if the caller must write it."""
        if not self._store.runs.finishes_together:
            return False
        packet = json.dumps([run.job_id, run.task_id, run.attempt, run.claim_id, *result]).encode()
        if len(packet) > MAX_PACKET:
            return False
        try:
            self._writer.send(packet)
        except OSError:  # full, or the main process is gone
            return False
        return True

    # In the main process.

    def start(self) -> None:
        self._thread.start()

    def end(self) -> None:
        """Write what has been sent, and end. A body that still runs writes its result itself."""
        self._ended.set()
        if self._thread.ident is not None:
            self._thread.join()
        with suppress(OSError):  # it has ended before
            self._writer.shutdown(socket.SHUT_WR)  # nothing is sent between the flush and the close
        self.flush()
        self._reader.close()
        self._writer.close()

    def flush(self) -> None:
        """Write what the children have sent before this call, or pass it to `write_alone`."""
        for _ in range(MAX_FLUSH):
            if not self._write():
                break

    def _run(self) -> None:
        arrivals = select.poll()
        arrivals.register(self._reader, select.POLLIN)
        due_at = -math.inf
        while not self._ended.is_set():
            if not arrivals.poll(MIN_INTERVAL * 1000 if self._missed else 500):
                if not self._missed:
                    continue
            elif (early := due_at - time.monotonic()) > 0:
                self._ended.wait(early)
            with untraced(), self._settling():
                count = self._write()
            due_at = time.monotonic() + min(max(MIN_INTERVAL, count * INTERVAL_PER_RESULT), MAX_INTERVAL)

    def _write(self) -> int:
        """Write what has come; return the number of results."""
        with self._writing:
            try:
                return self._write_together()
            except Exception as error:
                internal_errors.report("finishing jobs", error, "what is not written is recovered as a stray")
                return 0

    def _write_together(self) -> int:
        work = [*self._missed, *self._received(MAX_BATCH - len(self._missed))]
        self._missed = []
        if not work:
            return 0
        written: set[int] = set()
        missed = MAX_TRIES
        try:
            written = self._store.runs.finish_many({item.run: item.result for item in work}, self._me)
            missed = 1
        except JobHandleError:
            pass  # each is written by itself, and logs its error
        except Exception as error:
            internal_errors.report("finishing jobs together", error, "each is written by itself")
        self._keep_or_pass_on([item for item in work if item.run.job_id not in written], missed)
        return len(work)

    def _received(self, count: int) -> list[Finish]:
        received: list[Finish] = []
        if self._reader.fileno() < 0:  # it has ended
            return received
        with suppress(BlockingIOError):
            for _ in range(count):
                if not (packet := self._reader.recv(MAX_PACKET)):
                    break  # nothing comes any more
                job_id, task_id, attempt, claim_id, *result = json.loads(packet)
                received.append(Finish(Run(job_id, task_id, attempt, claim_id, self._me), RunResult(*result)))
        return received

    def _keep_or_pass_on(self, work: Sequence[Finish], missed: int) -> None:
        for item in work:
            item.tries += missed
            if item.tries < MAX_TRIES:
                self._missed.append(item)
            else:
                self._write_alone(item.run, item.result)
