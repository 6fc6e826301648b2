"""Trees that run again, that are cancelled while they are submitted, and that others need meanwhile."""

import uuid
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import Any

import pytest

from jobhandle_celery.errors import InvalidTransitionError
from jobhandle_celery.schema import job
from jobhandle_celery.store import NewMember, tree_control
from jobhandle_celery.store.executors import PostgresExecutor
from jobhandle_celery.store.nodes import end_by_child, select_deciding_child
from jobhandle_celery.store.portable_executor import PortableExecutor
from jobhandle_celery.store.statements import params
from jobhandle_celery.store.tree_control import NODE, cancel_tree, resubmit_tree
from tests.store.harness import FAILURE, Harness
from tests.store.members import Tree, cancel, chain, chord, group, nested, node, resubmit, settle_all, task
from tests.store.racing import in_the_middle, waiting
from tests.support import eventually

SUBMITTED, WAITING, RUNNING, RESUBMITTED = "Submitted", "Waiting", "Running", "Resubmitted"
FINISHED, ERROR, CANCELLED = "Finished", "Error", "Cancelled"


def sweep(harness: Harness) -> None:
    """Make the passes that settle and arm what is due."""
    for _ in range(5):
        harness.pass_time(minutes=2)
        due = harness.store.settling.reserve_unsettled(50)
        settle_all(harness, *due.ended)
        harness.store.settling.arm(due.blocked)


def fail(harness: Harness, tree: Tree, number: int) -> None:
    harness.store.runs.fail(tree.run(number), FAILURE)
    settle_all(harness, tree.ids[number])


def test_node_whose_members_have_all_finished_ends_at_the_resubmit(harness: Harness) -> None:
    """The member that had failed was resubmitted by itself, which leaves the nodes above it alone."""
    tree = Tree(harness, nested())
    fail(harness, tree, 5)
    tree.finish(3)
    tree.finish(4)
    resubmit(harness, tree.ids[5])
    tree.finish(5)
    assert tree.statuses() == [ERROR, ERROR, FINISHED, FINISHED, FINISHED, FINISHED, CANCELLED]

    resubmit(harness, tree.ids[0])
    sweep(harness)

    assert tree.statuses() == [RESUBMITTED, FINISHED, FINISHED, FINISHED, FINISHED, FINISHED, SUBMITTED]
    tree.finish(6)
    assert tree.statuses() == [FINISHED] * 7


def test_resubmitted_tree_has_no_messages_of_former_errors(harness: Harness) -> None:
    tree = Tree(harness, chain(task(), task()))
    fail(harness, tree, 1)
    assert tree.statuses() == [ERROR, ERROR, CANCELLED]
    assert all(harness.row(job_id)["message"] for job_id in tree.ids)
    resubmit(harness, tree.ids[0])
    assert [harness.row(job_id)["message"] for job_id in tree.ids] == [""] * 3


def test_root_whose_members_have_all_finished_finishes_at_the_resubmit(harness: Harness) -> None:
    tree = Tree(harness, group(task(), task()))
    fail(harness, tree, 1)
    tree.finish(2)
    resubmit(harness, tree.ids[1])
    tree.finish(1)

    assert resubmit(harness, tree.ids[0]) == []

    assert tree.statuses() == [FINISHED] * 3


def test_member_that_ends_during_the_resubmit_of_its_root_is_waited_for(server_harness: Harness) -> None:
    """It was resubmitted by itself, and runs."""
    harness = server_harness
    tree = Tree(harness, chain(task(), task()))
    fail(harness, tree, 1)
    resubmit(harness, tree.ids[1])
    run = tree.run(1)

    def finish() -> None:
        harness.store.runs.finish(run, "1")
        harness.store.settling.settle([tree.ids[1]])

    in_the_middle(harness, 1, lambda: resubmit(harness, tree.ids[0]), finish, of="COMMIT")
    sweep(harness)

    assert tree.statuses()[1:] == [FINISHED, SUBMITTED]
    tree.finish(2)
    assert tree.statuses() == [FINISHED] * 3


def test_cancelled_empty_header_runs_again_after_its_need(harness: Harness) -> None:
    tree = Tree(
        harness,
        [
            node("chain"),
            task(parent=0, position=0),
            node("chord", parent=0, position=1),
            node("group", parent=2, position=0, needs=((1, None),), when="finished"),
            task(parent=2, position=1, needs=((3, 0),), when="finished"),
        ],
    )
    cancel(harness, tree.ids[0])
    assert tree.statuses() == [CANCELLED] * 5

    assert resubmit(harness, tree.ids[0]) == [tree.ids[1]]

    assert tree.finish(1) == [tree.ids[4]]
    tree.finish(4)
    assert tree.statuses() == [FINISHED] * 5


@pytest.mark.parametrize("empty", [[node("group")], chord(body=task())])
def test_cancelled_empty_group_finishes_at_the_resubmit(harness: Harness, empty: list[NewMember]) -> None:
    tree = Tree(harness, empty, armed=False)
    assert cancel(harness, tree.ids[0]) == CANCELLED

    resubmit(harness, tree.ids[0])
    sweep(harness)
    for number in range(2, len(tree.ids)):
        tree.finish(number)

    assert set(tree.statuses()) == {FINISHED}


def test_settle_that_waits_for_a_resubmit_does_not_end_the_next_round(server_harness: Harness) -> None:
    """A settle of the former round waits for the node's row; its members were final when it began."""
    harness = server_harness
    tree = Tree(harness, group(task(), task()))
    tree.finish(1)
    harness.store.runs.fail(tree.run(2), FAILURE)

    with ThreadPoolExecutor(1) as pool:
        with harness.database.transaction() as db:
            (deciding,) = db.execute(select_deciding_child(), params(id=tree.ids[0])).all()
            end, values = end_by_child(deciding)
            assert db.count_applied(end, id=tree.ids[0], **values)
            settled = pool.submit(harness.store.settling.settle, [tree.ids[2]])
            eventually(lambda: waiting(harness))
            root = db.execute(job.select().with_only_columns(*NODE).where(job.c.id == tree.ids[0])).one()
            resubmit_tree(db, root, str(uuid.uuid4()), "service")
        settled.result(timeout=30)

    assert tree.statuses() == [RESUBMITTED, FINISHED, RESUBMITTED]


def test_cancel_and_resubmit_change_a_limited_number_of_rows_at_a_time(
    harness: Harness, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A statement of a tree of 100,000 members would get no answer within the deadline of a connection."""
    monkeypatch.setattr(tree_control, "MAX_CHANGED", 2)
    counts: list[int] = []
    for executor in (PostgresExecutor, PortableExecutor):
        count = executor.count_applied

        def counting(self: Any, *given: Any, count: Any = count, **values: Any) -> int:
            counts.append(count(self, *given, **values))
            return counts[-1]

        monkeypatch.setattr(executor, "count_applied", counting)
    tree = Tree(harness, group(*(task() for _ in range(5))))

    cancel(harness, tree.ids[0])
    assert tree.statuses() == [CANCELLED] * 6
    assert resubmit(harness, tree.ids[0]) == tree.ids[1:]

    assert tree.statuses() == [RESUBMITTED] * 6
    assert max(counts) == 2


# A member by itself.


def test_resubmit_is_refused_while_a_need_has_failed(harness: Harness) -> None:
    tree = Tree(harness, chain(task(), task()))
    fail(harness, tree, 1)

    with pytest.raises(InvalidTransitionError, match=f"needs job {tree.ids[1]}, which ended in Error"):
        resubmit(harness, tree.ids[2])


def test_resubmitted_job_waits_for_an_unfinished_need(harness: Harness) -> None:
    needed = harness.submit()
    (needing,) = Tree(harness, [task(after=(needed,))]).ids
    harness.store.control.cancel(needed, None, terminate=False)
    settle_all(harness, needed)
    assert harness.status(needing) == CANCELLED
    resubmit(harness, needed)

    resubmit(harness, needing)

    assert harness.status(needing) == WAITING
    harness.store.runs.finish(harness.run(needed), "1")
    assert settle_all(harness, needed) == [needing]


def test_resubmit_does_not_wait_for_a_deleted_need(harness: Harness) -> None:
    needed = harness.submit()
    (needing,) = Tree(harness, [task(after=(needed,))]).ids
    harness.store.runs.finish(harness.run(needed), "1")
    settle_all(harness, needed)
    harness.pass_time(hours=1)
    harness.store.runs.finish(harness.run(needing), "1")
    assert harness.store.sweep.prune(timedelta(minutes=30)) == 1

    assert resubmit(harness, needing) == [needing]

    assert harness.status(needing) == RESUBMITTED


# Unique keys.


@pytest.mark.parametrize("runs", [False, True])
def test_cancel_of_a_tree_that_is_not_armed_includes_existing_members(harness: Harness, runs: bool) -> None:
    existing = harness.submit(unique_key="k")
    tree = Tree(harness, group(task(unique_key="k"), task()), armed=False)
    run = tree.run(2) if runs else None

    assert cancel(harness, tree.ids[0]) == (RUNNING if runs else CANCELLED)
    if run:
        harness.store.runs.stop(run, "")
        settle_all(harness, tree.ids[2])
    sweep(harness)

    assert harness.status(existing) == CANCELLED
    assert tree.statuses() == [CANCELLED] * 3
    resubmit(harness, tree.ids[0])
    tree.finish(1)
    tree.finish(2)
    assert tree.statuses() == [FINISHED] * 3


# Others need a member.


@pytest.mark.parametrize("member", [1, 2])
def test_job_that_needs_a_member_learns_of_a_cancel_under_way(server_harness: Harness, member: int) -> None:
    """It is submitted after the cancel has read which rows others need, and before that is committed."""
    harness = server_harness
    tree = Tree(harness, [node("group"), node("group", parent=0, position=0), task(parent=1, position=0)])

    with harness.database.transaction() as db:
        root = db.execute(job.select().with_only_columns(*NODE).where(job.c.id == tree.ids[0])).one()
        cancel_tree(db, root, "service", terminate=False)
        needing = Tree(harness, [task(after=(tree.ids[member],))])
    sweep(harness)

    assert needing.statuses() == [CANCELLED]


def test_job_that_needs_a_member_is_seen_by_a_cancel_that_waits(server_harness: Harness) -> None:
    """It is submitted while the cancel waits for the first of its rows."""
    harness = server_harness
    tree = Tree(harness, group(task(), task()))

    with ThreadPoolExecutor(1) as pool:
        with harness.database.transaction() as db:
            db.lock_in_order(job.c.id == tree.ids[1])
            cancelled = pool.submit(cancel, harness, tree.ids[0])
            eventually(lambda: waiting(harness))
            needing = Tree(harness, [task(after=(tree.ids[2],))])
        assert cancelled.result(timeout=30) == CANCELLED
    sweep(harness)

    assert needing.statuses() == [CANCELLED]


# Prune.


def test_prune_keeps_a_tree_whose_member_is_resubmitted_meanwhile(server_harness: Harness) -> None:
    harness = server_harness
    tree = Tree(harness, group(task(), task()))
    tree.finish(1)
    tree.finish(2)
    harness.pass_time(hours=1)

    pruned, ready = in_the_middle(
        harness,
        2,
        lambda: harness.store.sweep.prune(timedelta(minutes=10)),
        lambda: resubmit(harness, tree.ids[1]),
        of="root_id",
    )

    # On MariaDB the resubmit waits for the prune.
    assert (pruned, ready) in ((0, [tree.ids[1]]), (3, None))
