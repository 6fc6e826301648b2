"""A contract with amqp, as tests/test_celery_compat.py has them of others."""

from collections.abc import Iterator
from typing import Any

import amqp
import pytest
from kombu import Connection, Producer
from kombu.transport import pyamqp

from jobhandle_celery import celery_compat
from tests.patches import PATCHES

pytestmark = pytest.mark.faults


@pytest.fixture
def connection(rabbitmq_url: str) -> Iterator[Any]:
    with Connection(rabbitmq_url, transport_options={"confirm_publish": True}) as connection:
        yield connection


def confirm_channel(connection: Any) -> tuple[Any, list[int]]:
    acknowledged: list[int] = []
    channel = celery_compat.open_confirm_channel(
        connection.connection, lambda number, multiple: acknowledged.append(number), lambda *_: None
    )
    return channel, acknowledged


def test_amqp_confirms_by_events_and_publishes_by_attribute(connection: Any) -> None:
    """Otherwise `AmqpTransport` falls back to kombu: one round trip for each message."""
    channel, acknowledged = confirm_channel(connection)
    channel.basic_publish(amqp.Message("text"), "", "nowhere", confirm_timeout=1)
    assert not acknowledged
    connection.drain_events(timeout=10)
    assert acknowledged == [1]


def test_amqp_writes_frames_by_an_attribute_and_its_transport(connection: Any) -> None:
    """Otherwise a message with placeholders is published, and `AmqpTransport` falls back to kombu."""
    channel, acknowledged = confirm_channel(connection)
    queue, *_ = channel.queue_declare(exclusive=True)
    frames = celery_compat.record_frames(
        channel, lambda: channel.basic_publish(amqp.Message("text"), "", queue)
    )
    celery_compat.write_frames(channel, frames * 2)
    while len(acknowledged) < 2 and acknowledged != [2]:  # singly, or both at once
        connection.drain_events(timeout=10)
    assert [channel.basic_get(queue).body for _ in range(2)] == ["text", "text"]
    assert channel.basic_get(queue) is None


def test_frames_are_not_written_to_a_closed_connection(connection: Any) -> None:
    channel, _ = confirm_channel(connection)
    connection.collect()
    with pytest.raises(amqp.RecoverableConnectionError):
        celery_compat.write_frames(channel, b"")


@pytest.mark.parametrize("patched", PATCHES)
def test_message_to_rabbitmq_passes_known_methods(
    connection: Any, monkeypatch: pytest.MonkeyPatch, patched: Any
) -> None:
    """Otherwise no message to RabbitMQ is published by a template, or a tool's patch is bypassed."""
    producer = Producer(confirm_channel(connection)[0])
    assert celery_compat.publishes_by_kombu(producer)
    methods: list[tuple[Any, str]] = [(Producer, name) for name in celery_compat._PRODUCER_METHODS]
    methods += [(pyamqp.Channel, name) for name in celery_compat._AMQP_METHODS]
    for kind, name in (*methods, (amqp.Channel, "basic_publish")):
        with monkeypatch.context() as patch:
            patch.setattr(kind, name, patched(getattr(kind, name)))
            assert not celery_compat.publishes_by_kombu(producer), name
