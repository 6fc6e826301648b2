"""What is done to a whole tree: its cancel and its resubmit, and what a member and a node refuse."""

from collections.abc import Callable
from datetime import timedelta

import pytest

from jobhandle_celery.errors import InvalidTransitionError
from jobhandle_celery.status import JobStatus
from jobhandle_celery.store import ClaimRejected, NewMember, Selection
from tests.store.harness import FAILURE, TASK, Harness
from tests.store.members import Tree, cancel, chain, chord, group, nested, node, resubmit, settle_all, task

SUBMITTED, WAITING, RUNNING, RESUBMITTED = "Submitted", "Waiting", "Running", "Resubmitted"
FINISHED, ERROR, CANCELLED = "Finished", "Error", "Cancelled"


SHAPES: dict[str, Callable[[], list[NewMember]]] = {
    "chain": lambda: chain(task(), task()),
    "chord": lambda: chord(task(), task(), body=task()),
    "nested": nested,
}


@pytest.mark.parametrize("shape", SHAPES)
def test_cancel_of_a_root_before_it_started_ends_every_row(harness: Harness, shape: str) -> None:
    tree = Tree(harness, SHAPES[shape]())

    assert cancel(harness, tree.ids[0]) == CANCELLED

    assert set(tree.statuses()) == {CANCELLED}
    assert not any(harness.row(job_id)["unsettled"] for job_id in tree.ids)
    assert not any(harness.row(job_id)["due_at"] for job_id in tree.ids)


def test_cancel_of_a_root_asks_running_members_to_stop(harness: Harness) -> None:
    tree = Tree(harness, nested())
    run = tree.run(3)
    harness.store.settling.start_ancestors(tree.ids[3], "worker w1")

    assert cancel(harness, tree.ids[0], terminate=True) == RUNNING

    assert tree.statuses() == [RUNNING, RUNNING, RUNNING, RUNNING, CANCELLED, CANCELLED, CANCELLED]
    assert harness.row(tree.ids[3])["terminate"]
    assert harness.row(tree.ids[0])["cancel_requested"]
    harness.store.runs.stop(run, "")
    settle_all(harness, tree.ids[3])
    assert tree.statuses() == [CANCELLED] * 7


def test_cancel_keeps_what_has_finished(harness: Harness) -> None:
    tree = Tree(harness, nested())
    tree.finish(3)
    tree.finish(5)

    assert cancel(harness, tree.ids[0]) == CANCELLED

    assert tree.statuses() == [CANCELLED, CANCELLED, CANCELLED, FINISHED, CANCELLED, FINISHED, CANCELLED]


def test_cancel_of_a_nested_node_leaves_the_others(harness: Harness) -> None:
    tree = Tree(harness, nested())

    assert cancel(harness, tree.ids[2]) == CANCELLED
    settle_all(harness, tree.ids[2])

    assert tree.statuses() == [SUBMITTED, SUBMITTED, CANCELLED, CANCELLED, CANCELLED, SUBMITTED, WAITING]
    tree.finish(5)
    assert tree.statuses() == [CANCELLED] * 5 + [FINISHED, CANCELLED]


def test_cancel_of_a_tree_with_a_failed_member_ends_in_error(harness: Harness) -> None:
    """The record shows what happened: the failure was first."""
    tree = Tree(harness, group(task(), task(), task()))
    harness.store.runs.fail(tree.run(1), FAILURE)
    settle_all(harness, tree.ids[1])

    assert cancel(harness, tree.ids[0]) == ERROR

    assert tree.statuses() == [ERROR, ERROR, CANCELLED, CANCELLED]
    assert harness.row(tree.ids[0])["message"] == f"job {tree.ids[1]} ended in Error"
    assert f"job {tree.ids[1]} ended in Error" in harness.row(tree.ids[0])["error"]


def test_cancel_settles_jobs_outside_that_need_a_member(harness: Harness) -> None:
    tree = Tree(harness, group(task(), task()))
    outside = Tree(harness, [task(after=(tree.ids[1],))])
    after_root = Tree(harness, [task(after=(tree.ids[0],), when="ended")])

    cancel(harness, tree.ids[0])
    assert harness.row(tree.ids[1])["unsettled"]
    assert harness.row(tree.ids[0])["unsettled"]
    settle_all(harness, *tree.ids)

    assert outside.statuses() == [CANCELLED]
    assert after_root.statuses() == [SUBMITTED]


def test_member_does_not_start_after_the_cancel_of_its_root(harness: Harness) -> None:
    tree = Tree(harness, group(task(), task()))
    message = harness.key(tree.ids[2], harness.worker())
    tree.run(1)

    cancel(harness, tree.ids[0])

    assert isinstance(harness.store.runs.claim(message, TASK), ClaimRejected)


@pytest.mark.parametrize("number", [0, 2], ids=["root", "nested"])
def test_cancel_of_a_final_node_reaches_a_resubmitted_member(harness: Harness, number: int) -> None:
    tree = Tree(harness, nested())
    cancel(harness, tree.ids[0])

    resubmit(harness, tree.ids[3])
    assert cancel(harness, tree.ids[number]) == CANCELLED
    assert set(tree.statuses()) == {CANCELLED}

    resubmit(harness, tree.ids[3])
    run = tree.run(3)
    assert cancel(harness, tree.ids[number]) == RUNNING
    assert cancel(harness, tree.ids[number], terminate=True) == RUNNING
    assert harness.row(tree.ids[3])["terminate"]
    assert harness.status(tree.ids[number]) == CANCELLED, "a final status stays"
    harness.store.runs.stop(run, "")
    settle_all(harness, tree.ids[3])
    assert cancel(harness, tree.ids[number]) == CANCELLED
    assert set(tree.statuses()) == {CANCELLED}


def test_status_cancelled_of_a_final_root_cancels_a_resubmitted_member(harness: Harness) -> None:
    tree = Tree(harness, group(task(), task()))
    tree.finish(1)
    tree.finish(2)
    resubmit(harness, tree.ids[1])

    harness.store.control.set_status(tree.ids[0], JobStatus.CANCELLED, "token", None, None)

    assert tree.statuses() == [FINISHED, CANCELLED, FINISHED]


def test_cancel_of_many_counts_a_tree_once(harness: Harness) -> None:
    tree = Tree(harness, nested())
    single = harness.submit()

    assert harness.store.control.cancel_selected(Selection()) == 2

    assert set(tree.statuses()) == {CANCELLED}
    assert harness.row(single)["status_id"] == CANCELLED
    assert harness.store.control.cancel_selected(Selection()) == 0


def test_resubmit_of_a_root_runs_what_did_not_finish(harness: Harness) -> None:
    tree = Tree(harness, nested())
    tree.finish(3)
    harness.store.runs.fail(tree.run(4), FAILURE)
    settle_all(harness, tree.ids[4])
    tree.finish(5)
    assert tree.statuses() == [ERROR, ERROR, ERROR, FINISHED, ERROR, FINISHED, CANCELLED]
    before = [harness.row(job_id)["task_id"] for job_id in tree.ids]

    assert resubmit(harness, tree.ids[0]) == [tree.ids[4]]

    assert tree.statuses() == [RESUBMITTED] * 3 + [FINISHED, RESUBMITTED, FINISHED, WAITING]
    after = [harness.row(job_id)["task_id"] for job_id in tree.ids]
    assert [old == new for old, new in zip(before, after, strict=True)] == [
        status == FINISHED for status in tree.statuses()
    ]
    tree.finish(4)
    assert tree.statuses()[:3] == [RUNNING, FINISHED, FINISHED]
    tree.finish(6)
    assert tree.statuses() == [FINISHED] * 7


def test_resubmit_after_a_cancel_runs_everything(harness: Harness) -> None:
    tree = Tree(harness, chord(task(), task(), body=task()))
    cancel(harness, tree.ids[0])

    assert resubmit(harness, tree.ids[0]) == [tree.ids[2], tree.ids[3]]

    assert tree.statuses() == [RESUBMITTED, RESUBMITTED, RESUBMITTED, RESUBMITTED, WAITING]
    for member in (2, 3, 4):
        tree.finish(member)
    assert tree.statuses() == [FINISHED] * 5


def test_resubmit_finishes_an_empty_group_after_its_need(harness: Harness) -> None:
    empty = node("group", parent=0, position=1, needs=((1, 0),), when="finished")
    tree = Tree(harness, [node("chain"), task(parent=0, position=0), empty])
    cancel(harness, tree.ids[0])

    assert resubmit(harness, tree.ids[0]) == [tree.ids[1]]
    tree.finish(1)

    assert tree.statuses() == [FINISHED] * 3


@pytest.mark.parametrize("state", ["unfinished", "finished", "alive", "nested"])
def test_resubmit_of_a_root_is_refused(harness: Harness, state: str) -> None:
    tree = Tree(harness, nested())
    if state == "finished":
        for member in (3, 4, 5, 6):
            tree.finish(member)
    elif state == "alive":
        tree.run(3)
        harness.store.control.set_status(tree.ids[3], JobStatus.ERROR, "token", None, None)
        cancel(harness, tree.ids[0])
        settle_all(harness, *tree.ids)
    elif state == "nested":
        cancel(harness, tree.ids[0])
    statuses = tree.statuses()

    with pytest.raises(InvalidTransitionError):
        resubmit(harness, tree.ids[2 if state == "nested" else 0])

    assert tree.statuses() == statuses


def test_resubmit_of_a_member_waits_for_its_root(harness: Harness) -> None:
    tree = Tree(harness, group(task(), task()))
    tree.finish(1)

    with pytest.raises(InvalidTransitionError, match=f"belongs to job {tree.ids[0]}"):
        resubmit(harness, tree.ids[1])
    tree.finish(2)

    assert resubmit(harness, tree.ids[1]) == [tree.ids[1]]
    tree.finish(1)
    assert tree.statuses() == [FINISHED] * 3


def test_resubmit_of_a_root_is_refused_while_a_key_is_taken(harness: Harness) -> None:
    keyed = task(unique_key="k")
    tree = Tree(harness, group(keyed, task()))
    cancel(harness, tree.ids[0])
    harness.submit(unique_key="k")

    with pytest.raises(InvalidTransitionError, match="unique_key"):
        resubmit(harness, tree.ids[0])

    assert set(tree.statuses()) == {CANCELLED}


@pytest.mark.parametrize("status", [JobStatus.RUNNING, JobStatus.FINISHED, JobStatus.ERROR])
def test_status_of_a_node_or_blocked_job_cannot_be_set(harness: Harness, status: JobStatus) -> None:
    tree = Tree(harness, chain(task(), task()))
    tree.run(1)

    for row in (0, 2):
        assert not harness.store.control.set_status(tree.ids[row], status, "token", None, None)[1]
        assert not harness.store.control.release(tree.ids[row], "token", None)

    assert tree.statuses() == [SUBMITTED, RUNNING, WAITING]


def test_setting_a_root_cancelled_cancels_its_tree(harness: Harness) -> None:
    tree = Tree(harness, chain(task(), task()))

    previous, moved = harness.store.control.set_status(tree.ids[0], JobStatus.CANCELLED, "token", None, None)

    assert (previous, moved) == (SUBMITTED, True)
    assert tree.statuses() == [CANCELLED] * 3


def test_outsider_ends_a_member(harness: Harness) -> None:
    tree = Tree(harness, chain(task(), task()))
    harness.store.control.set_status(tree.ids[1], JobStatus.RUNNING, "token", None, None)
    harness.store.control.set_status(tree.ids[1], JobStatus.FINISHED, "another", None, None)

    assert settle_all(harness, tree.ids[1]) == [tree.ids[2]]


def test_prune_deletes_a_tree_as_a_whole(harness: Harness) -> None:
    tree = Tree(harness, chain(task(), task()))
    tree.finish(1)
    harness.pass_time(minutes=1)
    assert harness.store.sweep.prune(timedelta(0)) == 0
    tree.finish(2)
    harness.pass_time(minutes=1)
    assert harness.store.sweep.prune(timedelta(0)) == 3


def test_prune_keeps_a_job_that_an_unfinished_one_needs(harness: Harness) -> None:
    needed = harness.submit()
    harness.store.runs.finish(harness.run(needed), "1")
    tree = Tree(harness, [task(after=(needed,))])
    harness.pass_time(minutes=1)

    assert harness.store.sweep.prune(timedelta(0)) == 0
    tree.finish(0)
    harness.pass_time(minutes=1)
    assert harness.store.sweep.prune(timedelta(0)) == 2
