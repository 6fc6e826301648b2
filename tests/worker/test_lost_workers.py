"""Jobs of killed or stopped workers end or are requeued, and late writes change nothing."""

from datetime import datetime, timedelta
from itertools import pairwise
from typing import Any

import pytest

from jobhandle_celery import JobStatus
from tests.apps import lines_of
from tests.servers import execute
from tests.support import eventually
from tests.worker.cluster import Cluster, NewCluster, statuses

pytestmark = pytest.mark.faults

LEASE = 2


def quick_cluster(new_cluster: NewCluster, **settings: Any) -> Cluster:
    # Redis may deliver a message to a worker just killed; another comes after the republish delay.
    return new_cluster(settings={"jobhandle_lease": LEASE, "jobhandle_republish_after": 3, **settings})


def test_jobs_of_killed_worker_end_in_error_or_are_requeued(new_cluster: NewCluster) -> None:
    cluster = quick_cluster(new_cluster)
    worker = cluster.start(concurrency=3)
    paths, sign = [cluster.new_file() for _ in range(3)], cluster.new_file()
    once = cluster.submit("until_there", str(paths[0]), str(sign))
    twice = cluster.submit("until_there", str(paths[1]), str(sign), max_attempts=2)
    cancelled = cluster.submit("until_there", str(paths[2]), str(sign), max_attempts=2)
    eventually(lambda: all(lines_of(path) == ["begun"] for path in paths))
    assert cancelled.cancel_job() is JobStatus.RUNNING
    cluster.start(concurrency=1)

    worker.kill()

    assert once.wait(20) is JobStatus.ERROR
    error = once.get_job().error
    assert error is not None
    assert (error.kind, error.type) == ("system", "WorkerLostError")
    assert worker.nodename in error.message
    assert cancelled.wait(20) is JobStatus.CANCELLED
    sign.touch()
    assert twice.result(timeout=20) == "seen"
    assert twice.get_job().attempt == 2
    assert statuses(cluster, twice) == ["Submitted", "Running", "Requeued", "Running", "Finished"]
    assert lines_of(paths[0]) == ["begun"]
    assert lines_of(paths[2]) == ["begun"]


def test_suspended_worker_changes_no_superseded_job(new_cluster: NewCluster) -> None:
    cluster = quick_cluster(new_cluster)
    # A worker cannot terminate threads: the body surely gets as far as its writes.
    sleeper = cluster.start(pool="threads", concurrency=1)
    path, sign = cluster.new_file(), cluster.new_file()
    handle = cluster.submit("attempt_until_there", str(path), str(sign), max_attempts=2)
    eventually(lambda: lines_of(path) == ["begun 1"])
    other = cluster.start(concurrency=1)

    sleeper.stop_process()
    eventually(lambda: lines_of(path) == ["begun 1", "begun 2"])
    sleeper.continue_process()
    sign.with_name(f"{sign.name}-1").touch()

    eventually(lambda: "1 is asked to stop: True" in lines_of(path))
    # The suspended worker registers a new lease, and its body learns that its attempt is superseded.
    eventually(lambda: "has superseded it" in sleeper.log)
    job = handle.get_job()
    assert (job.status, job.attempt, job.message, job.progress) == (JobStatus.RUNNING, 2, "", None)
    assert job.worker == other.nodename
    sign.with_name(f"{sign.name}-2").touch()
    assert handle.result(timeout=20) == "returned by 2"
    assert handle.job_message() == "written by 2"
    other.end()
    assert cluster.submit("add", 20, 22).result(timeout=20) == 42


def test_row_that_its_worker_does_not_run_is_recovered(new_cluster: NewCluster) -> None:
    cluster = quick_cluster(new_cluster)
    cluster.start(concurrency=1)
    handle = cluster.submit("add", 1, 2)
    handle.wait(20)
    [(worker_uid, pid)] = execute(cluster.database_url, "SELECT worker_uid, pid FROM jobhandle_worker")

    # As if the answer to the body's last write had been lost together with its process.
    execute(
        cluster.database_url,
        f"UPDATE jobhandle_job SET status_id = {JobStatus.RUNNING.id}, finished = NULL, result = NULL,"
        f" worker_uid = '{worker_uid}', pid = {pid}",
    )

    assert handle.wait(20) is JobStatus.ERROR
    assert "does not run it any more" in handle.job_message()


def test_idle_workers_share_one_pass_per_interval(new_cluster: NewCluster) -> None:
    cluster = quick_cluster(new_cluster, jobhandle_lease=60, jobhandle_sweep_interval=0.5)
    cluster.start(pool="solo", ready=False)
    cluster.start(pool="solo", ready=False)
    for worker in cluster.workers:
        worker.wait_until_ready()
    passes: list[datetime] = []

    def five_passes() -> bool:
        rows = execute(cluster.database_url, "SELECT last_pass_at FROM jobhandle_sweep")
        if rows and rows[0][0] not in passes:
            passes.append(rows[0][0])
        return len(passes) == 5

    eventually(five_passes)

    assert all(later - earlier >= timedelta(seconds=0.5) for earlier, later in pairwise(passes)), passes
