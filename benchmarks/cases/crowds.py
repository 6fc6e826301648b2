"""A hundred thousand jobs at once: cancelled, and falling due."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta

import redis
from sqlalchemy import create_engine, func, text

from jobhandle_celery import Job, JobStatus

from ..arithmetic import differences
from ..marks import clock
from ..peers import Ours
from ..peers.celery_app import TASK
from ..result import Goal, Result, Series
from ..rows import clone
from ..stage import Stage

LONGEST = 40.0
"""Seconds after which no more jobs are waited for to be published: the rate is known by then."""


def run_cancel(stage: Stage) -> Result:
    """Cancel them all by one `cancel_many`."""
    result = Result(
        "cancel_many",
        "Cancel many jobs at once",
        "One `cancel_many(status='Queued')`, beside the least that can be done: one UPDATE of as many such "
        "rows to Cancelled, with their stamps, that writes an event for each, by hand.",
    )
    jobs = stage.amount(100_000, 5_000)
    with _ours(stage) as peer:
        measured = stage.contest(
            {"`cancel_many`": _cancelled(peer, jobs), "one statement by hand": _by_hand(peer, jobs)},
            4,
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


def run_due(stage: Stage) -> Result:
    """Publish them all by sweeps."""
    result = Result(
        "due",
        "Many jobs falling due at once",
        "Jobs whose time has come at one moment, no worker that takes them, and one process that makes a "
        "pass of the sweep whenever one is due, with the default interval of a second. From the first pass "
        f"to the last message in Redis, or to what is there after {LONGEST:g} s.",
    )
    jobs = stage.amount(100_000, 3_000)
    with _ours(stage) as peer:
        measured = stage.contest({"sweeps": _published(peer, jobs)}, 3, quick_rounds=1, warm_up=False)
    result.goals = [Goal(f"{jobs:,} jobs falling due at once: published", measured["sweeps"], 3000, "jobs/s")]
    result.series = [Series(name, values, "jobs/s") for name, values in measured.items()]
    return result


@contextmanager
def _ours(stage: Stage) -> Iterator[Ours]:
    with stage.place("crowds") as place:
        peer = Ours(place)
        peer.prepare()
        yield peer
        peer.close()


def _queued(peer: Ours, jobs: int) -> None:
    # Not by `submit`: so many messages would take longer than what is measured.
    job_id = peer.submit(0)
    peer.handle.job_status()  # which has it marked as Queued first
    clone(peer.place.database_url, job_id, jobs - 1)


def _cancelled(peer: Ours, jobs: int) -> Callable[[], float]:
    def measure() -> float:
        _queued(peer, jobs)
        begun = clock()
        cancelled = peer.jobs.cancel_many(status="Queued")
        taken = clock() - begun
        if cancelled != jobs:
            raise AssertionError(f"{cancelled} of {jobs} were cancelled")
        _empty(peer)
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
        engine = create_engine(peer.place.database_url)
        with engine.begin() as connection:
            connection.execute(text("SELECT 1"))
            words = {"cancelled": JobStatus.CANCELLED.id, "queued": JobStatus.QUEUED.id}
            begun = clock()
            connection.execute(text(_BY_HAND), words)
            connection.commit()
            taken = clock() - begun
        engine.dispose()
        _empty(peer)
        return taken

    return measure


def _published(peer: Ours, jobs: int) -> Callable[[], float]:
    def measure() -> float:
        handle = peer.jobs.handle()
        ahead = datetime.now(UTC) + timedelta(hours=1)
        job_id = handle.submit(Job(task=TASK, args=[1], scheduled_for=ahead))
        now = {"due_at": func.clock_timestamp(), "not_before": func.clock_timestamp()}
        clone(peer.place.database_url, job_id, jobs, now)
        with redis.Redis.from_url(peer.place.redis_url) as client:
            begun = clock()
            while (sent := int(str(client.llen("celery")))) < jobs and clock() < begun + LONGEST:
                if not peer.jobs.sweep():
                    time.sleep(0.01)
            taken = clock() - begun
        peer.purge()
        _empty(peer)
        return sent / taken

    return measure


def _empty(peer: Ours) -> None:
    """Remove all jobs, so that each round finds the same."""
    peer.purge()
    engine = create_engine(peer.place.database_url)
    with engine.begin() as connection:
        connection.execute(text("TRUNCATE jobhandle_job CASCADE"))
    engine.dispose()
