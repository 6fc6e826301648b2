"""A call that is made on the store and on the model, and the job, workers and messages that it is about."""

import uuid
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from jobhandle_celery.store import PendingMessage, ProcessRef, Run, Store, Worker
from tests.store.model import Model
from tests.store.model_job import ModelJob

KEY = "k"
"""The unique key of a job that an act submits."""


WAITS = object()


@dataclass(frozen=True)
class Cast:
    """The job, workers and messages of an act."""

    store: Store
    other: Worker
    """Another worker than that of the run."""
    late: PendingMessage
    """The message of the last run; without one, the message that fits the row."""
    run: Run
    """The last run; without one, a claim that may be won."""
    sent: PendingMessage
    """The message that fits the row."""
    rival: Run
    """Another worker's claim, with a copy of the late message."""
    next_run: Run
    """Another worker's claim, with the message that fits."""

    @property
    def job_id(self) -> int:
        return self.run.job_id

    @property
    def me(self) -> Worker:
        return self.run.worker

    @property
    def process(self) -> ProcessRef:
        run = self.run
        return ProcessRef(run.job_id, run.task_id, run.attempt, str(run.worker.worker_uid), run.worker.pid)


def key(message: PendingMessage, by: Worker) -> Run:
    """Return a new claim."""
    return Run(message.job_id, message.task_id, message.attempt, str(uuid.uuid4()), by)


@dataclass(frozen=True)
class Act:
    """One store call.

    The text is made by the caller for one call: a token, a task id, a message.
    """

    verb: str
    ask: Callable[[Cast, str], Any]
    expect: Callable[[Cast, Model, ModelJob, str], Any]
    gone: Any = False
    """The answer when the job has been pruned."""
    of_job: bool = True
    """Whether it is about this job; a call on any rows answers also without it."""
    skipping: Any = WAITS
    """Its answer when it skips a row that another transaction has locked; or that it waits."""
    repeated: tuple[Any, ...] = ()
    """Other answers that a retry may get after the first answer was lost."""

    def expected(self, cast: Cast, model: Model, token: str) -> Any:
        """Apply it to the model; return the model's answer."""
        job: Any = model.jobs.get(cast.job_id)
        return self.expect(cast, model, job, token) if job or not self.of_job else self.gone
