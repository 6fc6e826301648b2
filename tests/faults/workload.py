"""Some hundred jobs on one cluster, in all states, and the audit of every row at the end.

The bodies (tests/faults/bodies.py) write marks to a file that the library does not know. The audit compares
that file with the rows.
"""

import math
import random
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from itertools import count, pairwise
from typing import Any

from jobhandle_celery import InvalidTransitionError, Job, JobHandle, JobRecord, JobStatus
from jobhandle_celery.models import Event
from jobhandle_celery.status import FINAL, UNFINISHED
from tests.rng import rng, scaled, stretched
from tests.store.assertions import legal
from tests.support import eventually
from tests.worker.cluster import Cluster
from tests.workers import WorkerProcess

BODIES = "tests.faults.bodies:app"
BATCH = 12
"""Jobs that are submitted together."""


@dataclass
class BodyTrace:
    """The marks of one attempt's body."""

    attempt: int
    pid: int
    marks: list[tuple[str, float]] = field(default_factory=list)

    @property
    def begun(self) -> float:
        return self.marks[0][1]

    @property
    def last_seen(self) -> float:
        return self.marks[-1][1]

    @property
    def ended(self) -> bool:
        return self.marks[-1][0] == "ended"


class Workload:
    """The jobs that one test submits on one cluster, and the answers that it got."""

    def __init__(self, cluster: Cluster) -> None:
        self.cluster = cluster
        self.rng = rng()
        self.path = cluster.new_file()
        self.ids: list[int] = []
        self.prevented: dict[int, float] = {}
        """Jobs whose `cancel_job()` answered Cancelled, and the time of its return."""
        self.cancelled_periods: list[tuple[int, float, float]] = []
        """Resubmitted after a cancel: id, start and end of the time in which no body may start."""
        self.released: dict[int, float] = {}
        """Held jobs, and the time before their release."""
        self._batches = count()
        self._lock = threading.Lock()

    # Operations on jobs.

    def job(self, task: str, *args: Any, **fields: Any) -> Job:
        """Return a job of that task in `tests/faults/bodies.py`; its first argument is the file."""
        return Job(task=f"worker.{task}", args=(str(self.path), *args), **fields)

    def submit(self, jobs: Sequence[Job]) -> list[int]:
        submitted = self.cluster.jobs.submit_many(jobs)
        with self._lock:
            self.ids += submitted
        return submitted

    def submit_mixed(self, count: int, seconds: float = 0.05, **fields: Any) -> list[int]:
        """Submit jobs of every kind: they work, fail, ask for retries, listen; with and without late acks."""
        return self.submit(self._mixed(count, seconds, fields))

    def _mixed(self, count: int, seconds: float, fields: Mapping[str, Any]) -> list[Job]:
        kinds: list[tuple[str, tuple[Any, ...]]] = [
            ("work", (seconds,)),
            ("work_late", (seconds,)),
            ("listen", (seconds,)),
            ("may_be_killed", (seconds,)),
            ("fail", (seconds,)),
            ("again", (seconds, 2, 0)),
            ("again", (seconds, 1, 0.3)),
        ]
        jobs = []
        for _ in range(count):
            task, args = self.rng.choice(kinds)
            jobs.append(self.job(task, *args, **fields))
        return jobs

    def submit_in_all_states(self, seconds: float) -> list[int]:
        """Submit a batch of jobs of every kind: most start at once, some are held, some expire.

        The batch is one transaction; its number is the `meta` of its jobs.
        """
        soon = [timedelta(seconds=self.rng.uniform(0.1, 1)) for _ in range(3)]
        when: list[dict[str, Any]] = [
            {"scheduled_for": soon[0]},
            {"expires": soon[1]},
            {"status": JobStatus.WAITING},
            {"status": JobStatus.WAITING, "expires": soon[2]},
        ]
        when += [{}] * (BATCH - len(when))
        jobs = self._mixed(BATCH, seconds, {"meta": next(self._batches)})
        return self.submit([replace(job, **fields) for job, fields in zip(jobs, when, strict=True)])

    def act_at_random(self) -> None:
        """Submit a batch, cancel a job or two, release held ones, resubmit ended ones."""
        new = self.submit_in_all_states(self.rng.uniform(0, 0.5))
        self.cancel(self.rng.choice(new))
        self.cancel(self.rng.choice(self.ids))
        for job_id in self.held():
            if self.rng.random() < 0.3:
                self.release(job_id)
        ended = [job.id for job in self.cluster.jobs.find(status=FINAL) if job.id]
        for job_id in self.rng.sample(ended, min(len(ended), 2)):
            self.resubmit(job_id)

    def cancel(self, job_id: int, *, terminate: bool = False) -> JobStatus:
        status = self.cluster.jobs.attach(job_id).cancel_job(terminate=terminate)
        if status is JobStatus.CANCELLED:
            self.prevented.setdefault(job_id, time.time())
        return status

    def held(self) -> list[int]:
        """Return the jobs that wait only for their release."""
        waiting = self.cluster.jobs.find(status=JobStatus.WAITING, limit=10_000)
        return [job.id for job in waiting if job.id and job.scheduled_for is None and job.expires is None]

    def release(self, job_id: int) -> None:
        """Release a held job, unless it was cancelled just before."""
        self.released.setdefault(job_id, time.time())
        with suppress(InvalidTransitionError):
            self.handle(job_id).release_job()

    def resubmit(self, job_id: int) -> None:
        """Resubmit a job, if it has ended."""
        if job_id in self.prevented:
            self.cancelled_periods.append((job_id, self.prevented.pop(job_id), time.time()))
        with suppress(InvalidTransitionError):
            self.handle(job_id).resubmit_job()

    def adopt_all_jobs(self) -> None:
        """Adopt every job of the cluster, also those of submits whose answer was lost."""
        known, self.ids = self.ids, []
        while page := self.cluster.jobs.find(before=self.ids[-1] if self.ids else None, limit=10_000):
            self.ids += [job.id for job in page]
        assert set(known) <= set(self.ids), "a job is gone whose submit was answered"

    def handle(self, job_id: int) -> JobHandle:
        return self.cluster.jobs.attach(job_id)

    # Waiting.

    def rows(self) -> dict[int, JobRecord]:
        """Read these jobs from the database."""
        found: dict[int, JobRecord] = {}
        for page in self._pages():
            found.update({job.id: job for job in self.cluster.jobs.find(ids=page, limit=10_000) if job.id})
        assert set(found) == set(self.ids)
        return found

    def _pages(self) -> Iterator[list[int]]:
        for start in range(0, len(self.ids), 5_000):
            yield self.ids[start : start + 5_000]

    def unfinished(self) -> list[tuple[int | None, JobStatus | None, str]]:
        """Return some of the jobs that are not final."""
        return [
            (job.id, job.status, job.message)
            for page in self._pages()
            for job in self.cluster.jobs.find(ids=page, status=UNFINISHED, limit=5)
        ]

    def wait_until_final(self, timeout: float = 600) -> None:
        """Wait until every job is final."""
        try:
            eventually(lambda: not self.unfinished(), stretched(timeout))
        except AssertionError as error:
            raise AssertionError(f"unfinished: {self.unfinished()}; {error}") from None

    def count_started(self) -> int:
        return sum(len(body_traces) for body_traces in self.body_traces().values())

    # Results.

    def body_traces(self) -> dict[int, list[BodyTrace]]:
        """Return the marks by job; each job's bodies by their start."""
        body_traces: dict[int, dict[tuple[int, int], BodyTrace]] = defaultdict(dict)
        for line in self.path.read_text().splitlines() if self.path.exists() else []:
            what, job_id, attempt, pid, moment = line.split()
            key = int(attempt), int(pid)
            if what == "begun":
                assert key not in body_traces[int(job_id)], f"attempt {key} of job {job_id} begun twice"
                body_traces[int(job_id)][key] = BodyTrace(int(attempt), int(pid))
            body_traces[int(job_id)][key].marks.append((what, float(moment)))
        return {
            job_id: sorted(by_key.values(), key=lambda trace: trace.begun)
            for job_id, by_key in body_traces.items()
        }

    def audit(
        self,
        *,
        lost_before_body: bool = False,
        suspended: Mapping[int, float] | None = None,
        events_of: int | None = None,
    ) -> dict[int, JobRecord]:
        """Compare every row with the marks of its bodies; return the rows.

        Args:
            lost_before_body: Attempts may have been claimed whose body wrote nothing: their process was
                killed in between.
            suspended: Processes that were stopped for longer than a lease, and the moment before each was
                woken: what they had claimed by then may have begun, or gone on, beside its successors.
            events_of: Check the events of this many jobs only; None: of all.
        """
        rows, body_traces = self.rows(), self.body_traces()
        assert set(body_traces) <= set(rows)
        for job_id, row in rows.items():
            traces = self._without_late(job_id, body_traces.get(job_id, []), suspended or {})
            self._audit(row, traces, lost_before_body, suspended or {})
        self._audit_cancelled_periods(body_traces)
        looked_at = self.ids if events_of is None else self.rng.sample(self.ids, events_of)
        for job_id in looked_at:
            self._audit_events(self.cluster.jobs.events(job_id), rows[job_id])
        return rows

    def _without_late(
        self, job_id: int, body_traces: list[BodyTrace], suspended: Mapping[int, float]
    ) -> list[BodyTrace]:
        """Leave out bodies that had been claimed before their process was stopped, and began once it woke."""
        late = [trace for trace in body_traces if trace.begun > suspended.get(trace.pid, math.inf)]
        if not late:
            return body_traces
        claimed = {
            event.attempt: event.at.timestamp()
            for event in self.cluster.jobs.events(job_id)
            if event.status is JobStatus.RUNNING
        }
        late = [trace for trace in late if claimed[trace.attempt] <= suspended[trace.pid]]
        return [trace for trace in body_traces if trace not in late]

    def _audit(
        self,
        row: JobRecord,
        body_traces: list[BodyTrace],
        lost_before_body: bool,
        suspended: Mapping[int, float],
    ) -> None:
        details = f"job {row.id}: {row}; its bodies: {body_traces}"
        assert row.status.final, details
        status = row.status
        assert row.finished is not None, details
        attempts = [trace.attempt for trace in body_traces]
        assert attempts == sorted(set(attempts)), f"an attempt was begun twice, or late; {details}"
        assert all(
            before.last_seen <= after.begun or before.begun <= suspended.get(before.pid, 0)
            for before, after in pairwise(body_traces)
        ), f"two bodies at once; {details}"
        assert row.attempt is not None
        if lost_before_body:
            assert len(body_traces) <= row.attempt, details
        else:
            assert len(body_traces) == row.attempt, details
        if status is JobStatus.FINISHED:
            assert body_traces, details
            assert body_traces[-1].ended, details
            assert body_traces[-1].attempt == row.attempt, details
        if row.id in self.prevented:
            assert not body_traces or body_traces[-1].begun <= self.prevented[row.id], (
                f"started after its cancel; {details}"
            )
            assert status is JobStatus.CANCELLED, details
        if row.id in self.released and body_traces:
            assert body_traces[0].begun >= self.released[row.id], f"started before its release; {details}"

    def _audit_cancelled_periods(self, body_traces: Mapping[int, list[BodyTrace]]) -> None:
        for job_id, since, until in self.cancelled_periods:
            begun = [trace.begun for trace in body_traces.get(job_id, [])]
            assert not any(since < moment < until for moment in begun), f"job {job_id} was cancelled: {begun}"

    @staticmethod
    def _audit_events(events: Sequence[Event], row: JobRecord) -> None:
        went = [event.status for event in events]
        details = f"job {row.id}: {row}; its events: {events}"
        assert all(
            legal(before.status, after.status, asked_to_stop=after.attempt == before.attempt)
            for before, after in pairwise(events)
        ), f"{went}; {details}"
        assert went[0] in (JobStatus.SUBMITTED, JobStatus.WAITING), details
        assert went[-1] is row.status, details
        assert sum(status.final for status in went) == 1 + went.count(JobStatus.RESUBMITTED), details
        moments = [event.at for event in events]
        assert moments == sorted(moments), details
        if isinstance(row.scheduled_for, datetime):
            started = [event.at for event in events if event.status is JobStatus.RUNNING]
            assert all(at >= row.scheduled_for for at in started), f"started before its time; {details}"
        if events[-1].message == "expired before it was started":
            assert row.attempt == 0, details
            assert isinstance(row.expires, datetime), details
            assert events[-1].at >= row.expires, details


class WorkerSupervisor:
    """Keeps a number of workers running, however often they are killed."""

    def __init__(self, start: Callable[[], WorkerProcess], count: int) -> None:
        self._start = start
        self.workers = [start() for _ in range(count)]
        for worker in self.workers:
            worker.wait_until_ready()

    def replace(self, worker: WorkerProcess) -> None:
        """Start a worker in place of one that has ended."""
        self.workers[self.workers.index(worker)] = self._start()

    def log(self) -> str:
        return "\n".join(worker.log for worker in self.workers)


@contextmanager
def repeating_fault(
    inject: Callable[[], None], pause: tuple[float, float], rng: random.Random
) -> Iterator[None]:
    """Inject a fault repeatedly, with random pauses (seconds); raise its error at the end."""
    over = threading.Event()
    failed: list[BaseException] = []

    def repeat() -> None:
        try:
            while not over.wait(rng.uniform(*pause)):
                inject()
        except BaseException as error:
            failed.append(error)

    thread = threading.Thread(target=repeat, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join(60)
    if failed:
        raise failed[0]
    assert not thread.is_alive()


def inject_in_each_way(
    ways: Sequence[Callable[[], None]],
    times: float,
    pause: tuple[float, float],
    rng: random.Random,
    meanwhile: Callable[[], object],
) -> None:
    """Inject faults of each kind in random order, as many as the scale says; call `meanwhile` throughout."""
    left = [ways[number % len(ways)] for number in range(scaled(times))]
    rng.shuffle(left)
    over = threading.Event()

    def inject() -> None:
        if left:
            way = left.pop()
            print(f"strike: {way.__name__}")
            way()
        else:
            over.set()

    with repeating_fault(inject, pause, rng):
        while not over.wait(0.5):
            meanwhile()


def hold(seconds: float) -> None:
    """Keep a fault active for `seconds`."""
    threading.Event().wait(seconds)
