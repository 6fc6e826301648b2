"""Workers stopped for longer than their lease: when they go on, their late writes change nothing."""

import time

import pytest

from jobhandle_celery import Progress
from tests.faults.worker_faults import account_for_attempts
from tests.faults.workload import Workload
from tests.rng import scaled, stretched
from tests.servers import execute
from tests.support import eventually
from tests.worker.cluster import Cluster, NewCluster
from tests.workers import WorkerProcess

pytestmark = [pytest.mark.faults, pytest.mark.slow, pytest.mark.timeout(stretched(900))]

BODIES = "tests.faults.worker_bodies:app"
LEASE = 2
SETTINGS = {"jobhandle_lease": LEASE, "jobhandle_republish_after": 2}
OFTEN = 10**6
LONG = 600.0
"""Seconds; longer than any test."""


def start_three(cluster: Cluster, pool: str) -> list[WorkerProcess]:
    for _ in range(3):
        cluster.start(BODIES, pool=pool, concurrency=4, ready=False)
    for worker in cluster.workers:
        worker.wait_until_ready()
    return cluster.workers


def has_lease(cluster: Cluster, worker: WorkerProcess) -> bool:
    return [worker.pid] in map(list, execute(cluster.database_url, "SELECT pid FROM jobhandle_worker"))


@pytest.mark.parametrize("pool", ["prefork", "gevent", "threads"])
def test_bodies_that_wake_late_overwrite_nothing_and_stop(new_cluster: NewCluster, pool: str) -> None:
    cluster = new_cluster(settings=SETTINGS)
    workload = Workload(cluster)
    workers = start_three(cluster, pool)
    # A body in the threads pool cannot be killed; `raise_if_cancelled` stops it.
    task = "listen_at_first" if pool == "threads" else "long_at_first"
    late = workload.submit([workload.job(task, LONG, max_attempts=OFTEN) for _ in range(4)])
    eventually(lambda: workload.count_started() == len(late))
    suspended: dict[int, float] = {}

    for worker in workload.rng.sample(workers, len(workers)):
        short = workload.submit(
            [
                workload.job("speak", workload.rng.uniform(0.1, 1.0), max_attempts=OFTEN)
                for _ in range(scaled(15))
            ]
        )
        begun = workload.rng.randrange(1, len(short))
        eventually(lambda: len(workload.body_traces().keys() & set(short)) >= begun)  # noqa: B023
        worker.stop_process()
        eventually(lambda: not has_lease(cluster, worker))  # noqa: B023
        suspended |= dict.fromkeys([worker.pid, *worker.children()], time.time())
        worker.continue_process()

    workload.wait_until_final()
    eventually(lambda: all(has_lease(cluster, worker) for worker in workers))
    eventually(lambda: all(has_left(workload, job_id) for job_id in late), message="a body goes on")
    rows = workload.audit(lost_before_body=True, suspended=suspended)
    assert account_for_attempts(workload, rows)["lost"] >= len(late)
    for row in rows.values():
        if row.task == "worker.speak":
            attempt = row.attempt or 0
            assert (row.message, row.progress) == (f"attempt {attempt}", Progress(attempt, 100)), row
        else:
            assert not workload.body_traces()[row.id][0].ended


def has_left(workload: Workload, job_id: int) -> bool:
    """Return whether the first body of a job has been silent for longer than a running one would be."""
    first = workload.body_traces()[job_id][0]
    assert first.attempt == 1
    return time.time() - first.last_seen > 2


def test_suspended_machine_loses_no_job(new_cluster: NewCluster) -> None:
    """No worker renewed and no sweep ran; so all workers first get the time to renew (mutant 12)."""
    cluster = new_cluster(settings=SETTINGS)
    workload = Workload(cluster)
    workers = start_three(cluster, "prefork")
    for _ in range(2):
        workload.submit_mixed(scaled(12), LEASE)
        begun = workload.count_started()
        eventually(lambda: workload.count_started() > begun + 8)  # noqa: B023
        for worker in workers:
            worker.stop_process()
        lapsed = "SELECT count(*) FROM jobhandle_worker WHERE lease_until < clock_timestamp()"
        eventually(lambda: execute(cluster.database_url, lapsed)[0][0] == len(workers))  # noqa: B023
        for worker in workers:
            worker.continue_process()
    workload.wait_until_final()

    tally = account_for_attempts(workload, workload.audit())
    assert set(tally) == {"ended"}, tally
