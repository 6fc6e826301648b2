"""This library below Celery's own calls: plain tasks beside jobs, and durable tasks."""

from collections.abc import Mapping, Sequence
from typing import Any

from jobhandle_celery import Jobs

from .celery_app import TASK
from .celery_peers import CeleryPeer
from .ours import Ours
from .peer import Sandbox


class PlainBeside(CeleryPeer):
    """Plain tasks of an app that has `Jobs`."""

    name = "Celery, no results, in an app with Jobs"
    kind = "beside"
    settings = "as for plain Celery"

    def __init__(self, sandbox: Sandbox, settings: Mapping[str, Any] | None = None) -> None:
        super().__init__(sandbox, settings)
        self.jobs: Jobs = self.app.jobs  # type: ignore[attr-defined]  # set by Jobs

    def prepare(self) -> None:
        """Create the tables, which a worker reads."""
        self.jobs.upgrade_schema()

    def close(self) -> None:
        """Close the connections of the jobs and of the app."""
        self.jobs.close()
        super().close()


class Durable(Ours):
    """A durable task, by its `apply_async`."""

    name = "jobhandle-celery, a durable task's apply_async"
    kind = "durable"

    def submit(self, number: int) -> Any:
        """Call the task."""
        return self.app.tasks[TASK].apply_async((number,))

    def submit_by_handle(self, number: int) -> int:
        """Submit a job of the same task, in the same process."""
        return super().submit(number)

    def submit_many(self, numbers: Sequence[int]) -> None:
        """Call the task for each: Celery has no call for many."""
        for number in numbers:
            self.submit(number)
