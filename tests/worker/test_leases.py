"""The lease is renewed whatever blocks a worker's main process."""

from jobhandle_celery import JobStatus
from tests.apps import lines_of
from tests.support import eventually
from tests.worker.cluster import NewCluster, leases_until, statuses

LEASE = 2


def test_worker_with_hanging_sweep_keeps_its_lease(new_cluster: NewCluster) -> None:
    """One thread that renews and publishes would lose it (mutant 17)."""
    cluster = new_cluster(settings={"jobhandle_lease": LEASE})
    stuck = cluster.start("tests.worker.stuck:app", concurrency=1)
    path, sign = cluster.new_file(), cluster.new_file()
    handle = cluster.submit("until_there", str(path), str(sign))
    eventually(lambda: lines_of(path) == ["begun"])
    cluster.start(concurrency=1)

    # Both have run for longer than a lease, while another worker sweeps.
    outlived = f"started + interval '{2.5 * LEASE} seconds'"
    eventually(lambda: leases_until(cluster, outlived) == 2, message="a lease was not renewed")
    sign.touch()

    assert handle.wait(20) is JobStatus.FINISHED
    assert statuses(cluster, handle) == ["Submitted", "Running", "Finished"]
    stuck.kill()  # its housekeeping would block a shutdown
