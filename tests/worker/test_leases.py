"""The lease is renewed whatever blocks a worker's main process."""

from jobhandle_celery import JobStatus
from tests.apps import lines_of
from tests.support import eventually
from tests.worker.site import NewSite, leases_until, statuses

LEASE = 2


def test_worker_with_hanging_sweep_keeps_its_lease(new_site: NewSite) -> None:
    """One thread that renews and publishes would lose it (mutant 17)."""
    site = new_site(settings={"jobhandle_lease": LEASE})
    stuck = site.start("tests.worker.stuck:app", concurrency=1)
    path, sign = site.new_file(), site.new_file()
    handle = site.submit("until_there", str(path), str(sign))
    eventually(lambda: lines_of(path) == ["begun"])
    site.start(concurrency=1)

    # Both have run for longer than a lease, while another worker sweeps.
    outlived = f"started + interval '{2.5 * LEASE} seconds'"
    eventually(lambda: leases_until(site, outlived) == 2, message="a lease was not renewed")
    sign.touch()

    assert handle.wait(20) is JobStatus.FINISHED
    assert statuses(site, handle) == ["Submitted", "Running", "Finished"]
    stuck.kill()  # its housekeeping would block a shutdown
