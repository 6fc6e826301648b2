"""Concurrent sweeps and submits, and a thousand cancels against claims."""

import sqlite3
import uuid
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier
from typing import Any

import pytest
from sqlalchemy import event

from jobhandle_celery.status import JobStatus
from jobhandle_celery.store import Run, Selection
from tests.databases import MARIADB_WITH_FAULTS
from tests.rng import stretched
from tests.store.harness import TASK, Harness, insert_within, new_job
from tests.store.racing import race, waiting
from tests.support import eventually

ROUNDS = 8


def test_ten_sweeps_reserve_no_row_twice(harness: Harness) -> None:
    jobs = [new_job() for _ in range(100)]
    submitted = {job.job_id for job in harness.store.inserter.submit(jobs)}
    harness.pass_time(minutes=5)

    def sweep() -> list[int]:
        mine: list[int] = []
        while rows := harness.store.outbox.reserve_due(7):
            mine += [row.job_id for row in rows]
        return mine

    reserved = [job_id for mine in race(*[sweep] * 10) for job_id in mine]
    # A sweep skips rows that another has locked, and takes the rest in a later round.
    reserved += sweep()
    assert sorted(reserved) == sorted(submitted)


def test_cancel_of_more_jobs_than_parameters_cancels_all(crowded_harness: Harness) -> None:
    """SQLite's default limit is 32,766; here it is set to 1,000, for speed."""
    harness = crowded_harness

    def limit(connection: Any, _record: Any) -> None:
        if isinstance(connection, sqlite3.Connection):
            connection.setlimit(sqlite3.SQLITE_LIMIT_VARIABLE_NUMBER, 1000)

    harness.store.inserter.submit([new_job() for _ in range(1200)])
    harness.database.close()
    event.listen(harness.database.engine, "connect", limit)
    assert harness.store.control.cancel_selected(Selection(task=TASK)) == 1200
    assert harness.store.queries.count_by_status()[JobStatus.CANCELLED] == 1200


def test_concurrent_passes_run_once(harness: Harness) -> None:
    assert sorted(race(*[harness.store.sweep.begin_pass] * 6), key=str) == [False] + [None] * 5
    harness.pass_time(seconds=harness.settings.pass_interval.total_seconds() + 1)
    assert sorted(race(*[harness.store.sweep.begin_pass] * 6), key=str) == [False] + [None] * 5


def test_concurrent_submits_of_one_key_insert_once(harness: Harness) -> None:
    for key in range(ROUNDS):
        submitted = race(
            *[lambda key=key: harness.store.inserter.submit([new_job(unique_key=f"{key}")])[0]] * 5
        )
        assert len({job.job_id for job in submitted}) == 1
        assert [job.fresh for job in submitted].count(True) == 1


def test_unique_key_of_rolled_back_submit_goes_to_the_next(
    server_harness: Harness,
) -> None:
    harness = server_harness
    connection = harness.database.engine.connect()
    transaction = connection.begin()
    insert_within(harness.store, connection, [new_job(unique_key="k")])
    with ThreadPoolExecutor(1) as pool:
        second = pool.submit(harness.store.inserter.submit, [new_job(unique_key="k")])
        eventually(lambda: waiting(harness) == 1)
        transaction.rollback()
        connection.close()
        assert second.result(timeout=30)[0].fresh


@pytest.mark.faults
@pytest.mark.timeout(stretched(600))
@pytest.mark.parametrize("database_url", MARIADB_WITH_FAULTS, indirect=True)
def test_thousand_cancels_against_claims_have_one_winner_each(crowded_harness: Harness) -> None:
    """No claim wins a job whose cancel answered Cancelled; and the loser's answer says so."""
    harness = crowded_harness
    me = harness.worker()
    lanes = 2
    jobs = [job.job_id for job in harness.store.inserter.submit([new_job() for _ in range(1000)])]
    keys = {
        message.job_id: Run(message.job_id, message.task_id, message.attempt, str(uuid.uuid4()), me)
        for message in harness.store.outbox.reserve(jobs)
    }

    def lane(number: int) -> list[tuple[int, bool, JobStatus | None]]:
        meet, mine = Barrier(2, timeout=stretched(300)), jobs[number::lanes]

        def claims() -> list[bool]:
            won = []
            for job_id in mine:
                meet.wait()
                won.append(isinstance(harness.store.runs.claim(keys[job_id], TASK), Run))
            return won

        def cancels() -> list[JobStatus | None]:
            statuses = []
            for job_id in mine:
                meet.wait()
                statuses.append(harness.store.control.cancel(job_id, None, terminate=False))
            return statuses

        won, status = race(claims, cancels, timeout=stretched(300))
        return list(zip(mine, won, status, strict=True))

    raced = race(*[lambda n=n: lane(n) for n in range(lanes)], timeout=stretched(300))
    outcomes = [outcome for each in raced for outcome in each]
    assert len(outcomes) == 1000
    for job_id, won, status in outcomes:
        assert status is (JobStatus.RUNNING if won else JobStatus.CANCELLED), job_id
    running = {standing.job_id for standing in harness.store.leases.runs(str(me.worker_uid))}
    assert running == {job_id for job_id, won, _ in outcomes if won}
    counts = harness.store.queries.count_by_status()
    assert counts[JobStatus.CANCELLED] == 1000 - len(running)
    assert 0 < len(running) < 1000, "both sides won at times, or it was no race"
