"""A service in this process, which submits jobs and runs them, each in a context of its own."""

from collections.abc import Callable, Sequence
from contextvars import Context
from typing import Any

from jobhandle_celery import JobRecord, JobStatus
from jobhandle_celery.tracing import untraced
from tests.in_process import message_of, run
from tests.servers import execute
from tests.support import sweep_until


class Service:
    """An app with `Jobs`. Nothing passes between its requests and its worker but rows and messages."""

    def __init__(self, app: Any, database_url: str) -> None:
        self.app = app
        self.jobs = app.jobs
        self._database_url = database_url

    def task(self, body: Callable[..., Any], **options: Any) -> Any:
        """Register a task, named as its function."""
        return self.app.task(name=body.__name__, shared=False, **options)(body)

    def request(self, handler: Callable[..., Any], *args: Any) -> Any:
        """Call a function as a web server calls the handler of a request."""
        return Context().run(handler, *args)

    def work(self) -> None:
        """Run all messages that the broker has, as a worker does.

        Their jobs are marked as Queued first. The thread that does it would use a connection of this process
        at the same time, and a body would open another one, whose span the test does not expect.
        """
        with untraced():  # as in the thread
            self.jobs._runtime.submitter.queued_marker.flush()
        while message := message_of(self.app):
            Context().run(run, self.app, message)

    def lose_messages(self) -> None:
        while message_of(self.app):
            pass

    def publish_tomorrow(self) -> None:
        """Publish what is to be published by tomorrow, as the sweeper of a worker does."""
        past = "'2020-01-01 00:00:00.000000'"
        execute(
            self._database_url,
            f"UPDATE jobhandle_job SET not_before = {past} WHERE not_before IS NOT NULL",
            f"UPDATE jobhandle_job SET due_at = {past} WHERE due_at IS NOT NULL",
        )
        Context().run(sweep_until, self.jobs, self._has_message)

    def finish(self, job_ids: Sequence[int]) -> None:
        """Run jobs that retry a day later until they are final; the first message of each retry is lost."""
        self.work()
        while not all(self.job(job_id).status.final for job_id in job_ids):
            self.publish_tomorrow()
            self.lose_messages()
            self.publish_tomorrow()
            self.work()
        assert {self.job(job_id).status for job_id in job_ids} == {JobStatus.FINISHED}

    def job(self, job_id: int) -> JobRecord:
        job: JobRecord = self.jobs.attach(job_id).get_job()
        return job

    def _has_message(self) -> bool:
        with self.app.connection() as connection:
            queue = self.app.conf.task_default_queue
            return bool(connection.default_channel.queue_declare(queue=queue).message_count)


def retry_tomorrow(self: Any) -> str:
    """A body that retries once, a day later."""
    if self.request.retries == 0:
        raise self.retry(countdown=24 * 3600)
    return "done"


def fail() -> None:
    raise ValueError("no good")
