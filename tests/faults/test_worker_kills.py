"""Workers and their children killed again and again: no job is lost, and every attempt is accounted for."""

import signal

import pytest

from tests.faults.worker_faults import (
    account_for_attempts,
    kill_a_child,
    one_of,
    run_under_faults,
    send,
    supervise,
)
from tests.faults.workload import Workload
from tests.rng import scaled, stretched
from tests.worker.cluster import NewCluster

pytestmark = [pytest.mark.faults, pytest.mark.slow, pytest.mark.timeout(stretched(900))]

OFTEN = 10**6
# No worker is declared lost unless sweeps follow each other within a sixth of a lease for a whole lease:
# a machine that is busy starting workers must manage that.
SETTINGS = {"jobhandle_lease": 6, "jobhandle_republish_after": 2}


@pytest.mark.parametrize(
    ("database_url", "broker_url"),
    [("postgresql", "redis"), ("sqlite", "redis"), ("mariadb", "rabbitmq")],
    indirect=True,
)
def test_killed_processes_lose_no_job(new_cluster: NewCluster, database_url: str, broker_url: str) -> None:
    cluster = new_cluster(database_url=database_url, broker_url=broker_url, settings=SETTINGS)
    workload = Workload(cluster)
    supervisor = supervise(cluster)

    def submit_more() -> None:
        workload.submit_mixed(15, workload.rng.uniform(0.05, 0.4), max_attempts=OFTEN)
        workload.submit_mixed(15, workload.rng.uniform(0.05, 0.4))

    run_under_faults(
        workload,
        supervisor,
        one_of(send(signal.SIGKILL), kill_a_child, kill_a_child),
        (0.1, 0.4),
        submit_more=submit_more,
        reasons=["the worker % was lost", "the process that ran it was lost"],
        jobs=scaled(60),
    )

    rows = workload.audit(lost_before_body=True)
    print(len(rows), "jobs:", dict(account_for_attempts(workload, rows)))
