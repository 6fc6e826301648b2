"""Jobs that run to their end over connections that are cut repeatedly, and the audit of their rows."""

import threading
import uuid
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import pairwise
from typing import Any, TypeVar

from jobhandle_celery.errors import DatabaseUnavailableError
from jobhandle_celery.status import JobStatus
from jobhandle_celery.store import NewJob, Run, Selection, Worker
from tests.rng import rng, scaled
from tests.store.assertions import legal
from tests.store.harness import FAILURE, TASK, Harness, new_job

T = TypeVar("T")

THREADS = 6
JOBS = 10
"""Of each thread, at least."""
CUTS = 20
"""Connections, at least."""
MAX_PAUSE = 0.1
"""Seconds between two cuts of all connections."""


def retry_until_answered(ask: Callable[[], T]) -> T:
    """Call until the database answers, as a worker that writes an outcome."""
    for _ in range(200):
        try:
            return ask()
        except DatabaseUnavailableError:
            continue
    raise AssertionError("the database never answered")


class Client:
    """Brings jobs to their end over connections that are cut."""

    def __init__(self, harness: Harness, number: int) -> None:
        self.store = harness.store
        self.rng = rng(number)
        self.me = Worker(f"w{number}", str(uuid.uuid4()), number)
        self.new: list[NewJob] = []
        self.runs: Counter[str] = Counter()
        """How often each job's body was started, by task id."""
        self.ends: dict[str, JobStatus] = {}
        self.answers = 0
        self._retry(lambda: self.store.leases.renew(self.me))

    def run_job(self) -> None:
        """Bring one job to its end, along a random path."""
        new = new_job(max_attempts=2, unique_key=str(uuid.uuid4()))
        self.new.append(new)
        [submitted] = self._retry(lambda: self.store.inserter.submit([new]))
        assert submitted.fresh
        job_id = submitted.job_id
        if self.rng.random() < 0.7:
            self._retry(lambda: self.store.outbox.mark_queued([new.pending_message(job_id)]))
        if self.rng.random() < 0.1:
            assert (
                self._retry(lambda: self.store.control.cancel(job_id, None, terminate=False))
                is JobStatus.CANCELLED
            )
            self.ends[new.task_id] = JobStatus.CANCELLED
            return
        attempt = 1
        while not self._run(Run(job_id, new.task_id, attempt, str(uuid.uuid4()), self.me)):
            attempt += 1

    def _run(self, run: Run) -> bool:
        """Claim, run and settle; False if there is another attempt to be made."""
        claimed = self._retry(lambda: self.store.runs.claim(run, TASK))
        assert claimed == run, claimed
        self.runs[run.task_id] += 1
        self._retry(lambda: self.store.runs.note_progress(run, 1, 2))
        end = self.rng.choice(("finish", "finish", "fail", "retry", "stop", "by hand"))
        if run.attempt == 3 and end == "retry":
            end = "finish"
        match end:
            case "finish":
                assert self._retry(lambda: self.store.runs.finish(run, "1"))
                status = JobStatus.FINISHED
            case "fail":
                assert self._retry(lambda: self.store.runs.fail(run, FAILURE))
                status = JobStatus.ERROR
            case "stop":
                assert (
                    self._retry(lambda: self.store.control.cancel(run.job_id, None, terminate=True))
                    is JobStatus.RUNNING
                )
                assert self._retry(lambda: self.store.runs.stop(run, ""))
                status = JobStatus.CANCELLED
            case "by hand":
                token = str(uuid.uuid4())
                answer = self._retry(
                    lambda: self.store.control.set_status(run.job_id, JobStatus.FINISHED, token, None, "done")
                )
                assert answer == (JobStatus.RUNNING, True)
                assert not self._retry(lambda: self.store.runs.finish(run, "1"))
                status = JobStatus.FINISHED
            case _:
                assert (
                    self._retry(lambda: self.store.runs.retry(run, "{}", None, None, "again"))
                    is JobStatus.REQUEUED
                )
                return False
        self.ends[run.task_id] = status
        return True

    def _retry(self, ask: Callable[[], T]) -> T:
        answer = retry_until_answered(ask)
        self.answers += 1
        return answer


def audit(harness: Harness, clients: list[Client]) -> None:
    rows = {row["task_id"]: row for row in rows_of(harness)}
    assert set(rows) == {new.task_id for client in clients for new in client.new}
    for client in clients:
        for task_id, end in client.ends.items():
            row, runs = rows[task_id], client.runs[task_id]
            assert (row["status_id"], row["attempt"]) == (end, runs)
            assert (row["unique_hash"], row["worker_uid"]) == (None, None)
            assert row["due_at"] is None or end is JobStatus.CANCELLED
            events = harness.events(row["id"])
            asked_to_stop = runs > 0 and end is JobStatus.CANCELLED
            assert all(
                legal(before, after, asked_to_stop=asked_to_stop) for before, after in pairwise(events)
            ), events
            assert events[0] is JobStatus.SUBMITTED
            assert events[-1] is end
            assert events.count(JobStatus.RUNNING) == runs + asked_to_stop, events
            assert sum(event.final for event in events) == 1, events


def rows_of(harness: Harness) -> list[dict[str, Any]]:
    return [harness.row(job.id) for job in harness.store.pages.find(Selection(), None, 10**6)]


@contextmanager
def cutting_connections(
    cut_all: Callable[[], int], answers: Callable[[], int]
) -> Iterator[Callable[[], int]]:
    """Cut all connections repeatedly; yield a function that returns the number of cuts.

    Each cut waits for an answer since the last one; otherwise a slow machine would make no progress.
    """
    pause, over = rng("storm"), threading.Event()
    cut = 0

    def cut_repeatedly() -> None:
        nonlocal cut
        answered = 0
        while not over.wait(pause.uniform(0, MAX_PAUSE)):
            if answers() > answered:
                answered = answers()
                cut += cut_all()

    with ThreadPoolExecutor(1) as pool:
        cutting = pool.submit(cut_repeatedly)
        try:
            yield lambda: cut
        finally:
            over.set()
        cutting.result(timeout=30)


def run_jobs_under_cuts(harness: Harness, cut_all: Callable[[], int], beside: Harness) -> None:
    """Run many jobs over `harness` under cuts, then check all their rows over another connection."""
    clients = [Client(harness, number) for number in range(THREADS)]

    def answers() -> int:
        return sum(client.answers for client in clients)

    with cutting_connections(cut_all, answers) as cuts, ThreadPoolExecutor(THREADS) as pool:

        def run_jobs(client: Client) -> None:
            while len(client.ends) < scaled(JOBS) or cuts() < CUTS:
                client.run_job()

        for done in [pool.submit(run_jobs, client) for client in clients]:
            done.result()
    audit(beside, clients)
