"""`RedisTransport` pushes the same as kombu."""

import json
from contextlib import closing
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import pytest
from kombu import Exchange, Queue
from kombu.transport import redis as redis_transport
from kombu.utils import json as kombu_json

from jobhandle_celery.broker.connection import BrokerConnection
from jobhandle_celery.broker.messages import MessageBuilder
from jobhandle_celery.broker.stored_options import join
from tests.broker.pending import OPTIONS, an_app, pushed, send, templates, three

PUBLISHED_BY_KOMBU = {"an exchange of its own"}
"""kombu asks Redis for the queues of an exchange, which may change."""


@pytest.mark.parametrize("prefix", ["", "ours:"])
@pytest.mark.parametrize("case", OPTIONS)
def test_pushed_message_equals_kombus(case: str, prefix: str, redis_url: str) -> None:
    app = an_app(redis_url, broker_transport_options={"global_keyprefix": prefix})
    jobs, builder = three(app, OPTIONS[case]), MessageBuilder(app)
    with closing(BrokerConnection(app)) as connection:
        send(connection, builder, jobs)
        assert templates(connection) == []  # kombu has declared the queue
        send(connection, builder, jobs)
        (template,) = templates(connection)
        for job in jobs:
            send(connection, builder, [job])
    assert (template is None) == (case in PUBLISHED_BY_KOMBU)
    with closing(BrokerConnection(app, fast_publish=False)) as connection:
        send(connection, builder, jobs)
    messages = pushed(redis_url)
    tags = {message["properties"].pop("delivery_tag") for _, message in messages}
    assert len(tags) == len(messages)
    assert messages == 4 * messages[: len(jobs)]


EXPIRES = pytest.param(
    "a queue that expires",
    marks=pytest.mark.skipif(
        not hasattr(redis_transport, "MIN_BINDING_TTL"), reason="kombu's queues on Redis expire from 5.7 on"
    ),
)


@pytest.mark.parametrize("case", ["compressed", EXPIRES, "fanout"])
def test_message_that_is_no_single_lpush_is_published_by_kombu(case: str, redis_url: str) -> None:
    queues = {
        "compressed": Queue("q"),
        "a queue that expires": Queue("q", expires=600),
        "fanout": Queue("q", Exchange("q", "fanout")),
    }
    app = an_app(
        redis_url,
        task_queues=[queues[case]],
        task_default_queue="q",
        task_compression="gzip" if case == "compressed" else None,
    )
    jobs, builder = three(app, {}), MessageBuilder(app)
    with closing(BrokerConnection(app)) as connection:
        for _ in range(2):
            send(connection, builder, jobs)
        assert templates(connection) == [None]
        if case != "fanout":
            assert len(pushed(redis_url)) == 2 * len(jobs)


def test_jobs_of_several_templates_keep_their_order(redis_url: str) -> None:
    app = an_app(redis_url)
    builder = MessageBuilder(app)
    plain, urgent = three(app, {}), three(app, OPTIONS["a queue with arguments and a priority"])
    jobs = [job for both in zip(plain, urgent, strict=True) for job in both]
    with closing(BrokerConnection(app)) as connection:
        for _ in range(2):
            send(connection, builder, jobs)
        assert len(templates(connection)) == 2
    ids = [message["headers"]["id"] for _, message in pushed(redis_url)]
    assert ids == [f"{number:08}" for number in (1, 2, 3)] * 4


@pytest.mark.parametrize("first", ["plain", "step", "member"])
def test_pushed_headers_of_a_canvas_do_not_depend_on_the_first_message(first: str, redis_url: str) -> None:
    """Jobs inside and outside of canvases have one template of Celery's, but not the same headers."""
    app = an_app(redis_url)
    builder = MessageBuilder(app)
    places: dict[str, dict[str, Any]] = {
        "plain": {},
        "step": {"parent_id": "p", "root_id": "r"},
        "member": {"parent_id": "p", "root_id": "r", "group_id": "g", "group_index": 1},
    }
    jobs = {
        name: replace(job, routing=join(job.routing, tree=place) if place else job.routing)
        for (name, place), job in zip(places.items(), three(app, {}), strict=True)
    }
    messages = [builder.build(job) for job in (jobs.pop(first), *jobs.values())]
    assert len({id(message.template) for message in messages}) == 1
    with closing(BrokerConnection(app)) as connection:
        connection.send(messages[:1])  # kombu declares the queue
        connection.send(messages)
        assert len(templates(connection)) == 3
    assert [message["headers"] for _, message in pushed(redis_url)[1:]] == [
        message.headers for message in messages
    ]


def test_jobs_with_custom_headers_of_their_own_have_one_template(redis_url: str) -> None:
    """As each job has that a tracer has seen; some are named as fields of a message."""
    app = an_app(redis_url)
    builder = MessageBuilder(app)
    headers = [
        {
            "traceparent": f"00-{day}",
            "headers": {"sentry-trace": day},
            "body": day,
            "correlation_id": str(day),
        }
        | {"delivery_tag": None, "at": datetime(2026, 1, day, tzinfo=UTC)}
        for day in (1, 2, 3)
    ]
    jobs = [
        replace(job, routing=join(job.routing, tree={"root_id": "r"}, headers=own))
        for job, own in zip(three(app, {}), headers, strict=True)
    ]
    messages = [builder.build(job) for job in jobs]
    assert len({id(message.template) for message in messages}) == 1
    with closing(BrokerConnection(app)) as connection:
        connection.send(messages[:1])  # kombu declares the queue
        connection.send(messages)
        assert len(templates(connection)) == 1
    sent = [kombu_json.loads(json.dumps(message)) for _, message in pushed(redis_url)]
    assert [message["properties"]["correlation_id"] for message in sent[1:]] == [job.task_id for job in jobs]
    for message, own in zip(sent[1:], headers, strict=True):
        assert {name: message["headers"][name] for name in own} == own
        assert message["headers"]["root_id"] == "r"
