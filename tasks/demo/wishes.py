"""What is to be done about each file, as jobs. May import files."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from jobhandle_celery import Job, JobRecord, Jobs, JobStatus

from .files import File, shown

CHECKSUM, THUMBNAIL = "tasks.checksum", "tasks.thumbnail"

PAGE = 1_000


@dataclass(frozen=True)
class Wish:
    """A job that is wanted, for one state of one file."""

    task: str
    file: File
    key: str
    destination: str | None = None
    """Of a thumbnail."""

    def job(self) -> Job:
        """Return it as it is submitted."""
        given = {} if self.destination is None else {"destination": self.destination}
        return Job(
            task=self.task,
            args=[self.file.path],
            kwargs=given,
            message=shown(self.file.name),
            # While such a job is unfinished, a second submit of it only finds it.
            unique_key=self.key,
            # Reading a file a second time harms nobody: if a worker is lost it may be started again.
            max_attempts=3,
        )


def wishes(files: Iterable[File], thumbnails: Path) -> list[Wish]:
    """Return one checksum for each file, and one thumbnail for each image, into that folder."""
    wanted = []
    for file in files:
        wanted.append(Wish(CHECKSUM, file, file.key("sha256")))
        if file.is_image:
            key = file.key("thumbnail")
            # Not by its name: that may be as long as a name can be.
            small = thumbnails / f"{key.partition(':')[2][:32]}.png"
            wanted.append(Wish(THUMBNAIL, file, key, str(small)))
    return wanted


def known(jobs: Jobs, wanted: Iterable[Wish], statuses: Sequence[JobStatus]) -> dict[Wish, JobRecord]:
    """Find the wishes for which an earlier run has left a job in one of the statuses.

    Reads these rows, newest first, until all wishes are found or there are no more rows.
    """
    missing = {wish.key: wish for wish in wanted}
    found: dict[Wish, JobRecord] = {}
    for task in (CHECKSUM, THUMBNAIL):
        sought = {key: wish for key, wish in missing.items() if wish.task == task}
        before = None
        while sought:
            page = jobs.find(status=statuses, task=task, before=before, limit=PAGE)
            for job in page:
                wish = sought.pop(job.unique_key or "", None)
                if wish is not None and not (job.status is JobStatus.FINISHED and _is_gone(wish)):
                    found[wish] = job
            if len(page) < PAGE:
                break
            before = page[-1].id
    return found


def _is_gone(wish: Wish) -> bool:
    return wish.destination is not None and not Path(wish.destination).exists()
