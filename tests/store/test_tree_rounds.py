"""Trees that run again, that are cancelled while they are submitted, and that others need meanwhile."""

import uuid
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import pytest

from jobhandle_celery.errors import InvalidTransitionError
from jobhandle_celery.schema import job
from jobhandle_celery.store import NewMember
from jobhandle_celery.store.dependencies import end_by_child, select_deciding_child
from jobhandle_celery.store.statements import params
from jobhandle_celery.store.tree_control import NODE, cancel_tree, resubmit_tree
from tests.store.harness import FAILURE, Bench
from tests.store.members import Tree, chain, chord, group, node, settle_all, task
from tests.store.racing import in_the_middle, waiting
from tests.store.test_tree_control import cancel, nested, resubmit
from tests.support import eventually

SUBMITTED, WAITING, RUNNING, RESUBMITTED = "Submitted", "Waiting", "Running", "Resubmitted"
FINISHED, ERROR, CANCELLED = "Finished", "Error", "Cancelled"


def sweep(bench: Bench) -> None:
    """Make the passes that settle and arm what is due."""
    for _ in range(5):
        bench.pass_time(minutes=2)
        due = bench.store.settling.reserve_unsettled(50)
        settle_all(bench, *due.ended)
        bench.store.settling.arm(due.blocked)


def fail(bench: Bench, tree: Tree, number: int) -> None:
    bench.store.runs.fail(tree.run(number), FAILURE)
    settle_all(bench, tree.ids[number])


# A member by itself.


# Unique keys.


@pytest.mark.parametrize("runs", [False, True])
def test_cancel_of_a_tree_that_is_not_armed_includes_existing_members(bench: Bench, runs: bool) -> None:
    existing = bench.submit(unique_key="k")
    tree = Tree(bench, group(task(unique_key="k"), task()), armed=False)
    run = tree.run(2) if runs else None

    assert cancel(bench, tree.ids[0]) == (RUNNING if runs else CANCELLED)
    if run:
        bench.store.runs.stop(run, "")
        settle_all(bench, tree.ids[2])
    sweep(bench)

    assert bench.status(existing) == CANCELLED
    assert tree.statuses() == [CANCELLED] * 3
    resubmit(bench, tree.ids[0])
    tree.finish(1)
    tree.finish(2)
    assert tree.statuses() == [FINISHED] * 3


# Others need a member.


@pytest.mark.parametrize("member", [1, 2])
def test_job_that_needs_a_member_learns_of_a_cancel_under_way(server_bench: Bench, member: int) -> None:
    """It is submitted after the cancel has read which rows others need, and before that is committed."""
    bench = server_bench
    tree = Tree(bench, [node("group"), node("group", parent=0, position=0), task(parent=1, position=0)])

    with bench.database.transaction() as db:
        root = db.execute(job.select().with_only_columns(*NODE).where(job.c.id == tree.ids[0])).one()
        cancel_tree(db, root, "service", terminate=False)
        needing = Tree(bench, [task(after=(tree.ids[member],))])
    sweep(bench)

    assert needing.statuses() == [CANCELLED]


def test_job_that_needs_a_member_is_seen_by_a_cancel_that_waits(server_bench: Bench) -> None:
    """It is submitted while the cancel waits for the first of its rows."""
    bench = server_bench
    tree = Tree(bench, group(task(), task()))

    with ThreadPoolExecutor(1) as pool:
        with bench.database.transaction() as db:
            db.lock_in_order(job.c.id == tree.ids[1])
            cancelled = pool.submit(cancel, bench, tree.ids[0])
            eventually(lambda: waiting(bench))
            needing = Tree(bench, [task(after=(tree.ids[2],))])
        assert cancelled.result(timeout=30) == CANCELLED
    sweep(bench)

    assert needing.statuses() == [CANCELLED]


# Prune.


