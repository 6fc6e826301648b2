"""Jobs for tests that need no worker: an app with the memory broker, and jobs in any status."""

import os
import uuid
from datetime import UTC, datetime, timedelta
from functools import cached_property
from typing import Any

import sqlalchemy

from jobhandle_celery import Failure, Job, JobHandle, JobStatus
from jobhandle_celery.runtime import runtime_of
from jobhandle_celery.store import Run, Worker
from tests.apps import make_app

NOBODY_LISTENS = "redis://127.0.0.1:1/0"
ADD = Job(task="tests.add", args=[2, 3], message="from the importer")
HELD = Job(task="tests.add", args=[2, 3], message="from the importer", status=JobStatus.WAITING)


class JobFactory:
    """Jobs in any status, brought there by store calls, with queries for tests."""

    def __init__(self, database_url: str) -> None:
        self.url = database_url
        # A queue of its own: the memory transport is one for the whole process.
        settings = {"task_default_queue": f"queue-{uuid.uuid4().hex}"}
        app: Any = make_app("memory://", database_url, settings)
        self.app, self.jobs = app, app.jobs
        self.engine = sqlalchemy.create_engine(database_url)
        self.store = runtime_of(self.app).store

    @cached_property
    def offline(self) -> Any:
        """The jobs of an app whose broker is down, on the same database."""
        app: Any = make_app(NOBODY_LISTENS, self.url)
        return app.jobs

    def close(self) -> None:
        self.engine.dispose()
        self.jobs.close()
        if "offline" in vars(self):
            self.offline.close()

    def row(self, job_id: int) -> Any:
        self.jobs._runtime.submitter.queued_marker.flush()
        with self.engine.connect() as connection:
            return connection.exec_driver_sql(f"SELECT * FROM jobhandle_job WHERE id = {job_id}").one()

    def claim(self, handle: JobHandle) -> Run:
        """Claim the job, as a worker does."""
        run = self.run_of(handle)
        assert self.store.runs.claim(run, handle.get_job().task) == run
        return run

    def run_of(self, handle: JobHandle) -> Run:
        job = handle.get_job()
        worker = Worker("worker@host", None, os.getpid())
        return Run(job.id, job.task_id, job.attempt + 1, str(uuid.uuid4()), worker)

    def body_of(self, run: Run) -> JobHandle:
        """Return the handle that `current_job()` returns in that run's body."""
        return runtime_of(self.app).handle(run=run)

    def job_in(self, status: JobStatus) -> JobHandle:
        unsent = status in (JobStatus.SUBMITTED, JobStatus.RESUBMITTED)
        handle: JobHandle = (self.offline if unsent else self.jobs).handle()
        handle.submit(HELD if status is JobStatus.WAITING else ADD)
        if status in (JobStatus.CANCELLED, JobStatus.RESUBMITTED):
            handle.cancel_job()
        if status is JobStatus.RESUBMITTED:
            handle.resubmit_job()
        if status in (JobStatus.RUNNING, JobStatus.REQUEUED, JobStatus.FINISHED, JobStatus.ERROR):
            run = self.claim(handle)
            match status:
                case JobStatus.REQUEUED:
                    self.store.recovery.give_back(run, "shutting down", run.worker)
                case JobStatus.FINISHED:
                    self.store.runs.finish(run, "5")
                case JobStatus.ERROR:
                    self.store.runs.fail(run, Failure("task", "ValueError", "no good"))
        assert handle.job_status() is status
        return handle


def age(factory: JobFactory, job_id: int, column: str, by: timedelta) -> None:
    """Move a time of a job back."""
    job = next(job for job in factory.jobs.find() if job.id == job_id)
    moment = (getattr(job, column) - by).astimezone(UTC).strftime("%Y-%m-%d %H:%M:%S.%f")
    zone = "+00" if factory.engine.dialect.name == "postgresql" else ""
    with factory.engine.begin() as connection:
        connection.exec_driver_sql(
            f"UPDATE jobhandle_job SET {column} = '{moment}{zone}' WHERE id = {job_id}"
        )


def update_column(factory: JobFactory, column: Any, value: object, *where: Any) -> None:
    """Set a column of the rows that match."""
    with factory.engine.begin() as connection:
        connection.execute(column.table.update().where(*where).values({column.name: value}))


def set_times(factory: JobFactory, column: Any, time: datetime, *where: Any) -> None:
    """Set a column of times, as if the event had happened then."""
    update_column(factory, column, time, *where)
