"""The claims of several runs, made together (PostgreSQL)."""

import uuid
from dataclasses import replace

import pytest
import sqlalchemy
from sqlalchemy import select

from jobhandle_celery.schema import job
from jobhandle_celery.status import JobStatus
from jobhandle_celery.store import ClaimRejected, RejectionReason
from tests.store.harness import TASK, CommonDoor, Harness
from tests.store.test_claim import SPOILS


@pytest.fixture
def harness(common_postgresql_url: str, common_database: CommonDoor, namespace: str) -> Harness:
    database = common_database(common_postgresql_url, "the first")
    return Harness(common_postgresql_url, database, namespace=namespace)


def test_rows_are_claimed_as_one_alone(harness: Harness) -> None:
    me = harness.worker("w7", pid=77)
    alone = harness.run(harness.submit(), me)
    runs = [harness.key(harness.submit(), me) for _ in range(3)]
    other = harness.submit()

    assert harness.store.runs.claim_many(dict.fromkeys(runs, TASK), me) == {run.claim_id for run in runs}

    own = {"id", "task_id", "claim_id", "submitted", "started", "args", "kwargs"}
    like = {name: value for name, value in harness.row(alone.job_id).items() if name not in own}
    for run in runs:
        row = harness.row(run.job_id)
        assert {name: value for name, value in row.items() if name not in own} == like
        assert row["claim_id"] == run.claim_id
        assert row["started"] is not None
        [*_, event] = harness.store.queries.events(run.job_id)
        [*_, event_alone] = harness.store.queries.events(alone.job_id)
        assert replace(event, at=event_alone.at) == event_alone
        assert harness.store.runs.claim(run, TASK) == run  # its answer may have been lost
        assert harness.row(run.job_id) == row
    assert harness.status(other) is JobStatus.SUBMITTED


@pytest.mark.parametrize("name", SPOILS)
def test_refused_claim_does_not_keep_the_others_from_winning(harness: Harness, name: str) -> None:
    spoil, reason = SPOILS[name]
    job_id = harness.submit()
    harness.queue(job_id)
    run = spoil(harness, harness.key(job_id, harness.worker()))
    row = harness.row(job_id)
    other = harness.key(harness.submit(), run.worker)

    won = harness.store.runs.claim_many({run: TASK, other: TASK}, run.worker)

    assert won == (set() if reason is RejectionReason.NO_LEASE else {other.claim_id})
    assert harness.row(job_id) == row
    assert harness.store.runs.claim(run, TASK) == ClaimRejected(reason)


def test_claims_by_another_tasks_name_are_refused(harness: Harness) -> None:
    run = harness.key(harness.submit(), harness.worker())
    assert harness.store.runs.claim_many({run: "shop.other"}, run.worker) == set()
    assert harness.status(run.job_id) is JobStatus.SUBMITTED


def test_two_claims_of_one_row_have_one_winner(harness: Harness) -> None:
    """A message and its duplicate may wait together."""
    run = harness.key(harness.submit(), harness.worker())
    twice = [run, replace(run, claim_id=str(uuid.uuid4()))]

    won = harness.store.runs.claim_many(dict.fromkeys(twice, TASK), run.worker)

    assert won == {harness.row(run.job_id)["claim_id"]}
    assert harness.events(run.job_id) == [JobStatus.SUBMITTED, JobStatus.RUNNING]


def test_locked_row_is_left_alone(harness: Harness) -> None:
    me = harness.worker()
    locked, run = (harness.key(harness.submit(), me) for _ in range(2))
    caller = sqlalchemy.create_engine(harness.url)
    with caller.connect() as connection:
        connection.execute(select(job.c.id).where(job.c.id == locked.job_id).with_for_update())
        # With a wait for the lock this would be an error, after some seconds.
        won = harness.store.runs.claim_many({locked: TASK, run: TASK}, me)
    caller.dispose()

    assert won == {run.claim_id}
    assert harness.store.runs.claim(locked, TASK) == locked
