"""Messages carry each its own of what something adds on kombu's way to the broker (fault 11)."""

import itertools
from contextlib import closing
from typing import Any

import pytest
import redis
from kombu import Producer
from kombu.transport.redis import Channel

from jobhandle_celery.broker.connection import BrokerConnection
from jobhandle_celery.broker.messages import Messages
from tests.broker.test_messages import an_app
from tests.broker.test_stencil import held, sent, three


def numbered(owner: Any, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have a method add a header that belongs to one message."""
    numbers, original = itertools.count(), getattr(owner, name)

    def patched(self: Any, *args: Any, **options: Any) -> Any:
        headers = options.get("headers")
        if headers is None:
            headers = next(value for value in args if isinstance(value, dict) and "task" in value)
        headers["request"] = f"request-{next(numbers)}"
        return original(self, *args, **options)

    monkeypatch.setattr(owner, name, patched)


@pytest.mark.parametrize(
    ("owner", "name"),
    [
        (Producer, "publish"),
        (Producer, "_publish"),
        (Channel, "prepare_message"),
    ],
)
def test_no_two_messages_carry_what_a_patched_method_added_to_one(
    owner: Any, name: str, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    numbered(owner, name, monkeypatch)
    app = an_app(redis_url)
    jobs, of = three(app, {}), Messages(app)
    with closing(BrokerConnection(app)) as line:
        for _ in range(3):
            sent(line, of, jobs)
    requests = [message["headers"]["request"] for _, message in held(redis_url)]
    assert len(set(requests)) == len(requests) == 9


def test_a_method_that_is_patched_later_has_its_say_from_then_on(
    redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    app = an_app(redis_url)
    jobs, of = three(app, {}), Messages(app)
    with closing(BrokerConnection(app)) as line:
        for _ in range(2):
            sent(line, of, jobs)
        assert list(line._stencils.values()) != [None]
        numbered(Producer, "publish", monkeypatch)
        with redis.Redis.from_url(redis_url) as client:
            client.flushdb()
        sent(line, of, jobs)
    requests = [message["headers"]["request"] for _, message in held(redis_url)]
    assert len(set(requests)) == len(requests) == 3


def test_there_is_no_template_where_more_arrives_than_was_given(
    redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A guard of its own: what adds need not be a method that is looked at."""
    from jobhandle_celery.broker import redis_transport

    numbered(Producer, "publish", monkeypatch)
    monkeypatch.setattr(redis_transport, "is_kombus_own", lambda _: True)
    app = an_app(redis_url)
    jobs, of = three(app, {}), Messages(app)
    with closing(BrokerConnection(app)) as line:
        monkeypatch.setattr("jobhandle_celery.broker.connection.is_kombus_own", lambda _: True)
        for _ in range(2):
            sent(line, of, jobs)
        assert list(line._stencils.values()) == [None]
