"""This library, with its default settings."""

from collections.abc import Mapping, Sequence
from typing import Any

from jobhandle_celery import Jobs, JobStatus
from tests.servers import execute

from .celery_app import TASK
from .celery_peers import CeleryPeer
from .peer import Sandbox


class Ours(CeleryPeer):
    """Celery with durable jobs in PostgreSQL."""

    name = "jobhandle-celery"
    kind = "ours"
    settings = "its defaults; Celery's as for plain Celery"

    def __init__(self, sandbox: Sandbox, settings: Mapping[str, Any] | None = None) -> None:
        super().__init__(sandbox, settings)
        self.jobs: Jobs = self.app.jobs  # type: ignore[attr-defined]  # set by Jobs
        self.handle = self.jobs.handle()
        self._settled = 0

    def prepare(self) -> None:
        """Create the tables."""
        self.jobs.upgrade_schema()

    def submit(self, number: int) -> int:
        """Submit a durable job; return its id."""
        job_id: int = self.handle.submit(self.app.tasks[TASK].s(*self.arguments(number)))
        return job_id

    def submit_many(self, numbers: Sequence[int]) -> None:
        """Submit jobs by one call."""
        task = self.app.tasks[TASK]
        self.jobs.submit_many([task.s(*self.arguments(number)) for number in numbers])

    def settled(self, count: int) -> bool:
        """Count the rows that became Finished after the last purge."""
        return self.jobs.count_by_status()[JobStatus.FINISHED] - self._settled >= count

    def purge(self) -> None:
        """Cancel the jobs that have not started; keep the rows."""
        super().purge()
        self.jobs.cancel_many(status=("Submitted", "Waiting", "Queued", "Requeued"))
        # Else a later pass of the sweeper would send the events of the cancelled jobs.
        execute(self.sandbox.database_url, "UPDATE jobhandle_job SET due_at = NULL WHERE due_at IS NOT NULL")
        self._settled = self.jobs.count_by_status()[JobStatus.FINISHED]

    def close(self) -> None:
        """Close the connections of the jobs and of the app."""
        self.jobs.close()
        super().close()
