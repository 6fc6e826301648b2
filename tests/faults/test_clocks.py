"""Workers with clocks an hour ahead or behind: only the database's clock is used."""

from datetime import UTC, datetime, timedelta
from itertools import pairwise

import pytest

from jobhandle_celery import JobRecord, JobStatus
from tests.faults.worker_faults import account_for_attempts, count_events
from tests.faults.workload import Workload
from tests.rng import scaled, stretched
from tests.support import eventually
from tests.worker.cluster import NewCluster

pytestmark = [pytest.mark.faults, pytest.mark.slow, pytest.mark.timeout(stretched(900))]

BODIES = "tests.faults.clock_bodies:app"
HOUR = 3600
LEASE = 2
COUNTDOWN = 1.5
SETTINGS = {
    "jobhandle_lease": LEASE,
    "jobhandle_republish_after": 5,
    # kombu with a clock an hour ahead at once redelivers what a worker with another clock has reserved.
    "broker_transport_options": {
        "visibility_timeout": HOUR // 2,
        "unacked_restore_interval": 1,
        "unacked_restore_throttle": 1,
    },
}


@pytest.mark.parametrize("database_url", ["postgresql", "mariadb"], indirect=True)
def test_wrong_clocks_start_no_job_early_and_misjudge_no_lease(
    new_cluster: NewCluster, database_url: str
) -> None:
    """Not on SQLite: its clock is that of each process, and its processes share one machine."""
    cluster = new_cluster(database_url=database_url, settings=SETTINGS)
    workload = Workload(cluster)
    ahead, behind = (
        cluster.start(BODIES, concurrency=6, ready=False, environment={"JOBHANDLE_TEST_CLOCK": str(seconds)})
        for seconds in (HOUR, -HOUR)
    )
    for worker in (ahead, behind):
        worker.wait_until_ready()

    workload.submit_mixed(scaled(40), 0.1, expires=timedelta(minutes=30))
    workload.submit([workload.job(task, 3 * LEASE) for task in ("work", "work_late", "work", "work_late")])
    workload.submit([workload.job("again", 0, 2, COUNTDOWN) for _ in range(scaled(10))])
    moments = [workload.rng.uniform(0.5, 4) for _ in range(scaled(20))]
    in_a_while = [workload.job("work", 0, scheduled_for=timedelta(seconds=seconds)) for seconds in moments]
    at_a_moment = [
        workload.job("work", 0, scheduled_for=datetime.now(UTC) + timedelta(seconds=seconds))
        for seconds in moments
    ]
    workload.submit(in_a_while + at_a_moment)
    submitters = workload.submit([workload.job("submit_later", COUNTDOWN) for _ in range(scaled(10))])
    eventually(lambda: all(workload.handle(job_id).job_status().final for job_id in submitters))
    for job_id in submitters:
        workload.ids += map(int, workload.handle(job_id).job_message().split())
    workload.wait_until_final()

    rows = workload.audit()
    tally = account_for_attempts(workload, rows)
    assert set(tally) == {"ended"}, tally
    for row in rows.values():
        assert_not_early(workload, row)
    assert {row.worker for row in rows.values()} == {ahead.nodename, behind.nodename}
    received = (ahead.log + behind.log).count("] received")
    assert received > sum(row.attempt or 0 for row in rows.values()), "no message came twice"
    assert all(len(row.message.split()) == 3 for row in rows.values() if row.task == "worker.submit_later")


def assert_not_early(workload: Workload, row: JobRecord) -> None:
    """Assert that a job started neither before its time nor before the end of its back-off."""
    assert row.started is not None
    if isinstance(row.scheduled_for, datetime):
        assert row.started >= row.scheduled_for
    if row.task == "worker.again" and row.args[2:] == [2, COUNTDOWN]:
        started = [event.at for event in workload.cluster.jobs.events(row.id) if event.message == "started"]
        between = [after - before for before, after in pairwise(started)]
        assert len(between) == 2
        assert min(between) >= timedelta(seconds=COUNTDOWN), row


@pytest.mark.parametrize("lost", [HOUR, -HOUR], ids=["ahead", "behind"])
def test_lost_worker_is_noticed_with_wrong_clocks(new_cluster: NewCluster, lost: int) -> None:
    cluster = new_cluster(settings=SETTINGS)
    workload = Workload(cluster)
    gone = cluster.start(BODIES, concurrency=4, environment={"JOBHANDLE_TEST_CLOCK": str(lost)})
    sign = cluster.new_file()
    workload.submit([workload.job("stay", str(sign), max_attempts=2) for _ in range(4)])
    eventually(lambda: workload.count_started() == 4)
    cluster.start(BODIES, concurrency=4, environment={"JOBHANDLE_TEST_CLOCK": str(-lost)})

    gone.kill()

    eventually(lambda: workload.count_started() == 8)
    sign.touch()
    workload.wait_until_final()
    rows = workload.audit()
    assert {(row.status, row.attempt) for row in rows.values()} == {(JobStatus.FINISHED, 2)}
    assert count_events(cluster, "the worker % was lost") == 4
