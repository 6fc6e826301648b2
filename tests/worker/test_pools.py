"""The same promises in each of Celery's pools, as far as the pool can keep them."""

from collections.abc import Iterator

import pytest

from jobhandle_celery import JobStatus
from tests.apps import lines_of
from tests.support import eventually, sweep_until
from tests.worker.cluster import Cluster, NewCluster, leases_until

LEASE = 2


@pytest.fixture(scope="module", params=["prefork", "threads", "solo", "gevent"])
def pool(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def cluster(pool: str, module_cluster: NewCluster) -> Iterator[Cluster]:
    cluster = module_cluster(settings={"jobhandle_lease": LEASE})
    cluster.start(pool=pool, concurrency=2)
    yield cluster
    cluster.close()  # the next one has the same broker


def test_job_runs_in_each_pool(cluster: Cluster) -> None:
    path = cluster.new_file()

    handle = cluster.submit("append", str(path), "body")

    assert handle.result(timeout=20) == "body"
    assert lines_of(path) == ["body"]
    assert cluster.submit("retry_times", str(cluster.new_file()), 2).result(timeout=20) == 2


def test_polling_body_stops_after_a_cancel(cluster: Cluster) -> None:
    path = cluster.new_file()
    handle = cluster.submit("attentive", str(path), 60)
    eventually(lambda: lines_of(path) == ["begun"])

    handle.cancel_job()

    assert handle.wait(20) is JobStatus.CANCELLED
    assert lines_of(path) == ["begun"]


def test_terminate_ends_a_body_where_the_pool_can(cluster: Cluster, pool: str) -> None:
    path = cluster.new_file()
    can = pool in ("prefork", "gevent")
    handle = cluster.submit("deaf", str(path), 60 if can else 2)
    eventually(lambda: lines_of(path) == ["begun"])

    handle.cancel_job(terminate=True)

    assert handle.wait(20) is (JobStatus.CANCELLED if can else JobStatus.FINISHED)
    assert lines_of(path) == (["begun"] if can else ["begun", "ended"])
    assert cluster.submit("add", 20, 22).result(timeout=20) == 42


def test_lease_is_renewed_during_a_longer_body(cluster: Cluster) -> None:
    path, sign = cluster.new_file(), cluster.new_file()
    handle = cluster.submit("until_there", str(path), str(sign))
    eventually(handle.job_running)

    # Another process sweeps, too.
    outlived = f"(SELECT started FROM jobhandle_job WHERE id = {handle.job_id}) + interval '{2 * LEASE} s'"
    sweep_until(cluster.jobs, lambda: leases_until(cluster, outlived), timeout=30)
    sign.touch()

    assert handle.result(20) == "seen"
    assert handle.get_job().attempt == 1


def test_ignored_time_limit_is_logged_once(cluster: Cluster, pool: str) -> None:
    """A worker whose pool cannot end a body logs this for the first job with a limit (fault 30)."""
    for _ in range(2):
        handle = cluster.submit("add", 20, 22, time_limit=60, soft_time_limit=50)
        assert handle.result(timeout=20) == 42
    ignored = {"prefork": [], "gevent": ["soft"]}.get(pool, ["hard and soft"])
    logged = [line for line in cluster.workers[0].log.splitlines() if "time limit is ignored" in line]
    assert len(logged) == len(ignored)
    assert all(f"its {kinds} time limit" in line for kinds, line in zip(ignored, logged, strict=True))


@pytest.mark.parametrize(("task", "arguments"), [("exit_in_body", [3]), ("raise_keyboard_interrupt", [])])
def test_sys_exit_does_not_leave_the_job_running(
    cluster: Cluster, pool: str, task: str, arguments: list[int]
) -> None:
    if (pool, task) == ("solo", "raise_keyboard_interrupt"):
        pytest.skip("the worker itself ends, as by a Ctrl-C")

    handle = cluster.submit(task, *arguments)

    assert handle.wait(20) is JobStatus.ERROR
    assert cluster.submit("add", 20, 22).result(timeout=20) == 42


def test_hard_time_limit_holds_where_the_pool_has_one(cluster: Cluster, pool: str) -> None:
    if pool in ("threads", "solo"):
        pytest.skip("Celery has no time limits in this pool")

    handle = cluster.submit("deaf", str(cluster.new_file()), 60, time_limit=1)

    assert handle.wait(20) is JobStatus.ERROR
    error = handle.get_job().error
    assert error is not None
    assert (error.kind, error.type) == ("system", "TimeLimitExceeded")
    assert error.message == "the time limit of 1 s was exceeded"
