"""What PostgreSQL reads for a query, by its plan."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from sqlalchemy import event

from tests.store.harness import Harness


def looked_at(plan: dict[str, Any]) -> float:
    """Return how many rows of the job table a plan has read."""
    rows = 0.0
    if plan.get("Relation Name") == "jobhandle_job" and "Scan" in plan["Node Type"]:
        rows = plan["Actual Loops"] * (plan["Actual Rows"] + plan.get("Rows Removed by Filter", 0))
    return rows + sum(map(looked_at, plan.get("Plans", [])))


@contextmanager
def explained(harness: Harness, part: str = "due_at <=") -> Iterator[list[dict[str, Any]]]:
    """Yield the plans of the queries with this part that are made within the block, with what they have read.

    By default those of due jobs."""
    engine, plans = harness.database.engine, list[dict[str, Any]]()

    def explain(_: Any, cursor: Any, statement: str, parameters: Any, *__: Any) -> None:
        if part in statement:
            cursor.execute(f"EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) {statement}", parameters)
            plans.append(cursor.fetchone()[0][0]["Plan"])

    event.listen(engine, "before_cursor_execute", explain)
    try:
        yield plans
    finally:
        event.remove(engine, "before_cursor_execute", explain)


def pages_read(plan: dict[str, Any]) -> int:
    return int(plan["Shared Hit Blocks"] + plan["Shared Read Blocks"])
