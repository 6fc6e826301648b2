"""An extra job that shows that a cancel holds."""

from jobhandle_celery import Job, Jobs, JobStatus

from .plan import CHECKSUM


class CancelledJob:
    """A job that is cancelled after its message was published and before a worker starts.

    The worker receives that message first, and must not run the job.
    """

    def __init__(self, jobs: Jobs, path: str) -> None:
        self._handle = jobs.handle()
        self.job_id = self._handle.submit(
            Job(task=CHECKSUM, args=[path], message="demonstration: cancelled before its start")
        )
        self._answer = self._handle.cancel_job()

    @property
    def held(self) -> bool:
        """True if the job never started, or if `cancel_job` reported that it was too late."""
        job = self._handle.get_job()
        if self._answer is not JobStatus.CANCELLED:
            return True
        return job.status is JobStatus.CANCELLED and job.started is None

    def describe(self) -> str:
        """Return what happened to the job."""
        job = self._handle.get_job()
        if self._answer is not JobStatus.CANCELLED:
            return f"job {job.id} was {self._answer} when it was cancelled: another worker had claimed it"
        if job.started is None:
            return f"job {job.id} was cancelled before the worker started; it is {job.status} and never ran"
        return f"job {job.id} was cancelled, but started at {job.started}: it is {job.status}"
