"""The results of nodes are read from the rows of the tasks below, a statement for each level."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import pytest
from sqlalchemy import event
from sqlalchemy import insert as insert_row

from jobhandle_celery.schema import job_need
from jobhandle_celery.status import JobStatus
from jobhandle_celery.store.executors import MAX_PARAMETERS
from jobhandle_celery.store.tree_results import ResultsTooLarge, results_needed, results_of
from tests.store.harness import Harness
from tests.tree_rows import Node, chain, chord, group, insert_tree, leaf


def insert(harness: Harness, *roots: Node) -> None:
    with harness.database.transaction() as db:
        for root in roots:
            insert_tree(db.connection, root, harness.settings.namespace)


def read(harness: Harness, *nodes: Node) -> list[Any]:
    with harness.database.autocommit() as db:
        found = results_of(db, [node.id for node in nodes])
    return [json.loads(found[node.id]) for node in nodes]


@contextmanager
def counted_selects(harness: Harness) -> Iterator[list[str]]:
    executed: list[str] = []

    def note(_c: Any, _cursor: Any, statement: str, *_: Any) -> None:
        if statement.startswith("SELECT"):
            executed.append(statement)

    event.listen(harness.database.engine, "before_cursor_execute", note)
    yield executed
    event.remove(harness.database.engine, "before_cursor_execute", note)


SHAPES: dict[str, tuple[Node, Any]] = {
    "a task": (leaf(5), 5),
    "a task without a result": (leaf(None), None),
    "a chain": (chain(leaf(1), leaf(2), leaf([3])), [3]),
    "a group": (group(leaf(1), leaf("two"), leaf(None)), [1, "two", None]),
    "an empty group": (group(), []),
    "a chord": (chord(group(leaf(1), leaf(2)), leaf({"sum": 3})), {"sum": 3}),
    "a chord with an empty header": (chord(group(), leaf(0)), 0),
    "a group of chains": (group(chain(leaf(1), leaf(2)), leaf(3)), [2, 3]),
    "a group in a group": (group(group(leaf(1)), group(), leaf(2)), [[1], [], 2]),
    "a chain that ends in a group": (chain(leaf(1), group(leaf(2), leaf(3))), [2, 3]),
    "a chord whose body is a chain": (chord(group(leaf(1)), chain(leaf(2), leaf(3))), 3),
    "a chain that ends in a chord": (chain(leaf(1), chord(group(leaf(2)), group(leaf(3)))), [3]),
    "a chain with a callback": (chain(leaf(1), leaf(2), leaf(3, callback=True)), 2),
    "a group with a callback": (group(leaf(1), leaf(9, callback=True), leaf(2)), [1, 2]),
}


@pytest.mark.parametrize("shape", SHAPES)
def test_result_of_node_is_as_celery_returns_it(harness: Harness, shape: str) -> None:
    node, expected = SHAPES[shape]
    insert(harness, node)
    assert read(harness, node) == [expected]


def test_results_of_several_nodes_and_their_members_are_separate(harness: Harness) -> None:
    inner = group(leaf(1), chain(leaf(2), leaf(3)))
    outer, other = chain(leaf(0), inner), group(leaf(7))
    insert(harness, outer, other)
    assert read(harness, outer, inner, other, inner.children[1], inner.children[0]) == [
        [1, 3],
        [1, 3],
        [7],
        3,
        1,
    ]


def test_children_inserted_in_another_order_are_by_position(harness: Harness) -> None:
    node = group(leaf(1), leaf(2), leaf(3))
    insert(harness, node)
    for child, position in zip(node.children, (2, 0, 1), strict=True):
        harness.write(child.id, position=position)
    assert read(harness, node) == [[2, 3, 1]]


def test_unfinished_task_and_missing_row_have_no_result(harness: Harness) -> None:
    node = group(leaf(1), leaf(status=JobStatus.RUNNING), leaf(status=JobStatus.ERROR))
    insert(harness, node)
    assert read(harness, node) == [[1, None, None]]
    with harness.database.autocommit() as db:
        assert results_of(db, [2**40]) == {}


def test_number_of_statements_is_that_of_levels_not_of_members(harness: Harness) -> None:
    """One statement each for the root, the chains below it and the tasks below those."""
    node = group(*(chain(leaf(0), leaf(number)) for number in range(100)))
    insert(harness, node)
    with counted_selects(harness) as executed:
        assert read(harness, node) == [list(range(100))]
    assert len(executed) == 3


def test_more_nodes_than_parameters_are_read_in_parts(harness: Harness) -> None:
    number = MAX_PARAMETERS + 1
    node = group(*(group(leaf(index)) for index in range(number)))
    insert(harness, node)
    with counted_selects(harness) as executed:
        assert read(harness, node) == [[[index] for index in range(number)]]
    assert len(executed) == 4


def test_database_sends_no_more_results_than_the_limit(harness: Harness) -> None:
    """A worker's memory does not depend on how much the members of a chord return."""
    node = group(*(leaf("x" * 98) for _ in range(10)))
    insert(harness, node)
    job_id = harness.submit(held=True)
    with harness.database.transaction() as db:
        db.connection.execute(insert_row(job_need).values(job_id=job_id, needs_id=node.id, position=0))
    with harness.database.autocommit() as db:
        rows: list[Any] = []
        execute = db.execute

        def noting(statement: Any, parameters: Any = None) -> Any:
            rows.extend(found := execute(statement, parameters).all())
            return SimpleNamespace(all=lambda: found)

        db.execute = noting  # type: ignore[method-assign]  # this one's
        with pytest.raises(ResultsTooLarge, match="at least 1,000 bytes"):
            results_needed(db, job_id, 350)
    assert [row.result is None for row in rows] == [True] + 3 * [False] + 7 * [True]
