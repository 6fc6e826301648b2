"""The public names, by inspection: what others rely on does not change by accident."""

import inspect
import re
from collections.abc import Callable
from datetime import timedelta
from typing import Any, get_args, get_type_hints

import pytest
from celery.canvas import Signature
from sqlalchemy.orm import Session, scoped_session

import jobhandle_celery
from jobhandle_celery import AsyncJobHandle, Job, JobHandle, JobRecord, Jobs, errors

FILTERS = "status=None, task=None, username=…, groupname=None, ids=None, since=None, until=None, root=None"
JOBS = f"""
__init__(app, database=None) -> None
handle(*, username=…, groupname=None) -> JobHandle
async_handle(*, username=…, groupname=None) -> AsyncJobHandle
attach(job_id, *, username=…) -> JobHandle
submit(job, *, username=None, groupname=None, session=None) -> int
submit_many(jobs, *, username=None, groupname=None, session=None) -> list[int]
submitting(*, username=…, groupname=…, session=…) -> Iterator[None]
find(*, {FILTERS}, before=None, limit=100) -> list[JobRecord]
count_by_status(*, {FILTERS}) -> dict[JobStatus, int]
cancel_many(*, {FILTERS}, terminate=False) -> int
events(job_id, *, username=…) -> list[Event]
sweep() -> bool
prune(older_than) -> int
upgrade_schema(*, sql=False, from_revision=None) -> None
close() -> None
"""
JOB_HANDLE = """
submit(job, *, session=None) -> int
attach(job_id) -> JobStatus
get_job() -> JobRecord
job_status() -> JobStatus
job_finished() -> datetime | None
job_message() -> str
job_running() -> bool
job_error() -> bool
cancel_job(*, terminate=False) -> JobStatus
set_status(status) -> JobStatus
set_message(message) -> str
set_status_and_message(status, message) -> JobStatus
close() -> None
job_id -> int
wait(timeout=None) -> JobStatus
result(timeout=None) -> ~R
watch(timeout=None) -> Iterator[JobRecord]
set_progress(current, total=None) -> None
cancel_requested() -> bool
raise_if_cancelled() -> None
resubmit_job() -> None
release_job() -> None
events() -> list[Event]
needs() -> list[JobRecord]
members() -> list[JobRecord]
"""
JOB = """task args kwargs message scheduled_for status queue priority expires time_limit soft_time_limit
max_attempts unique_key meta headers sensitive after when"""
JOB_RECORD = """id task_id kind root_id parent_id blocked username groupname submitted started finished
attempt worker result error progress cancel_requested"""

LATE_TYPES = {"Signature": Signature, "Session": Session, "scoped_session": scoped_session}


def written(name: str, function: Any) -> str:
    """Return a method's signature as the tables above have it."""
    if isinstance(function, property):
        return f"{name} -> {shown(get_type_hints(function.fget)['return'])}"
    signature = inspect.signature(function)
    parameters = [
        parameter.replace(annotation=inspect.Parameter.empty)
        for parameter in list(signature.parameters.values())[1:]
    ]
    plain = str(signature.replace(parameters=parameters, return_annotation=inspect.Signature.empty))
    return f"{name}{plain} -> {shown(signature.return_annotation)}".replace("<all users>", "…").replace(
        "<of the outer block>", "…"
    )


def shown(annotation: object) -> str:
    text = annotation.__name__ if isinstance(annotation, type) else str(annotation)
    return re.sub(r"[a-z_]+\.(?:[a-z_]+\.)*", "", text)


@pytest.mark.parametrize(("kind", "table"), [(Jobs, JOBS), (JobHandle, JOB_HANDLE)])
def test_public_methods_are_those_of_the_design(kind: type, table: str) -> None:
    public = {name for name in vars(kind) if not name.startswith("_")} - {"detach_from"}
    if kind is Jobs:
        public.add("__init__")
    assert {written(name, vars(kind)[name]) for name in public} == set(table.strip().splitlines())
    assert {"__enter__", "__exit__"} < vars(kind).keys()


def test_async_handle_has_the_operations_of_the_handle() -> None:
    """A new operation of one of them cannot be forgotten in the other."""
    operations = {line.partition("(")[0]: line for line in JOB_HANDLE.strip().splitlines()}
    public = {name for name in vars(AsyncJobHandle) if not name.startswith("_")}
    assert {written(name, vars(AsyncJobHandle)[name]) for name in public} == {
        line.replace("-> Iterator", "-> AsyncIterator") for line in operations.values()
    }
    coroutines = {name for name in public if inspect.iscoroutinefunction(vars(AsyncJobHandle)[name])}
    assert public - coroutines == {"job_id", "watch"}
    assert inspect.isasyncgenfunction(AsyncJobHandle.watch)
    assert {"__aenter__", "__aexit__"} < vars(AsyncJobHandle).keys()


def test_job_has_callers_fields_and_record_system_fields() -> None:
    assert list(Job.__dataclass_fields__) == JOB.split()
    assert set(JobRecord.__dataclass_fields__) == {*JOB.split(), *JOB_RECORD.split()}
    hints = get_type_hints(JobRecord)
    required = {"task", "id", "task_id", "status", "submitted"}
    assert all(type(None) not in get_args(hints[name]) for name in required)


def functions() -> list[Callable[..., Any]]:
    return [
        function
        for kind in (Jobs, JobHandle, Job)
        for name, function in vars(kind).items()
        if inspect.isfunction(function) and (name == "__init__" or not name.startswith("_"))
    ]


def test_every_duration_is_seconds_or_timedelta() -> None:
    durations = set()
    for function in functions():
        for name, hint in get_type_hints(function, localns=LATE_TYPES).items():
            kinds = set(get_args(hint))
            if timedelta in kinds:
                assert float in kinds, f"{function.__qualname__}: {name}"
                durations.add(name)
            assert kinds <= {type(None)} or timedelta in kinds or not re.search("limit$|timeout|than", name)
    expected = {"timeout", "older_than", "since", "until"}
    assert durations == expected | {"scheduled_for", "expires", "time_limit", "soft_time_limit"}


def test_error_tree_of_docstring_is_the_tree_of_classes() -> None:
    parents: list[str] = []
    bases = {}
    line = re.compile(r"    ((?:│   )*)(?:[├└]── )?(\w+(?:Error|Requested))(?: \((\w+)\))?(?: |$)")
    for drawn in (errors.__doc__ or "").splitlines():
        if match := line.match(drawn):
            branch, name, builtin = match.groups()
            depth = len(branch) // 4 + ("──" in drawn)
            bases[name] = {*parents[depth - 1 : depth], *([builtin] if builtin else [])}
            parents[depth:] = [name]
    del bases["JobHandleError"]
    for name, expected in bases.items():
        assert {base.__name__ for base in getattr(jobhandle_celery, name).__bases__} == expected, name
    public = {name for name in jobhandle_celery.__all__ if name.endswith(("Error", "Requested"))}
    assert bases.keys() == public - {"JobHandleError"}
    assert bases["UnknownJobError"] == {"ApiUsageError", "LookupError"}
