"""Cancels of a root against the claims, ends and settles of its members: none starts after the answer."""

import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from threading import Barrier
from typing import Any

import pytest

from jobhandle_celery.status import JobStatus
from jobhandle_celery.store import Run
from tests.faults.tree_process import TreeProcess, many
from tests.faults.tree_workload import TREE_BODIES, Grown, TreeWorkload
from tests.rng import rng, sample, scaled, stretched
from tests.store.members import Tree, chord, task
from tests.store.racing import in_the_middle, race, steps
from tests.worker.cluster import NewCluster

pytestmark = [pytest.mark.faults, pytest.mark.timeout(stretched(900))]

CANCELLED, FINISHED, RUNNING = JobStatus.CANCELLED, JobStatus.FINISHED, JobStatus.RUNNING
LANES = 2
STOPS = 4
"""Statements, drawn of up to fifty, at which one of two calls is stopped; a long run takes them all."""


class Scene:
    """A chord of two whose first member runs."""

    def __init__(self, process: TreeProcess, act: str) -> None:
        self._process = process
        self.tree = Tree(process.harness, chord(task(), task(), body=task()))
        self.root, _, first, self._second, self._body = self.tree.ids
        run = process.claim(first)
        assert run is not None
        self._runs: list[Run] = []
        """Of bodies that have not ended."""
        self._first = run
        if act == "claim":
            process.finish(run)
        else:
            self._runs.append(run)
            second = process.claim(self._second)
            assert second is not None
            process.finish(second)
        self.act: Callable[[], None] = getattr(self, act)

    def claim(self) -> None:
        """Start the second member."""
        self._start(self._second)

    def finish(self) -> None:
        """Finish the last member of the header, settle that, and start the body."""
        self._process.finish(self._runs.pop())
        self._start(self._body)

    def fail(self) -> None:
        """As `finish`, but fail."""
        self._process.fail(self._runs.pop())
        self._start(self._body)

    def _start(self, job_id: int) -> None:
        if run := self._process.claim(job_id):
            self._runs.append(run)

    def cancel(self) -> JobStatus | None:
        return self._process.harness.store.control.cancel(self.root, None, terminate=False)

    def judge(self, answer: JobStatus | None, details: str) -> None:
        """Check the answer of the cancel; let the bodies that run end."""
        details = f"{details}; {answer}; {self.tree.statuses()}"
        runs = list(self._runs)
        assert self._process.claim(self._body) is None, details
        assert self._process.claim(self._second) is None, details
        assert len(runs) <= (answer is RUNNING), details
        for run in runs:
            self._process.finish(run)
        assert all(self._process.harness.status(job_id).final for job_id in self.tree.ids), details


@pytest.mark.parametrize("act", ["claim", "finish", "fail"])
@pytest.mark.parametrize("slow", ["cancel", "member"])
def test_cancel_of_root_meets_a_member_at_any_statement(
    tree_process: TreeProcess, act: str, slow: str
) -> None:
    def prepared() -> tuple[Scene, Callable[[], Any], Callable[[], Any]]:
        scene = Scene(tree_process, act)
        both = (scene.cancel, scene.act)
        return scene, *(both if slow == "cancel" else both[::-1])

    _, alone, _ = prepared()
    count = steps(tree_process.harness, alone)
    assert count >= 2
    answers = set()
    for number in sample(range(1, count + 1), STOPS):
        scene, first, second = prepared()
        answered = in_the_middle(tree_process.harness, number, first, second)
        answer = answered[0 if slow == "cancel" else 1]
        scene.judge(answer, f"{slow} was stopped at statement {number} of {count}")
        answers.add(answer)
    assert tree_process.unsettled() == 0
    print(answers)


@dataclass
class Race:
    """One chord of two, and what became of its cancel."""

    ids: list[int]
    looks: int
    """How often the root is read before it is cancelled."""
    asked: list[float] = field(default_factory=list)
    """When each claim that was won was begun."""
    answer: JobStatus | None = None
    answered: float = 0


@pytest.mark.slow
@pytest.mark.parametrize("database_url", ["postgresql", "mariadb"], indirect=True)
def test_no_member_starts_after_a_cancel_that_answered_cancelled(tree_process: TreeProcess) -> None:
    """A thousand chords: one thread runs the members, another one cancels the root; fewer on MariaDB."""
    process, store = tree_process, tree_process.harness.store
    count = scaled(1000 if process.harness.database.dialect == "postgresql" else 300)
    rows = store.trees.submit(many(chord(task(), task(), body=task()), count))
    looks = rng()
    races = [
        Race([row.job_id for row in rows[start : start + 5]], looks.randrange(30))
        for start in range(0, len(rows), 5)
    ]

    def run(it: Race) -> None:
        for job_id in it.ids[2:]:
            asked = time.monotonic()
            if won := process.claim(job_id):
                it.asked.append(asked)
                process.finish(won)

    def cancel(it: Race) -> None:
        for _ in range(it.looks):
            store.queries.status(it.ids[0])
        it.answer = store.control.cancel(it.ids[0], None, terminate=False)
        it.answered = time.monotonic()

    def lane(number: int) -> None:
        meet = Barrier(2, timeout=stretched(300))

        def each(act: Callable[[Race], None]) -> None:
            for it in races[number::LANES]:
                meet.wait()
                act(it)

        race(lambda: each(run), lambda: each(cancel), timeout=stretched(500))

    race(*[lambda number=number: lane(number) for number in range(LANES)], timeout=stretched(500))

    assert process.unfinished() == 0
    assert process.unsettled() == 0
    for it in races:
        root, *members = [process.harness.row(job_id) for job_id in (it.ids[0], *it.ids[2:])]
        details = f"{it}: {root}, {members}"
        started = [row for row in members if row["attempt"]]
        assert len(started) == len(it.asked), details
        assert {row["status_id"] for row in started} <= {FINISHED}, details
        assert all(row["status_id"] is CANCELLED for row in members if not row["attempt"]), details
        if it.answer is CANCELLED:
            assert root["status_id"] is CANCELLED, details
            assert all(asked < it.answered for asked in it.asked), details
            assert all(row["started"] < root["finished"] for row in started), details
    answers = Counter(it.answer for it in races)
    print(answers, Counter(len(it.asked) for it in races))
    assert {CANCELLED, RUNNING} <= set(answers), "both sides won at times, or it was no race"


@pytest.mark.slow
@pytest.mark.parametrize("database_url", ["postgresql", "mariadb", "sqlite"], indirect=True)
def test_cancelled_root_starts_no_member_in_workers(new_cluster: NewCluster, database_url: str) -> None:
    cluster = new_cluster(database_url=database_url)
    workload = TreeWorkload(cluster)
    workers = [cluster.start(TREE_BODIES, concurrency=2, ready=False) for _ in range(2)]
    for worker in workers:
        worker.wait_until_ready()
    for _ in range(scaled(8)):
        for canvas in workload.canvases(16, seconds=0.05).values():
            workload.grow(canvas)
    answered: dict[int, float] = {}
    looks = {tree.handle.job_id: workload.work.rng.randrange(100) for tree in workload.trees}

    def cancel(tree: Grown) -> JobStatus:
        for _ in range(looks[tree.handle.job_id]):
            tree.handle.job_status()
        status = tree.handle.cancel_job()
        if status is CANCELLED:
            answered[tree.handle.job_id] = time.time()
        return status

    with ThreadPoolExecutor(3) as pool:
        answers = Counter(pool.map(cancel, workload.work.rng.sample(workload.trees, len(workload.trees))))
    workload.wait_until_final()

    print(answers, dict(workload.audit()))
    assert CANCELLED in answers
    traces = workload.work.body_traces()
    for tree in workload.trees:
        moment = answered.get(tree.handle.job_id)
        if moment is not None:
            assert tree.root.status is CANCELLED
            begun = {
                row.id: [trace.begun for trace in traces.get(row.id, [])] for row in tree.handle.members()
            }
            assert all(begin < moment for begins in begun.values() for begin in begins), f"{moment}: {begun}"
