"""Random arguments to every public operation raise documented errors only and change no other user's row.

`JOBHANDLE_FAULTS_INPUTS=10000` makes as many calls on each database; some hundreds in all are the default.
"""

import math
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from tests.faults.fuzz_calls import CALLS, Call, Caller
from tests.faults.fuzz_values import INPUTS_OF_A_DATABASE

pytestmark = [pytest.mark.faults, pytest.mark.timeout(600 + INPUTS_OF_A_DATABASE // 5)]

A_SEQUENCE = 8
"""Calls on the same handles, one after the other."""

ENOUGH_FOR_EACH_ERROR = 1_000


@pytest.fixture
def caller(database_url: str, make_jobs_app: Callable[..., Any]) -> Iterator[Caller]:
    caller = Caller(make_jobs_app(database_url), database_url)
    yield caller
    caller.close()


def test_random_calls_raise_documented_errors_only(
    caller: Caller,
) -> None:
    @settings(
        max_examples=math.ceil(INPUTS_OF_A_DATABASE / A_SEQUENCE),
        deadline=None,
        database=None,
        phases=[Phase.generate, Phase.shrink],
        suppress_health_check=list(HealthCheck),
    )
    @given(st.lists(CALLS, min_size=A_SEQUENCE, max_size=A_SEQUENCE))
    def make(calls: list[Call]) -> None:
        caller.begin()
        for call in calls:
            caller.make(call)

    make()
    assert caller.calls >= INPUTS_OF_A_DATABASE
    # Without rejections no bad argument was drawn. Some errors are too rare for a short run.
    assert "ValidationError" in caller.errors
    if caller.calls >= ENOUGH_FOR_EACH_ERROR:
        assert {"ApiUsageError", "UnknownJobError", "NotAttachedError"} <= set(caller.errors)
