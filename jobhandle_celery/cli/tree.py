"""A tree of jobs for ``show``: its rows, with large groups folded."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from ..models import JobRecord, Progress
from ..status import FINAL, JobStatus
from ..store import TreeRow
from .formatting import format_progress
from .output.layout import Cell, ProgressCell, Table

CHILDREN_SHOWN = 30
"""Children shown of one node without ``--full``."""

_INDENT = "· "
"""For each level; spaces alone do not survive in a table."""

_FIRST_SHOWN = (JobStatus.ERROR, JobStatus.RUNNING, JobStatus.CANCELLED)
"""What a person looks for in a large group, before what waits and what has Finished."""


@dataclass(frozen=True)
class Tree:
    """A node and the jobs below it, in the order of the tree."""

    top: JobRecord
    rows: Sequence[TreeRow]
    full: bool
    """False: of a node with many children, `CHILDREN_SHOWN` are shown and the others counted."""

    @cached_property
    def _children(self) -> Mapping[int, list[TreeRow]]:
        children: dict[int, list[TreeRow]] = {}
        for row in self.rows:
            children.setdefault(row.parent_id, []).append(row)
        return children

    @cached_property
    def _counted(self) -> Mapping[int, Progress]:
        """How many of the tasks below each node have Finished, of how many."""
        finished: Counter[int] = Counter()
        members: Counter[int] = Counter()
        for row in reversed(self.rows):  # so what is below a node is counted before the node
            finished[row.parent_id] += finished[row.id] if row.kind else row.status is JobStatus.FINISHED
            members[row.parent_id] += members[row.id] if row.kind else 1
        return {node_id: Progress(finished[node_id], total) for node_id, total in members.items() if total}

    def _shown(self, node_id: int) -> tuple[list[TreeRow], Counter[JobStatus]]:
        """Return the children of a node to be shown, in their order, and the statuses of the others."""
        children = self._children.get(node_id, [])
        if self.full or len(children) <= CHILDREN_SHOWN:
            return children, Counter()
        numbers = sorted(range(len(children)), key=lambda number: (_rank(children[number].status), number))
        shown = [children[number] for number in sorted(numbers[:CHILDREN_SHOWN])]
        return shown, Counter(children[number].status for number in numbers[CHILDREN_SHOWN:])

    def table(self) -> Table:
        """Return the table: a job a row, those below a node indented."""
        progress = self._counted.get(self.top.id)
        first: list[Cell] = [str(self.top.id), str(self.top.status), _cell(progress), self.top.task]
        return Table(("ID", "STATUS", "PROGRESS", "TASK"), [first, *self._table_rows()])

    def _table_rows(self) -> Iterator[list[Cell]]:
        following = self._lines(self.top.id, 1)
        while following:
            depth, line = following.pop()
            indent = _INDENT * depth
            if isinstance(line, str):
                yield ["…", "", "", f"{indent}… {line}"]
                continue
            note = "" if line.position is not None else " (callback)"
            progress = self._counted.get(line.id) if line.kind else line.progress
            yield [str(line.id), str(line.status), _cell(progress), f"{indent}{line.task}{note}"]
            following += self._lines(line.id, depth + 1)

    def _lines(self, node_id: int, depth: int) -> list[tuple[int, TreeRow | str]]:
        """Return the lines of a node's children, the last one first."""
        shown, others = self._shown(node_id)
        lines: list[tuple[int, TreeRow | str]] = [(depth, row) for row in reversed(shown)]
        return [(depth, _folded(others)), *lines] if others else lines

    def document(self) -> dict[str, Any]:
        """Return the JSON document: a node has its children, and how many are folded, by status."""
        progress = self._counted.get(self.top.id)
        return {
            "id": self.top.id,
            "kind": self.top.kind,
            "task": self.top.task,
            "status": str(self.top.status),
            "progress": vars(progress) if progress else None,
            **self._below(self.top.id),
        }

    def _below(self, node_id: int) -> dict[str, Any]:
        shown, others = self._shown(node_id)
        counts = {str(status): count for status, count in others.items()}
        return {"children": [self._member(row) for row in shown], "folded": counts}

    def _member(self, row: TreeRow) -> dict[str, Any]:
        progress = self._counted.get(row.id) if row.kind else row.progress
        return {
            "id": row.id,
            "position": row.position,
            "kind": row.kind,
            "task": row.task,
            "status": str(row.status),
            "progress": vars(progress) if progress else None,
            **(self._below(row.id) if row.kind else {}),
        }


def _rank(status: JobStatus) -> int:
    if status in _FIRST_SHOWN:
        return _FIRST_SHOWN.index(status)
    return len(_FIRST_SHOWN) + (status in FINAL)


def _folded(others: Counter[JobStatus]) -> str:
    """Return the others of a group as ``9,970 more, 9,950 Finished, 20 Queued``."""
    counts = ", ".join(f"{count:,} {status}" for status, count in others.most_common())
    return f"{others.total():,} more, {counts}"


def _cell(progress: Progress | None) -> ProgressCell:
    return ProgressCell(format_progress(progress), progress.fraction if progress else None)
