"""What a worker reads of a job's needs, on each database."""

from typing import Any

import pytest
from sqlalchemy import insert

from jobhandle_celery.schema import job_need
from jobhandle_celery.store import ResultsTooLarge
from tests.store.harness import Bench
from tests.tree_rows import Node, chain, group, insert_tree, leaf


def need(bench: Bench, *needed: tuple[Node, int | None]) -> int:
    """Return a new job that needs these, inserted in another order than that of their positions."""
    job_id = bench.submit(held=True)
    with bench.database.transaction() as db:
        for node, position in needed:
            insert_tree(db.connection, node, bench.settings.namespace)
            row = {"job_id": job_id, "needs_id": node.id, "position": position}
            db.connection.execute(insert(job_need).values(row))
    bench.write(job_id, needs_when="finished")
    return job_id


def test_results_are_in_the_order_of_positions(bench: Bench) -> None:
    last, alone, first = leaf("last"), leaf("alone"), group(leaf(1), leaf(2))
    job_id = need(bench, (last, 1), (alone, None), (first, 0))
    results = bench.store.queries.results_needed(job_id, 100)
    assert list(results.items()) == [(first.id, "[1,2]"), (last.id, '"last"')]


@pytest.mark.parametrize(
    "needed",
    [leaf("x" * 98), group(leaf("x" * 49), leaf("x" * 49)), chain(leaf("x" * 500), leaf("x" * 98))],
    ids=["a task", "a group", "a chain"],
)
def test_results_over_the_limit_are_refused(bench: Bench, needed: Node) -> None:
    """The limit is that of the values that count: a group's, and a chain's last."""
    job_id = need(bench, (needed, 0))
    assert len(bench.store.queries.results_needed(job_id, 102)) == 1
    with pytest.raises(ResultsTooLarge):
        bench.store.queries.results_needed(job_id, 99)


def test_result_of_pruned_need_is_none(bench: Bench) -> None:
    job_id = bench.submit(held=True)
    with bench.database.transaction() as db:
        gone: dict[str, Any] = {"job_id": job_id, "needs_id": 2**31 - 1, "position": 0}
        db.connection.execute(insert(job_need).values(gone))
    assert bench.store.queries.results_needed(job_id, 100) == {2**31 - 1: None}


def test_needs_with_positions_come_first(bench: Bench) -> None:
    nodes = [leaf(), leaf(), leaf(), leaf()]
    job_id = need(bench, *zip(nodes, (None, 1, 0, None), strict=True))
    found = [record.id for record in bench.store.queries.needs(job_id)]
    assert found == [nodes[2].id, nodes[1].id, nodes[0].id, nodes[3].id]


def test_record_of_node_that_is_needed_has_its_result(bench: Bench) -> None:
    job_id = need(bench, (group(leaf(1), leaf(2)), None))
    assert [record.result for record in bench.store.queries.needs(job_id)] == [[1, 2]]


def test_only_first_messages_of_jobs_with_needs_lack_results(bench: Bench) -> None:
    """A retry holds them, a resubmit reads them again."""
    plain, needing = bench.submit(), need(bench, (leaf(1), 0))
    bench.release(needing)
    assert not bench.message(plain).lacks_results
    assert bench.message(needing).lacks_results
    run = bench.run(needing)
    bench.store.runs.retry(run, "{}", None, None, "retry")
    assert not bench.message(needing).lacks_results
    bench.store.runs.stop(bench.run(needing), "")
    assert bench.store.control.resubmit(needing, "another", None)
    assert bench.message(needing).lacks_results
