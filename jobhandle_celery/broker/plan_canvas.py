"""Plans the rows of what callers submit: a canvas becomes a tree of rows, its order becomes needs.

A chain, group or chord has a row of its own, without a task, which is the parent of its members. Where Celery
publishes task A at the end of task B, the row of A needs that of B: the result of B goes before A's own
arguments, unless A is immutable. A task that needs a canvas needs the row of the canvas; if a canvas needs a
task, the first tasks of the canvas do.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import Any

from celery.utils.abstract import CallableSignature

from .. import validation
from ..errors import ValidationError
from ..models import Job, JobRecord
from . import publish_options, signatures
from .plans import Member, Plan, located, path_to
from .signatures import CHAIN, CHORD, GROUP, Sig
from .task_signatures import as_job, task_job

MAX_DEPTH = 50
"""Levels of a tree. Ends are settled level by level, and results of nested groups are nested lists, for which
Celery and JSON allow some hundreds of levels."""


def is_tree(given: object) -> bool:
    """Return True if what is submitted has to be planned: a canvas, callbacks, or a job that needs others."""
    if isinstance(given, Job):
        return bool(_after(given))
    if isinstance(given, Mapping) and isinstance(given, CallableSignature):
        return bool(signatures.kind_of(given) or signatures.options_of(given).get("link"))
    return False


def plan(given: Sequence[object]) -> Plan:
    """Return the rows of what a caller submits together.

    Raises:
        ApiUsageError: something is neither a Job nor a Celery signature.
        ValidationError: a canvas has something that a job cannot keep, or too many members or levels; or a
            job waits for one that is not submitted with it.
    """
    places: dict[int, list[int]] = {}
    for number, thing in enumerate(given):
        places.setdefault(id(thing), []).append(number)
    planner = _Planner()
    roots: dict[int, int] = {}
    for number in _needs_first(given, places):
        thing = given[number]
        if isinstance(thing, Job):
            roots[number] = planner.add_job(thing, places, roots)
        elif is_tree(thing):
            roots[number] = planner.add_canvas(thing)  # type: ignore[arg-type]  # a signature
        else:
            roots[number] = planner.add(Member(*as_job(thing)))
    return Plan(planner.members, [roots[number] for number in range(len(given))])


def plan_canvas(signature: Sig, task_id: str | None = None) -> Plan:
    """Return the rows of one canvas, an object or a dict; a given task id is that of its root."""
    planner = _Planner()
    root = planner.add_canvas(signature)
    if task_id is not None:
        planner.members[root] = replace(planner.members[root], task_id=task_id, task_id_given=True)
    return Plan(planner.members, [root])


def plan_with_callbacks(member: Member, callbacks: Sequence[Sig]) -> Plan:
    """Return the rows of one task and of its callbacks."""
    planner = _Planner()
    root = planner.add_with_callbacks(member, callbacks)
    return Plan(planner.members, [root])


def _needs_first(given: Sequence[object], places: Mapping[int, list[int]]) -> Iterator[int]:
    """Yield the indexes of what is submitted, each job after those that it waits for."""
    done: set[int] = set()
    for first in range(len(given)):
        path = {} if first in done else {first: _numbers_of_needs(given[first], places)}
        while path:
            number, needs = next(reversed(path.items()))
            need = next((need for need in needs if need not in done), None)
            if need is None:
                del path[number]
                done.add(number)
                yield number
            elif need in path:
                raise ValidationError(
                    "after", "jobs that wait for each other", "jobs whose needs form no cycle"
                )
            else:
                path[need] = _numbers_of_needs(given[need], places)


def _numbers_of_needs(thing: object, places: Mapping[int, list[int]]) -> Iterator[int]:
    return (number for need in _after(thing) for number in places.get(id(need), ()))


def _after(thing: object) -> Sequence[Any]:
    if not isinstance(thing, Job) or (isinstance(thing, JobRecord) and thing.parent_id is not None):
        return ()  # a member's record makes a job outside of its tree, see `models.request_from`
    return validation.after(thing.after)


@dataclass(frozen=True, slots=True)
class _Place:
    """The place of a signature in its tree, and what Celery would apply it with."""

    parent: int | None = None
    position: int | None = None
    depth: int = 0
    need: int | None = None
    """Index of the row that its first tasks need, and whose result they get."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """Options of the canvas around it, which take precedence over its own."""
    args: tuple[Any, ...] = ()
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    """Arguments of the chord around it, for the first tasks."""
    group: int | None = None
    """Index of the group to which its last task belongs, and the place in that."""
    group_index: int | None = None
    frozen: bool = True
    """Celery would freeze it before it applies it."""

    def of_member(self, position: int, group_index: int) -> "_Place":
        """Return the place of a member of a group; `replace` would take most of the time of a plan."""
        return _Place(
            self.parent,
            position,
            self.depth,
            self.need,
            self.options,
            self.args,
            self.kwargs,
            self.group,
            group_index,
            self.frozen,
        )


class _Planner:
    def __init__(self) -> None:
        self.members: list[Member] = []
        self._ends: dict[int, int | None] = {}
        """For each row its last task, which Celery gives to the next step as its parent."""

    def add(self, member: Member) -> int:
        if len(self.members) >= signatures.MAX_MEMBERS and (member.parent is not None or member.needs):
            raise signatures.too_large()
        self.members.append(member)
        return len(self.members) - 1

    def add_with_callbacks(self, member: Member, callbacks: Sequence[Sig]) -> int:
        index = self.add(member)
        self._ends[index] = index
        self._add_callbacks(index, callbacks, _Place(frozen=False))
        return index

    def add_job(self, job: Job, places: Mapping[int, list[int]], roots: Mapping[int, int]) -> int:
        ids: list[int] = []
        needs: list[int] = []
        for need in _after(job):
            if id(need) in places:
                needs += [roots[number] for number in places[id(need)]]
            elif isinstance(need, JobRecord):
                ids.append(need.id)
            elif isinstance(need, int):
                ids.append(validation.job_id(need))
            else:
                raise ValidationError(
                    "after",
                    need,
                    "ids of jobs, or jobs that are submitted in the same call (the same objects)",
                )
        return self.add(
            Member(
                job,
                needs=tuple((need, None) for need in dict.fromkeys(needs)),
                after=tuple(dict.fromkeys(ids)),
                when=job.when if needs or ids else None,
            )
        )

    def add_canvas(self, signature: Sig) -> int:
        place = _Place(frozen=False)
        signature = signatures.grouped(signature)
        if signatures.kind_of(signature) == GROUP:
            tasks = list(islice(signatures.flattened(signatures.tasks_of(signature), frozen=False), 2))
            if len(tasks) == 1 and signatures.ends_in_group(tasks[0][1]):
                # As `group.apply_async` does, which returns the result of the inner group.
                self._check_options(signature)
                options = signatures.merged_options(signature, {})
                return self._add(tasks[0][1], replace(place, options=options, frozen=True))
        return self._add(signature, place)

    def _add(self, signature: object, place: _Place) -> int:
        """Add a signature, and what it consists of; return its index. An error names the innermost place."""
        try:
            if place.depth > MAX_DEPTH:
                raise ValidationError("job", "a canvas", f"a canvas of at most {MAX_DEPTH} levels")
            checked = signatures.grouped(signatures.checked(signature))
            kind = signatures.kind_of(checked)
            if kind is None:
                return self._add_task(checked, place)
            self._check_options(checked)
            return self._add_node(kind, checked, place)
        except ValidationError as error:
            name = signature.get("task") if isinstance(signature, Mapping) else type(signature).__name__
            raise located(error, f"{path_to(self.members, place.parent, place.position)}{name}") from None

    def _add_node(self, kind: str, signature: Sig, place: _Place) -> int:
        index = self.add(
            Member(
                Job(task=f"celery.{kind}"),
                kind=kind,
                parent=place.parent,
                position=place.position,
                depth=place.depth,
            )
        )
        self._ends[index] = None if place.need is None else self._ends[place.need]
        add = {CHAIN: self._add_steps, GROUP: self._add_group, CHORD: self._add_chord}[kind]
        add(index, signature, replace(place, options=signatures.merged_options(signature, place.options)))
        return index

    def _add_task(self, signature: Sig, place: _Place) -> int:
        options = signatures.merged_options(signature, place.options)
        callbacks = signatures.links_of(options)
        options.pop("link", None)
        immutable = bool(signature.get("immutable"))
        args, kwargs = tuple(signature.get("args") or ()), dict(signature.get("kwargs") or {})
        if not immutable:
            args, kwargs = (*place.args, *args), kwargs | dict(place.kwargs)
        job, further = task_job({**signature, "args": args, "kwargs": kwargs, "options": options})
        needs = () if place.need is None else ((place.need, None if immutable else 0),)
        index = self.add(
            Member(
                job,
                further,
                parent=place.parent,
                position=place.position,
                depth=place.depth,
                needs=needs,
                when="finished" if needs else None,
                relative=bool(needs),
                caller=None if place.need is None else self._ends[place.need],
                group=place.group,
                group_index=place.group_index,
            )
        )
        self._ends[index] = index
        if callbacks:
            self._add_callbacks(index, callbacks, place)
        return index

    def _add_callbacks(self, index: int, callbacks: Sequence[Sig], place: _Place) -> None:
        # As in a worker: several callbacks form one group; those that are groups are applied by themselves.
        grouped = [sig for sig in callbacks if signatures.kind_of(sig) != GROUP]
        beside = [sig for sig in callbacks if signatures.kind_of(sig) == GROUP]
        at = _Place(parent=place.parent, depth=place.depth + 1, need=index, frozen=False)
        for callback in beside:
            self._add(callback, at)
        for number, callback in enumerate(grouped):
            if len(callbacks) > 1:
                at = replace(at, group=index, group_index=number, frozen=True)
            self._add(callback, at)

    def _add_steps(self, index: int, signature: Sig, place: _Place) -> None:
        steps = signatures.steps_of(signature)
        if not steps:
            raise ValidationError("tasks", "no task", "a chain of at least one task")
        options = dict(place.options)
        steps[-1] = signatures.extended(steps[-1], signatures.links_of(options))
        options.pop("link", None)
        at = replace(
            place,
            parent=index,
            depth=place.depth + 1,
            options=options,
            group=None,
            group_index=None,
            frozen=True,
        )
        last = len(steps) - 1
        for number, step in enumerate(steps):
            at = replace(at, position=number)
            if number == last:
                if place.group is not None:
                    at = replace(at, group=place.group, group_index=place.group_index)
            elif signatures.kind_of(step) == GROUP:
                # Celery makes it the header of a chord, without its options.
                step = signatures.with_options(step, {})  # noqa: PLW2901
            before = self._add(step, at)
            self._ends[index] = self._ends[before]
            # Celery makes a task after a group the body of a chord, which has the group's id.
            group = before if self.members[before].kind == GROUP else None
            at = _Place(parent=index, depth=at.depth, need=before, group=group)

    def _add_group(self, index: int, signature: Sig, place: _Place) -> None:
        tasks = signatures.flattened(signatures.tasks_of(signature), frozen=place.frozen)
        self._add_members(index, tasks, place)

    def _add_members(self, index: int, tasks: Iterator[tuple[int, Sig]], place: _Place) -> None:
        group = index if place.group is None else place.group
        below = replace(place, parent=index, depth=place.depth + 1, group=group, frozen=True)
        number = -1
        for number, (group_index, task) in enumerate(tasks):
            member = self._add(task, below.of_member(number, group_index))
            self._ends[index] = self._ends[member]
        if number < 0 and place.need is not None:
            # The group has no members that could have this need.
            self.members[index] = replace(self.members[index], needs=((place.need, None),), when="finished")

    def _add_chord(self, index: int, signature: Sig, place: _Place) -> None:
        header, body = signatures.header_of(signature), signatures.body_of(signature)
        options = dict(place.options)
        for callback in signatures.links_of(options):
            body = signatures.linked(body, callback)
        options.pop("link", None)
        # A delay is for the header alone, all other options are for the body, too.
        of_body = {name: value for name, value in options.items() if name not in ("countdown", "eta")}
        args = tuple(signature.get("args") or ())
        kwargs = dict((signature.get("kwargs") or {}).get("kwargs") or {}) | dict(place.kwargs)
        immutable = bool(signature.get("immutable"))
        below = _Place(parent=index, depth=place.depth + 1, need=place.need)
        first = self.add(
            Member(Job(task="celery.group"), kind=GROUP, parent=index, position=0, depth=below.depth)
        )
        self._ends[first] = self._ends[index]
        self._add_members(
            first,
            signatures.flattened(header, frozen=True),
            replace(below, options=options, args=args if immutable else (*place.args, *args), kwargs=kwargs),
        )
        group, number = (first, None) if place.group is None else (place.group, place.group_index)
        at = _Place(index, 1, below.depth, need=first, options=of_body, group=group, group_index=number)
        self._ends[index] = self._ends[self._add(body, at)]

    def _check_options(self, signature: Sig) -> None:
        options = {
            name: value for name, value in signatures.options_of(signature).items() if value is not None
        }
        options.pop("link", None)
        publish_options.check_given(options)
