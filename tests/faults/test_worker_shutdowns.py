"""Workers shut down in mid-body repeatedly (warm, cold, soft): no attempt is lost."""

import signal

import pytest

from tests.faults.worker_faults import account_for_attempts, run_under_faults, send, supervise
from tests.faults.workload import Workload
from tests.rng import scaled, stretched
from tests.worker.cluster import NewCluster

pytestmark = [pytest.mark.faults, pytest.mark.slow, pytest.mark.timeout(stretched(900))]

SETTINGS = {"jobhandle_lease": 2, "jobhandle_republish_after": 2}
CALM = (0.1, 0.5)


def test_warm_shutdown_interrupts_no_body(new_cluster: NewCluster) -> None:
    cluster = new_cluster(settings=SETTINGS)
    workload = Workload(cluster)
    supervisor = supervise(cluster)

    run_under_faults(
        workload,
        supervisor,
        send(signal.SIGTERM),
        CALM,
        submit_more=lambda: workload.submit_mixed(30, 0.3),
        reasons=[],
        jobs=scaled(60),
        times=3,
    )

    assert sum("Warm shutdown" in worker.log for worker in cluster.workers) >= 2
    tally = account_for_attempts(workload, workload.audit())
    print(dict(tally))
    assert set(tally) <= {"ended", "stopped"}, tally


@pytest.mark.parametrize("timeout", [0, 0.5], ids=["cold", "soft"])
def test_cold_or_soft_shutdown_gives_cut_off_jobs_back(new_cluster: NewCluster, timeout: float) -> None:
    cluster = new_cluster(settings=SETTINGS | {"worker_soft_shutdown_timeout": timeout})
    workload = Workload(cluster)
    supervisor = supervise(cluster)

    run_under_faults(
        workload,
        supervisor,
        send(signal.SIGQUIT),
        CALM,
        submit_more=lambda: workload.submit_mixed(20, workload.rng.uniform(0.1, 1 + timeout)),
        reasons=["cut it off"],
        jobs=scaled(40),
    )

    rows = workload.audit(lost_before_body=True)
    tally = account_for_attempts(workload, rows)
    print(len(rows), "jobs:", dict(tally))
    assert not tally["lost"], tally
