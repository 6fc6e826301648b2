"""The run itself: submits what is wanted, a few hundred at a time, and watches it. May import wishes."""

from collections import Counter, deque
from collections.abc import Iterable, Iterator

from jobhandle_celery import JobRecord, Jobs, JobStatus

from .wishes import CHECKSUM, PAGE, Wish

AT_ONCE = 400
"""Unfinished jobs at most: so many rows are read at each look, and so many messages wait in the broker."""

BATCH = 100
"""Jobs submitted in one transaction."""

UNFINISHED = [status for status in JobStatus if not status.final]


class Run:
    """What is still to be submitted, what is on its way, and what has ended."""

    def __init__(
        self,
        jobs: Jobs,
        wanted: Iterable[Wish],
        finished: dict[Wish, JobRecord],
        unfinished: dict[Wish, JobRecord],
    ) -> None:
        """Go on from what earlier runs have finished, and from what they have left unfinished."""
        self._jobs = jobs
        self.earlier = len(finished)
        """How many an earlier run had finished."""
        self._on_the_way = {job.id: wish for wish, job in unfinished.items() if wish not in finished}
        self._to_submit = deque(wish for wish in wanted if wish not in finished and wish not in unfinished)
        self.ended = dict(finished)
        self.running: list[JobRecord] = []
        """As of the latest look, the newest first."""
        self._unfinished: list[JobRecord] = []
        self.total = self.left
        """Jobs of this run."""

    @property
    def is_over(self) -> bool:
        """True when every job has ended."""
        return not self._to_submit and not self._on_the_way

    @property
    def left(self) -> int:
        """How many have not ended."""
        return len(self._to_submit) + len(self._on_the_way)

    @property
    def done(self) -> float:
        """How many jobs of this run have ended; those that are running count with the part they have done."""
        parts = sum(job.progress.fraction or 0.0 for job in self.running if job.progress)
        return self.total - self.left + parts

    def step(self) -> list[JobRecord]:
        """Submit what there is room for, take a look, and return what has ended since the last one."""
        self._submit()
        return self.look()

    def look(self) -> list[JobRecord]:
        """Take a look, and return what has ended since the last one."""
        jobs = list(_rows(self._jobs, self._on_the_way))
        self._unfinished = [job for job in jobs if not _is_over(job)]
        self.running = [job for job in jobs if job.status is JobStatus.RUNNING]
        ended = [job for job in jobs if _is_over(job)]
        for job in ended:
            self.ended[self._on_the_way.pop(job.id)] = job
        return ended

    def _submit(self) -> None:
        while self._to_submit and len(self._on_the_way) + BATCH <= AT_ONCE:
            batch = [self._to_submit.popleft() for _ in range(min(BATCH, len(self._to_submit)))]
            ids = self._jobs.submit_many([wish.job() for wish in batch])
            self._on_the_way.update(zip(ids, batch, strict=True))

    def count(self) -> Counter[tuple[str, str]]:
        """Return how many jobs there are by status and task, those of earlier runs among them."""
        known = [*self.ended.values(), *self._unfinished]
        counts = Counter((str(job.status), job.task) for job in known)
        counts.update(("(not submitted)", wish.task) for wish in self._to_submit)
        return counts

    def digests(self) -> list[tuple[str, str]]:
        """Return the digests that there are, with the names of their files, in the order of these."""
        return [
            (job.result["digest"], wish.file.name)
            for wish, job in sorted(self.ended.items(), key=lambda item: item[0].file.path)
            if wish.task == CHECKSUM and job.status is JobStatus.FINISHED
        ]

    def failed(self) -> list[tuple[Wish, JobRecord]]:
        """Return what ended otherwise than Finished."""
        return [(wish, job) for wish, job in self.ended.items() if job.status is not JobStatus.FINISHED]


def _is_over(job: JobRecord) -> bool:
    return job.status is not None and job.status.final


def _rows(jobs: Jobs, ids: Iterable[int]) -> Iterator[JobRecord]:
    """Read these jobs, the newest first."""
    newest_first = sorted(ids, reverse=True)
    for start in range(0, len(newest_first), PAGE):
        yield from jobs.find(ids=newest_first[start : start + PAGE], limit=PAGE)
