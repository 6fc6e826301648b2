"""Concurrent and interrupted sweeps: each due job is published about once, and no job is lost."""

import signal
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import pytest
from sqlalchemy import update

from jobhandle_celery import JobStatus
from jobhandle_celery.schema import clock, worker
from jobhandle_celery.store import Run
from tests.faults.step_actions import sweep_all
from tests.faults.step_faults import SURVIVED, step_runner
from tests.faults.workload import BODIES, Workload
from tests.rng import scaled, stretched
from tests.store.harness import Harness
from tests.support import eventually
from tests.worker.cluster import NewCluster

pytestmark = [pytest.mark.faults, pytest.mark.slow, pytest.mark.timeout(stretched(900))]

SOON = timedelta(milliseconds=20)
THREADS, PROCESSES = 5, 5


def test_ten_sweeps_at_once_send_each_job_about_once(new_cluster: NewCluster, database_url: str) -> None:
    # So quick that no sweep finds the pass taken by another, and that no reserved row is due again.
    cluster = new_cluster(
        database_url=database_url,
        settings={"jobhandle_sweep_interval": 0.001, "jobhandle_publish_grace": 120},
    )
    workload = Workload(cluster)
    workload.submit([workload.job("work", 0, scheduled_for=SOON) for _ in range(scaled(250))])

    with step_runner(cluster, "sweep_together", processes=PROCESSES) as others, ThreadPoolExecutor() as pool:
        beside = [pool.submit(sweep_all, cluster.jobs) for _ in range(THREADS)]
        assert others.do(0, signal.SIGKILL) == SURVIVED
        for future in beside:
            future.result()

    messages = cluster.redis.llen("celery")
    assert len(workload.ids) <= messages <= 1.05 * len(workload.ids)
    cluster.start(BODIES, concurrency=3)
    workload.wait_until_final()
    assert {(row.status, row.attempt) for row in workload.audit().values()} == {(JobStatus.FINISHED, 1)}


class Due:
    """Work for every part of a pass: unpublished jobs, expired jobs, jobs of a lost worker."""

    def __init__(self, workload: Workload) -> None:
        cluster = workload.cluster
        self.workload = workload
        self.harness = Harness(cluster.database_url, namespace="default", publish_grace=timedelta(seconds=1))
        self.to_send: list[int] = []
        self.expired: list[int] = []
        self.lost: list[int] = []

    def add(self) -> list[int]:
        """Add one or two of each; return them."""
        workload = self.workload
        to_send = workload.submit([workload.job("work", 0, scheduled_for=SOON) for _ in range(2)])
        expired = workload.submit([workload.job("work", 0, status="Waiting", expires=SOON)])
        lost = workload.submit([workload.job("work", 0, status="Waiting", max_attempts=2)])
        self._lose(lost[0])
        self.to_send += to_send
        self.expired += expired
        self.lost += lost
        return [*to_send, *expired, *lost]

    def _lose(self, job_id: int) -> None:
        """Have it run by a worker whose lease has expired, while sweeps never paused."""
        harness = self.harness
        gone = harness.worker("gone")
        harness.release(job_id)
        claim = harness.key(job_id, gone)
        assert isinstance(harness.store.runs.claim(claim, "worker.work"), Run)
        with harness.database.transaction() as connection:
            ended = update(worker).where(worker.c.worker_uid == gone.worker_uid).values(lease_until=clock(-1))
            connection.execute(ended)
        harness.trust_leases()

    def audit(self) -> None:
        rows = self.workload.audit(lost_before_body=True)
        for ids, status, attempt in (
            (self.to_send, JobStatus.FINISHED, 1),
            (self.expired, JobStatus.CANCELLED, 0),
            (self.lost, JobStatus.FINISHED, 2),
        ):
            assert {(rows[job_id].status, rows[job_id].attempt) for job_id in ids} == {(status, attempt)}
        assert self.workload.count_started() == len(self.to_send) + len(self.lost)


@pytest.fixture
def due(new_cluster: NewCluster, database_url: str) -> Due:
    return Due(Workload(new_cluster(database_url=database_url, settings={"jobhandle_sweep_interval": 0.001})))


def test_sweep_killed_at_any_step_loses_no_job(due: Due) -> None:
    cluster = due.workload.cluster
    with step_runner(cluster, "sweep") as stopped:
        steps = stopped.each_step()
        due.add()
        for _ in steps:
            due.add()
    print(len(due.to_send) // 2, "steps")
    assert len(due.lost) > 10

    cluster.start(BODIES, concurrency=3)
    due.workload.wait_until_final()
    due.audit()


@pytest.mark.parametrize("database_url", ["postgresql", "mariadb"], indirect=True)
def test_sweep_frozen_at_any_step_delays_no_other(due: Due) -> None:
    """As on a suspended or unreachable machine: its database server keeps the connection.

    Not on SQLite, where a frozen writer holds the only lock.
    """
    cluster = due.workload.cluster
    with step_runner(cluster, "sweep") as counting:
        due.add()
        steps = len(list(counting.each_step()))
    cluster.start(BODIES, concurrency=3)
    with step_runner(cluster, "sweep") as frozen:
        for step in due.workload.rng.sample(range(1, steps + 1), 4):
            due.add()
            where = frozen.do(step, signal.SIGSTOP)
            due.add()
            eventually(lambda: not due.workload.unfinished(), message=f"a sweep is frozen {where}")
    due.audit()
