"""The basis of the fault tests: a workload without faults, and an audit that can fail."""

import pytest

from jobhandle_celery import JobStatus
from tests.faults.rounds import account_for_rounds
from tests.faults.workload import BODIES, Workload
from tests.rng import scaled
from tests.servers import execute
from tests.worker.cluster import NewCluster

pytestmark = pytest.mark.faults


@pytest.mark.parametrize("database", ["postgresql", "sqlite"])
def test_workload_without_faults(new_cluster: NewCluster, database: str) -> None:
    cluster = new_cluster(database=database)
    workload = Workload(cluster)
    workload.submit_mixed(scaled(60), 0.02)
    cluster.start(BODIES)
    for job_id in workload.rng.sample(workload.ids, len(workload.ids) // 4):
        workload.cancel(job_id)
    workload.wait_until_final()
    rows = workload.audit()
    assert {row.status for row in rows.values()} == {"Finished", "Error", "Cancelled"}


def test_audit_sees_a_body_without_an_attempt(new_cluster: NewCluster) -> None:
    cluster = new_cluster(database="sqlite")
    workload = Workload(cluster)
    [job_id] = workload.submit([workload.job("work", 0)])
    cluster.start(BODIES)
    workload.wait_until_final()
    assert workload.audit()[job_id].status is JobStatus.FINISHED
    with workload.path.open("a") as lines:
        lines.write(f"begun {job_id} 2 1 1e10\n")
    with pytest.raises(AssertionError, match=f"job {job_id}"):
        workload.audit()


def test_audit_sees_two_bodies_at_once_and_one_after_a_cancel(new_cluster: NewCluster) -> None:
    cluster = new_cluster(database="sqlite")
    workload = Workload(cluster)
    [job_id] = workload.submit([workload.job("again", 0.2, 1, 0)])
    cluster.start(BODIES)
    workload.wait_until_final()
    workload.audit()
    workload.prevented[job_id] = workload.body_traces()[job_id][0].begun
    with pytest.raises(AssertionError, match="started after its cancel"):
        workload.audit()
    workload.prevented.clear()
    written = workload.path.read_text().splitlines()
    first = [line for line in written if line.split()[2] == "1"]
    first[-1] = " ".join([*first[-1].split()[:-1], "1e10"])
    workload.path.write_text("\n".join([*first, *written[len(first) :]]) + "\n")
    with pytest.raises(AssertionError, match="two bodies at once"):
        workload.audit()
    first_life = workload.body_traces()[job_id][0]
    workload.audit(suspended={first_life.pid: first_life.begun})
    claimed = [event.at.timestamp() for event in workload.handle(job_id).events() if event.attempt == 1]
    with pytest.raises(AssertionError, match="two bodies at once"):
        workload.audit(suspended={first_life.pid: min(claimed) - 0.001}, lost_before_body=True)
    # Claimed before its process was stopped, begun once it woke: it is no attempt beside its successor.
    workload.audit(suspended={first_life.pid: first_life.begun - 1e-6}, lost_before_body=True)


def test_audit_sees_a_job_started_before_its_release(new_cluster: NewCluster) -> None:
    cluster = new_cluster(database="sqlite")
    workload = Workload(cluster)
    held, ended = workload.submit([workload.job("work", 0, status="Waiting"), workload.job("work", 0)])
    workload.cancel(ended)
    workload.release(held)
    workload.resubmit(ended)
    cluster.start(BODIES)
    workload.wait_until_final()
    workload.audit()
    [trace], [again] = workload.body_traces()[held], workload.body_traces()[ended]
    before, workload.released[held] = workload.released[held], trace.begun + 1
    with pytest.raises(AssertionError, match="started before its release"):
        workload.audit()
    workload.released[held] = before
    [(_, since, _)] = workload.cancelled_periods
    workload.cancelled_periods = [(ended, since, again.begun + 1)]
    with pytest.raises(AssertionError, match=f"job {ended} was cancelled"):
        workload.audit()


def test_audit_sees_a_body_that_runs_again_unasked(new_cluster: NewCluster) -> None:
    cluster = new_cluster(database="sqlite")
    workload = Workload(cluster)
    workload.submit([workload.job("again", 0, 1, 0)])
    cluster.start(BODIES)
    workload.wait_until_final()
    account_for_rounds(workload, workload.audit())
    retry = f"WHERE status_id = {JobStatus.REQUEUED.id}"
    execute(cluster.database_url, f"UPDATE jobhandle_job_event SET message = 'its worker shut down' {retry}")
    with pytest.raises(AssertionError, match="taken from a living worker"):
        account_for_rounds(workload, workload.audit())
    execute(cluster.database_url, f"DELETE FROM jobhandle_job_event {retry}")
    with pytest.raises(AssertionError, match="Running"):
        workload.audit()
