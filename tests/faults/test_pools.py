"""Pools of threads and greenlets, whose bodies share commits: killed, cut and blocked, they lose no job."""

import random
import signal

import pytest
import sqlalchemy
from sqlalchemy import select

from jobhandle_celery.schema import job
from tests.faults.worker_faults import (
    account_for_attempts,
    all_ready,
    one_of,
    run_under_faults,
    send,
    supervise,
)
from tests.faults.workload import WorkerSupervisor, Workload
from tests.rng import scaled, stretched
from tests.servers import execute
from tests.worker.cluster import NewCluster

pytestmark = [pytest.mark.faults, pytest.mark.slow, pytest.mark.timeout(stretched(300))]

OFTEN = 10**6
SETTINGS = {"jobhandle_lease": 6, "jobhandle_republish_after": 2}
CUT = (
    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
    "WHERE datname = current_database() AND pid <> pg_backend_pid() "
    "AND strpos(query, 'json_to_recordset') > 0 AND strpos(query, 'claim_id') > 0"
)
"""Connections whose present or last statement makes claims, or writes results, together. Cuts of others would
keep the sweepers from declaring a worker lost."""

LOCKED = 5
"""Rows that another program locks at a time."""


@pytest.mark.parametrize("pool", ["threads", "gevent"])
def test_killed_and_cut_workers_with_common_commits_lose_no_job(new_cluster: NewCluster, pool: str) -> None:
    """Claims and results that are written together are won, refused or lost each by itself."""
    cluster = new_cluster(settings=SETTINGS)
    workload = Workload(cluster)
    supervisor = supervise(cluster, pool=pool, concurrency=10)
    other_program = sqlalchemy.create_engine(cluster.database_url)

    def submit_more() -> None:
        workload.submit_mixed(15, workload.rng.uniform(0.05, 0.4), max_attempts=OFTEN)
        workload.submit([workload.job("work", 0.005) for _ in range(15)])

    def cut(_: WorkerSupervisor, __: random.Random) -> bool:
        execute(cluster.database_url, CUT)
        return True

    def lock(_: WorkerSupervisor, rng: random.Random) -> bool:
        with other_program.connect() as connection:
            last = select(job.c.id).order_by(job.c.id.desc()).limit(LOCKED)
            connection.execute(last.with_for_update(skip_locked=True))
            return kill(supervisor, rng)

    kill = send(signal.SIGKILL)
    try:
        run_under_faults(
            workload,
            supervisor,
            one_of(kill, cut, lock),
            (0.4, 0.8),
            submit_more=submit_more,
            reasons=["the worker % was lost"],
            jobs=scaled(60),
        )
    finally:
        other_program.dispose()

    assert all_ready(supervisor)
    rows = workload.audit(lost_before_body=True)
    print(len(rows), "jobs:", dict(account_for_attempts(workload, rows)))
