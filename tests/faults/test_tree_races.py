"""Members of a tree that end at the same instant: at the statements of each other, and a thousand times."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from threading import Barrier
from typing import Any

import pytest
from celery import chain
from celery import chord as celery_chord

from jobhandle_celery.status import JobStatus
from tests.apps import lines_of
from tests.faults.tree_process import TreeProcess, many
from tests.faults.tree_workload import TREE_BODIES, TreeWorkload
from tests.rng import sample, scaled, stretched
from tests.store.members import Tree, chord, task
from tests.store.racing import in_the_middle, race, steps
from tests.worker.cluster import NewCluster

pytestmark = [pytest.mark.faults, pytest.mark.timeout(stretched(900))]

FINISHED, ERROR, CANCELLED, RUNNING = "Finished", "Error", "Cancelled", "Running"
READY = "what it needs has ended"
LANES = 2
STOPS = 4
"""Statements, drawn of up to fifty, at which the end of a member is stopped; a long run takes them all."""


@pytest.mark.slow
@pytest.mark.parametrize("database_url", ["postgresql", "mariadb"], indirect=True)
def test_two_last_members_that_end_at_once_start_the_body_once(tree_process: TreeProcess) -> None:
    """Both ends are committed before either is settled, in a thousand chords; MariaDB takes longer."""
    count = scaled(1000 if tree_process.harness.database.dialect == "postgresql" else 400)
    rows = tree_process.harness.store.trees.submit(many(chord(task(), task(), body=task()), count))
    chords = [[row.job_id for row in rows[start : start + 5]] for start in range(0, len(rows), 5)]

    def lane(number: int) -> None:
        gate = Barrier(2, timeout=stretched(300))

        def end(position: int) -> None:
            for ids in chords[number::LANES]:
                run = tree_process.claim(ids[position])
                assert run is not None
                tree_process.meet_before_settle(gate)
                tree_process.finish(run)

        race(lambda: end(2), lambda: end(3), timeout=stretched(500))

    race(*[lambda number=number: lane(number) for number in range(LANES)], timeout=stretched(500))

    bodies = [ids[4] for ids in chords]
    assert sorted(tree_process.ready) == bodies
    assert tree_process.events(READY) == dict.fromkeys(bodies, 1)
    with ThreadPoolExecutor(2 * LANES) as pool:
        for run in pool.map(tree_process.claim, bodies):
            assert run is not None
            tree_process.finish(run)
    assert tree_process.harness.store.queries.count_by_status()[JobStatus.FINISHED] == 5 * count
    assert tree_process.unsettled() == 0


@dataclass(frozen=True)
class Pair:
    """How two members of a header end, and what then becomes of root, header, both and body."""

    first: str
    second: str
    statuses: tuple[str, str, str, str, str]


PAIRS = [
    Pair("finish", "finish", (RUNNING, FINISHED, FINISHED, FINISHED, "Submitted")),
    Pair("finish", "fail", (ERROR, ERROR, FINISHED, ERROR, CANCELLED)),
    Pair("fail", "fail", (ERROR, ERROR, ERROR, ERROR, CANCELLED)),
    Pair("fail", "cancel", (ERROR, ERROR, ERROR, CANCELLED, CANCELLED)),
    Pair("cancel", "finish", (CANCELLED, CANCELLED, CANCELLED, FINISHED, CANCELLED)),
]


def end_member(process: TreeProcess, job_id: int, how: str) -> Callable[[], Any]:
    """Return what ends a member that runs; a cancel stops it before."""
    if how == "cancel":
        return lambda: process.harness.store.control.cancel(job_id, None, terminate=False)
    run = process.claim(job_id)
    assert run is not None
    return lambda: getattr(process, how)(run)


@pytest.mark.parametrize("settled", [True, False], ids=["whole", "settle"])
@pytest.mark.parametrize("pair", PAIRS, ids=lambda pair: f"{pair.first}, {pair.second}")
def test_last_members_meet_at_any_statement(tree_process: TreeProcess, pair: Pair, settled: bool) -> None:
    """The end of one, its commit and its settle are stopped at a statement.

    Meanwhile the other ends and is settled; or it has ended before, and is settled.
    """

    def prepared() -> tuple[Tree, Callable[[], Any], Callable[[], Any]]:
        tree = Tree(tree_process.harness, chord(task(), task(), body=task()))
        slow, quick = (
            end_member(tree_process, tree.ids[number], how)
            for number, how in ((2, pair.first), (3, pair.second))
        )
        if settled:
            return tree, slow, quick
        with tree_process.dying():
            quick()
        return tree, slow, lambda: tree_process.settle([tree.ids[3]])

    count = steps(tree_process.harness, prepared()[1])
    assert count >= 3
    for number in sample(range(1, count + 1), STOPS):
        tree_process.ready.clear()
        tree, slow, quick = prepared()
        in_the_middle(tree_process.harness, number, slow, quick)
        statuses = tree.statuses()
        assert statuses == list(pair.statuses), f"stopped at statement {number} of {count}"
        assert tree_process.ready == [tree.ids[4]] * (statuses[4] == "Submitted"), f"statement {number}"
    if not settled:
        tree_process.settle_what_is_left()  # of the tree whose steps were counted
    assert tree_process.unsettled() == 0


@pytest.mark.slow
@pytest.mark.parametrize("database_url", ["postgresql", "mariadb"], indirect=True)
def test_two_last_members_in_a_worker_start_the_body_once(new_cluster: NewCluster, database_url: str) -> None:
    """Two chains of chords, whose members end in processes that wait for each other before they settle."""
    cluster = new_cluster(database_url=database_url)
    workload = TreeWorkload(cluster)
    signs = [cluster.new_file() for _ in range(2 * scaled(20))]
    for half in (signs[::2], signs[1::2]):
        chords = [
            celery_chord(
                [workload.step(n, task="meeting_step", sign=str(sign)) for n in range(2)], workload.step()
            )
            for sign in half
        ]
        workload.grow(chain(workload.step(0), *chords))
    cluster.start(TREE_BODIES, concurrency=4)
    workload.wait_until_final()
    assert set(workload.audit()) == {"ended", "tree in Finished"}
    assert all(sorted(lines_of(sign)) == ["ended", "ended", "met", "met"] for sign in signs)
