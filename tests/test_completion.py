"""`CompletionPoller`: one waiting thread polls for all waits of the process."""

import threading
import time
from collections.abc import Collection
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from types import SimpleNamespace
from typing import Any

import pytest

from jobhandle_celery import Job, JobStatus, UnknownJobError, WaitTimeoutError
from jobhandle_celery.completion import CompletionPoller
from jobhandle_celery.errors import DatabaseUnavailableError
from tests.apps import make_app
from tests.support import eventually, prune_ended

HELD = Job(task="tests.add", args=[1, 2], status=JobStatus.WAITING)


class Rows:
    """Stands in for a store's queries: the unfinished jobs, and the polls."""

    def __init__(self, unfinished: Collection[int]) -> None:
        self.left = set(unfinished)
        self.polls: list[tuple[int, set[int]]] = []
        self.fails = False

    def unfinished(self, job_ids: Collection[int]) -> set[int]:
        self.polls.append((threading.get_ident(), set(job_ids)))
        if self.fails:
            raise DatabaseUnavailableError("away")
        return self.left & set(job_ids)


def poller_of(rows: Rows) -> CompletionPoller:
    store: Any = SimpleNamespace(queries=rows)
    return CompletionPoller(store)


def test_one_poll_covers_all_waits_and_ends_each() -> None:
    rows = Rows(range(100))
    poller = poller_of(rows)
    final: list[int] = []

    def wait(job_id: int) -> None:
        if poller.wait_until_final(job_id):
            final.append(job_id)

    pool = ThreadPoolExecutor(100)
    for job_id in range(100):
        pool.submit(wait, job_id)
    eventually(lambda: len(poller._waiters) == 100, 20, "all wait")
    for job_id in range(100):
        rows.left.discard(job_id)
    pool.shutdown()
    assert sorted(final) == list(range(100))
    together = [ids for _, ids in rows.polls if len(ids) > 1]
    assert together, "each wait polled for itself"
    assert len(rows.polls) < 100 * 10


def test_poller_hands_its_turn_over_when_its_wait_ends() -> None:
    rows = Rows({1, 2})
    poller = poller_of(rows)
    with ThreadPoolExecutor() as pool:
        first = pool.submit(poller.wait_until_final, 1)
        eventually(lambda: bool(rows.polls), 10, "the first polls")
        second = pool.submit(poller.wait_until_final, 2)
        eventually(lambda: {1, 2} in [ids for _, ids in rows.polls], 10, "it polls for both")
        rows.left.discard(1)
        assert first.result(10)
        before = len(rows.polls)
        eventually(lambda: len(rows.polls) > before, 10, "the second polls")
        rows.left.discard(2)
        assert second.result(10)
    assert not poller._waiters
    assert len({thread for thread, _ in rows.polls}) == 2


def test_wait_ends_at_its_deadline_in_any_thread() -> None:
    rows = Rows({1, 2})
    poller = poller_of(rows)
    with ThreadPoolExecutor() as pool:
        longer = pool.submit(poller.wait_until_final, 1)
        eventually(lambda: bool(rows.polls), 10, "the longer wait polls")
        assert not poller.wait_until_final(2, time.monotonic() + 0.05)
        assert not poller.wait_until_final(2, time.monotonic() - 1)
        rows.left.clear()
        assert longer.result(10)
    assert not poller.wait_until_final(3, time.monotonic() - 1)


def test_outage_ends_the_wait_that_polled_and_the_next_polls() -> None:
    rows = Rows({1, 2})
    poller = poller_of(rows)
    with ThreadPoolExecutor() as pool:
        waiting = [pool.submit(poller.wait_until_final, 1), pool.submit(poller.wait_until_final, 2)]
        eventually(lambda: {1, 2} in [ids for _, ids in rows.polls], 10, "one polls for both")
        rows.fails = True
        for wait in waiting:
            with pytest.raises(DatabaseUnavailableError):
                wait.result(10)
    assert not poller._waiters
    rows.fails = False
    rows.left.clear()
    assert poller.wait_until_final(1)


def test_wait_sees_every_way_to_end(database_url: str) -> None:
    app = make_app("memory://", database_url)
    jobs = app.jobs  # type: ignore[attr-defined]  # set by Jobs
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
            pool.submit(poller.wait_until_final, job_id, time.monotonic() + timedelta.max.total_seconds())
            for job_id in (1, 2)
        ]
        eventually(lambda: len(poller._waiters) == 2 or any(wait.done() for wait in waits), 20)
        rows.left.clear()
        assert [wait.result(20) for wait in waits] == [True, True]
