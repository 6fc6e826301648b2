"""Validates, routes and encodes what callers submit.

It happens before anything is committed: invalid input leaves no trace.
"""

import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from datetime import datetime, timedelta
from operator import attrgetter, is_
from types import NoneType
from typing import Any

from . import serialization, validation
from .broker.plan_canvas import is_tree, plan, plan_with_callbacks
from .broker.plans import Member, Plan, TreeIds, located_at
from .broker.routing import Routing
from .broker.sent_tasks import UNUSED, SentCall, sent_task
from .broker.task_signatures import MAPS, as_job
from .errors import ValidationError
from .models import Job
from .status import JobStatus
from .store import NewJob, NewJobs, NewMember

ROW_LIMIT = 1_000
"""Rows that are cached; at this number the cache is emptied: callers may invent queue names without end."""

TEXT_LIMIT = 1_000
"""The row of a job that asks for more characters than this, as in its message, is not cached."""


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
        self._cache = _RowCache(routing)

    def prepare(self, given: Sequence[object], username: str | None, groupname: str | None) -> Prepared:
        """Prepare jobs and signatures: if none is a canvas, each when it is iterated.

        Raises:
            ApiUsageError: one is refused, now or when it is iterated.
        """
        if any(map(is_tree, given)):
            return self._planned(plan(given), username, groupname)
        return Prepared(_LazyJobs(given, _Call(self, self._cache_here(), username, groupname)))

    def prepare_sent(
        self, call: SentCall, username: str | None, groupname: str | None
    ) -> tuple[str, Prepared]:
        """Prepare the job of a call of `Celery.send_task`, and its callbacks; return also its task id.

        Raises:
            ApiUsageError: it is refused.
        """
        given = validation.task_id(call.options.get("task_id"))
        task_id = given or str(uuid.uuid4())
        cache, key = self._cache_here(), _cache_key_of_call(call)
        dependencies = self.routing.cache_dependencies(call.name, sent=True) if key else None
        row = None
        if dependencies is not None:
            arguments, user = (call.args or (), call.kwargs or {}), (username, groupname)
            row = cache.get(key, dependencies, call.name, *arguments, task_id, user)
        if row is None:
            sent = sent_task(call)
            if sent.callbacks:
                member = Member(sent.job, sent.options, task_id=task_id, task_id_given=given is not None)
                planned = plan_with_callbacks(member, sent.callbacks)
                return task_id, self._planned(planned, username, groupname)
            row = self.job(sent.job, sent.options, task_id, username, groupname)
            if dependencies is not None:
                cache.put(key, dependencies, self.routing.cache_dependencies(call.name, sent=True), row)
        return task_id, Prepared([row if given is None else replace(row, task_id_given=True)])

    def _planned(self, planned: Plan, username: str | None, groupname: str | None) -> Prepared:
        return Prepared([], self.members(planned.members, username, groupname), planned.roots)

    def _cache_here(self) -> "_RowCache":
        """Return the cache; for what a running task submits, and has it as its parent, a new one."""
        return _RowCache(self.routing) if self.routing.in_task else self._cache

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


class _Call:
    """Prepares the jobs of one call."""

    def __init__(
        self, preparer: Preparer, cache: "_RowCache", username: str | None, groupname: str | None
    ) -> None:
        self._preparer = preparer
        self._cache = cache
        self._user = username, groupname
        self._dependencies: dict[str, tuple[Any, ...] | None] = {}

    def __call__(self, given: object) -> NewJob:
        """Prepare a job."""
        job, options = as_job(given)
        task_id = str(uuid.uuid4())
        key = _cache_key(job, options)
        dependencies = self._dependencies_of(job.task) if key else None
        if dependencies is None:
            return self._preparer.job(job, options, task_id, *self._user)
        row = self._cache.get(key, dependencies, job.task, job.args, job.kwargs, task_id, self._user)
        if row is None:
            row = self._preparer.job(job, options, task_id, *self._user)
            self._cache.put(key, dependencies, self._preparer.routing.cache_dependencies(job.task), row)
        return row

    def _dependencies_of(self, task: str) -> tuple[Any, ...] | None:
        if task not in self._dependencies:
            self._dependencies[task] = self._preparer.routing.cache_dependencies(task)
        return self._dependencies[task]


class _RowCache:
    """Rows by what their jobs ask for, except the arguments.

    A row that is found is copied, with the arguments and the user of the new job. Of such jobs only the first
    is validated and routed; of the others, the arguments are checked.
    """

    def __init__(self, routing: Routing) -> None:
        self._routing = routing
        self._rows: dict[tuple[Any, ...], tuple[tuple[Any, ...], ...]] = {}

    def get(
        self,
        key: tuple[Any, ...],
        dependencies: tuple[Any, ...],
        task: str,
        args: Any,
        kwargs: Any,
        task_id: str,
        user: tuple[str | None, ...],
    ) -> NewJob | None:
        """Return the row of a job, made from a cached one; None if there is none for its key.

        Args:
            key: As `_cache_key` returns it.
            dependencies: What `Routing.cache_dependencies` returns for its task.
            task: The name of its task.
            args: Its positional arguments.
            kwargs: Its keyword arguments.
            task_id: Celery's id.
            user: The names of its user and group.

        Raises:
            ValidationError: its task does not take the arguments.
        """
        cached_with, message_and_meta, rest = self._rows.get(key, _MISS)
        # By identity: True, which is refused as `max_attempts`, equals 1.
        if not message_and_meta or not all(map(is_, cached_with, dependencies)):
            return None
        args, kwargs = self._routing.checked_arguments(task, args, kwargs)
        arguments = serialization.encode_given("args", args), serialization.encode_given("kwargs", kwargs)
        return NewJob(task, task_id, *arguments, *message_and_meta, *user, *rest)

    def put(
        self,
        key: tuple[Any, ...],
        before: tuple[Any, ...],
        dependencies: tuple[Any, ...] | None,
        row: NewJob,
    ) -> None:
        """Cache a row, unless its dependencies changed while it was made, or it has a unique key.

        Args:
            key: As for `get`.
            before: The dependencies that were read before the row was made.
            dependencies: The dependencies now.
            row: The row.
        """
        if dependencies is None or not all(map(is_, before, dependencies)) or row.unique_key is not None:
            return
        if sum(len(value) for value in key[-1] if isinstance(value, str)) > TEXT_LIMIT:
            return
        if len(self._rows) >= ROW_LIMIT:
            self._rows.clear()
        self._rows[key] = dependencies, (row.message, row.meta), _rest(row)


_MISS: tuple[tuple[Any, ...], ...] = ((), (), ())
_PLAIN = frozenset({NoneType, str, int, float, bool})
_given = attrgetter(
    *sorted({field.name for field in fields(Job)} - {"args", "kwargs", "headers", "sensitive", "after"})
)
_rest = attrgetter(*(field.name for field in fields(NewJob)[8:]))
"""The fields of a row after `groupname`."""

_RARELY_EQUAL = frozenset({"eta", "argsrepr", "kwargsrepr", "root_id", "parent_id"})
"""Options whose values are rarely equal in two calls: their rows are not cached."""

_NOT_IN_ROW = UNUSED | {"task_id"}
"""Options of a call that its row does not depend on."""


def _cache_key(job: Job, options: Mapping[str, Any]) -> tuple[Any, ...]:
    """Return the values of a job and its options, except the arguments; empty if its row is not cached.

    That is a job with headers, sensitive arguments or needs, valid or not, or with a value that is not plain.
    """
    if type(job) is not Job or job.headers != {} or job.sensitive != () or job.after:
        return ()
    if type(job.meta) is float or not _RARELY_EQUAL.isdisjoint(options):
        return ()  # 0.0 equals -0.0
    values = (*_given(job), *options, *options.values())
    types = tuple(map(type, values))  # 1 equals True
    return (types, values) if _PLAIN.issuperset(types) else ()


def _cache_key_of_call(call: SentCall) -> tuple[Any, ...]:
    """Return the values of a call of `Celery.send_task`, as `_cache_key`."""
    options = call.options.items()
    asked = {name: value for name, value in options if value is not None and name not in _NOT_IN_ROW}
    values = (call.name, call.task is None, *asked, *asked.values())
    types = tuple(map(type, values))
    cached = _PLAIN.issuperset(types) and call.name not in MAPS and _RARELY_EQUAL.isdisjoint(asked)
    return ("send_task", types, values) if cached else ()


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
