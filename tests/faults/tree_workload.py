"""Trees on one cluster, and the audit of each row at the end: results, order, and how often each body ran."""

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from celery import chain, chord, group

from jobhandle_celery import JobHandle, JobRecord, JobStatus
from jobhandle_celery.broker.plan_canvas import plan
from tests.faults.tree_bodies import number
from tests.faults.worker_faults import ends_of_attempts, is_given_back, is_loss
from tests.faults.workload import BodyTrace, Workload
from tests.rng import stretched
from tests.support import eventually
from tests.trees.evaluate import Evaluation
from tests.worker.cluster import Cluster

TREE_BODIES = "tests.faults.tree_bodies:app"
TASKS: dict[str, Callable[..., int]] = {
    f"worker.{name}": number
    for name in ("step", "late_step", "held_step", "failing_step", "killed_step", "meeting_step")
}

FINISHED, ERROR, CANCELLED = JobStatus.FINISHED, JobStatus.ERROR, JobStatus.CANCELLED


@dataclass
class Grown:
    """A tree that was submitted, and its result if all of its members finish."""

    handle: JobHandle
    expected: Any

    @property
    def root(self) -> JobRecord:
        return self.handle.get_job()


class TreeWorkload:
    """The trees that one test submits on one cluster."""

    def __init__(self, cluster: Cluster) -> None:
        self.cluster = cluster
        self.work = Workload(cluster)
        self.path = str(self.work.path)
        self.trees: list[Grown] = []

    # Canvases.

    def step(self, *args: Any, task: str = "step", **options: Any) -> Any:
        """Return a signature; what is no option of a message is an argument by name."""
        kwargs: dict[str, Any] = {name: options.pop(name) for name in ("sign", "seconds") if name in options}
        given = {"path": self.path, **kwargs}
        return self.cluster.app.signature(f"worker.{task}", args=args, kwargs=given, options=options)

    def canvases(self, size: int, **options: Any) -> dict[str, Any]:
        """Return a canvas of each shape, of about `size` members each."""
        step = self.step

        def steps(count: int) -> list[Any]:
            return [step(n, task=("step", "late_step")[n % 2], **options) for n in range(count)]

        wide = [chain(step(n, **options), step(1, **options)) for n in range(size // 6)]
        return {
            "chain": chain(*steps(size // 4)),
            "group": group(steps(size)),
            "chord": chord(steps(size), step(5, **options)),
            "nested": chain(
                step(1, **options),
                group(*wide, chord(steps(size // 4), step(2, **options))),
                step(3, **options),
                group(steps(size // 4)),
                step(**options),
            ),
        }

    def grow(self, canvas: Any) -> Grown:
        planned = plan([canvas])
        handle = self.cluster.jobs.handle()
        handle.submit(canvas)
        tree = Grown(handle, Evaluation(planned, TASKS).result(planned.roots[0]))
        self.trees.append(tree)
        return tree

    # The end.

    def wait_until_final(self, timeout: float = 600) -> None:
        for tree in self.trees:
            eventually(
                lambda tree=tree: tree.handle.job_status().final,  # type: ignore[misc]  # bound
                stretched(timeout),
                f"tree {tree.handle.job_id}: {Counter(str(row.status) for row in tree.handle.members())}",
            )

    def audit(self, *, lost_before_body: bool = False) -> Counter[str]:
        """Check each tree and each row of it; return how often attempts and trees ended in each way."""
        tally = Counter[str]()
        members = {tree.handle.job_id: tree.handle.members() for tree in self.trees}
        self.work.ids = [row.id for rows in members.values() for row in rows if row.kind is None]
        self.work.audit(lost_before_body=lost_before_body)
        traces = self.work.body_traces()
        for tree in self.trees:
            rows = {row.id: row for row in [tree.root, *members[tree.handle.job_id]]}
            self._audit_nodes(tree, rows)
            self._audit_order(rows)
            for row in rows.values():
                if row.kind is None:
                    tally += self._account(row, traces.get(row.id, []))
            tally[f"tree in {tree.root.status}"] += 1
        return tally

    @staticmethod
    def _audit_nodes(tree: Grown, rows: Mapping[int, JobRecord]) -> None:
        """Check what became of each node, by its children in their order; and the result of the tree."""
        for node in rows.values():
            if node.kind is None:
                continue
            children = [row for row in rows.values() if row.parent_id == node.id]
            failed = [row for row in children if row.status is ERROR]
            stopped = [row for row in children if row.status is CANCELLED]
            details = f"{node}: {[(row.id, row.status, row.message) for row in children]}"
            assert node.status is (ERROR if failed else CANCELLED if stopped else FINISHED), details
            if failed:
                first = _first_task(rows, failed[0])
                assert node.message.startswith(f"job {first.id} ({first.task}) ended in Error"), details
                assert node.error is not None, details
                assert node.error.type == "MemberFailedError", details
        if tree.root.status is FINISHED:
            assert tree.handle.result(timeout=60) == tree.expected

    @staticmethod
    def _audit_order(rows: Mapping[int, JobRecord]) -> None:
        """Check that nothing started before what it needs had finished, and that what cannot start is not."""
        for row in rows.values():
            for needed in (rows[need] for need in row.after if isinstance(need, int)):
                details = f"{row}; it needs {needed}"
                if row.started is not None and row.kind is None:
                    assert needed.status is FINISHED, details
                    assert needed.finished is not None, details
                    assert needed.finished <= row.started, details
                if needed.status is not FINISHED:
                    assert row.status is CANCELLED, details
                    assert row.attempt == 0, details

    def _account(self, row: JobRecord, traces: list[BodyTrace]) -> Counter[str]:
        """Check that each attempt ended by its body or by recovery, and ran to its end once."""
        events = self.cluster.jobs.events(row.id)
        details = f"job {row.id}: {row}; {events}; its bodies: {traces}"
        tally = Counter[str]()
        for end in ends_of_attempts(events):
            assert end is not None, details
            tally["lost" if is_loss(end) else "given back" if is_given_back(end) else "ended"] += 1
        assert tally["ended"] <= 1, details
        assert tally["lost"] <= row.max_attempts, details
        if row.status is FINISHED:
            assert tally["ended"] == 1, details
        elif row.status is ERROR:
            assert tally["lost"] == row.max_attempts, details
        else:
            assert row.status is CANCELLED, details
            assert not traces, details
        return tally


def _first_task(rows: Mapping[int, JobRecord], failed: JobRecord) -> JobRecord:
    """Return the task in Error that a node in Error names: the first, level by level."""
    while failed.kind is not None:
        parent_id = failed.id
        failed = next(row for row in rows.values() if row.parent_id == parent_id and row.status is ERROR)
    return failed
