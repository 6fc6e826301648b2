"""A settle reads a few rows of a group, however many members have ended."""

from typing import Any

from tests.servers import execute
from tests.store.explain import explained, pages_read
from tests.store.harness import Harness
from tests.store.members import Tree, group, task
from tests.support import eventually

MEMBERS = 3_000


def pages_of_children(plan: dict[str, Any]) -> int:
    """Return how many pages a plan has read to find children."""
    if plan.get("Alias", "").startswith("child"):
        return pages_read(plan)
    return sum(map(pages_of_children, plan.get("Plans", [])))


def test_settle_of_a_member_reads_few_of_its_siblings(postgresql_databases: Any) -> None:
    """PostgreSQL may expect so many unfinished children that it reads the table instead of the index."""
    url = postgresql_databases.create()
    harness = Harness(url)
    tree = Tree(harness, group(*(task() for _ in range(MEMBERS))))
    _, second, *_, last = tree.ids
    execute(url, "ANALYZE")  # before most have ended
    ended = "UPDATE jobhandle_job SET status_id = 8, finished = now(), unsettled = id = {0} OR id = {1}"
    execute(url, f"{ended.format(second, last - 1)} WHERE kind IS NULL AND id < {last}")

    def settled() -> int:
        execute(url, f"UPDATE jobhandle_job SET unsettled = true WHERE id IN ({second}, {last - 1})")
        with explained(harness, "AS dependent") as plans:
            harness.store.settling.settle([second, last - 1])
        (plan,) = plans
        return pages_of_children(plan)

    # A settle marks the entries of former versions as dead, when no other snapshot (that of an automatic
    # analyze, say) can see them; the next one passes over them.
    eventually(lambda: 0 < settled() < 50, message="each settle reads many pages")
    assert harness.status(last) == "Submitted"
    harness.close()
    postgresql_databases.drop(url)
