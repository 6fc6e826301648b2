"""Evaluates a plan: tasks are Python functions, needs are their arguments, and rows have results."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from jobhandle_celery.broker.plans import Member, Plan


@dataclass
class Evaluation:
    """What became of a plan."""

    plan: Plan
    tasks: Mapping[str, Callable[..., Any]]
    results: dict[int, Any] = field(default_factory=dict)
    """Of each row that is a task, by index."""
    arguments: dict[int, tuple[list[Any], dict[str, Any]]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for index, member in enumerate(self.plan.members):
            assert all(need < index for need, _ in member.needs), "needs come first"
            assert member.parent is None or member.parent < index, "parents come first"
            if member.kind is None:
                self._run(index, member)

    def _run(self, index: int, member: Member) -> None:
        placed = sorted((place, need) for need, place in member.needs if place is not None)
        args = [*(self.result(need) for _, need in placed), *member.job.args]
        kwargs = dict(member.job.kwargs)
        self.arguments[index] = args, kwargs
        self.results[index] = self.tasks[member.job.task](*args, **kwargs)

    def result(self, index: int) -> Any:
        """Return the result of a row: a list of a group, else that of its last member."""
        member = self.plan.members[index]
        if member.kind is None:
            return self.results[index]
        members = sorted(
            (other.position, number)
            for number, other in enumerate(self.plan.members)
            if other.parent == index and other.position is not None
        )
        assert [position for position, _ in members] == list(range(len(members)))
        if member.kind == "group":
            return [self.result(number) for _, number in members]
        return self.result(members[-1][1])
