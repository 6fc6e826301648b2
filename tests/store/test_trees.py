"""Trees: what becomes ready, what can no longer start, and how a node ends."""

import pytest

from jobhandle_celery.errors import UnknownJobError
from jobhandle_celery.store import NewMember
from tests.store.harness import FAILURE, Bench
from tests.store.members import Tree, chain, chord, group, node, settle_all, task

SUBMITTED, WAITING, RUNNING = "Submitted", "Waiting", "Running"
FINISHED, ERROR, CANCELLED = "Finished", "Error", "Cancelled"


def test_member_of_a_chain_is_ready_once_the_one_before_has_finished(bench: Bench) -> None:
    tree = Tree(bench, chain(task(), task(), task()))
    assert tree.statuses() == [SUBMITTED, SUBMITTED, WAITING, WAITING]

    assert tree.finish(1) == [tree.ids[2]]

    assert tree.statuses() == [RUNNING, FINISHED, SUBMITTED, WAITING]
    assert tree.finish(2) == [tree.ids[3]]
    assert tree.finish(3) == []
    assert tree.statuses() == [FINISHED] * 4
    assert not any(bench.row(job_id)["unsettled"] for job_id in tree.ids)
    assert not any(bench.row(job_id)["due_at"] for job_id in tree.ids)


def test_body_of_a_chord_is_ready_once_every_header_task_has_finished(bench: Bench) -> None:
    tree = Tree(bench, chord(task(), task(), body=task()))

    assert tree.finish(2) == []
    assert tree.finish(3) == [tree.ids[4]]

    assert tree.statuses() == [RUNNING, FINISHED, FINISHED, FINISHED, SUBMITTED]
    assert tree.finish(4) == []
    assert tree.statuses()[0] == FINISHED


def test_failure_cancels_what_needs_it_and_ends_the_node(bench: Bench) -> None:
    tree = Tree(bench, chain(task(), task(), task()))

    bench.store.runs.fail(tree.run(1), FAILURE)
    assert settle_all(bench, tree.ids[1]) == []

    assert tree.statuses() == [ERROR, ERROR, CANCELLED, CANCELLED]
    assert bench.row(tree.ids[2])["message"] == f"needs job {tree.ids[1]}, which ended in Error"
    assert bench.row(tree.ids[3])["message"] == f"needs job {tree.ids[2]}, which ended in Cancelled"
    root = bench.row(tree.ids[0])
    assert root["message"] == f"job {tree.ids[1]} (shop.thumbnail) ended in Error: ValueError: no good"


def test_cancelled_member_cancels_the_node(bench: Bench) -> None:
    tree = Tree(bench, group(task(), task()))

    bench.store.control.cancel(tree.ids[1], None, terminate=False)
    settle_all(bench, tree.ids[1])
    assert tree.statuses() == [SUBMITTED, CANCELLED, SUBMITTED]
    tree.finish(2)

    assert tree.statuses() == [CANCELLED, CANCELLED, FINISHED]


@pytest.mark.parametrize("empty", [chain(), group(), [node("chain"), node("group", parent=0, position=0)]])
def test_node_without_members_finishes(bench: Bench, empty: list[NewMember]) -> None:
    ended: list[int] = []
    bench.database.on_unsettled = ended.extend
    tree = Tree(bench, empty)
    bench.database.on_unsettled = None
    settle_all(bench, *ended)

    assert set(tree.statuses()) == {FINISHED}


@pytest.mark.parametrize("when", ["finished", "ended", "failed"])
@pytest.mark.parametrize("end", [FINISHED, ERROR, CANCELLED])
def test_job_that_needs_an_existing_one_starts_or_is_cancelled(bench: Bench, when: str, end: str) -> None:
    needed = bench.submit()
    tree = Tree(bench, [task(after=(needed,), when=when)])
    assert tree.statuses() == [WAITING]

    run = bench.run(needed)
    match end:
        case "Finished":
            bench.store.runs.finish(run, "1")
        case "Error":
            bench.store.runs.fail(run, FAILURE)
        case _:
            bench.store.runs.stop(run, "")
    settle_all(bench, needed)

    met = when == "ended" or (when, end) in (("finished", FINISHED), ("failed", ERROR))
    assert tree.statuses() == [SUBMITTED if met else CANCELLED]


def test_job_that_needs_one_of_another_namespace_is_refused(bench: Bench) -> None:
    with pytest.raises(UnknownJobError, match="no job 999999"):
        Tree(bench, [task(after=(999999,))])
