"""Validates, routes and encodes what callers submit.

It happens before anything is committed: invalid input leaves no trace.
"""

import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from datetime import datetime, timedelta
from operator import attrgetter
from types import NoneType
from typing import Any

from . import serialization, validation
from .broker.plan_canvas import is_tree, plan
from .broker.plans import Member, TreeIds, located_at
from .broker.routing import Routing
from .broker.task_signatures import as_job
from .errors import ValidationError
from .models import Job
from .status import JobStatus
from .store import NewJob, NewJobs, NewMember

MAX_ALIKE = 100
"""How many jobs of one call others are compared with."""


class _LazyJobs:
    """Prepares jobs lazily and caches them, so that they can be iterated again.

    While the database inserts the first batch of many, the next one is prepared.
    """

    def __init__(self, given: Sequence[object], prepare: Callable[[object], NewJob]) -> None:
        self._given = given
        self._prepare = prepare
        self._prepared: list[NewJob] = []

    def __len__(self) -> int:
        return len(self._given)

    def __iter__(self) -> Iterator[NewJob]:
        for number, job in enumerate(self._given):
            if number == len(self._prepared):
                self._prepared.append(self._prepare(job))
            yield self._prepared[number]


@dataclass(frozen=True)
class Prepared:
    """What a call submits: jobs, or the members of trees."""

    jobs: NewJobs
    members: list[NewMember] = field(default_factory=list)
    roots: Sequence[int] = ()
    """Indexes of the members that are roots."""

    def complete(self) -> "Prepared":
        """Validate, route and encode the remaining jobs."""
        for _ in self.jobs:
            pass
        return self


class Preparer:
    """Makes rows of what callers give."""

    def __init__(self, routing: Routing) -> None:
        self.routing = routing

    def prepare(self, given: Sequence[object], username: str | None, groupname: str | None) -> Prepared:
        """Prepare jobs and signatures: if none is a canvas, each when it is iterated.

        Raises:
            ApiUsageError: one is refused, now or when it is iterated.
        """
        if any(map(is_tree, given)):
            planned = plan(given)
            return Prepared([], self.members(planned.members, username, groupname), planned.roots)
        alike = _AlikeJobs(self, username, groupname)
        return Prepared(_LazyJobs(given, alike if len(given) > 1 else alike.alone))

    def members(
        self, members: Sequence[Member], username: str | None, groupname: str | None
    ) -> list[NewMember]:
        """Prepare the members of a plan, in its order."""
        ids = TreeIds(members, self.routing.caller().get("root_id"))
        new: list[NewMember] = []
        for index, member in enumerate(members):
            try:
                job = self._new_row(member, ids.tasks[index], ids.headers(index), username, groupname)
            except ValidationError as error:
                raise located_at(error, members, index) from None
            if member.task_id_given:
                job = replace(job, task_id_given=True)
            new.append(_new_member(job, member))
        return new

    def _new_row(
        self,
        member: Member,
        task_id: str,
        tree: Mapping[str, Any] | None,
        username: str | None,
        groupname: str | None,
    ) -> NewJob:
        if member.kind is None:
            results = sum(position is not None for _, position in member.needs)
            return self.job(member.job, member.options, task_id, username, groupname, tree, results)
        return NewJob(
            member.job.task, task_id, args="[]", kwargs="{}", username=username, groupname=groupname
        )

    def job(
        self,
        given: Job,
        options: Mapping[str, Any],
        task_id: str,
        username: str | None,
        groupname: str | None,
        tree: Mapping[str, Any] | None = None,
        results: int = 0,
    ) -> NewJob:
        """Prepare one job; `tree` is what its message says of its tree, and `results` how many it needs."""
        job = validation.job(given)
        if job.headers:
            options = {**options, "headers": dict(job.headers)}
        routed = self.routing.route(job, options, task_id, tree, results)
        hide = bool(routed.sensitive)
        return NewJob(
            task=job.task,
            task_id=task_id,
            args=serialization.encode_given("args", routed.args, hide=hide),
            kwargs=serialization.encode_given("kwargs", routed.kwargs, hide=hide),
            message=serialization.clip_message(job.message),
            meta=None if job.meta is None else serialization.encode_given("meta", job.meta),
            username=username,
            groupname=groupname,
            unique_key=routed.unique_key,
            queue=routed.queue,
            routing=routed.options,
            priority=routed.priority,
            time_limit=job.time_limit,
            soft_time_limit=job.soft_time_limit,
            max_attempts=routed.max_attempts,
            held=validation.submittable(job.status) is JobStatus.WAITING,
            scheduled_for=routed.scheduled_for,
            expires=routed.expires,
        )


class _AlikeJobs:
    """Prepares the jobs of one call.

    Of those that differ in their arguments alone only the first is validated and routed as a whole, if no
    code but Celery's own takes part in its publishing.
    """

    def __init__(self, preparer: Preparer, username: str | None, groupname: str | None) -> None:
        self._preparer = preparer
        self._user = username, groupname
        self._rows: dict[tuple[Any, ...], NewJob] = {}

    def __call__(self, given: object) -> NewJob:
        """Prepare a job."""
        job, options = as_job(given)
        wishes = _wishes(job, options)
        like = self._rows.get(wishes)
        if like is None:
            row = self._prepare(job, options)
            if wishes and len(self._rows) < MAX_ALIKE and self._preparer.routing.ignores_arguments(job.task):
                self._rows[wishes] = row
            return row
        args, kwargs = self._preparer.routing.checked_arguments(job)
        texts = serialization.encode_given("args", args), serialization.encode_given("kwargs", kwargs)
        return NewJob(job.task, str(uuid.uuid4()), *texts, *_constants(like))

    def alone(self, given: object) -> NewJob:
        """Prepare a job that is compared with no other."""
        return self._prepare(*as_job(given))

    def _prepare(self, job: Job, options: Mapping[str, Any]) -> NewJob:
        return self._preparer.job(job, options, str(uuid.uuid4()), *self._user)


_PLAIN = frozenset({NoneType, str, int, float, bool})
_given = attrgetter(
    *sorted({field.name for field in fields(Job)} - {"args", "kwargs", "headers", "sensitive", "after"})
)
_constants = attrgetter(*(field.name for field in fields(NewJob)[4:]))
"""The fields of a row after `task`, `task_id`, `args` and `kwargs`."""


def _wishes(job: Job, options: Mapping[str, Any]) -> tuple[Any, ...]:
    """Return all that a job asks for but its arguments; empty if something is no plain value."""
    if type(job) is not Job or job.headers or job.sensitive or job.after:
        return ()
    values = (*_given(job), *options, *options.values())
    types = tuple(map(type, values))  # 1 equals True
    return (types, values) if _PLAIN.issuperset(types) else ()


def _new_member(job: NewJob, member: Member) -> NewMember:
    countdown = expires_in = None
    if member.relative:
        countdown, expires_in = _seconds(job.scheduled_for), _seconds(job.expires)
        if countdown is not None:
            job = replace(job, scheduled_for=None)
        if expires_in is not None:
            job = replace(job, expires=None)
    return NewMember(
        job=job,
        kind=member.kind,
        parent=member.parent,
        position=member.position,
        needs=member.needs,
        after=member.after,
        when=member.when,
        countdown=countdown,
        expires_in=expires_in,
    )


def _seconds(time: datetime | timedelta | None) -> float | None:
    return time.total_seconds() if isinstance(time, timedelta) else None
