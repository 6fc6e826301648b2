"""What a worker reads of a job's needs, on each database."""

from typing import Any

import pytest

from jobhandle_celery.store import NOT_KEPT, ResultNotKept, ResultsTooLarge
from tests.store.harness import Harness
from tests.store.members import Tree, task
from tests.store.members import chain as chain_of
from tests.tree_rows import Node, chain, group, insert_needs, leaf


def need(harness: Harness, *needed: tuple[Node | int, int | None]) -> int:
    """Return a new job that needs these, inserted in another order than that of their positions."""
    job_id = harness.submit(held=True)
    with harness.database.transaction() as db:
        insert_needs(db.connection, job_id, *needed, namespace=harness.settings.namespace)
    return job_id


def test_results_are_in_the_order_of_positions(harness: Harness) -> None:
    last, alone, first = leaf("last"), leaf("alone"), group(leaf(1), leaf(2))
    job_id = need(harness, (last, 1), (alone, None), (first, 0))
    results = harness.store.queries.results_needed(job_id, 100)
    assert list(results.items()) == [(first.id, "[1,2]"), (last.id, '"last"')]


@pytest.mark.parametrize(
    "needed",
    [leaf("x" * 98), group(leaf("x" * 49), leaf("x" * 49)), chain(leaf("x" * 500), leaf("x" * 98))],
    ids=["a task", "a group", "a chain"],
)
def test_results_over_the_limit_are_refused(harness: Harness, needed: Node) -> None:
    """The limit is that of the values that count: a group's, and a chain's last."""
    job_id = need(harness, (needed, 0))
    assert len(harness.store.queries.results_needed(job_id, 102)) == 1
    with pytest.raises(ResultsTooLarge):
        harness.store.queries.results_needed(job_id, 99)


def test_result_of_pruned_need_is_none(harness: Harness) -> None:
    job_id = need(harness, (2**31 - 1, 0))
    assert harness.store.queries.results_needed(job_id, 100) == {2**31 - 1: None}


def test_needs_with_positions_come_first(harness: Harness) -> None:
    nodes = [leaf(), leaf(), leaf(), leaf()]
    job_id = need(harness, *zip(nodes, (None, 1, 0, None), strict=True))
    found = [record.id for record in harness.store.queries.needs(job_id)]
    assert found == [nodes[2].id, nodes[1].id, nodes[0].id, nodes[3].id]


def test_record_of_node_that_is_needed_has_its_result(harness: Harness) -> None:
    job_id = need(harness, (group(leaf(1), leaf(2)), None))
    assert [record.result for record in harness.store.queries.needs(job_id)] == [[1, 2]]


def test_only_first_messages_of_jobs_with_needs_lack_results(harness: Harness) -> None:
    """A retry holds them, a resubmit reads them again."""
    plain, needing = harness.submit(), need(harness, (leaf(1), 0))
    harness.release(needing)
    assert not harness.message(plain).lacks_results
    assert harness.message(needing).lacks_results
    run = harness.run(needing)
    harness.store.runs.retry(run, "{}", None, None, "retry")
    assert not harness.message(needing).lacks_results
    harness.store.runs.stop(harness.run(needing), "")
    assert harness.store.control.resubmit(needing, "another", None)
    assert harness.message(needing).lacks_results


@pytest.mark.parametrize(("given", "kept"), [({}, None), ({"unique_key": "k"}, "7")], ids=["no", "a key"])
def test_ignored_result_is_kept_for_a_tree_that_may_adopt_the_job(
    harness: Harness, given: dict[str, Any], kept: str | None
) -> None:
    job_id = harness.submit(**given)
    assert harness.store.runs.finish(harness.run(job_id), "7", ignored=True)
    assert harness.row(job_id)["result"] == kept


def test_ignored_result_of_member_is_kept(harness: Harness) -> None:
    tree = Tree(harness, chain_of(task(), task()))
    assert harness.store.runs.finish(harness.run(tree.ids[1]), "7", ignored=True)
    assert harness.store.queries.results_needed(tree.ids[2], 100) == {tree.ids[1]: "7"}


def test_result_that_was_not_kept_is_no_argument(harness: Harness) -> None:
    tree = Tree(harness, chain_of(task(), task()))
    assert harness.store.runs.finish(harness.run(tree.ids[1]), NOT_KEPT, ignored=True)
    with pytest.raises(ResultNotKept):
        harness.store.queries.results_needed(tree.ids[2], 100)
    assert harness.store.queries.stored_job(tree.ids[1]).result is None  # type: ignore[union-attr]
