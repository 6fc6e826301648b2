"""The planned rows of a canvas: the ids by which their messages name each other, their paths in errors."""

import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ..errors import ValidationError
from ..models import Job
from .signatures import CHORD


@dataclass(frozen=True, slots=True)
class Member:
    """A planned row: a job, or a chain, group or chord, which is the parent of others."""

    job: Job
    options: Mapping[str, Any] = field(default_factory=dict)
    """Further message options of its signature."""
    kind: str | None = None
    """``"chain"``, ``"group"`` or ``"chord"``; None: a task."""
    parent: int | None = None
    """Index of its parent."""
    position: int | None = None
    """Its place among its parent's members; None: a callback, or it has no parent."""
    depth: int = 0
    needs: tuple[tuple[int, int | None], ...] = ()
    """Indexes of the rows that must have ended before it, with the places of their results among its
    arguments; None: the result is not an argument."""
    after: tuple[int, ...] = ()
    """Ids of existing jobs that must have ended before it."""
    when: str | None = None
    """How they must have ended; None: it has no needs."""
    relative: bool = False
    """Its times count from the end of its needs, as in a Celery canvas; those of a `Job` from the submit."""
    caller: int | None = None
    """Index of the task at whose end Celery would publish it; None: Celery would publish it at the submit."""
    group: int | None = None
    """Index of the group whose id it gets, or of the task whose callbacks form that group."""
    group_index: int | None = None
    task_id: str | None = None
    """Celery's id of the task; None: a new one."""
    task_id_given: bool = False
    """The caller has chosen that id."""


@dataclass(frozen=True)
class Plan:
    """Planned rows: parents and needs come before the rows that depend on them."""

    members: Sequence[Member]
    roots: Sequence[int]
    """The index of the row of each thing that was submitted; of a canvas, of its root."""


class TreeIds:
    """The ids of the members of one plan, new ones for each submit."""

    def __init__(self, members: Sequence[Member], root_id: str | None) -> None:
        """Make the ids.

        Args:
            members: The members of a plan.
            root_id: The root id of the task that submits them; None outside of a task.
        """
        self._members = members
        self.tasks = [member.task_id or str(uuid.uuid4()) for member in members]
        """The task id of each member; that of a group is its group id."""
        self._roots: list[str] = []
        for index, member in enumerate(members):
            own = root_id or self.tasks[index]
            self._roots.append(own if member.caller is None else self._roots[member.caller])
        self._callback_groups: dict[int, str] = {}

    def headers(self, index: int) -> dict[str, Any] | None:
        """Return the options that describe the place of a task in its canvas; None if it is in none."""
        member = self._members[index]
        ids: dict[str, Any] = {}
        if member.caller is not None:
            ids |= {"parent_id": self.tasks[member.caller], "root_id": self._roots[index]}
        if member.group is not None:
            ids["group_id"] = self._group(member.group)
        if member.group_index is not None:
            ids["group_index"] = member.group_index
        return ids or None

    def _group(self, index: int) -> str:
        if self._members[index].kind is not None:
            return self.tasks[index]
        return self._callback_groups.setdefault(index, str(uuid.uuid4()))


def path_to(members: Sequence[Member], parent: int | None, position: int | None) -> str:
    """Return the path from the root of a canvas to one of its members, for errors; empty for the root."""
    parts: list[str] = []
    while parent is not None:
        node = members[parent]
        if position is None:
            part = f"{node.kind}'s callback"
        elif node.kind == CHORD:
            part = ("header", "body")[position]
        else:
            part = f"{node.kind}[{position}]"
        parts.append(part)
        parent, position = node.parent, node.position
    return "".join(f"{part}, " for part in reversed(parts))


def located(error: ValidationError, where: str) -> ValidationError:
    """Return an error that names the place of a member; an error that has one keeps it."""
    if not hasattr(error, "where"):
        error.args = (f"{error.args[0]} (in {where})",)
        vars(error)["where"] = where
    return error


def located_at(error: ValidationError, members: Sequence[Member], index: int) -> ValidationError:
    """Return an error that names the place of a member by its index; unchanged if there is no canvas."""
    member = members[index]
    if member.parent is None and member.caller is None:
        return error
    return located(error, f"{path_to(members, member.parent, member.position)}{member.job.task}")
