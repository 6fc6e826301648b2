"""A message that is a copy of its kind is, to the letter, the one that Celery would have built."""

from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from kombu import Exchange, Queue
from kombu.utils import json as kombu_json

from jobhandle_celery import Job
from jobhandle_celery.broker import messages
from jobhandle_celery.broker.messages import Messages
from jobhandle_celery.store import PendingMessage
from tests.apps import make_app

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
QUEUES = [
    Queue("default", Exchange(""), routing_key="default"),
    Queue("images", Exchange("media", "topic"), routing_key="image.#"),
    Queue("urgent", Exchange(""), routing_key="urgent", queue_arguments={"x-max-priority": 9}),
]
KINDS: dict[str, dict[str, Any]] = {
    "plain": {},
    "a queue that nobody has declared": {"queue": "other"},
    "a queue with arguments and a priority": {"queue": "urgent", "priority": 7},
    "an exchange of its own": {"queue": "images", "routing_key": "image.small"},
    "limits": {"time_limit": 60, "soft_time_limit": 50},
    "a shadow, and headers": {"shadow": "nice name", "headers": {"trace": "abc"}},
    "words of its own": {"argsrepr": "(a file)", "kwargsrepr": "{'a': 'file'}"},
    "no result": {"ignore_result": True},
    "something sensitive": {"sensitive": ["a", 0]},
}


def anything(*args: Any, **kwargs: Any) -> None:
    """Take whatever comes."""


def an_app(broker_url: str = "memory://", **settings: Any) -> Any:
    app: Any = make_app(
        broker_url, None, {"task_queues": QUEUES, "task_default_queue": "default", **settings}
    )
    app.task(name="tests.anything")(anything)
    return app


def outgoing(app: Any, options: dict[str, Any], args: list[Any], kwargs: dict[str, Any]) -> PendingMessage:
    from jobhandle_celery.broker.routing import Routing
    from jobhandle_celery.broker.signatures import as_job

    job, further = as_job(app.tasks["tests.anything"].s(*args, **kwargs).set(**options))
    assert isinstance(job, Job)
    routed = Routing(app).route(job, further, "an id")
    return PendingMessage(
        job_id=42,
        task_id="0e7ba2ae-5ccd-4d2b-a8e5-0a2d8bc0a0b6",
        task="tests.anything",
        attempt=3,
        args=kombu_json.dumps(routed.args),
        kwargs=kombu_json.dumps(routed.kwargs),
        queue=routed.queue,
        routing=routed.text,
        priority=routed.priority,
        time_limit=job.time_limit,
        soft_time_limit=job.soft_time_limit,
        retry=None,
        publish_count=0,
        republish_deferrals=0,
        status=None,  # type: ignore[arg-type]  # nobody asks
    )


def built(app: Any, one: PendingMessage) -> tuple[str, dict[str, Any]]:
    """What kombu's producer is given for the first message of its kind."""
    return copied(Messages(app), one)


def copied(of: Messages, one: PendingMessage) -> tuple[str, dict[str, Any]]:
    ready = of.ready(one)
    return ready.body, dict(ready.options)


@pytest.mark.parametrize("kind", KINDS)
def test_a_copy_is_what_celery_would_have_built(kind: str) -> None:
    app = an_app(task_compression="gzip" if kind == "limits" else None)
    of_one_kind = Messages(app)
    # The first of its kind, which is built, was another job's.
    other = outgoing(app, KINDS[kind], ["other", 1], {"a": "else"})
    of_one_kind.ready(replace(other, job_id=7, task_id="another", attempt=1))
    for args, kwargs in (
        [["a.tif", 96], {"a": 1}],
        [[], {}],
        [["it's", "\\", "\n", "é" * 2000, 2**70], {"a": [1.5, None]}],
    ):
        one = outgoing(app, KINDS[kind], args, kwargs)  # type: ignore[arg-type]  # a list of both
        assert copied(of_one_kind, one) == built(app, one)


@given(
    args=st.lists(VALUES, max_size=3), kwargs=st.dictionaries(st.sampled_from(["a", "b", "job_id"]), VALUES)
)
def test_a_copy_has_any_arguments_as_celery_would_have_written_them(
    args: list[Any], kwargs: dict[str, Any]
) -> None:
    one = outgoing(APP, {}, args, kwargs)
    assert copied(COPIES, one) == built(APP, one)


APP = an_app()
COPIES = Messages(APP)


def test_what_is_shown_fits_into_its_limit_and_is_found_by_the_jobs_id() -> None:
    for kwargs in ({}, {"a": "x" * 5000}, {"a": "it's"}, {"job_id": 7}):
        headers = copied(COPIES, outgoing(APP, {}, ["y" * 5000], kwargs))[1]["headers"]
        assert len(headers["argsrepr"]) <= APP.amqp.argsrepr_maxsize + 10
        assert headers["kwargsrepr"].startswith("{'job_id': 42")


def test_each_message_is_sent_by_itself_if_an_event_follows_it() -> None:
    assert not Messages(an_app()).one_by_one
    assert Messages(an_app(task_send_sent_event=True)).one_by_one


def test_kinds_without_end_are_not_kept_without_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(messages, "MOST_KINDS", 10)
    app = an_app()
    kinds = Messages(app)
    for number in range(25):
        kinds.ready(outgoing(app, {"queue": f"queue-{number}"}, [], {}))
    assert len(kinds._kinds) <= 10
