"""Which jobs fit an expectation, and how far the others are from it."""

import difflib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from celery.canvas import Signature

from .. import serialization
from ..broker.signatures import kind_of
from ..errors import ApiUsageError, shown
from ..models import JobRecord
from .matching_trees import Parts, StoredTrees, planned_parts

MAX_SHOWN = 5
"""Jobs that a failure message shows."""

MAX_PARTS = 10
"""Jobs of a tree that a failure message shows."""

_NODES = ("celery.chain", "celery.group", "celery.chord", "celery.chunks")

_FIELDS = {field.name for field in fields(JobRecord)}


@dataclass(frozen=True)
class Expectation:
    """What a job is expected to have; fields that are not named may have any value."""

    values: Mapping[str, Any]

    @classmethod
    def of(cls, task: Any, given: Mapping[str, Any]) -> "Expectation":
        """Return the expectation of a task, its name, a signature or a canvas, and of fields of its record.

        Raises:
            ApiUsageError: a record has no such field, or no job could fit.
        """
        if unknown := given.keys() - _FIELDS:
            names = " nor ".join(sorted(unknown))
            raise ApiUsageError(f"a job has no {names}; it has {', '.join(sorted(_FIELDS))}")
        name = task if isinstance(task, str) else getattr(task, "name", None)
        if isinstance(task, Signature):
            name = task.task
        if name in _NODES and (named := sorted(given.keys() & {"args", "kwargs"})):
            raise ApiUsageError(
                f"{' and '.join(named)}: {name} has no arguments; its tasks have. Give the canvas itself, "
                "or look for its tasks"
            )
        if isinstance(task, Signature) and kind_of(task) is not None:
            root, parts = planned_parts(task)
            return CanvasExpectation({"task": root, **given}, parts)
        if isinstance(task, Signature):
            given = {"args": list(task.args or ()), "kwargs": dict(task.kwargs or {}), **given}
            return cls({"task": task.task, **given})
        if name == "celery.chunks":
            raise ApiUsageError("task: chunks are submitted as 'celery.group', or give the chunks themselves")
        if not isinstance(name, str):
            raise ApiUsageError(
                f"task: {shown(task)}; accepted: a task, its name, a signature of it, or a canvas"
            )
        return cls({"task": name, **given})

    def differences(self, record: JobRecord, trees: Callable[[], StoredTrees]) -> dict[str, str]:
        """Return how a job differs, by field; empty if it fits. `trees` reads those of all jobs."""
        different: dict[str, str] = {}
        for name, expected in self.values.items():
            found = getattr(record, name)
            if not _equal(expected, found):
                hidden = record.sensitive and name in ("args", "kwargs")
                expectation = " (sensitive)" if hidden else f", not {expected!r}"
                different[name] = _Shown(record).value(name) + expectation
        return different

    def __str__(self) -> str:
        _, *others = [f"{name}={value!r}" for name, value in self.values.items()]
        name = self.values["task"]
        return f"job of {name}" + (f" with {', '.join(others)}" if others else "")


@dataclass(frozen=True)
class CanvasExpectation(Expectation):
    """What a chain, group or chord is expected to have, and the jobs below it."""

    parts: Parts

    def differences(self, record: JobRecord, trees: Callable[[], StoredTrees]) -> dict[str, str]:
        """Return how a tree differs, by field and by place; of another kind of job, the fields alone."""
        different = super().differences(record, trees)
        if "task" in different:
            return different
        found = trees().parts(record)
        for where, part in self.parts.items():
            if where not in found:
                different[where] = f"nothing, not {part.shown}"
            elif difference := part.difference(found[where], _equal):
                different[where] = difference
        return different | {
            where: f"{part.shown}, not nothing" for where, part in found.items() if where not in self.parts
        }

    def __str__(self) -> str:
        parts = [f"{where}: {part.shown}" for where, part in self.parts.items()]
        if more := len(parts) - MAX_PARTS:
            parts[MAX_PARTS:] = [f"and {more} more"] if more > 0 else []
        return f"{super().__str__()} [{'; '.join(parts)}]"


def unmet(
    expectation: Expectation,
    records: Sequence[JobRecord],
    trees: Callable[[], StoredTrees],
    uncommitted: int = 0,
) -> str:
    """Return the message of a failed `assert_submitted`: what was submitted instead, nearest first.

    `uncommitted` jobs are in sessions whose transactions have not ended.
    """
    lines = [f"no {expectation} was submitted."]
    if not records:
        lines.append("No job was submitted.")
    else:
        found = {record.id: expectation.differences(record, trees) for record in records}
        near = sorted(records, key=lambda record: _distance(expectation, record, found[record.id]))
        lines.append(f"{_count(len(records))} submitted, nearest first:")
        for record in near[:MAX_SHOWN]:
            lines.append(f"  {_Shown(record)}")
            differences = [f"    {name}: {difference}" for name, difference in found[record.id].items()]
            lines += differences[:MAX_PARTS]
            if len(differences) > MAX_PARTS:
                lines.append(f"    and {len(differences) - MAX_PARTS} more differences")
        if len(near) > MAX_SHOWN:
            lines.append(f"  and {len(near) - MAX_SHOWN} more")
    if uncommitted:
        lines.append(f"{_count(uncommitted)} submitted in a session that has not committed.")
    return "\n".join(lines)


def met(expectation: Expectation, records: Sequence[JobRecord]) -> str:
    """Return the message of a failed `refute_submitted`."""
    lines = [f"a {expectation} was submitted:", *(f"  {_Shown(record)}" for record in records[:MAX_SHOWN])]
    if len(records) > MAX_SHOWN:
        lines.append(f"  and {len(records) - MAX_SHOWN} more")
    return "\n".join(lines)


def _count(number: int) -> str:
    return "1 job was" if number == 1 else f"{number} jobs were"


class _Shown:
    """A job as a line of a message; what is sensitive is hidden."""

    def __init__(self, record: JobRecord) -> None:
        self._record = record

    def value(self, name: str) -> str:
        args, kwargs = self._record.shown_arguments
        return repr({"args": list(args), "kwargs": kwargs}.get(name, getattr(self._record, name)))

    def __str__(self) -> str:
        record = self._record
        args, kwargs = record.shown_arguments
        arguments = ", ".join([*map(repr, args), *(f"{name}={value!r}" for name, value in kwargs.items())])
        user = "" if record.username is None else f" of {record.username}"
        return f"job {record.id}{user}: {record.task}({arguments}), {record.status}"


def _distance(
    expectation: Expectation, record: JobRecord, differences: Mapping[str, str]
) -> tuple[bool, int, float, int]:
    """Return how far a job is: by its task, by the number of fields that differ, by how much, by its age."""
    alike = sum(
        difflib.SequenceMatcher(None, repr(expectation.values[name]), repr(getattr(record, name))).ratio()
        for name in differences.keys() & expectation.values.keys()
    )
    return "task" in differences, len(differences), -alike, -record.id


def _equal(expected: Any, found: Any) -> bool:
    """Compare as the row keeps values: a tuple is a list there, and a key a text."""
    return _same(expected, found) or _same(_stored(expected), found)


def _same(expected: Any, found: Any) -> bool:
    if isinstance(expected, (list, tuple)) and isinstance(found, (list, tuple)):
        return len(expected) == len(found) and all(map(_equal, expected, found))
    if isinstance(expected, dict) and isinstance(found, dict):
        named = {str(key): value for key, value in expected.items()}
        return named.keys() == found.keys() and all(_equal(named[key], found[key]) for key in named)
    return bool(expected == found)


def _stored(value: Any) -> Any:
    try:
        return serialization.decode(serialization.encode(value))
    except serialization.NotStorableError:
        return value  # a matcher, such as unittest.mock.ANY
