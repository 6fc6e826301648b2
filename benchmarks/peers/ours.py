"""This library, with its default settings."""

from collections.abc import Mapping, Sequence
from typing import Any

from jobhandle_celery import Jobs, JobStatus
from tests.servers import execute

from .celery_app import TASK
from .celery_peers import CeleryPeer
from .peer import Place


class Ours(CeleryPeer):
    """Celery with durable jobs in PostgreSQL."""

    name = "jobhandle-celery"
    kind = "ours"
    settings = "its defaults; Celery's as for plain Celery"

    def __init__(self, place: Place, settings: Mapping[str, Any] | None = None) -> None:
        super().__init__(place, settings)
        self.jobs: Jobs = self.app.jobs  # type: ignore[attr-defined]  # put there by Jobs
        self.handle = self.jobs.handle()
        self._settled = 0

    def prepare(self) -> None:
        """Make the tables."""
        self.jobs.upgrade_schema()

    def submit(self, number: int) -> int:
        """Submit a durable job; return its id."""
        job_id: int = self.handle.submit(self.app.tasks[TASK].s(number))
        return job_id

    def submit_many(self, numbers: Sequence[int]) -> None:
        """Submit them at once."""
        task = self.app.tasks[TASK]
        self.jobs.submit_many([task.s(number) for number in numbers])

    def settled(self, count: int) -> bool:
        """Count the rows that have become Finished since the last purge."""
        return self.jobs.count_by_status()[JobStatus.FINISHED] - self._settled >= count

    def purge(self) -> None:
        """Cancel what has not run; rows stay."""
        super().purge()
        self.jobs.cancel_many(status=("Submitted", "Waiting", "Queued", "Requeued"))
        # As if its events had been sent: no later pass of the sweeper has to send them.
        execute(self.place.database_url, "UPDATE jobhandle_job SET due_at = NULL WHERE due_at IS NOT NULL")
        self._settled = self.jobs.count_by_status()[JobStatus.FINISHED]

    def close(self) -> None:
        """Close both connections."""
        self.jobs.close()
        super().close()
