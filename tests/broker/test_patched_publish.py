"""Headers that a tool adds while kombu publishes a message stay in that message only (fault 11)."""

from contextlib import closing
from typing import Any

import pytest
import redis
from kombu import Producer
from kombu.transport.redis import Channel

from jobhandle_celery import celery_compat
from jobhandle_celery.broker.connection import BrokerConnection
from jobhandle_celery.broker.messages import MessageBuilder
from tests.broker.pending import add_request_numbers, an_app, pushed, send, templates, three


def requests(redis_url: str) -> set[str]:
    return {message["headers"]["request"] for _, message in pushed(redis_url)}


@pytest.mark.parametrize(
    ("owner", "name"),
    [(Producer, "publish"), (Producer, "_publish"), (Channel, "prepare_message")],
)
def test_header_added_by_patched_method_is_each_messages_own(
    owner: Any, name: str, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    add_request_numbers(owner, name, monkeypatch)
    app = an_app(redis_url)
    jobs, builder = three(app, {}), MessageBuilder(app)
    with closing(BrokerConnection(app)) as connection:
        for _ in range(3):
            send(connection, builder, jobs)
    assert len(requests(redis_url)) == len(pushed(redis_url)) == 9


def test_method_patched_after_first_message_takes_effect(
    redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    app = an_app(redis_url)
    jobs, builder = three(app, {}), MessageBuilder(app)
    with closing(BrokerConnection(app)) as connection:
        for _ in range(2):
            send(connection, builder, jobs)
        assert templates(connection) != [None]
        add_request_numbers(Producer, "publish", monkeypatch)
        with redis.Redis.from_url(redis_url) as client:
            client.flushdb()
        send(connection, builder, jobs)
    assert len(requests(redis_url)) == len(pushed(redis_url)) == 3


def test_recorded_message_with_added_header_makes_no_template(
    redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A separate guard: a header may be added by code other than the checked methods."""
    add_request_numbers(Producer, "publish", monkeypatch)
    monkeypatch.setattr(celery_compat, "publishes_by_kombu", lambda _: True)
    app = an_app(redis_url)
    jobs, builder = three(app, {}), MessageBuilder(app)
    with closing(BrokerConnection(app)) as connection:
        for _ in range(2):
            send(connection, builder, jobs)
        assert templates(connection) == [None]
