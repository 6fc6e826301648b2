"""A rolling restart: jobs of a task that the old workers do not know yet wait for the new ones."""

import pytest

from tests.faults.worker_faults import account_for_attempts
from tests.faults.workload import Workload
from tests.rng import scaled, stretched
from tests.support import eventually
from tests.worker.cluster import Cluster, NewCluster

pytestmark = [pytest.mark.faults, pytest.mark.slow, pytest.mark.timeout(stretched(900))]

BODIES = "tests.faults.worker_bodies:app"
UNKNOWN = "does not know the task worker.known_to_few"


def test_task_unknown_to_old_workers_waits_for_new_ones(new_cluster: NewCluster) -> None:
    cluster = new_cluster(settings={"jobhandle_republish_after": 1, "jobhandle_lease": 3})
    workload = Workload(cluster)
    old = [cluster.start(BODIES, concurrency=2, ready=False) for _ in range(2)]
    for worker in old:
        worker.wait_until_ready()
    kinds = ["known_to_few", "work"]
    jobs = [workload.job(workload.rng.choice(kinds), 0.1, message="the user's") for _ in range(scaled(100))]
    ids = workload.submit(jobs)
    unknown = [job_id for job_id, job in zip(ids, jobs, strict=True) if job.task == "worker.known_to_few"]
    eventually(lambda: all(was_unknown(cluster, job_id) for job_id in unknown))

    for worker in old:
        worker.terminate()
        cluster.start(BODIES, concurrency=2, environment={"KNOWS_MORE": "1"})
    workload.wait_until_final()

    rows = workload.audit()
    assert set(account_for_attempts(workload, rows)) == {"ended"}
    for job_id, row in rows.items():
        by = was_unknown(cluster, job_id)
        assert bool(by) is (job_id in unknown)
        assert by <= {f"worker {worker.nodename}" for worker in old}
        assert (row.status, row.attempt, row.message) == ("Finished", 1, "the user's")


def was_unknown(cluster: Cluster, job_id: int) -> set[str]:
    """Return the workers that did not know this job's task, according to its events."""
    return {event.actor for event in cluster.jobs.events(job_id) if UNKNOWN in event.message}
