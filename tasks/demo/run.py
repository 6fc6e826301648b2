"""One run: submits the planned jobs in batches, and polls them until all have ended."""

from collections import Counter, deque
from collections.abc import Iterable, Iterator

from jobhandle_celery import JobRecord, Jobs, JobStatus

from .plan import CHECKSUM, PAGE_SIZE, PlannedJob

MAX_UNFINISHED = 400
"""Unfinished jobs at a time; each poll reads their rows."""

BATCH_SIZE = 100
"""Jobs submitted in one transaction."""

UNFINISHED = [status for status in JobStatus if not status.final]


class Run:
    """The jobs of one run, by their state."""

    def __init__(
        self,
        jobs: Jobs,
        plan: Iterable[PlannedJob],
        finished: dict[PlannedJob, JobRecord],
        unfinished: dict[PlannedJob, JobRecord],
    ) -> None:
        """Continue with the jobs that earlier runs have left finished or unfinished."""
        self._jobs = jobs
        self.finished_earlier = len(finished)
        self._submitted = {job.id: planned for planned, job in unfinished.items() if planned not in finished}
        self._to_submit = deque(job for job in plan if job not in finished and job not in unfinished)
        self.ended = dict(finished)
        self.running: list[JobRecord] = []
        """As of the last poll, newest first."""
        self._unfinished: list[JobRecord] = []
        self.total = self.left
        """The jobs of this run."""

    @property
    def is_over(self) -> bool:
        """True when all jobs have ended."""
        return not self.left

    @property
    def left(self) -> int:
        """The number of jobs that have not ended."""
        return len(self._to_submit) + len(self._submitted)

    @property
    def done(self) -> float:
        """The number of jobs of this run that have ended, and the fractions of those that run."""
        fractions = sum(job.progress.fraction or 0.0 for job in self.running if job.progress)
        return self.total - self.left + fractions

    def step(self) -> list[JobRecord]:
        """Submit a batch if there is room, poll, and return the jobs that have ended since the last poll."""
        while self._to_submit and len(self._submitted) + BATCH_SIZE <= MAX_UNFINISHED:
            batch = [self._to_submit.popleft() for _ in range(min(BATCH_SIZE, len(self._to_submit)))]
            ids = self._jobs.submit_many([planned.job() for planned in batch])
            self._submitted.update(zip(ids, batch, strict=True))
        return self.poll()

    def poll(self) -> list[JobRecord]:
        """Read the unfinished jobs; return those that have ended since the last poll."""
        jobs = list(_find(self._jobs, self._submitted))
        self._unfinished = [job for job in jobs if not job.status.final]
        self.running = [job for job in jobs if job.status is JobStatus.RUNNING]
        ended = [job for job in jobs if job.status.final]
        for job in ended:
            self.ended[self._submitted.pop(job.id)] = job
        return ended

    def count(self) -> Counter[tuple[str, str]]:
        """Return the number of jobs by status and task, with those of earlier runs."""
        counts = Counter((str(job.status), job.task) for job in (*self.ended.values(), *self._unfinished))
        counts.update(("not submitted", planned.task) for planned in self._to_submit)
        return counts

    def digests(self) -> list[tuple[str, str]]:
        """Return the digests and the names of their files, sorted by path."""
        return [
            (job.result["digest"], planned.file.name)
            for planned, job in sorted(self.ended.items(), key=lambda item: item[0].file.path)
            if planned.task == CHECKSUM and job.status is JobStatus.FINISHED
        ]

    def failed(self) -> list[tuple[PlannedJob, JobRecord]]:
        """Return the jobs that ended in Error or Cancelled."""
        return [(planned, job) for planned, job in self.ended.items() if job.status is not JobStatus.FINISHED]


def _find(jobs: Jobs, ids: Iterable[int]) -> Iterator[JobRecord]:
    """Read jobs by their ids, newest first."""
    newest_first = sorted(ids, reverse=True)
    for start in range(0, len(newest_first), PAGE_SIZE):
        yield from jobs.find(ids=newest_first[start : start + PAGE_SIZE], limit=PAGE_SIZE)
