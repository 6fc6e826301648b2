"""A process is killed at each statement, commit and publish of a member's end and its settle."""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import pytest
from celery import chain, chord, group
from sqlalchemy import update

from jobhandle_celery import JobStatus
from jobhandle_celery.schema import clock, worker
from jobhandle_celery.store import ClaimRejected, Run
from tests.faults.step_faults import step_runner
from tests.faults.tree_workload import TREE_BODIES, TreeWorkload
from tests.rng import stretched
from tests.store.harness import Harness
from tests.store.members import settle_all
from tests.worker.cluster import NewCluster

pytestmark = [pytest.mark.faults, pytest.mark.slow, pytest.mark.timeout(stretched(900))]

ENOUGH = 140
"""More steps than any end has."""


@dataclass(frozen=True)
class Shape:
    """A tree of steps, of which those before one have finished; that one's end is killed."""

    canvas: Callable[..., Any]
    before: int
    status: JobStatus = JobStatus.FINISHED


SHAPES = {
    "last of a header": Shape(
        lambda step: chord([step(0), step(0, max_attempts=2)], chain(step(), step(1))), before=1
    ),
    "last of a tree": Shape(
        lambda step: group(chain(step(0), group(step(0, max_attempts=2).set(immutable=True)))), before=1
    ),
    "failure": Shape(
        lambda step: chain(step(0, task="failing_step", sign="/none", max_attempts=2), group(step())),
        before=0,
        status=JobStatus.ERROR,
    ),
}


class Ends:
    """Trees whose next end is to be killed, run by a worker that is lost afterwards."""

    def __init__(self, workload: TreeWorkload, shape: Shape) -> None:
        self._harness = Harness(
            workload.cluster.database_url, namespace="default", publish_grace=timedelta(seconds=1)
        )
        self._me = self._harness.worker("gone")
        self.tasks: list[list[int]] = []
        self.runs: list[list[Any]] = []
        for _ in range(ENOUGH):
            tree = workload.grow(shape.canvas(workload.step))
            ids = [row.id for row in tree.handle.members() if row.kind is None]
            self.tasks.append(ids)
            for job_id in ids[: shape.before]:
                assert self._harness.store.runs.finish(self._claim(job_id), "1")
                settle_all(self._harness, job_id)
            run = self._claim(ids[shape.before])
            me = [self._me.name, str(self._me.worker_uid), self._me.pid]
            self.runs.append([run.job_id, run.task_id, run.attempt, run.claim_id, me])

    def _claim(self, job_id: int) -> Run:
        task = self._harness.row(job_id)["task"]
        won = self._harness.store.runs.claim(self._harness.key(job_id, self._me), task)
        assert not isinstance(won, ClaimRejected)
        return won

    def lose_worker(self) -> None:
        """End the lease."""
        with self._harness.database.transaction() as db:
            mine = worker.c.worker_uid == self._me.worker_uid
            db.execute(update(worker).where(mine).values(lease_until=clock(-1), lease=1))

    def close(self) -> None:
        self._harness.close()


@pytest.mark.parametrize("shape", SHAPES)
def test_end_killed_at_any_step_ends_its_tree(new_cluster: NewCluster, database_url: str, shape: str) -> None:
    cluster = new_cluster(database_url=database_url)
    workload, kind = TreeWorkload(cluster), SHAPES[shape]
    ends = Ends(workload, kind)
    fails = kind.status is JobStatus.ERROR

    with step_runner(cluster, "end_member", runs=ends.runs, fails=fails) as stopped:
        steps = list(stopped.each_step())
    print(steps)
    assert 6 < len(steps) < ENOUGH - 1
    unsettled = [tree for tree in workload.trees[: len(steps)] if not tree.root.status.final]
    assert unsettled or fails, "it was killed in the middle of a settle"
    ends.lose_worker()
    ends.close()
    cluster.start(TREE_BODIES, concurrency=3)
    workload.wait_until_final()

    traces = workload.work.body_traces()
    for tree, ids in zip(workload.trees, ends.tasks, strict=True):
        members = {row.id: row for row in tree.handle.members()}
        details = f"{tree.root}: {list(members.values())}"
        assert tree.root.status is kind.status, details
        killed, later = ids[kind.before], ids[kind.before + 1 :]
        # Its run was lost before its end was committed; else nothing runs it again.
        lost = members[killed].attempt == 2
        assert len(traces.get(killed, [])) == lost, details
        assert [len(traces.get(job_id, [])) for job_id in later] == [0 if fails else 1] * len(later), details
        if fails:
            assert {members[job_id].status for job_id in later} == {JobStatus.CANCELLED}, details
            assert f"job {killed} (worker.failing_step) ended in Error" in tree.root.message, details
        else:
            assert tree.handle.result(timeout=60) == tree.expected, details
