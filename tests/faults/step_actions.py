"""Actions for `step_faults`, each called with jobs, a number, and the test's values."""

import contextlib
import os
import random
import time
from collections.abc import Callable, Mapping
from typing import Any

from sqlalchemy import create_engine, text
from sqlalchemy.orm import Session

from jobhandle_celery import DatabaseUnavailableError, Failure, Job, Jobs, JobStatus
from jobhandle_celery.store import Run, Worker

MANY = 2

Given = Mapping[str, Any]


def _job(given: Given, of: str, number: int) -> Job:
    return Job(task="worker.work", args=(given["path"], 0), meta=f"{of} {number}")


def submit(jobs: Jobs, number: int, given: Given) -> None:
    jobs.handle().submit(_job(given, "submit", number))


def submit_many(jobs: Jobs, number: int, given: Given) -> None:
    jobs.submit_many([_job(given, "submit_many", number)] * MANY)


def submit_in_session(jobs: Jobs, number: int, given: Given) -> None:
    """Submit in the transaction that inserts a row of the caller's."""
    engine = create_engine(given["url"])
    with Session(engine) as session, session.begin():
        session.execute(text("INSERT INTO orders VALUES (:number)"), {"number": number})
        jobs.handle().submit(_job(given, "submit_in_session", number), session=session)


def release(jobs: Jobs, number: int, given: Given) -> None:
    jobs.attach(given["ids"][number]).release_job()


def resubmit(jobs: Jobs, number: int, given: Given) -> None:
    jobs.attach(given["ids"][number]).resubmit_job()


def cancel(jobs: Jobs, number: int, given: Given) -> None:
    jobs.attach(given["ids"][number]).cancel_job()


def cancel_all(jobs: Jobs, number: int, given: Given) -> None:
    """Record the answer of each cancel, and when it returned."""
    for job_id in given["ids"]:
        status = jobs.attach(job_id).cancel_job()
        with open(given["answers"], "a") as answers:
            answers.write(f"{job_id} {status} {time.time()}\n")


def end_member(jobs: Jobs, number: int, given: Given) -> None:
    """End a run, settle what follows, and publish what becomes ready."""
    job_id, task_id, attempt, claim_id, worker = given["runs"][number]
    run = Run(job_id, task_id, attempt, claim_id, Worker(*worker))
    runs = jobs._runtime.store.runs
    if given["fails"]:
        runs.fail(run, Failure("task", "ValueError", "raised on request"))
    else:
        runs.finish(run, "1")


def sweep(jobs: Jobs, number: int, given: Given) -> None:
    jobs.sweep()


def sweep_together(jobs: Jobs, number: int, given: Given) -> None:
    """Sweep in several processes, until no job is due."""
    _together(given["processes"], lambda: sweep_all(jobs))


def submit_together(jobs: Jobs, number: int, given: Given) -> None:
    """Submit in several processes: singly, and in batches."""
    job = Job(task="worker.work", args=(given["path"], 0), max_attempts=10**6)

    def submit_all() -> None:
        left = given["each"]
        while left:
            count = min(left, random.choice([1, 1, 1, 20]))
            if count == 1:
                jobs.handle().submit(job)
            else:
                jobs.submit_many([job] * count)
            left -= count

    _together(given["processes"], submit_all)


def _together(processes: int, act: Callable[[], None]) -> None:
    children = []
    for _ in range(processes):
        if child := os.fork():
            children.append(child)
            continue
        try:
            act()
            os._exit(0)
        finally:
            os._exit(1)
    for child in children:
        _, code = os.waitpid(child, 0)
        assert code == 0


def sweep_all(jobs: Jobs) -> None:
    """Sweep until no job waits to be published."""
    while jobs.count_by_status()[JobStatus.WAITING]:
        with contextlib.suppress(DatabaseUnavailableError):  # too many at once for SQLite
            jobs.sweep()
