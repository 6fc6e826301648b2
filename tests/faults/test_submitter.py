"""A submitter is killed at each statement, commit and publish: there is no row, or the job runs once."""

from collections import Counter
from typing import Any

import pytest

from jobhandle_celery import JobRecord, JobStatus
from tests.faults.step_actions import MANY
from tests.faults.step_faults import DIRECT, step_runner
from tests.faults.workload import BODIES, Workload
from tests.rng import stretched
from tests.servers import execute
from tests.worker.cluster import Cluster, NewCluster

pytestmark = [pytest.mark.faults, pytest.mark.slow, pytest.mark.timeout(stretched(900))]

ENOUGH = 60
"""More steps than any action has."""


def found(cluster: Cluster) -> Counter[str]:
    """Return how many jobs there are of each submit."""
    return Counter(str(job.meta) for job in cluster.jobs.find(task="worker.work", limit=10_000))


def prepared(workload: Workload, *, final: bool) -> list[int]:
    """Return held jobs, cancelled if asked for."""
    ids = workload.submit([workload.job("work", 0, status="Waiting") for _ in range(ENOUGH)])
    if final:
        workload.cluster.jobs.cancel_many(ids=ids)
    return ids


def test_submitter_killed_at_any_step_submits_all_or_nothing(
    new_cluster: NewCluster, database_url: str
) -> None:
    cluster = new_cluster(database_url=database_url)
    workload = Workload(cluster)
    path = str(workload.path)
    execute(database_url, "CREATE TABLE orders (number INTEGER)")
    died: dict[str, list[str]] = {}
    held, cancelled = prepared(workload, final=False), prepared(workload, final=True)
    actions: dict[str, dict[str, Any]] = {
        "submit": {"path": path},
        "submit_many": {"path": path},
        "submit_in_session": {"path": path, "url": database_url},
        "release": {"ids": held},
        "resubmit": {"ids": cancelled},
    }
    for action, given in actions.items():
        with step_runner(cluster, action, **given) as stopped:
            died[action] = list(stopped.each_step())
        print(action, died[action])
        assert 4 <= len(died[action]) < ENOUGH, "it dies at each step, and at last survives"
        assert {"before _put", "after _put"} <= set(died[action])
    # The statement of production: on PostgreSQL it bypasses SQLAlchemy.
    assert (f"before {DIRECT}" in died["submit"]) == database_url.startswith("postgresql")

    submitted = found(cluster)
    for action in ("submit", "submit_many", "submit_in_session"):
        whole = MANY if action == "submit_many" else 1
        came = [submitted[f"{action} {number}"] for number in range(1, len(died[action]) + 2)]
        assert set(came) == {0, whole}, f"{action}: {came}"
        # A later step never has fewer jobs than an earlier one.
        assert came == sorted(came), f"{action}: {came}"
    orders = {
        f"submit_in_session {number}" for (number,) in execute(database_url, "SELECT number FROM orders")
    }
    assert orders == {name for name in submitted if name.startswith("submit_in_session")}

    workload.ids = [job.id for job in cluster.jobs.find(task="worker.work", limit=10_000) if job.id]
    untouched = set(held[len(died["release"]) + 2 :])
    went = {job.id for job in cluster.jobs.find(ids=[*held, *cancelled], limit=10_000) if is_sent(job)}
    cluster.start(BODIES)
    workload.ids = [job_id for job_id in workload.ids if job_id not in set(held) - went]
    workload.wait_until_final()
    for job_id, row in workload.audit().items():
        ran = job_id in went or job_id not in cancelled
        assert (row.status, row.attempt) == ((JobStatus.FINISHED, 1) if ran else (JobStatus.CANCELLED, 0))
    assert untouched.isdisjoint(went)


def is_sent(job: JobRecord) -> bool:
    return job.status not in (JobStatus.WAITING, JobStatus.CANCELLED)
