"""100,000 jobs at once: cancelled by one call, and due at one moment."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta

import redis
from sqlalchemy import create_engine, func, text

from jobhandle_celery import Job, JobStatus

from ..arithmetic import differences
from ..clone_rows import clone
from ..harness import Harness
from ..marks import clock
from ..peers import Ours
from ..peers.celery_app import TASK
from ..result import Goal, Result, Series

LONGEST = 40.0
"""Seconds after which a round ends before all jobs are published: the rate is known by then."""


def run_cancel(harness: Harness) -> Result:
    """Cancel all jobs by one `cancel_many`."""
    result = Result(
        "cancel_many",
        "Cancel many jobs at once",
        "One `cancel_many(status='Queued')`, beside one hand-written statement, as a lower bound: an UPDATE "
        "of as many rows to Cancelled, with their times, that inserts an event for each.",
    )
    jobs = harness.amount(100_000, 5_000)
    with _ours(harness) as peer:
        measured = harness.measure(
            {"`cancel_many`": _cancelled(peer, jobs), "one statement by hand": _by_hand(peer, jobs)},
            3,
            quick_rounds=1,
            warm_up=False,
        )
    ours, hand = measured["`cancel_many`"], measured["one statement by hand"]
    result.goals = [
        Goal(f"`cancel_many` of {jobs:,} queued jobs", ours, 5, "s", at_least=False),
        Goal("… beyond one statement by hand", differences(ours, hand), 0, "s", at_least=False),
    ]
    result.series = [Series(name, values, "s") for name, values in measured.items()]
    return result


def run_due(harness: Harness) -> Result:
    """Publish all jobs by passes of the sweeper."""
    result = Result(
        "due",
        "Many jobs falling due at once",
        "All jobs are due at one moment, no worker takes them, and one process makes the passes of the "
        "sweeper, at the default interval of a second. The time is from the first pass to the last message "
        f"in Redis, or {LONGEST:g} s, when the messages until then are counted.",
    )
    jobs = harness.amount(100_000, 3_000)
    with _ours(harness) as peer:
        measured = harness.measure({"sweeps": _published(peer, jobs)}, 2, quick_rounds=1, warm_up=False)
    result.goals = [Goal(f"{jobs:,} jobs falling due at once: published", measured["sweeps"], 3000, "jobs/s")]
    result.series = [Series(name, values, "jobs/s") for name, values in measured.items()]
    return result


@contextmanager
def _ours(harness: Harness) -> Iterator[Ours]:
    with harness.sandbox("bulk") as sandbox:
        peer = Ours(sandbox)
        peer.prepare()
        yield peer
        peer.close()


def _queued(peer: Ours, jobs: int) -> None:
    # Not by `submit`: to publish the messages would take longer than the measurement.
    job_id = peer.submit(0)
    peer.handle.job_status()  # which first writes the pending mark Queued
    clone(peer.sandbox.database_url, job_id, jobs - 1)


def _cancelled(peer: Ours, jobs: int) -> Callable[[], float]:
    def measure() -> float:
        _queued(peer, jobs)
        started = clock()
        cancelled = peer.jobs.cancel_many(status="Queued")
        taken = clock() - started
        if cancelled != jobs:
            raise AssertionError(f"{cancelled} of {jobs} were cancelled")
        empty(peer)
        return taken

    return measure


_BY_HAND = """
WITH moved AS (
    UPDATE jobhandle_job
    SET status_id = :cancelled, due_at = NULL,
        cancel_requested = clock_timestamp(), finished = clock_timestamp()
    WHERE namespace = 'default' AND status_id = :queued
    RETURNING id, attempt
)
INSERT INTO jobhandle_job_event (job_id, at, attempt, status_id, message, actor)
SELECT id, clock_timestamp(), attempt, :cancelled, 'cancelled before it was started', 'service' FROM moved
"""


def _by_hand(peer: Ours, jobs: int) -> Callable[[], float]:
    def measure() -> float:
        _queued(peer, jobs)
        engine = create_engine(peer.sandbox.database_url)
        with engine.begin() as connection:
            connection.execute(text("SELECT 1"))
            values = {"cancelled": JobStatus.CANCELLED.id, "queued": JobStatus.QUEUED.id}
            started = clock()
            connection.execute(text(_BY_HAND), values)
            connection.commit()
            taken = clock() - started
        engine.dispose()
        empty(peer)
        return taken

    return measure


def _published(peer: Ours, jobs: int) -> Callable[[], float]:
    def measure() -> float:
        handle = peer.jobs.handle()
        ahead = datetime.now(UTC) + timedelta(hours=1)
        job_id = handle.submit(Job(task=TASK, args=[1], scheduled_for=ahead))
        now = {"due_at": func.clock_timestamp(), "not_before": func.clock_timestamp()}
        clone(peer.sandbox.database_url, job_id, jobs, now)
        with redis.Redis.from_url(peer.sandbox.redis_url) as client:
            started = clock()
            while (sent := int(str(client.llen("celery")))) < jobs and clock() < started + LONGEST:
                if not peer.jobs.sweep():
                    time.sleep(0.01)
            taken = clock() - started
        peer.purge()
        empty(peer)
        return sent / taken

    return measure


def empty(peer: Ours) -> None:
    """Delete all jobs, so that each round starts with an empty table."""
    peer.purge()
    engine = create_engine(peer.sandbox.database_url)
    with engine.begin() as connection:
        connection.execute(text("TRUNCATE jobhandle_job CASCADE"))
    engine.dispose()
