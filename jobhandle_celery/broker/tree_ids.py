"""Makes the task ids of the members of a canvas, and the ids by which their messages name each other."""

import uuid
from collections.abc import Sequence
from typing import Any

from .plans import Member


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
