"""Waiting: of all who wait in a process one asks, for all of them."""

import threading
import time
from collections.abc import Collection
from concurrent.futures import ThreadPoolExecutor

import pytest

from jobhandle_celery import Job, JobStatus, UnknownJobError, WaitTimeoutError
from jobhandle_celery.completion import CompletionPoller
from jobhandle_celery.errors import DatabaseUnavailableError
from tests.apps import make_app
from tests.support import eventually

HELD = Job(task="tests.add", args=[1, 2], status=JobStatus.WAITING)


class Rows:
    """In the place of a store: which jobs are not final, and how often that was asked."""

    def __init__(self, unfinished: Collection[int]) -> None:
        self.left = set(unfinished)
        self.asked: list[tuple[int, set[int]]] = []
        self.fails = False

    def unfinished(self, job_ids: Collection[int]) -> set[int]:
        self.asked.append((threading.get_ident(), set(job_ids)))
        if self.fails:
            raise DatabaseUnavailableError("away")
        return self.left & set(job_ids)


def waits_of(rows: Rows) -> CompletionPoller:
    return CompletionPoller(rows)  # type: ignore[arg-type]  # it has what Waits asks of a store


def test_one_asks_for_all_and_each_hears_of_its_own() -> None:
    rows = Rows(range(100))
    waits = waits_of(rows)
    over: list[int] = []

    def wait(job_id: int) -> None:
        if waits.until_over(job_id):
            over.append(job_id)

    pool = ThreadPoolExecutor(100)
    for job_id in range(100):
        pool.submit(wait, job_id)
    eventually(lambda: len(waits._waiters) == 100, 20, "all wait")
    for job_id in range(100):
        rows.left.discard(job_id)
    pool.shutdown()
    assert sorted(over) == list(range(100))
    together = [ids for _, ids in rows.asked if len(ids) > 1]
    assert together, "nobody has asked for others"
    assert len(rows.asked) < 100 * 10


def test_whoever_asks_hands_that_over_when_it_leaves() -> None:
    rows = Rows({1, 2})
    waits = waits_of(rows)
    with ThreadPoolExecutor() as pool:
        first = pool.submit(waits.until_over, 1)
        eventually(lambda: bool(rows.asked), 10, "the first asks")
        second = pool.submit(waits.until_over, 2)
        eventually(lambda: {1, 2} in [ids for _, ids in rows.asked], 10, "it asks for both")
        rows.left.discard(1)
        assert first.result(10)
        before = len(rows.asked)
        eventually(lambda: len(rows.asked) > before, 10, "the second asks by itself")
        rows.left.discard(2)
        assert second.result(10)
    assert not waits._waiters
    assert len({thread for thread, _ in rows.asked}) == 2


def test_a_wait_ends_at_its_deadline_whoever_asks() -> None:
    rows = Rows({1, 2})
    waits = waits_of(rows)
    with ThreadPoolExecutor() as pool:
        longer = pool.submit(waits.until_over, 1)
        eventually(lambda: bool(rows.asked), 10, "the longer one asks")
        assert not waits.until_over(2, time.monotonic() + 0.05)
        assert not waits.until_over(2, time.monotonic() - 1)
        rows.left.clear()
        assert longer.result(10)
    assert not waits.until_over(3, time.monotonic() - 1)


def test_an_outage_is_told_to_whoever_asks_and_the_next_one_asks_again() -> None:
    rows = Rows({1, 2})
    waits = waits_of(rows)
    with ThreadPoolExecutor() as pool:
        waiting = [pool.submit(waits.until_over, 1), pool.submit(waits.until_over, 2)]
        eventually(lambda: {1, 2} in [ids for _, ids in rows.asked], 10, "one asks for both")
        rows.fails = True
        for one in waiting:
            with pytest.raises(DatabaseUnavailableError):
                one.result(10)
    assert not waits._waiters
    rows.fails = False
    rows.left.clear()
    assert waits.until_over(1)


def test_a_wait_sees_every_way_to_an_end(database_url: str) -> None:
    app = make_app("memory://", database_url)
    jobs = app.jobs  # type: ignore[attr-defined]  # put there by Jobs
    held = [jobs.handle() for _ in range(3)]
    for handle in held:
        handle.submit(HELD)
    finished, cancelled, gone = held
    with ThreadPoolExecutor() as pool:
        waiting = [pool.submit(jobs.attach(handle.job_id).wait, 30) for handle in held]
        eventually(lambda: len(jobs._runtime.completion._waiters) == 3, 20, "all wait")
        finished.set_status("Running")
        finished.set_status("Finished")
        cancelled.cancel_job()
        assert [waiting[0].result(30), waiting[1].result(30)] == ["Finished", "Cancelled"]
        gone.cancel_job()
        assert waiting[2].result(30) == "Cancelled"
        jobs.prune(0)
        with pytest.raises(UnknownJobError):
            gone.wait(30)
    with pytest.raises(WaitTimeoutError, match=r"is Waiting after 0\.05 s"):
        jobs.attach(jobs.submit_many([HELD])[0]).wait(0.05)
    jobs.close()
