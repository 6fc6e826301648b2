"""One job more, to show that a cancel holds."""

from jobhandle_celery import Job, Jobs, JobStatus

from .wishes import CHECKSUM


class Demonstration:
    """A job that is cancelled after its message has gone to the broker, and before any worker is there.

    The worker that then starts is handed that message first of all, and must not run the body.
    """

    def __init__(self, jobs: Jobs, path: str) -> None:
        self._handle = jobs.handle()
        self._handle.submit(
            Job(task=CHECKSUM, args=[path], message="demonstration: cancelled before its start")
        )
        self._answer = self._handle.cancel_job()

    @property
    def status(self) -> JobStatus:
        """What it is now."""
        return self._handle.job_status()

    @property
    def held(self) -> bool:
        """True if it was never started; or if the cancel came too late, and said so."""
        job = self._handle.get_job()
        if self._answer is not JobStatus.CANCELLED:
            return True
        return job.status is JobStatus.CANCELLED and job.started is None

    def sentence(self) -> str:
        """Return what became of it."""
        job = self._handle.get_job()
        started = "never started" if job.started is None else f"started {job.started}"
        if self._answer is not JobStatus.CANCELLED:
            return f"job {job.id} was {self._answer} already when it was cancelled: another worker was there"
        return f"job {job.id} was cancelled before its start; it is {job.status}, {started}"
