"""A settle reads a few rows of a group, however many members have ended."""

from typing import Any

import pytest

from tests.servers import execute
from tests.store.harness import Bench
from tests.store.members import Tree, group, task
from tests.store.test_due import explained

MEMBERS = 3_000
INDEX = "jobhandle_job_parent_index"


def siblings_read(plan: dict[str, Any]) -> float:
    """Return how many rows, or entries of their index, a plan has read of children."""
    of_children = plan.get("Alias", "").startswith("child") or plan.get("Index Name") == INDEX
    rows = plan["Actual Loops"] * (plan["Actual Rows"] + plan.get("Rows Removed by Filter", 0))
    return float(of_children and rows) + sum(map(siblings_read, plan.get("Plans", [])))


@pytest.mark.parametrize("statements", [[], ["ANALYZE"]], ids=["without statistics", "with statistics"])
def test_settle_of_a_member_reads_few_of_its_siblings(
    postgresql_databases: Any, statements: list[str]
) -> None:
    """PostgreSQL may expect so many children that it reads the table instead of the index."""
    url = postgresql_databases.create()
    bench = Bench(url)
    tree = Tree(bench, group(*(task() for _ in range(MEMBERS))))
    first, second, *_, last = tree.ids
    ended = "UPDATE jobhandle_job SET status_id = 8, finished = now(), unsettled = id = {0} OR id = {1}"
    execute(url, f"{ended.format(second, last - 1)} WHERE kind IS NULL AND id < {last}")
    for statement in statements:
        execute(url, statement)

    with explained(bench, "AS dependent") as plans:
        bench.store.settling.settle([second, last - 1])

    assert bench.status(first) == "Submitted"
    (plan,) = plans
    assert 0 < siblings_read(plan) < MEMBERS / 20
    bench.close()
    postgresql_databases.drop(url)
