"""Which jobs fit an expectation, and how far the others are from it."""

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from celery.canvas import Signature

from .. import serialization
from ..errors import ApiUsageError, shown
from ..models import JobRecord

MAX_SHOWN = 5
"""Jobs that a failure message shows."""

_FIELDS = {field.name for field in fields(JobRecord)}


@dataclass(frozen=True)
class Expectation:
    """What a job is expected to have; fields that are not named may have any value."""

    values: Mapping[str, Any]

    @classmethod
    def of(cls, task: Any, given: Mapping[str, Any]) -> "Expectation":
        """Return the expectation of a task, its name, or a signature of it, and of fields of its record.

        Raises:
            ApiUsageError: a record has no such field.
        """
        if unknown := given.keys() - _FIELDS:
            names = " nor ".join(sorted(unknown))
            raise ApiUsageError(f"a job has no {names}; it has {', '.join(sorted(_FIELDS))}")
        if isinstance(task, Signature):
            given = {"args": list(task.args or ()), "kwargs": dict(task.kwargs or {}), **given}
            return cls({"task": task.task, **given})
        name = task if isinstance(task, str) else getattr(task, "name", None)
        if not isinstance(name, str):
            raise ApiUsageError(f"task: {shown(task)}; accepted: a task, its name, or a signature of it")
        return cls({"task": name, **given})

    def differences(self, record: JobRecord) -> dict[str, str]:
        """Return how a job differs, by field; empty if it fits."""
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


def unmet(expectation: Expectation, records: Sequence[JobRecord], uncommitted: int = 0) -> str:
    """Return the message of a failed `assert_submitted`: what was submitted instead, nearest first.

    `uncommitted` jobs are in sessions whose transactions have not ended.
    """
    lines = [f"no {expectation} was submitted."]
    if not records:
        lines.append("No job was submitted.")
    else:
        near = sorted(records, key=lambda record: _distance(expectation, record))
        lines.append(f"{_count(len(records))} submitted, nearest first:")
        for record in near[:MAX_SHOWN]:
            lines.append(f"  {_Shown(record)}")
            differences = expectation.differences(record)
            lines += [f"    {name}: {difference}" for name, difference in differences.items()]
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


def _distance(expectation: Expectation, record: JobRecord) -> tuple[bool, int, float, int]:
    """Return how far a job is: by its task, by the number of fields that differ, by how much, by its age."""
    differences = expectation.differences(record)
    alike = sum(
        difflib.SequenceMatcher(None, repr(expectation.values[name]), repr(getattr(record, name))).ratio()
        for name in differences
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
