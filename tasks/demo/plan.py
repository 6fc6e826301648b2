"""The jobs that the files of a folder need."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from jobhandle_celery import Job, JobRecord, Jobs, JobStatus

from .files import File, printable

CHECKSUM, THUMBNAIL = "tasks.checksum", "tasks.thumbnail"

PAGE_SIZE = 1_000


@dataclass(frozen=True)
class PlannedJob:
    """A job for one state of one file."""

    task: str
    file: File
    unique_key: str
    destination: str | None = None
    """Of a thumbnail."""

    def job(self) -> Job:
        """Return the job to submit."""
        return Job(
            task=self.task,
            args=[self.file.path],
            kwargs={} if self.destination is None else {"destination": self.destination},
            message=printable(self.file.name),
            # While an earlier job with this key is unfinished, submit returns that job's id.
            unique_key=self.unique_key,
            # Both tasks may be repeated: a job whose worker is lost starts again.
            max_attempts=3,
        )

    @property
    def output_exists(self) -> bool:
        """False if the thumbnail was deleted."""
        return self.destination is None or Path(self.destination).exists()


def plan_jobs(files: Iterable[File], thumbnails: Path) -> list[PlannedJob]:
    """Return a checksum of each file, and a thumbnail of each image, to be written to a folder."""
    plan = []
    for file in files:
        plan.append(PlannedJob(CHECKSUM, file, file.key("sha256")))
        if file.is_image:
            key = file.key("thumbnail")
            # Not the file's name, which may already have the maximum length.
            destination = thumbnails / f"{key.partition(':')[2][:32]}.png"
            plan.append(PlannedJob(THUMBNAIL, file, key, str(destination)))
    return plan


def find_earlier_jobs(
    jobs: Jobs, plan: Iterable[PlannedJob], statuses: Sequence[JobStatus]
) -> dict[PlannedJob, JobRecord]:
    """Find the planned jobs that an earlier run has left in one of these statuses.

    Reads the jobs in these statuses, newest first, until all planned jobs are found.
    """
    found: dict[PlannedJob, JobRecord] = {}
    for task in (CHECKSUM, THUMBNAIL):
        missing = {planned.unique_key: planned for planned in plan if planned.task == task}
        before = None
        while missing:
            page = jobs.find(status=statuses, task=task, before=before, limit=PAGE_SIZE)
            for job in page:
                planned = missing.pop(job.unique_key or "", None)
                if planned and (job.status is not JobStatus.FINISHED or planned.output_exists):
                    found[planned] = job
            if len(page) < PAGE_SIZE:
                break
            before = page[-1].id
    return found
