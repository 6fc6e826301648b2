"""What Redis is given for a message that fills a stencil is what kombu would have given it."""

import json
from contextlib import closing
from dataclasses import replace
from typing import Any

import pytest
import redis
from kombu import Exchange, Queue
from kombu.transport import redis as redis_transport

from jobhandle_celery.broker.connection import BrokerConnection
from jobhandle_celery.broker.messages import Messages
from jobhandle_celery.store import PendingMessage
from tests.broker.test_messages import KINDS, an_app, outgoing

KOMBUS_WAY = {"an exchange of its own"}
"""Which queues its messages go to is asked of Redis, and may change."""


def held(redis_url: str) -> list[tuple[str, Any]]:
    """All messages in the order in which they were sent, each after its list's name."""
    with redis.Redis.from_url(redis_url, decode_responses=True) as client:
        lists = sorted(key for key in client.scan_iter() if client.type(key) == "list")
        return [(key, json.loads(text)) for key in lists for text in reversed(client.lrange(key, 0, -1))]


def sent(line: BrokerConnection, of: Messages, jobs: list[PendingMessage]) -> None:
    line.send_together([of.ready(one) for one in jobs])


def sent_alone(line: BrokerConnection, of: Messages, one: PendingMessage) -> None:
    line.send(of.ready(one))


def three(app: Any, options: dict[str, Any]) -> list[PendingMessage]:
    given: list[tuple[list[Any], dict[str, Any]]] = [
        (["a.tif", 96], {"a": 1}),
        ([], {}),
        (['it\'s "é"', "\\", "\n%s{0}", 2**70], {"a": [1.5, None]}),
    ]
    return [
        replace(outgoing(app, options, args, kwargs), job_id=number, task_id=f"{number:08}")
        for number, (args, kwargs) in enumerate(given, 1)
    ]


@pytest.mark.parametrize("prefix", ["", "ours:"])
@pytest.mark.parametrize("kind", KINDS)
def test_redis_is_given_what_kombu_would_have_given(kind: str, prefix: str, redis_url: str) -> None:
    app = an_app(redis_url, broker_transport_options={"global_keyprefix": prefix})
    jobs, of = three(app, KINDS[kind]), Messages(app)
    with closing(BrokerConnection(app)) as line:
        sent(line, of, jobs)
        assert not line._stencils  # its queue was not declared yet
        sent(line, of, jobs)
        (stencil,) = line._stencils.values()
        for one in jobs:
            sent_alone(line, of, one)
    assert (stencil is None) == (kind in KOMBUS_WAY)
    messages = held(redis_url)
    tags = {message["properties"].pop("delivery_tag") for _, message in messages}
    assert len(tags) == len(messages)
    assert messages == 3 * messages[: len(jobs)]


EXPIRES = pytest.param(
    "a queue that expires",
    marks=pytest.mark.skipif(
        not hasattr(redis_transport, "MIN_BINDING_TTL"), reason="kombu's queues on Redis expire from 5.7 on"
    ),
)


@pytest.mark.parametrize("why", ["compressed", EXPIRES, "everybody's"])
def test_what_is_more_than_one_text_in_one_list_goes_kombus_way(why: str, redis_url: str) -> None:
    queues = {
        "compressed": Queue("q"),
        "a queue that expires": Queue("q", expires=600),
        "everybody's": Queue("q", Exchange("q", "fanout")),
    }
    app = an_app(
        redis_url,
        task_queues=[queues[why]],
        task_default_queue="q",
        task_compression="gzip" if why == "compressed" else None,
    )
    jobs, of = three(app, {}), Messages(app)
    with closing(BrokerConnection(app)) as line:
        for _ in range(2):
            sent(line, of, jobs)
        assert list(line._stencils.values()) == [None]
        if why != "everybody's":
            assert len(held(redis_url)) == 2 * len(jobs)


def test_jobs_of_many_kinds_keep_their_order(redis_url: str) -> None:
    app = an_app(redis_url)
    of = Messages(app)
    plain, urgent = three(app, {}), three(app, KINDS["a queue with arguments and a priority"])
    jobs = [job for both in zip(plain, urgent, strict=True) for job in both]
    with closing(BrokerConnection(app)) as line:
        for _ in range(2):
            sent(line, of, jobs)
        assert len(line._stencils) == 2
    ids = [message["headers"]["id"] for _, message in held(redis_url)]
    assert ids == [f"{number:08}" for number in (1, 2, 3)] * 4
