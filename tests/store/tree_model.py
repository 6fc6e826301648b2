"""A model of the rules of trees, explored in every order of steps: of settles, a cancel, a loss, a resubmit.

Two workers run and settle jobs, a sweep settles what a worker that died has left. Each statement of a settle
is a step of its own. `LOOSER` are readings of the rules that leave a root unfinished for ever.
"""

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

Status = Literal["blocked", "ready", "running", "Finished", "Error", "Cancelled"]
FINAL = ("Finished", "Error", "Cancelled")
LOST = 9
"""The owner of a job whose worker has died."""

LOOSER = {
    "clear_unguarded": "a settle clears the mark whatever the row is by then",
    "no_mark": "a row that ends is not marked",
    "clear_first": "a settle clears the mark first",
    "settle_before_commit": "a settle looks before its own end is committed",
    "cascade_without_mark": "a row that a settle cancels is not marked",
    "cancel_without_mark": "a row that a cancel ends is not marked",
}
_STEPS = ("release", "cancel", "root", "clear")
_STEPS_CLEARING_FIRST = ("clear", "release", "cancel", "root")


@dataclass(frozen=True)
class Member:
    """A task of the tree."""

    status: Status
    marked: bool = False
    owner: int | None = None
    asked_to_stop: bool = False
    runs: int = 0
    """Bodies that were started in this round."""


@dataclass(frozen=True)
class Process:
    """A worker or a sweep: idle, in the body of a job, or before a step of its settle."""

    job: int | None = None
    step: int | None = None
    round_seen: tuple[int, Status, int] | None = None


IDLE = Process()


@dataclass(frozen=True)
class Tree:
    """A state: the rows, the processes, and what may still happen."""

    members: tuple[Member, ...]
    crashes: int
    cancels: int
    resubmits: int
    root: str = "open"
    workers: tuple[Process, Process] = (IDLE, IDLE)
    sweep: Process = IDLE
    cancel_answered: bool = False
    """A cancel has answered Cancelled: no member may start."""

    def put(self, number: int, **changed: object) -> "Tree":
        member = replace(self.members[number], **changed)  # type: ignore[arg-type]  # by the names of fields
        return replace(self, members=(*self.members[:number], member, *self.members[number + 1 :]))

    def move(self, worker: int, process: Process) -> "Tree":
        first, second = self.workers
        return replace(self, workers=(process, second) if worker == 0 else (first, process))


class Rules:
    """The rules for a tree in which each task needs others, with one of them read more loosely."""

    def __init__(self, needs: Sequence[Sequence[int]], looser: str = "") -> None:
        self._needs = needs
        self._looser = looser
        self._steps = _STEPS_CLEARING_FIRST if looser == "clear_first" else _STEPS

    def explore(self, *, crashes: int, cancels: int, resubmits: int) -> str:
        """Return what goes wrong in some order of steps, or nothing."""
        members = tuple(Member("blocked" if needs else "ready") for needs in self._needs)
        start = Tree(members, crashes, cancels, resubmits)
        seen, waiting = {start}, deque([start])
        while waiting:
            tree = waiting.popleft()
            if wrong := self._wrong(tree):
                return wrong
            goes_on = False
            for after in self._after(tree):
                goes_on |= (after.crashes, after.cancels, after.resubmits) == (
                    tree.crashes,
                    tree.cancels,
                    tree.resubmits,
                )
                if after not in seen:
                    seen.add(after)
                    waiting.append(after)
            if not goes_on and tree.root == "open":
                return "the root never ends"
        return ""

    def _wrong(self, tree: Tree) -> str:
        for number, member in enumerate(tree.members):
            if member.status in ("ready", "running") and not self._is_met(tree, number):
                return f"{number} is {member.status}, and its needs have not finished"
        if tree.cancel_answered and any(member.status == "running" for member in tree.members):
            return "a member runs after a cancel that answered Cancelled"
        if tree.root in FINAL and any(member.status not in FINAL for member in tree.members):
            return f"the root is {tree.root}, and a member is not final"
        return ""

    def _is_met(self, tree: Tree, number: int) -> bool:
        return all(tree.members[need].status == "Finished" for need in self._needs[number])

    def _after(self, tree: Tree) -> Iterator[Tree]:
        for worker in (0, 1):
            yield from self._work(tree, worker)
        yield from self._sweep(tree)
        if tree.cancels and tree.root == "open":
            yield self._cancel(tree)
        if (
            tree.resubmits
            and tree.root in FINAL[1:]
            and not any(member.status == "running" for member in tree.members)
        ):
            yield self._resubmit(tree)

    def _work(self, tree: Tree, worker: int) -> Iterator[Tree]:
        process = tree.workers[worker]
        if process.job is None:
            for number, member in enumerate(tree.members):
                if member.status == "ready":
                    claimed = tree.put(number, status="running", owner=worker, runs=member.runs + 1)
                    yield claimed.move(worker, Process(number))
            return
        if process.step is not None:
            done, following = self._settle(tree, process)
            yield done.move(worker, following)
        elif tree.members[process.job].status != "running" or tree.members[process.job].owner != worker:
            yield tree.move(worker, IDLE)  # superseded
            return
        else:
            yield from self._end_run(tree, worker, process.job)
        if tree.crashes:
            dead = replace(tree, crashes=tree.crashes - 1)
            if process.step is None:
                dead = dead.put(process.job, owner=LOST)
            yield dead.move(worker, IDLE)

    def _end_run(self, tree: Tree, worker: int, number: int) -> Iterator[Tree]:
        outcomes: list[Status] = ["Finished", "Error"]
        if tree.members[number].asked_to_stop:
            outcomes.append("Cancelled")
        for status in outcomes:
            if self._looser == "settle_before_commit":
                looked = self._release(tree, number)
                yield looked.put(number, status=status, owner=None).move(worker, IDLE)
            else:
                ended = self._end(tree, number, status)
                yield ended.move(worker, Process(number, 0, _round(ended, number)))

    def _end(self, tree: Tree, number: int, status: Status) -> Tree:
        return tree.put(number, status=status, marked=self._looser != "no_mark", owner=None)

    def _settle(self, tree: Tree, process: Process) -> tuple[Tree, Process]:
        """Make one step of a settle; return what the process does next."""
        assert process.job is not None
        assert process.step is not None
        match self._steps[process.step]:
            case "release":
                tree = self._release(tree, process.job)
            case "cancel":
                tree = self._cancel_dependents(tree, process.job)
            case "root":
                tree = _end_root(tree)
            case _:
                if self._looser == "clear_unguarded" or process.round_seen == _round(tree, process.job):
                    tree = tree.put(process.job, marked=False)
        is_last = process.step + 1 == len(self._steps)
        return tree, IDLE if is_last else replace(process, step=process.step + 1)

    def _release(self, tree: Tree, number: int) -> Tree:
        for dependent in self._dependents(tree, number):
            if self._is_met(tree, dependent):
                tree = tree.put(dependent, status="ready", owner=None)
        return tree

    def _cancel_dependents(self, tree: Tree, number: int) -> Tree:
        for dependent in self._dependents(tree, number):
            if any(tree.members[need].status in FINAL[1:] for need in self._needs[dependent]):
                marked = self._looser != "cascade_without_mark"
                tree = tree.put(dependent, status="Cancelled", marked=marked)
        return tree

    def _dependents(self, tree: Tree, number: int) -> list[int]:
        return [
            dependent
            for dependent, needs in enumerate(self._needs)
            if number in needs and tree.members[dependent].status == "blocked"
        ]

    def _sweep(self, tree: Tree) -> Iterator[Tree]:
        if tree.sweep.step is not None:
            settled, following = self._settle(tree, tree.sweep)
            yield replace(settled, sweep=following)
            return
        for number, member in enumerate(tree.members):
            if member.marked and member.status in FINAL:
                yield replace(tree, sweep=Process(number, 0, _round(tree, number)))
            if member.status == "running" and member.owner == LOST:
                yield self._end(tree, number, "Cancelled" if member.asked_to_stop else "Error")
                if not member.asked_to_stop:
                    yield tree.put(number, status="ready", owner=None)

    def _cancel(self, tree: Tree) -> Tree:
        tree = replace(tree, cancels=tree.cancels - 1)
        for number, member in enumerate(tree.members):
            if member.status in ("blocked", "ready"):
                tree = tree.put(number, status="Cancelled", marked=self._looser != "cancel_without_mark")
            elif member.status == "running":
                tree = tree.put(number, asked_to_stop=True)
        is_prevented = not any(member.status == "running" for member in tree.members)
        return replace(tree, cancel_answered=is_prevented)

    def _resubmit(self, tree: Tree) -> Tree:
        again = {number for number, member in enumerate(tree.members) if member.status != "Finished"}
        tree = replace(tree, resubmits=tree.resubmits - 1, root="open", cancel_answered=False)
        for number in again:
            status: Status = "blocked" if again & set(self._needs[number]) else "ready"
            tree = tree.put(number, status=status, marked=False, asked_to_stop=False, owner=None, runs=0)
        return tree


def _round(tree: Tree, number: int) -> tuple[int, Status, int]:
    """Return what stands for the task id and the attempt of an end."""
    member = tree.members[number]
    return tree.resubmits, member.status, member.runs


def _end_root(tree: Tree) -> Tree:
    statuses = {member.status for member in tree.members}
    if tree.root != "open" or not statuses <= set(FINAL):
        return tree
    return replace(
        tree, root="Error" if "Error" in statuses else "Cancelled" if "Cancelled" in statuses else "Finished"
    )
