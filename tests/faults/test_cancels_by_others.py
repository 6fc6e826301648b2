"""`control.revoke`, by which other tools end tasks, applied repeatedly to many jobs."""

from collections.abc import Sequence
from typing import Any

import pytest

from jobhandle_celery import JobStatus
from tests.faults.worker_faults import RESULTS
from tests.faults.workload import BODIES, Workload, repeating_fault
from tests.rng import scaled, stretched
from tests.worker.cluster import Cluster, NewCluster

pytestmark = [pytest.mark.faults, pytest.mark.slow, pytest.mark.timeout(stretched(900))]


def test_revokes_leave_every_job_with_a_true_end(new_cluster: NewCluster) -> None:
    cluster = new_cluster(settings={"jobhandle_lease": 2, "jobhandle_republish_after": 2})
    workload = Workload(cluster)
    ids = workload.submit_mixed(scaled(70), 0.5)
    for _ in range(2):
        cluster.start(BODIES, concurrency=3, ready=False)

    def inject() -> None:
        running = [job.id for job in cluster.jobs.find(ids=ids, status=JobStatus.RUNNING) if job.id]
        some = [workload.rng.choice(running or ids), workload.rng.choice(ids)]
        options: list[dict[str, Any]] = [{}, {"terminate": True}, {"terminate": True, "signal": "SIGKILL"}]
        cluster.app.control.revoke(task_ids(cluster, some), **workload.rng.choice(options))

    with repeating_fault(inject, (0.1, 0.5), workload.rng):
        workload.wait_until_final()

    rows = workload.audit(lost_before_body=True)
    by_force = [row for row in rows.values() if "its process was terminated" in row.message]
    assert by_force, "the storm hit no body"
    for row in rows.values():
        if row.status is JobStatus.FINISHED:
            assert row.result == RESULTS[row.task.removeprefix("worker.")]
        elif row.status is JobStatus.ERROR:
            assert row.error is not None
            assert (row.task, row.error.type) == ("worker.fail", "ValueError")
        else:
            assert row in by_force or row.cancel_requested is not None

    # Final jobs stay final, and workers that received the revoke run other jobs.
    cluster.app.control.revoke(task_ids(cluster, ids), terminate=True)
    others = workload.submit([workload.job("work", 0) for _ in range(20)])
    workload.wait_until_final()
    after = workload.audit(lost_before_body=True)
    assert {job_id: after[job_id] for job_id in ids} == rows
    assert {after[job_id].status for job_id in others} == {JobStatus.FINISHED}


def task_ids(cluster: Cluster, ids: Sequence[int]) -> list[str]:
    return [str(job.task_id) for job in cluster.jobs.find(ids=ids, limit=10_000)]
