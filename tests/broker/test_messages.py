"""A message made from a cached template equals the one that Celery would have built."""

from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobhandle_celery.broker import messages
from jobhandle_celery.broker.connection import BrokerConnection
from jobhandle_celery.broker.messages import MessageBuilder
from jobhandle_celery.store import PendingMessage
from tests.broker.pending import OPTIONS, an_app, pending

VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False)
    | st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"))
    | st.just(datetime(2030, 1, 2, tzinfo=UTC)),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from("ab'\"é"), inner, max_size=3),
    max_leaves=6,
)


def built(builder: MessageBuilder, job: PendingMessage) -> tuple[str, dict[str, Any]]:
    message = builder.build(job)
    return message.body, dict(message.options)


@pytest.mark.parametrize("case", OPTIONS)
def test_message_of_cached_template_equals_celerys(case: str) -> None:
    app = an_app(task_compression="gzip" if case == "limits" else None)
    builder = MessageBuilder(app)
    # Another job's message, for which Celery builds the template.
    other = pending(app, OPTIONS[case], ["other", 1], {"a": "else"})
    builder.build(replace(other, job_id=7, task_id="another", attempt=1))
    given: list[tuple[list[Any], dict[str, Any]]] = [
        (["a.tif", 96], {"a": 1}),
        ([], {}),
        (["it's", "\\", "\n", "é" * 2000, 2**70], {"a": [1.5, None]}),
    ]
    for args, kwargs in given:
        job = pending(app, OPTIONS[case], args, kwargs)
        assert built(builder, job) == built(MessageBuilder(app), job)


@given(
    args=st.lists(VALUES, max_size=3), kwargs=st.dictionaries(st.sampled_from(["a", "b", "job_id"]), VALUES)
)
def test_any_arguments_are_written_as_by_celery(args: list[Any], kwargs: dict[str, Any]) -> None:
    job = pending(APP, {}, args, kwargs)
    assert built(BUILDER, job) == built(MessageBuilder(APP), job)


APP = an_app()
BUILDER = MessageBuilder(APP)


def test_displayed_arguments_keep_the_limit_and_name_the_job() -> None:
    for kwargs in ({}, {"a": "x" * 5000}, {"a": "it's"}, {"job_id": 7}):
        headers = built(BUILDER, pending(APP, {}, ["y" * 5000], kwargs))[1]["headers"]
        assert len(headers["argsrepr"]) <= APP.amqp.argsrepr_maxsize + 10
        assert headers["kwargsrepr"].startswith("{'job_id': 42")


def test_task_sent_events_make_each_message_go_by_itself(redis_url: str) -> None:
    assert BrokerConnection(an_app(redis_url)).batches
    assert not BrokerConnection(an_app(redis_url, task_send_sent_event=True)).batches


def test_template_cache_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(messages, "TEMPLATE_LIMIT", 10)
    app = an_app()
    builder = MessageBuilder(app)
    for number in range(25):
        builder.build(pending(app, {"queue": f"queue-{number}"}, [], {}))
    assert len(builder._templates) <= 10
