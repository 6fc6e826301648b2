"""Shutdown of a worker: a warm one finishes running jobs, a soft or cold one gives them back."""

from collections.abc import Sequence
from itertools import groupby
from pathlib import Path

import pytest

from jobhandle_celery import JobHandle, JobStatus
from tests.apps import lines_of
from tests.servers import execute
from tests.support import eventually, sweep_until
from tests.worker.cluster import Cluster, NewCluster, leases_until, statuses

pytestmark = pytest.mark.faults

LEASE = 2


def pids_in(path: Path) -> list[str]:
    """Return the processes that wrote to a file, one for each stretch of lines: twice means overlap."""
    lines = path.read_text().splitlines()
    return [pid for pid, _ in groupby(line.split()[-2] for line in lines)]


def running(cluster: Cluster, *tasks: str, given: Sequence[object] = (60,)) -> list[tuple[JobHandle, Path]]:
    jobs = []
    for task in tasks:
        path = cluster.new_file()
        jobs.append((cluster.submit(task, str(path), *given), path))
    for _, path in jobs:
        eventually(path.exists)
    return jobs


def assert_given_back_and_finished(cluster: Cluster, handle: JobHandle, path: Path) -> None:
    assert handle.result(timeout=30) == "ticked"
    assert handle.get_job().attempt == 2
    assert statuses(cluster, handle) == ["Submitted", "Running", "Requeued", "Running", "Finished"]
    first, second = pids_in(path)
    assert first != second


@pytest.mark.parametrize("pool", ["prefork", "threads", "gevent", "solo"])
def test_warm_shutdown_lets_bodies_finish(new_cluster: NewCluster, pool: str) -> None:
    cluster = new_cluster(settings={"jobhandle_lease": LEASE})
    worker = cluster.start(pool=pool, concurrency=2)
    sign = cluster.new_file()
    jobs = running(
        cluster, *["until_there", "until_there_late"][: 1 if pool == "solo" else 2], given=[str(sign)]
    )
    [(terminated,)] = execute(cluster.database_url, "SELECT clock_timestamp()")

    worker.terminate()

    # The lease is renewed during the shutdown, while another process sweeps.
    renewed = f"'{terminated.isoformat()}'::timestamptz + interval '{1.5 * LEASE} s'"
    sweep_until(cluster.jobs, lambda: leases_until(cluster, renewed), timeout=30)
    sign.touch()
    eventually(lambda: not worker.is_running())
    for handle, path in jobs:
        assert handle.job_status() is JobStatus.FINISHED
        assert handle.get_job().attempt == 1
        assert lines_of(path) == ["begun", "ended"]
    assert worker.wait() == 0


def test_cold_shutdown_gives_jobs_back(new_cluster: NewCluster) -> None:
    cluster = new_cluster(settings={"jobhandle_lease": LEASE})
    worker = cluster.start(concurrency=2)
    jobs = running(cluster, "ticking", "ticking_late", given=[60, 1])
    cluster.start(concurrency=2)

    worker.quit()

    for handle, path in jobs:
        assert_given_back_and_finished(cluster, handle, path)
    worker.wait()


def test_soft_shutdown_waits_and_gives_the_rest_back(new_cluster: NewCluster) -> None:
    cluster = new_cluster(settings={"jobhandle_lease": LEASE, "worker_soft_shutdown_timeout": 2})
    worker = cluster.start(concurrency=3)
    long, long_late = running(cluster, "ticking", "ticking_late", given=[60, 0.5])
    [(short, _)] = running(cluster, "deaf", given=[1])

    worker.quit()

    worker.wait()
    assert short.result(timeout=1) == "slept"
    assert short.get_job().attempt == 1
    for handle, _ in (long, long_late):
        assert handle.job_status() in (JobStatus.REQUEUED, JobStatus.QUEUED)
    cluster.start(concurrency=2)
    for handle, path in (long, long_late):
        assert_given_back_and_finished(cluster, handle, path)


@pytest.mark.parametrize("pool", ["threads", "gevent", "solo"])
def test_cold_shutdown_of_other_pools_neither_loses_nor_doubles(new_cluster: NewCluster, pool: str) -> None:
    cluster = new_cluster(settings={"jobhandle_lease": LEASE})
    worker = cluster.start(pool=pool, concurrency=2)
    [(handle, path)] = running(cluster, "ticking", given=[3, 1])
    cluster.start(concurrency=1)

    worker.quit()

    # A body that the pool cannot end goes on, under its lease; else another worker starts it again.
    # The worker that shuts down may be that other one, if it has not stopped consuming yet.
    assert handle.result(timeout=30) == "ticked"
    assert 1 <= len(pids_in(path)) <= handle.get_job().attempt
    worker.wait()


def test_job_with_a_stop_request_is_not_given_back(new_cluster: NewCluster) -> None:
    cluster = new_cluster(settings={"jobhandle_lease": LEASE})
    worker = cluster.start(concurrency=1)
    [(handle, _)] = running(cluster, "deaf")
    assert handle.cancel_job() is JobStatus.RUNNING

    worker.quit()
    worker.wait()

    assert handle.wait(20) is JobStatus.CANCELLED


def test_prefetched_jobs_run_elsewhere_after_a_shutdown(new_cluster: NewCluster) -> None:
    cluster = new_cluster(
        settings={"jobhandle_lease": LEASE, "worker_prefetch_multiplier": 4, "jobhandle_republish_after": 2}
    )
    worker = cluster.start(concurrency=1)
    running(cluster, "deaf")
    waiting = [cluster.submit("add", number, 1) for number in range(3)]
    eventually(lambda: cluster.redis.llen("celery") == 0)

    worker.kill()
    cluster.start(concurrency=1)

    assert [handle.result(timeout=30) for handle in waiting] == [1, 2, 3]
