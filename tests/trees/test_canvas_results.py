"""A canvas becomes a tree with the results and the messages that Celery's own worker gives it."""

import json
from collections.abc import Iterator
from typing import Any

import pytest
from celery.exceptions import TimeoutError as CeleryTimeoutError
from hypothesis import HealthCheck, assume, example, given, reject, settings
from hypothesis import strategies as st

from jobhandle_celery.broker.plan_canvas import plan
from jobhandle_celery.broker.plans import Plan
from jobhandle_celery.errors import ValidationError
from tests.trees import canvases
from tests.trees.canvases import BODIES, Description, descriptions, note
from tests.trees.evaluate import Evaluation
from tests.trees.plain_celery import PlainCelery, Sent, hangs_in_celery, needs_celery_5_7, repeats_in_celery


def _map(task: Any, it: Any) -> list[Any]:
    return [note(value) for value in it]


@pytest.fixture
def celery(redis_url: str) -> Iterator[PlainCelery]:
    plain = PlainCelery(redis_url, BODIES)
    yield plain
    plain.close()


def messages(planned: Plan, evaluation: Evaluation) -> list[str]:
    return sorted(
        json.dumps(
            [
                member.job.task,
                *evaluation.arguments[number],
                member.caller is None,
                member.group is None,
            ],
            sort_keys=True,
        )
        for number, member in enumerate(planned.members)
        if member.kind is None
    )


def messages_of_celery(sent: list[Sent]) -> list[str]:
    return sorted(
        json.dumps(
            [
                message.task,
                message.args,
                message.kwargs,
                message.headers["parent_id"] is None,
                message.headers["group"] is None,
            ],
            sort_keys=True,
        )
        for message in sent
    )


@needs_celery_5_7
@given(descriptions(), st.booleans())
@settings(
    max_examples=150,
    derandomize=True,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@example(
    # Celery freezes the header, which reverses the members of a group in it.
    {
        "kind": "chord",
        "tasks": [
            {
                "kind": "group",
                "tasks": [
                    {"kind": "task", "task": "trees.note", "args": [letter], "kwargs": {}, "immutable": False}
                    for letter in "abc"
                ],
            }
        ],
        "body": {"kind": "task", "task": "trees.join", "args": [], "kwargs": {}, "immutable": False},
    },
    False,
)
def test_canvas_has_result_and_messages_of_celery(
    celery: PlainCelery, description: Description, serialized: bool
) -> None:
    """Random chains, groups, chords, maps and callbacks, also after a way as JSON."""
    canvas = canvases.signature(celery.app, description)
    given_canvas = canvases.serialized(celery.app, canvas) if serialized else canvas
    if celery.is_empty(canvas):
        with pytest.raises(ValidationError, match="at least one task"):
            plan([given_canvas])
        return
    planned = plan([given_canvas])
    assume(not hangs_in_celery(planned) and not repeats_in_celery(planned))
    evaluation = Evaluation(planned, {**BODIES, "celery.map": _map})
    try:
        result = celery.run(canvas)
    except CeleryTimeoutError:
        reject()  # Celery hangs with more canvases than `hangs_in_celery` knows
    assert canvases.plain(evaluation.result(planned.roots[0])) == result
    assert messages(planned, evaluation) == messages_of_celery(celery.sent)
