"""Whatever anybody gives to any public operation: a documented error or none, and no row that is not theirs.

`JOBHANDLE_FIRE_INPUTS=10000` makes as many calls; some hundreds are the default.
"""

import math
import uuid
from collections.abc import Iterator
from typing import Any

import pytest
import sqlalchemy
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from tests.apps import make_app
from tests.fire.fuzz_calls import CALLS, Call, Caller
from tests.fire.fuzz_values import INPUTS

pytestmark = [pytest.mark.fire, pytest.mark.timeout(120 + INPUTS // 5)]

A_SEQUENCE = 8
"""Calls on the same handles, one after the other."""


@pytest.fixture
def caller(sqlite_url: str) -> Iterator[Caller]:
    app: Any = make_app("memory://", sqlite_url, {"task_default_queue": f"fuzzed-{uuid.uuid4().hex}"})
    database = sqlalchemy.make_url(sqlite_url).database
    assert database is not None
    caller = Caller(app, database)
    yield caller
    caller.close()
    app.jobs.close()


def test_any_calls_in_any_order_give_documented_errors_and_change_their_own_rows_alone(
    caller: Caller,
) -> None:
    @settings(
        max_examples=math.ceil(INPUTS / A_SEQUENCE),
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
    assert caller.calls >= INPUTS
    # Had nothing been refused, nothing bad had been given.
    assert {"ValidationError", "ApiUsageError", "UnknownJobError", "NotAttachedError"} <= set(caller.errors)
