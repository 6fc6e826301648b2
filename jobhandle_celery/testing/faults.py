"""What goes wrong in production, for a test of what a service then does."""

import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING

from ..errors import ApiUsageError, InvalidTransitionError
from ..status import JobStatus
from ..store import ClaimRejected, Run
from .worker import named

if TYPE_CHECKING:
    from .kit import JobsKit


class Faults:
    """The faults of one test; each method is a fixture of its name."""

    def __init__(self, kit: "JobsKit") -> None:
        self._kit = kit

    def advance(self, by: timedelta | float = 0, /, **units: float) -> None:
        """Move the clock of the jobs' database on: ``advance(hours=1)``, or seconds, or a timedelta.

        Python's clock stays: freezegun and time-machine move that, and the database's with it.

        Raises:
            ApiUsageError: backwards.
        """
        moved = (by if isinstance(by, timedelta) else timedelta(seconds=by)) + timedelta(**units)
        if moved < timedelta(0):
            raise ApiUsageError(f"advance: {moved} is backwards")
        self._kit._of_tests.advance(moved)

    def lose_worker(self, job_id: int) -> JobStatus:
        """Lose the worker of a job, and return the job's status: Error, or Requeued with attempts left.

        A job that waits for a worker is started by one first, which is lost before the body begins.

        Raises:
            UnknownJobError: there is no such job.
            InvalidTransitionError: no worker can start the job now, or none runs it; or it is a chain, group
                or chord, which runs nothing itself.
        """
        runtime = self._kit._runtime
        with self._kit.attach(job_id) as handle:
            job = handle.get_job()
            if job.kind is not None:
                raise InvalidTransitionError(
                    f"job {job_id} is a {job.kind}, which no worker runs; lose that of a member"
                )
            store = runtime.submitter.flushed_store()
            if job.status is JobStatus.RUNNING:
                worker_uid = self._kit._rows.worker_of(job_id)
                if worker_uid is None:
                    raise InvalidTransitionError(f"job {job_id} is Running, and no worker runs it")
            else:
                worker = named("lost")
                worker_uid = str(worker.worker_uid)
                store.leases.renew(worker)
                run = Run(job_id, job.task_id, job.attempt + 1, str(uuid.uuid4()), worker)
                claimed = store.runs.claim(run, job.task)
                if isinstance(claimed, ClaimRejected):
                    raise InvalidTransitionError(
                        f"job {job_id} is {job.status}; no worker can start it: {claimed.reason.value}"
                    )
            self._kit._rows.end_lease(worker_uid)
            store.leases.reap(worker_uid)
            return handle.job_status()

    def deliver_twice(self, job_id: int) -> None:
        """Have the broker deliver a job's newest message once more at the next `JobsKit.run_jobs`.

        Raises:
            UnknownJobError: there is no such job.
            InvalidTransitionError: no message of it has been published, or it is a chain, group or chord.
        """
        with self._kit.attach(job_id) as handle:
            self._kit._runtime.submitter.drain()
            if not self._kit._mailbox.duplicate(job_id):
                raise InvalidTransitionError(
                    f"job {job_id} is {handle.job_status()}; no message of it has been published"
                )

    @contextmanager
    def database_away(self) -> Iterator[None]:
        """Make the jobs' database unreachable within the block, also for the service's own engines on it."""
        self._kit._of_tests.is_away = True
        try:
            yield
        finally:
            self._kit._of_tests.is_away = False
