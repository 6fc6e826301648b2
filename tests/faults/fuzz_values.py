"""Input of the fuzzers: values of every type, and jobs and signatures with them in any field.

`INPUTS` is the number of inputs of a run.
"""

import os
import uuid
from dataclasses import dataclass, fields
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from fractions import Fraction
from typing import Any

from hypothesis import strategies as st

from jobhandle_celery import Job, JobStatus

INPUTS = int(os.environ.get("JOBHANDLE_FAULTS_INPUTS", "400"))
"""Inputs of each fuzzer; 10,000 in a long run."""

INPUTS_OF_A_DATABASE = int(os.environ.get("JOBHANDLE_FAULTS_INPUTS", "134"))
"""For each database of the fuzzer that uses three."""

INJECTIONS = [
    "'; DROP TABLE jobhandle_job; --",
    "' OR '1'='1",
    '" OR ""="',
    "x' UNION SELECT password FROM users --",
    "1; UPDATE jobhandle_job SET username = 'mallory'",
    "%s %(id)s :id ? $1",
    "\\'; DELETE FROM jobhandle_job_event; --",
    "ann'/**/--",
    "%_",
    "Robert`);",
]


class Hostile:
    """A caller's object whose repr, comparison and truth value raise."""

    def __repr__(self) -> str:
        raise RuntimeError("no repr")

    def __eq__(self, other: object) -> bool:
        raise RuntimeError("no comparison")

    def __bool__(self) -> bool:
        raise RuntimeError("no truth")

    __hash__ = object.__hash__


@dataclass(frozen=True)
class Hidden:
    """Placeholder of a `Hostile`, which Hypothesis cannot print."""


@dataclass(frozen=True)
class Known:
    """Placeholder of the id of a job that exists when the call is made, of any user."""

    index: int


TEXT = st.text(max_size=12) | st.sampled_from(
    [*INJECTIONS, "", "\0", "a\0b", "\udcff", "\ud800x", "x" * 256, "x" * 255, "ann", "bob", "tests.add"]
)
NUMBERS = (
    st.integers(-(2**70), 2**70)
    | st.integers(-2, 5)
    | st.sampled_from([2**31, 2**63 - 1, 2**63, -(2**63), 10**400, 10**30])
    | st.floats()
    | st.sampled_from([Decimal("1.5"), Decimal("NaN"), Fraction(1, 3), 1j, True, False])
)
MOMENTS = st.sampled_from(
    [
        timedelta(0),
        timedelta(seconds=-1),
        timedelta(hours=1),
        timedelta.max,
        timedelta.min,
        date(2030, 1, 1),
        datetime(2030, 1, 1),  # noqa: DTZ001  # the naive one is the point
        datetime(2030, 1, 1, tzinfo=UTC),
        datetime(2001, 1, 1, tzinfo=UTC),
        datetime.max.replace(tzinfo=UTC),
        datetime.min.replace(tzinfo=UTC),
    ]
)
STATUSES = st.sampled_from([*JobStatus, *map(str, JobStatus), "running", "Ready", "Finished "])
ODDITIES = st.builds(Hidden) | st.sampled_from(
    [None, object(), Job, int, uuid.UUID(int=7), ..., NotImplemented, memoryview(b"x"), range(3), {1, 2}]
)
SIMPLE = TEXT | NUMBERS | MOMENTS | STATUSES | ODDITIES | st.binary(max_size=4)
ANYTHING = st.recursive(
    SIMPLE,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.tuples(inner, inner)
        | st.dictionaries(TEXT | st.integers(), inner, max_size=2)
    ),
    max_leaves=4,
)
IDS = st.builds(Known, st.integers(0, 30)) | ANYTHING
WORDS = STATUSES | ANYTHING
MESSAGES = TEXT | st.none() | ANYTHING

FIELDS = [field.name for field in fields(Job)]
OPTIONS = [
    *("queue", "exchange", "routing_key", "priority", "countdown", "eta", "expires", "time_limit"),
    *(
        "soft_time_limit",
        "shadow",
        "headers",
        "ignore_result",
        "argsrepr",
        "kwargsrepr",
        "link",
        "serializer",
    ),
]


def _job(fields: dict[str, Any]) -> Job:
    return Job(**{"task": "tests.add", "args": [1, 2], **fields})


GOOD_FIELDS: dict[str, st.SearchStrategy[Any]] = {
    "message": TEXT,
    "unique_key": st.sampled_from(["one", "two", *INJECTIONS]),
    "status": st.sampled_from([JobStatus.SUBMITTED, "Waiting", None]),
    "scheduled_for": st.sampled_from([timedelta(hours=1), timedelta(0), None]),
    "expires": st.sampled_from([timedelta(hours=1), timedelta(0), None]),
    "meta": st.sampled_from([None, {"a": 1}, *INJECTIONS]),
    "max_attempts": st.integers(1, 3),
}
JOBS = st.fixed_dictionaries({}, optional=GOOD_FIELDS).map(_job) | st.dictionaries(
    st.sampled_from(FIELDS), ANYTHING, max_size=2
).map(_job)


@dataclass(frozen=True)
class Signed:
    """Placeholder of a signature of `tests.add` with these arguments and options."""

    args: tuple[Any, ...]
    options: dict[str, Any]


SIGNATURES = st.builds(
    Signed,
    st.just((1, 2)) | st.lists(ANYTHING, max_size=3).map(tuple),
    st.dictionaries(st.sampled_from(OPTIONS), ANYTHING, max_size=2),
)
SUBMITTED = JOBS | SIGNATURES | ANYTHING


def is_long(timeout: object) -> bool:
    """Return whether a wait with this timeout would be long."""
    if timeout is None:
        return True
    if isinstance(timeout, timedelta):
        return timeout > timedelta(0)
    if isinstance(timeout, (int, float, Decimal, Fraction)) and timeout == timeout:
        return timeout > 0
    return False


TIMEOUTS = ANYTHING.filter(lambda timeout: not is_long(timeout))
