"""`CompletionPoller`: one thread polls for all waits of the process."""

import math
import threading
import time
from collections.abc import Collection
from concurrent.futures import Future, ThreadPoolExecutor
from datetime import timedelta
from types import SimpleNamespace
from typing import Any

import pytest

from jobhandle_celery import Job, JobStatus, Progress, UnknownJobError, WaitTimeoutError, completion
from jobhandle_celery.completion import CompletionPoller, WaitCondition, WaitResult
from jobhandle_celery.errors import DatabaseUnavailableError
from jobhandle_celery.store import JobOutcome, JobState
from jobhandle_celery.store.snapshots import FinalJob
from tests.apps import make_app
from tests.support import eventually, prune_ended

HELD = Job(task="tests.add", args=[1, 2], status=JobStatus.WAITING)


class Rows:
    """Stands in for a store's queries: the unfinished jobs, and the polls."""

    def __init__(self, unfinished: Collection[int]) -> None:
        self.left = set(unfinished)
        self.progress: dict[int, Progress] = {}
        self.polls: list[tuple[int, set[int]]] = []
        self.read: list[int] = []
        self.fails = False

    def final(self, job_ids: Collection[int]) -> dict[int, FinalJob | None]:
        self.polls.append((threading.get_ident(), set(job_ids)))
        if self.fails:
            raise DatabaseUnavailableError("away")
        return {job_id: FinalJob(JobStatus.FINISHED, None) for job_id in set(job_ids) - self.left}

    def states(self, job_ids: Collection[int]) -> dict[int, JobState]:
        ended = self.final(job_ids)
        return {
            job_id: JobState(
                JobStatus.FINISHED if job_id in ended else JobStatus.RUNNING, "", self.progress.get(job_id)
            )
            for job_id in job_ids
        }

    def outcomes(self, job_ids: Collection[int]) -> dict[int, JobOutcome]:
        self.read.append(len(job_ids))
        return {job_id: JobOutcome(job_id, JobStatus.FINISHED, None, "", job_id, None) for job_id in job_ids}


def poller_of(rows: Rows) -> CompletionPoller:
    store: Any = SimpleNamespace(queries=rows)
    return CompletionPoller(store)


def wait_for(poller: CompletionPoller, job_id: int, deadline: float = math.inf) -> bool:
    found = poller.wait(WaitCondition(job_id, deadline))
    return found is not None and found.status is JobStatus.FINISHED


def test_one_poll_covers_all_waits_and_ends_each() -> None:
    rows = Rows(range(100))
    poller = poller_of(rows)
    pool = ThreadPoolExecutor(100)
    waits = [pool.submit(wait_for, poller, job_id) for job_id in range(100)]
    eventually(lambda: len(poller._waits) == 100, message="all wait")
    for job_id in range(100):
        rows.left.discard(job_id)
    pool.shutdown()
    assert all(wait.result() for wait in waits)
    together = [ids for _, ids in rows.polls if len(ids) > 1]
    assert together, "each wait polled for itself"
    assert len({thread for thread, ids in rows.polls if len(ids) > 1}) == 1
    assert len(rows.polls) < 100 * 10


def test_thread_polls_on_for_the_other_waits_and_then_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(completion, "IDLE_TIMEOUT", 0.1)
    rows = Rows({1, 2})
    poller = poller_of(rows)
    with ThreadPoolExecutor() as pool:
        first = pool.submit(wait_for, poller, 1)
        eventually(lambda: bool(rows.polls), message="it polls for the first")
        second = pool.submit(wait_for, poller, 2)
        eventually(lambda: {1, 2} in [ids for _, ids in rows.polls], message="it polls for both")
        rows.left.discard(1)
        assert first.result(10)
        eventually(lambda: rows.polls[-1][1] == {2}, message="it polls for the second")
        rows.left.discard(2)
        assert second.result(10)
    assert not poller._waits
    eventually(lambda: poller._thread is None, message="it ends")
    assert wait_for(poller, 1), "and another begins"


def test_wait_ends_at_its_deadline() -> None:
    rows = Rows({1, 2})
    poller = poller_of(rows)
    with ThreadPoolExecutor() as pool:
        longer = pool.submit(wait_for, poller, 1)
        eventually(lambda: bool(rows.polls), message="the longer wait is polled for")
        assert not wait_for(poller, 2, time.monotonic() + 0.05)
        assert not wait_for(poller, 2, time.monotonic() - 1)
        rows.left.clear()
        assert longer.result(10)
    rows.left.add(3)
    assert not wait_for(poller, 3, time.monotonic() - 1)


def test_outage_ends_every_wait_and_the_next_is_polled_for() -> None:
    rows = Rows({1, 2})
    poller = poller_of(rows)
    with ThreadPoolExecutor() as pool:
        waiting = [pool.submit(wait_for, poller, 1), pool.submit(wait_for, poller, 2)]
        eventually(lambda: {1, 2} in [ids for _, ids in rows.polls], message="both are polled for")
        rows.fails = True
        errors = [wait.exception(10) for wait in waiting]
    assert [type(error) for error in errors] == [DatabaseUnavailableError] * 2
    assert errors[0] is not errors[1], "each is raised in a thread of its own"
    assert not poller._waits
    rows.fails = False
    rows.left.clear()
    assert wait_for(poller, 1)


def test_wait_for_an_ended_job_needs_no_thread() -> None:
    poller = poller_of(Rows({2}))
    assert wait_for(poller, 1)
    assert not wait_for(poller, 2, time.monotonic())
    assert poller._thread is None


def test_pause_of_a_watch_ends_at_any_change() -> None:
    rows = Rows({1, 2})
    poller = poller_of(rows)
    seen = JobState(JobStatus.RUNNING, "", None)
    with ThreadPoolExecutor() as pool:
        watch, wait = pool.submit(poller.wait, WaitCondition(1, seen=seen)), pool.submit(wait_for, poller, 1)
        eventually(lambda: len(rows.polls) > 3, message="nothing has changed")
        rows.progress[1] = Progress(1, 2)
        watch.result(10)
        assert not wait.done(), "the job is not final"
        rows.left.clear()
        assert wait.result(10)


def test_wait_sees_every_way_to_end(database_url: str) -> None:
    app = make_app("memory://", database_url)
    jobs = app.jobs  # type: ignore[attr-defined]  # set by Jobs
    held = [jobs.handle() for _ in range(3)]
    for handle in held:
        handle.submit(HELD)
    finished, cancelled, gone = held
    with ThreadPoolExecutor() as pool:
        waiting = [pool.submit(jobs.attach(handle.job_id).wait, 30) for handle in held]
        eventually(lambda: len(jobs._runtime.completion._waits) == 3, message="all wait")
        finished.set_status("Running")
        finished.set_status("Finished")
        cancelled.cancel_job()
        assert [waiting[0].result(30), waiting[1].result(30)] == ["Finished", "Cancelled"]
        gone.cancel_job()
        assert waiting[2].result(30) == "Cancelled"
        prune_ended(jobs)
        with pytest.raises(UnknownJobError):
            gone.wait(30)
    with pytest.raises(WaitTimeoutError, match=r"is Waiting after 0\.05 s"):
        jobs.attach(jobs.submit_many([HELD])[0]).wait(0.05)
    jobs.close()


def test_wait_with_the_longest_timeout_ends_with_its_job() -> None:
    """A lock takes no longer timeout than `threading.TIMEOUT_MAX`."""
    rows = Rows([1, 2])
    poller = poller_of(rows)
    with ThreadPoolExecutor(2) as pool:
        waits = [
            pool.submit(wait_for, poller, job_id, time.monotonic() + timedelta.max.total_seconds())
            for job_id in (1, 2)
        ]
        eventually(lambda: len(poller._waits) == 2 or any(wait.done() for wait in waits))
        rows.left.clear()
        assert [wait.result(20) for wait in waits] == [True, True]


def test_waits_of_many_ended_jobs_end_before_all_outcomes_are_read() -> None:
    rows = Rows([])
    waits = {Future[WaitResult](): WaitCondition(job_id, wants_outcome=True) for job_id in range(250)}
    done: list[int] = []

    class Counted(Rows):
        def outcomes(self, job_ids: Collection[int]) -> dict[int, JobOutcome]:
            done.append(sum(wait.done() for wait in waits))
            return rows.outcomes(job_ids)

    poller_of(Counted([]))._poll(waits)
    assert rows.read == [100, 100, 50]
    assert done == [0, 100, 200]
    assert [wait.result().outcome.result for wait in waits] == list(range(250))  # type: ignore[union-attr]


def test_failed_read_of_outcomes_ends_only_the_waits_that_are_left() -> None:
    waits = {Future[WaitResult](): WaitCondition(job_id, wants_outcome=True) for job_id in range(200)}

    class Failing(Rows):
        def outcomes(self, job_ids: Collection[int]) -> dict[int, JobOutcome]:
            if self.read:
                raise DatabaseUnavailableError("away")
            return super().outcomes(job_ids)

    poller = poller_of(Failing([]))
    poller._waits = dict(waits)
    poller._poll(waits)
    first, *_, last = waits
    assert first.result().status is JobStatus.FINISHED
    assert isinstance(last.exception(), DatabaseUnavailableError)
    assert sum(wait.exception() is None for wait in waits) == 100
    assert not poller._waits


@pytest.mark.parametrize(("took", "interval"), [(0.0, 0.01), (0.005, 0.02), (1.0, 0.05)])
def test_poller_polls_for_a_fifth_of_the_time_at_most(
    monkeypatch: pytest.MonkeyPatch, took: float, interval: float
) -> None:
    """The newest wait has just begun. The longest interval is kept in any case."""
    now = [100.0]
    monkeypatch.setattr(completion, "time", SimpleNamespace(monotonic=lambda: now[0]))

    class Slow(Rows):
        def final(self, job_ids: Collection[int]) -> dict[int, FinalJob | None]:
            now[0] += took
            return super().final(job_ids)

    poller = poller_of(Slow([1]))
    poller._poll({Future(): WaitCondition(1, since=now[0])})
    poller._newest = now[0]
    assert poller._interval() == pytest.approx(interval)
