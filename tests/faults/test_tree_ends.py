"""Members of trees that are lost, expire, have another job's key, or are ended by hand: real workers."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from celery import chain, chord, group

from jobhandle_celery import InvalidTransitionError, Job, JobStatus, ValidationError
from tests.faults.tree_workload import TREE_BODIES, Grown, TreeWorkload
from tests.faults.workload import repeating_fault
from tests.rng import rng, stretched
from tests.servers import execute
from tests.support import eventually
from tests.worker.cluster import Cluster, NewCluster

pytestmark = [pytest.mark.faults, pytest.mark.timeout(stretched(900))]

CANCELLED, ERROR, FINISHED, RUNNING = (
    JobStatus.CANCELLED,
    JobStatus.ERROR,
    JobStatus.FINISHED,
    JobStatus.RUNNING,
)
EXPIRED = "expired before it was started"


@pytest.fixture(scope="module")
def cluster(module_cluster: NewCluster) -> Cluster:
    cluster = module_cluster()
    cluster.start(TREE_BODIES, concurrency=3)
    return cluster


@pytest.fixture
def workload(cluster: Cluster) -> TreeWorkload:
    return TreeWorkload(cluster)


def statuses(tree: Grown) -> list[str]:
    """Return the statuses of the tasks in the order of the tree."""
    return [str(row.status) for row in tree.handle.members() if row.kind is None]


def tasks(tree: Grown) -> list[int]:
    return [row.id for row in tree.handle.members() if row.kind is None]


def begun(workload: TreeWorkload) -> dict[int, int]:
    """Return how often each job's body has begun."""
    return {job_id: len(traces) for job_id, traces in workload.work.body_traces().items()}


def test_lost_member_ends_its_tree_and_runs_again_with_it(workload: TreeWorkload) -> None:
    step, sign = workload.step, str(workload.cluster.new_file())
    lost = step(1, task="killed_step", sign=sign)
    tree = workload.grow(chain(step(1), group(lost, step(2)), step(3), step(4)))
    assert tree.handle.wait(60) is ERROR
    first, killed, beside, *later = tasks(tree)
    assert tree.root.message.startswith(f"job {killed} (worker.killed_step) ended in Error")
    eventually(lambda: statuses(tree) == [FINISHED, ERROR, FINISHED, CANCELLED, CANCELLED])
    assert begun(workload) == {first: 1, killed: 1, beside: 1}

    tree.handle.resubmit_job()

    assert tree.handle.wait(60) is FINISHED
    assert tree.handle.result(timeout=60) == tree.expected
    assert begun(workload) == {first: 1, killed: 2, beside: 1} | dict.fromkeys(later, 1)


def test_lost_member_with_attempts_left_goes_on(workload: TreeWorkload) -> None:
    step, sign = workload.step, str(workload.cluster.new_file())
    lost = step(1, task="killed_step", sign=sign, max_attempts=2)
    tree = workload.grow(chord([lost, step(2)], step(3)))
    assert tree.handle.wait(60) is FINISHED
    assert tree.handle.result(timeout=60) == tree.expected
    killed, *others = tasks(tree)
    assert begun(workload) == {killed: 2} | dict.fromkeys(others, 1)


@pytest.mark.parametrize("blocked", [True, False], ids=["blocked", "queued"])
def test_member_that_expires_ends_its_tree(workload: TreeWorkload, blocked: bool) -> None:
    step, sign = workload.step, workload.cluster.new_file()
    soon: Any = datetime.now(UTC) + timedelta(seconds=2) if blocked else 1
    held = step(0, task="held_step", sign=str(sign))
    expiring = step(1, expires=soon, queue="nobody's")
    tree = workload.grow(chain(held, expiring, step(2)))
    first, second, _ = tasks(tree)
    if not blocked:
        sign.touch()
    eventually(lambda: statuses(tree)[1:] == [CANCELLED, CANCELLED])
    assert workload.work.handle(second).job_message() == EXPIRED
    if blocked:
        assert tree.root.status is RUNNING
        sign.touch()
    assert tree.handle.wait(60) is CANCELLED
    assert tree.root.message.startswith(f"job {second} (worker.step) was cancelled: {EXPIRED}")
    assert begun(workload) == {first: 1}


def test_running_job_with_the_key_of_a_member_is_that_member(workload: TreeWorkload) -> None:
    cluster, step, sign = workload.cluster, workload.step, workload.cluster.new_file()
    key = str(sign)
    [existing] = cluster.jobs.submit_many(
        [
            Job(
                task="worker.held_step",
                args=[5],
                kwargs={"path": workload.path, "sign": str(sign)},
                unique_key=key,
            )
        ]
    )
    eventually(lambda: begun(workload) == {existing: 1})
    handle = cluster.jobs.handle()
    handle.submit(chain(step(1), step(7).set(unique_key=key), step(10)))
    with pytest.raises(ValidationError, match="unique_key"):
        cluster.jobs.submit(group(step(1), step(7).set(unique_key=key)))
    eventually(lambda: [row.id for row in handle.members()].count(existing) == 1)
    assert handle.job_status() is not FINISHED
    sign.touch()
    # Its own arguments: 1 + 5; then 1 + 6 + 10.
    assert handle.result(timeout=60) == 17
    assert begun(workload) == dict.fromkeys((row.id for row in handle.members()), 1)


def test_prune_beside_a_tree_deletes_it_once_it_has_ended(workload: TreeWorkload) -> None:
    cluster, step, sign = workload.cluster, workload.step, workload.cluster.new_file()
    old = workload.grow(chord([step(1), step(2)], step(3)))
    tree = workload.grow(
        chain(group(step(n) for n in range(20)), step(1), step(0, task="held_step", sign=str(sign)), step(2))
    )
    assert old.handle.wait(60) is FINISHED
    last = tasks(tree)[-2]
    with repeating_fault(lambda: print(cluster.jobs.prune(timedelta(0))), (0, 0.02), rng()):
        eventually(lambda: last in begun(workload))
        eventually(lambda: cluster.jobs.find(root=old.handle.job_id) == [])
    sign.touch()
    assert tree.handle.wait(60) is FINISHED
    assert tree.handle.result(timeout=60) == tree.expected
    ids = [tree.handle.job_id, *(row.id for row in tree.handle.members())]
    eventually(lambda: (cluster.jobs.prune(timedelta(0)), cluster.jobs.find(ids=ids))[1] == [])
    listed = ",".join(map(str, ids))
    for table in ("jobhandle_job_need", "jobhandle_job_event"):
        left = f"SELECT count(*) FROM {table} WHERE job_id IN ({listed})"
        assert execute(cluster.database_url, left)[0][0] == 0


@pytest.mark.parametrize(
    ("status", "root", "ends"),
    [
        (ERROR, ERROR, [ERROR, CANCELLED]),
        (CANCELLED, CANCELLED, [CANCELLED, CANCELLED]),
        (FINISHED, FINISHED, [FINISHED, FINISHED]),
    ],
)
def test_member_that_an_outsider_ends_is_settled(
    workload: TreeWorkload, status: JobStatus, root: JobStatus, ends: list[JobStatus]
) -> None:
    """One that waits in a queue: an outsider has taken it, and ends it."""
    step = workload.step
    tree = workload.grow(chain(step(0, queue="nobody's"), step(2).set(immutable=True)))
    first, second = tasks(tree)
    with pytest.raises(InvalidTransitionError):
        workload.work.handle(second).set_status(RUNNING)
    with pytest.raises(InvalidTransitionError):
        workload.work.handle(tree.handle.job_id).set_status(FINISHED)
    outsider = workload.work.handle(first)
    if status is not CANCELLED:
        outsider.set_status(RUNNING)
    outsider.set_status(status)
    assert tree.handle.wait(60) is root
    assert statuses(tree) == ends
    assert begun(workload) == ({second: 1} if root is FINISHED else {})


def test_outsider_ends_a_running_member_and_resubmits_its_tree(workload: TreeWorkload) -> None:
    """Refused while the body may be alive."""
    step, sign = workload.step, workload.cluster.new_file()
    tree = workload.grow(chain(step(0, task="held_step", sign=str(sign)), step(2)))
    first, second = tasks(tree)
    eventually(lambda: begun(workload) == {first: 1})
    workload.work.handle(first).set_status(ERROR)
    assert tree.handle.wait(60) is ERROR
    with pytest.raises(InvalidTransitionError, match="may still run"):
        tree.handle.resubmit_job()
    sign.touch()

    def resubmitted() -> bool:
        try:
            tree.handle.resubmit_job()
        except InvalidTransitionError:
            return False
        return True

    eventually(resubmitted)
    assert tree.handle.wait(60) is FINISHED
    assert tree.handle.result(timeout=60) == tree.expected
    assert begun(workload) == {first: 2, second: 1}
