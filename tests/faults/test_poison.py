"""Jobs that kill their process, unpublishable rows and unreadable messages do not delay other jobs."""

import base64
import json
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import create_engine, update

from jobhandle_celery import JobStatus
from jobhandle_celery.schema import job
from tests.faults.worker_faults import account_for_attempts
from tests.faults.workload import BODIES, WorkerSupervisor, Workload
from tests.rng import scaled, stretched
from tests.support import eventually
from tests.worker.cluster import NewCluster

pytestmark = [pytest.mark.faults, pytest.mark.slow, pytest.mark.timeout(stretched(900))]

FURTHER_BODIES = "tests.faults.worker_bodies:app"
SETTINGS = {"jobhandle_lease": 2, "jobhandle_republish_after": 2}
OFTEN = 10**6


def assert_given_up(workload: Workload, job_id: int, after: int) -> None:
    """Assert that a job was claimed `after` times, and that its row says why it ended."""
    row = workload.rows()[job_id]
    assert (row.status, row.attempt) == (JobStatus.ERROR, after), row
    assert row.error is not None
    assert (row.error.kind, row.error.type) == ("system", "WorkerLostError")
    assert "no attempts are left" in row.message


def test_jobs_that_kill_their_child_end_in_error(new_cluster: NewCluster) -> None:
    cluster = new_cluster(settings=SETTINGS)
    workload = Workload(cluster)
    healthy = workload.submit_mixed(scaled(40), 0.1)
    poison = workload.submit([workload.job("deadly", max_attempts=3) for _ in range(4)])
    healthy += workload.submit_mixed(scaled(40), 0.1)
    worker = cluster.start(BODIES, concurrency=4)

    workload.wait_until_final()

    rows = workload.audit()
    for job_id in poison:
        assert_given_up(workload, job_id, after=3)
    tally = account_for_attempts(workload, {job_id: rows[job_id] for job_id in healthy})
    assert set(tally) == {"ended"}, tally
    assert worker.is_running()


def test_jobs_that_kill_their_worker_end_in_error(new_cluster: NewCluster) -> None:
    cluster = new_cluster(settings=SETTINGS)
    workload = Workload(cluster)
    healthy = workload.submit_mixed(scaled(30), 0.1, max_attempts=OFTEN)
    poison = workload.submit([workload.job("kill_worker", max_attempts=2) for _ in range(2)])
    healthy += workload.submit_mixed(scaled(30), 0.1, max_attempts=OFTEN)
    supervisor = WorkerSupervisor(lambda: cluster.start(FURTHER_BODIES, ready=False, concurrency=3), 2)

    def settled() -> bool:
        for worker in supervisor.workers:
            if not worker.is_running():
                supervisor.replace(worker)
        return not workload.unfinished()

    eventually(settled, 100, "the crowd")

    rows = workload.audit(lost_before_body=True)
    for job_id in poison:
        assert_given_up(workload, job_id, after=2)
    # One job may have killed the other's worker before that body began; but a body made each kill.
    body_traces = workload.body_traces()
    assert sum(len(body_traces.get(job_id, [])) for job_id in poison) >= 2
    account_for_attempts(workload, {job_id: rows[job_id] for job_id in healthy})


UNSENDABLE: list[dict[str, Any]] = [
    {"args": "no json"},
    {"args": '["cut off'},
    {"args": '{"not": "a list"}'},
    {"args": "null"},
    {"kwargs": "[]"},
    {"kwargs": '{"a": 1'},
    {"routing": "no json"},
    {"routing": "[]"},
    {"routing": '{"headers": 5}'},
    {"routing": '{"declare": {"name": "x", "exchange": 7}}', "queue": "x"},
    {"retry": '{"args": '},
    {"retry": "[1]"},
    {"retry": '{"args": [], "kwargs": {}, "options": {"headers": [1]}}'},
]
"""Columns as a manual edit or a bug might leave them."""
UNKNOWN = [{"task": ""}, {"task": "known.to.nobody"}, {"task": "x" * 255}]
ODD: list[dict[str, Any]] = [
    {"routing": '{"exchange": 7, "routing_key": {}}'},
    {"retry": '{"args": [], "kwargs": {}, "options": {"retries": "many", "serializer": "unheard of"}}'},
    {"queue": "q" * 255},
    {"queue": ""},
    {"priority": -30_000},
    {"time_limit": -1.0},
    {"soft_time_limit": 1e300},
    {"task_id": ""},
]
"""These can be published; their outcome is not checked."""
BAD_ROWS = UNSENDABLE + UNKNOWN + ODD


def test_rows_that_cannot_be_sent_delay_no_other(new_cluster: NewCluster, database_url: str) -> None:
    cluster = new_cluster(database_url=database_url, settings=SETTINGS)
    spoilt, workload = Workload(cluster), Workload(cluster)
    # The bad ones are due first.
    bad = spoilt.submit([spoilt.job("work", 0, scheduled_for=timedelta(seconds=0.1)) for _ in BAD_ROWS])
    workload.submit([workload.job("work", 0, scheduled_for=timedelta(seconds=1)) for _ in range(scaled(50))])
    engine = create_engine(database_url)
    with engine.begin() as connection:
        for job_id, columns in zip(bad, BAD_ROWS, strict=True):
            connection.execute(update(job).where(job.c.id == job_id).values(columns))
    engine.dispose()
    worker = cluster.start(BODIES, concurrency=3)

    workload.wait_until_final()
    workload.submit([workload.job("work", 0, scheduled_for=timedelta(seconds=0.1)) for _ in range(10)])
    workload.wait_until_final()

    assert {row.status for row in workload.audit().values()} == {JobStatus.FINISHED}
    assert worker.is_running()
    for job_id, columns in zip(bad, BAD_ROWS, strict=True):
        words = [event.message for event in cluster.jobs.events(job_id)]
        if columns in UNSENDABLE:
            assert cluster.jobs.attach(job_id).job_status() is JobStatus.WAITING
            assert any("no message can be built of it" in word for word in words), (columns, words)
        elif columns in UNKNOWN:
            assert any("does not know the task" in word for word in words), (columns, words)


def test_unreadable_messages_delay_no_other(new_cluster: NewCluster) -> None:
    cluster = new_cluster(settings=SETTINGS)
    workload = Workload(cluster)
    workload.submit_mixed(scaled(50), 0.02)
    for message in cluster.redis.lrange("celery", 0, 29):
        spoilt = json.loads(message)
        match workload.rng.randrange(5):
            case 0:
                body = base64.b64decode(spoilt["body"])
                cut_off = body[: workload.rng.randrange(len(body))]
                spoilt["body"] = base64.b64encode(cut_off).decode()
            case 1:
                spoilt["headers"]["jobhandle"] = workload.rng.choice([7, {}, {"id": "x", "attempt": 1}, [1]])
            case 2:
                spoilt["headers"]["task"] = "known.to.nobody"
            case 3:
                spoilt["content-type"] = "application/x-python-serialize"
            case 4:
                del spoilt["headers"][workload.rng.choice(["id", "task", "jobhandle"])]
        spoilt["properties"]["delivery_tag"] = f"spoilt-{workload.rng.random()}"
        assert isinstance(message, bytes)
        cluster.redis.linsert("celery", "BEFORE", message.decode(), json.dumps(spoilt))
    worker = cluster.start(BODIES, concurrency=3)

    workload.wait_until_final()

    account_for_attempts(workload, workload.audit())
    assert worker.is_running()
