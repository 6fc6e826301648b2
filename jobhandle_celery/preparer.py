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

MAX_KEPT = 1_000
"""How many rows are kept for jobs like theirs, before all are dropped: callers may invent queues."""

MAX_TEXT = 1_000
"""A job that asks for more characters than this, as in its message, is not kept."""


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
        self._like_rows = _LikeRows(routing)

    def prepare(self, given: Sequence[object], username: str | None, groupname: str | None) -> Prepared:
        """Prepare jobs and signatures: if none is a canvas, each when it is iterated.

        Raises:
            ApiUsageError: one is refused, now or when it is iterated.
        """
        if any(map(is_tree, given)):
            return self._planned(plan(given), username, groupname)
        return Prepared(_LazyJobs(given, _Call(self, self._rows_here(), username, groupname)))

    def prepare_sent(
        self, call: SentCall, username: str | None, groupname: str | None
    ) -> tuple[str, Prepared]:
        """Prepare the job of a call of `Celery.send_task`, and its callbacks; return also its task id.

        Raises:
            ApiUsageError: it is refused.
        """
        given = validation.task_id(call.options.get("task_id"))
        task_id = given or str(uuid.uuid4())
        rows, wishes = self._rows_here(), _wishes_of_call(call)
        common = self.routing.common_of(call.name, sent=True) if wishes else None
        row = None
        if common is not None:
            arguments, user = (call.args or (), call.kwargs or {}), (username, groupname)
            row = rows.row_like(wishes, common, call.name, *arguments, task_id, user)
        if row is None:
            sent = sent_task(call)
            if sent.callbacks:
                member = Member(sent.job, sent.options, task_id=task_id, task_id_given=given is not None)
                planned = plan_with_callbacks(member, sent.callbacks)
                return task_id, self._planned(planned, username, groupname)
            row = self.job(sent.job, sent.options, task_id, username, groupname)
            if common is not None:
                rows.keep(wishes, common, self.routing.common_of(call.name, sent=True), row)
        return task_id, Prepared([row if given is None else replace(row, task_id_given=True)])

    def _planned(self, planned: Plan, username: str | None, groupname: str | None) -> Prepared:
        return Prepared([], self.members(planned.members, username, groupname), planned.roots)

    def _rows_here(self) -> "_LikeRows":
        """Return the rows to compare with. What a running task submits has a parent, and is like no other."""
        return _LikeRows(self.routing) if self.routing.in_task else self._like_rows

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
        self, preparer: Preparer, rows: "_LikeRows", username: str | None, groupname: str | None
    ) -> None:
        self._preparer = preparer
        self._rows = rows
        self._user = username, groupname
        self._common: dict[str, tuple[Any, ...] | None] = {}

    def __call__(self, given: object) -> NewJob:
        """Prepare a job."""
        job, options = as_job(given)
        task_id = str(uuid.uuid4())
        wishes = _wishes(job, options)
        common = self._common_of(job.task) if wishes else None
        if common is None:
            return self._preparer.job(job, options, task_id, *self._user)
        row = self._rows.row_like(wishes, common, job.task, job.args, job.kwargs, task_id, self._user)
        if row is None:
            row = self._preparer.job(job, options, task_id, *self._user)
            self._rows.keep(wishes, common, self._preparer.routing.common_of(job.task), row)
        return row

    def _common_of(self, task: str) -> tuple[Any, ...] | None:
        if task not in self._common:
            self._common[task] = self._preparer.routing.common_of(task)
        return self._common[task]


class _LikeRows:
    """Rows of jobs, from which others are made that ask for the same: only the arguments and the user differ.

    Of such jobs only the first is routed and validated; of the others, the arguments are checked.
    """

    def __init__(self, routing: Routing) -> None:
        self._routing = routing
        self._kept: dict[tuple[Any, ...], tuple[tuple[Any, ...], ...]] = {}

    def row_like(
        self,
        wishes: tuple[Any, ...],
        common: tuple[Any, ...],
        task: str,
        args: Any,
        kwargs: Any,
        task_id: str,
        user: tuple[str | None, ...],
    ) -> NewJob | None:
        """Return the row of a job; None if none is kept of a job that asks for the same.

        Args:
            wishes: All that it asks for but its arguments.
            common: What `Routing.common_of` returns for its task.
            task: The name of its task.
            args: Its positional arguments.
            kwargs: Its keyword arguments.
            task_id: Celery's id.
            user: The names of its user and group.

        Raises:
            ValidationError: its task does not take the arguments.
        """
        common_of_kept, message_and_meta, rest = self._kept.get(wishes, _NOTHING)
        # By identity: True, which is refused as `max_attempts`, equals 1.
        if not message_and_meta or not all(map(is_, common_of_kept, common)):
            return None
        args, kwargs = self._routing.checked_arguments(task, args, kwargs)
        arguments = serialization.encode_given("args", args), serialization.encode_given("kwargs", kwargs)
        return NewJob(task, task_id, *arguments, *message_and_meta, *user, *rest)

    def keep(
        self,
        wishes: tuple[Any, ...],
        before: tuple[Any, ...],
        common: tuple[Any, ...] | None,
        row: NewJob,
    ) -> None:
        """Keep a row, unless jobs like its own are rare, or something has changed while it was made.

        Args:
            wishes: As for `row_like`.
            before: What `Routing.common_of` has returned before the row was made.
            common: What it returns now.
            row: The row.
        """
        if common is None or not all(map(is_, before, common)) or row.unique_key is not None:
            return
        if sum(len(value) for value in wishes[-1] if isinstance(value, str)) > MAX_TEXT:
            return
        if len(self._kept) >= MAX_KEPT:
            self._kept.clear()
        self._kept[wishes] = common, (row.message, row.meta), _rest(row)


_NOTHING: tuple[tuple[Any, ...], ...] = ((), (), ())
_PLAIN = frozenset({NoneType, str, int, float, bool})
_given = attrgetter(
    *sorted({field.name for field in fields(Job)} - {"args", "kwargs", "headers", "sensitive", "after"})
)
_rest = attrgetter(*(field.name for field in fields(NewJob)[8:]))
"""The fields of a row after `groupname`."""

_OF_ONE = frozenset({"eta", "argsrepr", "kwargsrepr", "root_id", "parent_id"})
"""Options that two calls rarely have in common."""

_NOT_ASKED = UNUSED | {"task_id"}
"""Options of a call that its row does not depend on."""


def _wishes(job: Job, options: Mapping[str, Any]) -> tuple[Any, ...]:
    """Return all that a job asks for but its arguments; empty if no other one is compared with it.

    That is a job with headers, sensitive arguments or needs, valid or not, or with a value that is not plain.
    """
    if type(job) is not Job or job.headers != {} or job.sensitive != () or job.after:
        return ()
    if type(job.meta) is float or not _OF_ONE.isdisjoint(options):
        return ()  # 0.0 equals -0.0
    values = (*_given(job), *options, *options.values())
    types = tuple(map(type, values))  # 1 equals True
    return (types, values) if _PLAIN.issuperset(types) else ()


def _wishes_of_call(call: SentCall) -> tuple[Any, ...]:
    """Return all that a call of `Celery.send_task` asks for but its arguments, as `_wishes`."""
    options = call.options.items()
    asked = {key: value for key, value in options if value is not None and key not in _NOT_ASKED}
    values = (call.name, call.task is None, *asked, *asked.values())
    types = tuple(map(type, values))
    alike = _PLAIN.issuperset(types) and call.name not in MAPS and _OF_ONE.isdisjoint(asked)
    return ("send_task", types, values) if alike else ()


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
