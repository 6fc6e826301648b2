"""Chains, groups and chords in a real worker."""

from collections.abc import Callable
from typing import Any

import pytest
from celery import chain, chord, group

from jobhandle_celery import JobFailedError, JobHandle, JobStatus
from tests.apps import lines_of
from tests.support import eventually
from tests.worker.cluster import Cluster, NewCluster


@pytest.fixture(scope="module")
def cluster(module_cluster: NewCluster) -> Cluster:
    cluster = module_cluster()
    cluster.start(concurrency=3)
    return cluster


def s(cluster: Cluster, task: str, *args: Any, **options: Any) -> Any:
    """Return a signature of `worker.<task>`."""
    return cluster.app.signature(f"worker.{task}", args=args, **options)


CANVASES: dict[str, tuple[Callable[[Cluster], Any], Any]] = {
    "a chain": (lambda at: chain(s(at, "add", 1, 2), s(at, "add", 3), s(at, "add", 4)), 10),
    "a chain with an immutable task": (
        lambda at: chain(s(at, "add", 1, 2), s(at, "add", 3, 4, immutable=True), s(at, "add", 5)),
        12,
    ),
    "a group": (lambda at: group(s(at, "add", n, n) for n in range(5)), [0, 2, 4, 6, 8]),
    "a chord": (lambda at: chord([s(at, "add", n, n) for n in range(5)], s(at, "total")), 20),
    "a chord in a chain": (
        lambda at: chain(
            s(at, "add", 1, 1), group(s(at, "add", 1), s(at, "add", 2)), s(at, "total"), s(at, "add", 5)
        ),
        12,
    ),
    "a group of chains": (
        lambda at: group(chain(s(at, "add", n, n), s(at, "add", 1)) for n in range(3)),
        [1, 3, 5],
    ),
    "retries": (lambda at: chain(s(at, "add", 1, 2), s(at, "add_after_retry", 3), s(at, "add", 4)), 10),
    "records of what is needed": (
        lambda at: chain(group(s(at, "add", 1, 1), s(at, "add", 2, 2)), s(at, "results_of_needs")),
        [[2, 4]],
    ),
}


@pytest.mark.parametrize("case", CANVASES)
def test_canvas_has_celerys_result(cluster: Cluster, case: str) -> None:
    make, expected = CANVASES[case]
    handle = cluster.jobs.handle()
    handle.submit(make(cluster))
    assert handle.result(timeout=30) == expected
    members = handle.members()
    assert {record.status for record in members} == {JobStatus.FINISHED}
    # A settle runs after the end that `result` sees.
    eventually(
        lambda: all(cluster.state(record.task_id) == "SUCCESS" for record in members if not record.kind)
    )
    assert not [key for key in cluster.redis.keys("*") if b"chord" in key or b"unacked" in key]


def test_root_is_running_while_a_member_runs(cluster: Cluster) -> None:
    path, sign = cluster.new_file(), cluster.new_file()
    handle = cluster.jobs.handle()
    handle.submit(group(chain(s(cluster, "until_there", str(path), str(sign)), s(cluster, "same"))))
    eventually(lambda: lines_of(path) == ["begun"])
    nodes = [handle.get_job(), *(record for record in handle.members() if record.kind)]
    assert {record.status for record in nodes} == {JobStatus.RUNNING}
    sign.touch()
    assert handle.result(timeout=20) == ["seen"]


def test_failed_member_cancels_what_needs_it(cluster: Cluster) -> None:
    path = cluster.new_file()
    handle: JobHandle = cluster.jobs.handle()
    handle.submit(
        chain(s(cluster, "length_of", None), s(cluster, "append", str(path), "ran", immutable=True))
    )
    with pytest.raises(JobFailedError, match=r"worker\.length_of") as failed:
        handle.result(timeout=20)
    first, second = handle.members()
    assert failed.value.failure.type == "MemberFailedError"
    assert (first.status, second.status) == (JobStatus.ERROR, JobStatus.CANCELLED)
    assert not path.exists()


@pytest.mark.faults
def test_member_whose_worker_dies_before_the_settle_is_settled(new_cluster: NewCluster) -> None:
    """The sweep of another worker does what the process that died would have done."""
    cluster = new_cluster()
    cluster.start()
    path = cluster.new_file()
    handle = cluster.jobs.handle()
    handle.submit(chain(s(cluster, "killed_before_settle", str(path)), s(cluster, "same")))
    assert handle.result(timeout=30) == "returned"
    assert lines_of(path) == ["begun"]
