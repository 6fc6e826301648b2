"""Trees of jobs in any status, inserted as rows: what reads a tree is tested without what builds one."""

import json
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import Connection, insert, update

from jobhandle_celery.schema import clock, job, job_need
from jobhandle_celery.status import JobStatus

TASK = "shop.thumbnail"


@dataclass
class Node:
    """A row of a tree: a task, or a node with children; `id` is set by `insert_tree`."""

    kind: str | None = None
    children: list["Node"] = field(default_factory=list)
    status: JobStatus = JobStatus.FINISHED
    result: Any = None
    callback: bool = False
    """It has no position: its parent waits for it, and its result does not count."""
    columns: dict[str, Any] = field(default_factory=dict)
    id: int = 0

    def __iter__(self) -> Iterator["Node"]:
        """Itself and all below, in the order of the tree."""
        yield self
        for child in self.children:
            yield from child


def leaf(result: Any = None, status: JobStatus = JobStatus.FINISHED, **given: Any) -> Node:
    """A task; one that has Finished has its result."""
    return Node(status=status, result=result, **given)


def chain(*children: Node, **given: Any) -> Node:
    return Node("chain", list(children), **given)


def group(*children: Node, **given: Any) -> Node:
    return Node("group", list(children), **given)


def chord(header: Node, body: Node, **given: Any) -> Node:
    return Node("chord", [header, body], **given)


def insert_tree(connection: Connection, root: Node, namespace: str = "default", **columns: Any) -> int:
    """Insert a tree, level by level, and return the id of its root; `columns` are of all rows."""
    level: list[tuple[Node, dict[str, Any]]] = [(root, {})]
    while level:
        following: list[tuple[Node, dict[str, Any]]] = []
        for node, place in level:
            row = _row(node, namespace) | columns | place | node.columns
            inserted = connection.execute(insert(job).values(submitted=clock(), **row))
            assert inserted.inserted_primary_key is not None
            node.id = inserted.inserted_primary_key[0]
            positions = iter(range(len(node.children)))
            following += [
                (child, {"root_id": root.id, "parent_id": node.id, "position": position})
                for child in node.children
                for position in [None if child.callback else next(positions)]
            ]
        level = following
    return root.id


def insert_needs(
    connection: Connection,
    job_id: int,
    *needed: Any,
    when: str = "finished",
    namespace: str = "default",
    **columns: Any,
) -> None:
    """Let a job need trees, which are inserted, or jobs by their ids; `columns` are of its own row.

    Each is given alone, or with the position of its result among the arguments; None: it is no argument.
    """
    for number, need in enumerate(needed):
        found, position = need if isinstance(need, tuple) else (need, number)
        needs_id = insert_tree(connection, found, namespace) if isinstance(found, Node) else found
        connection.execute(insert(job_need).values(job_id=job_id, needs_id=needs_id, position=position))
    connection.execute(update(job).where(job.c.id == job_id).values(needs_when=when, **columns))


def _row(node: Node, namespace: str) -> dict[str, Any]:
    ended = node.status.final
    finished = node.kind is None and node.status is JobStatus.FINISHED
    return {
        "namespace": namespace,
        "task": f"celery.{node.kind}" if node.kind else TASK,
        "task_id": str(uuid.uuid4()),
        "args": "[]",
        "kwargs": "{}",
        "message": "",
        "routing": "{}",
        "kind": node.kind,
        "status_id": node.status,
        "started": clock() if ended or node.status is JobStatus.RUNNING else None,
        "finished": clock() if ended else None,
        "result": json.dumps(node.result) if finished else None,
        "needed": True,
    }
