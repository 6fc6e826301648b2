"""Results of jobs in any status."""

from typing import Any

from jobhandle_celery import JobResult, JobStatus
from tests.job_factory import JobFactory


def result_in(status: str, factory: JobFactory, app: Any) -> Any:
    """The result of a job in that status."""
    job = factory.job_in(JobStatus(status)).get_job()
    return JobResult(job.task_id, app=app, job_id=job.id)
